"""Where layers lie among the blocks of a network, and how figures, tables and the terminal app group them."""

import itertools
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from satstore.config.latent_keys import ProbeKey
from satstore.runs.manifest import LayerRecord, Manifest

WHOLE = "whole block"
"""The part of a block's own output; with a space, which no module's name has."""

OUTSIDE = "outside of blocks"
"""Stands for the layers of no block, where no block's own output is drawn beside them."""

MOST_PARTS = 6
"""The parts that are drawn: as many as there are colours and markers that people tell apart."""


LOWEST, HIGHEST = (0.0, 0.25, 0.5, 0.75), (0.1, 0.25, 0.5, 1.02)
"""Where axes may begin and end: the curves of blocks are many, and often close to each other."""

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Every so many blocks have their number on an axis."""


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


K = TypeVar("K")

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


def drawn_parts(places: Places, layers: Iterable[str]) -> dict[str, list[str]]:
    """Return the first MOST_PARTS of the parts, and the layers of no block if these are none of them."""
    grouped = group_parts(places, layers)
    outside = {OUTSIDE: grouped.pop(OUTSIDE)} if OUTSIDE in grouped else {}
    return dict([*grouped.items()][:MOST_PARTS]) | outside


def main_layers(places: Places | None, layers: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of the part that stands for a run where there is room for one curve, and its layers.

    Of layers in a row these are all, and the name is empty. Of blocks, they are the layers of no block and
    the whole blocks, or else the part that most blocks have; of several the last, which is nearest to the
    block's output.
    """
    if places is None:
        return "", list(layers)
    grouped = group_parts(places, layers)
    outside = grouped.pop(OUTSIDE, [])
    parts = list(grouped)
    part = max(parts, key=lambda p: (p == WHOLE, len(grouped[p]), -p.count("."), parts.index(p)), default="")
    chosen = {*grouped.get(part, ()), *outside}
    return part, [layer for layer in layers if layer in chosen]


def number_depths(places: Places | None, layers: Sequence[str]) -> list[int]:
    """Return each layer's depth, from 0 at the first: its block's, or its number among layers in a row."""
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


def choose_limits(values: Iterable[float]) -> tuple[float, float]:
    """Return where an axis of shares begins and ends: as close to the values as there are round numbers."""
    known = [value for value in values if math.isfinite(value)]
    lowest, highest = min(known, default=0.0), max(known, default=1.0)
    low = max(limit for limit in LOWEST if limit <= max(0.0, lowest - 0.02))
    high = min((limit for limit in HIGHEST if limit >= highest + 0.02), default=HIGHEST[-1])
    return (low, high) if low < high else (0.0, high)


def choose_ticks(widths: Mapping[int, float], numbers: Collection[int]) -> list[int]:
    """Return depths whose labels have room: names first, then every n-th of the numbers.

    Parameters
    ----------
    widths
        Depth to the width of its label, in depths.
    numbers
        The depths whose labels are numbers.
    """
    least = max((width for depth, width in widths.items() if depth in numbers), default=1)
    step = next((step for step in STEPS if step >= least), math.ceil(least))
    ticks: list[int] = []
    counted = [depth for depth in widths if depth in numbers][::step]
    for depth in [*(depth for depth in widths if depth not in numbers), *counted]:
        if all(abs(depth - tick) >= (widths[depth] + widths[tick]) / 2 for tick in ticks):
            ticks.append(depth)
    return sorted(ticks)


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


def label_layers(places: Places | None, layers: Sequence[str]) -> list[str]:
    """Return a label for each place of an axis; of a block, its name in the middle of its layers only."""
    if places is None:
        return list(layers)
    labels: list[str] = []
    for block, inside in itertools.groupby(layers, lambda layer: places[layer].block or layer):
        n = len(list(inside))
        labels += [block if place == n // 2 else "" for place in range(n)]
    return labels


def describe_form(record: LayerRecord) -> str:
    """Return the form and the shape of a layer's outputs: ``tokens 197 × 768``."""
    return f"{record.form} {' × '.join(map(str, record.output_shape))}".lstrip()


def sort_tables(accuracy: Mapping[K, Iterable[float | None]]) -> list[K]:
    """Return tables of probes by the number of their layers, the most first: a pooling may have one alone."""
    counts = {key: sum(value is not None and value == value for value in accuracy[key]) for key in accuracy}
    return sorted(counts, key=lambda key: -counts[key])


def choose_table(form: str, tables: Sequence[ProbeKey]) -> ProbeKey | None:
    """Return the first table of probes that a layer of a form may be in; None if there is none.

    Layers of tokens have probes on token modes, all others first of all on poolings.
    """
    fitting = [key for key in tables if key.latents.is_of_tokens == (form == "tokens")]
    return next(iter([*fitting, *tables]), None)
