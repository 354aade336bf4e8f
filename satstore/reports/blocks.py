"""Where layers lie among the blocks of a network, and how figures, tables and the terminal app group them."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from satstore.config.latent_keys import ProbeKey
from satstore.runs.manifest import LayerRecord, Manifest

WHOLE = "whole block"
"""The part of a block's own output; with a space, which no module's name has."""

OUTSIDE = "outside of blocks"
"""Stands for the layers of no block, where no block's own output is drawn beside them."""

MOST_PARTS = 6
"""The parts that are drawn: as many as there are colours and markers that people tell apart."""


@dataclass(frozen=True)
class BlockPlace:
    """A layer's place among the blocks.

    Attributes
    ----------
    block
        The name of its block; empty for a layer of no block.
    part
        Its name within the block, such as ``attn`` or ``mlp.fc1``; `WHOLE` for the block itself, and empty
        for a layer of no block.
    depth
        The place of its block among the blocks and the layers of no block, counted from 0.
    """

    block: str
    part: str
    depth: int


Places = Mapping[str, BlockPlace]
"""Layer to its place."""


def place_layers(manifest: Manifest) -> dict[str, BlockPlace] | None:
    """Return the place of each layer of a run; None where layers are shown in a row, as those of a CNN are.

    Layers are grouped if the config names modules or some layer has tokens, and if some layer is in a block.
    """
    records = manifest.layers
    wanted = manifest.config.get("modules") or any(record.form == "tokens" for record in records)
    if not wanted or not any(record.block for record in records):
        return None
    depths: dict[str, int] = {}
    return {
        record.layer: BlockPlace(
            record.block, _name_part(record), depths.setdefault(record.block or record.layer, len(depths))
        )
        for record in records
    }


def _name_part(record: LayerRecord) -> str:
    """Return a layer's name within its block: ``attn``; of a second call of the block, ``whole block@1``."""
    rest = record.layer.removeprefix(record.block)
    if not record.block:
        return ""
    return rest[1:] if rest.startswith(".") else f"{WHOLE}{rest}"


def group_parts(places: Places, layers: Iterable[str]) -> dict[str, list[str]]:
    """Return layers by the curve that they are part of, in forward order, one layer at each depth.

    Whole blocks come first, with the layers of no block, which begin and end the same path; then the parts
    that most blocks have, ``mlp`` before ``mlp.fc1``. Without whole blocks, the layers of no block come last,
    as `OUTSIDE`.
    """
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(places[layer].part, []).append(layer)
    outside = found.pop("", [])
    order = sorted(found, key=lambda part: (part != WHOLE, -len(found[part]), part.count(".")))
    grouped = {part: found[part] for part in order}
    if outside and WHOLE in grouped:
        grouped[WHOLE] = sorted([*grouped[WHOLE], *outside], key=lambda layer: places[layer].depth)
    elif outside:
        grouped[OUTSIDE] = outside
    return grouped


def main_layers(manifest: Manifest, layers: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of the part that stands for a run where there is room for one curve, and its layers.

    Of layers in a row these are all, and the name is empty. Of blocks, they are the layers of no block and
    the whole blocks, or else the part that most blocks have; of several the last, which is nearest to the
    block's output.
    """
    places = place_layers(manifest)
    if places is None:
        return "", list(layers)
    grouped = group_parts(places, layers)
    outside = grouped.pop(OUTSIDE, [])
    parts = list(grouped)
    part = max(parts, key=lambda p: (p == WHOLE, len(grouped[p]), -p.count("."), parts.index(p)), default="")
    chosen = {*grouped.get(part, ()), *outside}
    return part, [layer for layer in layers if layer in chosen]


def number_depths(manifest: Manifest, layers: Sequence[str]) -> list[int]:
    """Return each layer's depth, from 0 at the first: its block's, or its number among layers in a row."""
    places = place_layers(manifest)
    depths = list(range(len(layers))) if places is None else [places[layer].depth for layer in layers]
    return [depth - min(depths) for depth in depths]


def name_depths(places: Places) -> tuple[str, list[str]]:
    """Return what the blocks' names have in common, and the name of each depth without it.

    ``blocks.0`` and ``blocks.1`` have ``blocks.``, and are called 0 and 1. A layer of no block has its name.
    """
    blocks = list(dict.fromkeys(place.block for place in places.values() if place.block))
    common = os.path.commonprefix(blocks).rstrip("0123456789")  # noqa: RUF071 - of letters
    if not all(block[len(common) :][:1].isdigit() for block in blocks):
        common = common[: common.rfind(".") + 1]
    names = {place.depth: place.block[len(common) :] or layer for layer, place in places.items()}
    return common, [names[depth] for depth in sorted(names)]


def name_once(places: Places, layers: Sequence[str]) -> list[tuple[str, str]]:
    """Return the block and the part of each line of a table: the block's name in its first line only.

    A layer of no block has its name for a block's, and no part.
    """
    lines, before = [], ""
    for layer in layers:
        block = places[layer].block or layer
        lines.append(("" if block == before else block, places[layer].part))
        before = block
    return lines


def label_layers(manifest: Manifest, layers: Sequence[str]) -> list[str]:
    """Return a label for each place of an axis; of a block, its name in the middle of its layers only."""
    places = place_layers(manifest)
    if places is None:
        return list(layers)
    labels: list[str] = []
    for block, inside in itertools.groupby(layers, lambda layer: places[layer].block or layer):
        n = len(list(inside))
        labels += [block if place == n // 2 else "" for place in range(n)]
    return labels


def describe_output(record: LayerRecord) -> str:
    """Return the form and the shape of a layer's outputs: ``tokens 197 × 768``."""
    return f"{record.form} {' × '.join(map(str, record.output_shape))}".lstrip()


def choose_table(form: str, tables: Sequence[ProbeKey]) -> ProbeKey | None:
    """Return the first table of probes that a layer of a form may be in; None if there is none.

    Layers of tokens have probes on token modes, all others first of all on poolings.
    """
    fitting = [key for key in tables if key.latents.is_of_tokens == (form == "tokens")]
    return next(iter([*fitting, *tables]), None)
