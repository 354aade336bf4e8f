"""Which latents an extraction is asked for, and which of them are missing or damaged."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError, NotFoundError
from satstore.runs.manifest import LatentsRecord, checkpoint_name
from satstore.runs.run import Run
from satstore.stages.selection import latents_of
from satstore.storage.commit_log import Damage, is_anything
from satstore.storage.files import Digest
from satstore.storage.location import Location
from satstore.storage.safe_names import Key, as_key


@dataclass
class PoolingPlan:
    """What is to be done for one pooling of one epoch.

    Attributes
    ----------
    layers
        Those asked for, in forward order.
    is_anew
        Whether all that is stored of it goes: it is of other weights, or rounded otherwise.
    mantissa_bits
        What it is rounded to.
    missing
        Split to the layers that are to be written, or mended.
    damage
        Files that are not what was committed.
    """

    key: LatentsKey
    layers: list[str]
    is_anew: bool
    mantissa_bits: int
    missing: dict[str, list[str]] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)

    def missing_places(self) -> list[tuple[str, str]]:
        """Return the missing layers, each with its split before it."""
        return [(split, layer) for split, layers in self.missing.items() for layer in layers]


def plan_latents(run: Run, parameters: Any) -> list[PoolingPlan]:
    """Find what an extraction has to do, epoch by epoch and pooling by pooling.

    Raises
    ------
    ConfigError
        If no layer is asked for, an epoch was not trained, or the stored latents are rounded otherwise.
    NotFoundError
        If the weights after an epoch were not kept.
    """
    plans = []
    for key, layers in latents_of(run, parameters).items():
        plan = _begin(run, parameters, key, layers)
        record = run.manifest.latents.get(key)
        if record is not None and not plan.is_anew:
            plan.damage = list(find_damage(run, key, content=parameters.check))
        known = None if plan.is_anew or parameters.overwrite else record
        for split in parameters.splits:
            stored = record_of(run, known, split) if known else ()
            damaged = {layer for layer in plan.layers if is_hit(plan.damage, key, split, layer)}
            missing = [layer for layer in plan.layers if layer not in stored or layer in damaged]
            if missing:
                if known and not known.has_checkpoint:
                    raise ConfigError(
                        f"the latents {key} of {run.name} are of unknown weights, and {missing[0]} of "
                        f"{split} is not whole or not among them; to write all of them anew: --overwrite"
                    )
                plan.missing[split] = missing
        plans.append(plan)
    return plans


def record_of(run: Run, record: LatentsRecord, split: str) -> Collection[str]:
    """Return the layers that a record holds of a split; one of an earlier version held all."""
    return record.layers.get(split, {}) if record.layers else run.layers


def _begin(run: Run, parameters: Any, key: LatentsKey, layers: list[str]) -> PoolingPlan:
    record = run.manifest.latents.get(key)
    bits = parameters.mantissa_bits
    if record is None:
        removed = run.manifest.re_extractable.get(key)
        stored_bits = removed.mantissa_bits if removed else 10
        return PoolingPlan(key, layers, is_anew=False, mantissa_bits=bits or stored_bits)
    if not record.has_checkpoint:
        return PoolingPlan(key, layers, is_anew=parameters.overwrite, mantissa_bits=bits or 10)
    checkpoint = run.manifest.files.get(checkpoint_name(key.epoch))
    is_stale = checkpoint is None or record.checkpoint_sha256 != checkpoint.sha256
    is_rounded_otherwise = bits is not None and bits != record.mantissa_bits
    if is_rounded_otherwise and not is_stale and not parameters.overwrite:
        raise ConfigError(
            f"the latents {key} of {run.name} have {record.mantissa_bits} mantissa bits, not the {bits} "
            "asked for; to write them anew: --overwrite"
        )
    bits = bits or (10 if is_stale else record.mantissa_bits)
    return PoolingPlan(key, layers, is_stale or is_rounded_otherwise, bits)


def find_damage(run: Run, key: LatentsKey, *, content: bool) -> Iterator[Damage]:
    """Find the files of a key that are not as committed; `content` reads all of them, and emits progress."""
    location = run.latents_location
    committed = run.commits.read(location.name)
    for name in metadata_above(key):
        if name in committed.files and not _holds(location, name, committed.files[name]):
            yield Damage(name, "is not what was committed")
    seen = set()
    for damage in committed.damaged(location, str(key)):
        seen.add(damage.key)
        yield damage
    depth = len(key.groups) + 2  # split and layer
    files = committed.under(str(key))
    groups = sorted({"/".join(k.split("/")[:depth]) for k in files if k.count("/") >= depth})
    for done, group in enumerate(groups if content else (), start=1):
        for damage in committed.damaged(location, group, is_anything):
            if damage.key not in seen:
                yield damage
        run.emit("extract", "progress", f"check {key}", done=done, total=len(groups))


def _holds(location: Location, name: Key, digest: Digest) -> bool:
    try:
        return location.digest(name) == digest
    except NotFoundError:
        return False


def is_hit(damages: Sequence[Damage], key: LatentsKey, split: str, layer: str) -> bool:
    """Tell whether damaged files concern a layer of a split."""
    if not damages:
        return False
    from satstore.storage.zarr.layout import encode_layer

    def concerns(path: str) -> bool:
        if not path.startswith(f"{key}/{split}/"):
            return path in (*metadata_above(key), f"{key}/zarr.json")
        below = path.removeprefix(f"{key}/{split}/").split("/")
        return below[0] in (encode_layer(layer), "label", "sample_id", "zarr.json")

    return any(concerns(damage.key) for damage in damages)


def metadata_above(key: LatentsKey) -> list[Key]:
    """Return the files that describe the store and the groups above a key's."""
    return [as_key("zarr.json"), *(as_key(f"{group}/zarr.json") for group in key.groups[:-1])]


def describe_missing(plans: Sequence[PoolingPlan]) -> list[str]:
    """Say what is missing, in a few words for each key and split."""
    return [
        f"{plan.key.title} {split}"
        if len(layers) == len(plan.layers)
        else f"{', '.join(layers)} of {plan.key.title} {split}"
        for plan in plans
        for split, layers in plan.missing.items()
    ]
