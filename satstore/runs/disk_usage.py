"""Disk usage of experiments, and removing latents to free disk space."""

import json
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatch
from urllib.parse import unquote

from satstore.config.latent_keys import EPOCHS, SPLITS, LatentsKey
from satstore.errors import CorruptError, NotFoundError, SatstoreError
from satstore.runs.manifest import LATENTS, Manifest, checkpoint_name
from satstore.runs.repair import describe_recorded, record_call
from satstore.runs.run import Run
from satstore.storage.location import Folder, Location
from satstore.storage.safe_names import as_key

UsageKey = tuple[LatentsKey | None, str, str]
"""Key, split and layer of what is stored: None and ``""`` for what belongs to none."""


@dataclass(frozen=True)
class DiskUsage:
    """Disk usage of an experiment, in bytes.

    Latents are by key, split and layer, layers in forward order; what belongs to no layer, such as labels, is
    under ``""``, so is the split of what belongs to no split, and the store's own metadata are under None.
    """

    latents: dict[UsageKey, int] = field(default_factory=dict)
    analysis_bytes: int = 0
    checkpoint_bytes: int = 0
    other_bytes: int = 0

    @property
    def by_key(self) -> dict[LatentsKey | None, int]:
        """Bytes of latents by key, and of the store's own metadata under None."""
        found: Counter[LatentsKey | None] = Counter()
        for (key, _, _), size_bytes in self.latents.items():
            found[key] += size_bytes
        return {key: found[key] for key in sorted(found, key=lambda key: str(key or ""))}

    @property
    def total_bytes(self) -> int:
        """The sum of all."""
        return sum(self.latents.values()) + self.analysis_bytes + self.checkpoint_bytes + self.other_bytes


def measure_disk_usage(run: Run) -> DiskUsage:
    """Return an experiment's disk usage: the sizes of its files, committed or not."""
    location = run.latents_location
    inside = str(location).startswith(f"{run.path}/")
    latents = f"{str(location).removeprefix(f'{run.path}/')}/"
    sizes = Folder(run.path).sizes()
    rest = {key: n for key, n in sizes.items() if not (inside and key.startswith(latents))}
    analysis_bytes = sum(n for key, n in rest.items() if key.startswith(f"{run.analysis_path.name}/"))
    checkpoint_bytes = sum(n for key, n in rest.items() if fnmatch(key, "checkpoint*.pt"))
    return DiskUsage(
        latents=_measure_latents(run, location),
        analysis_bytes=analysis_bytes,
        checkpoint_bytes=checkpoint_bytes,
        other_bytes=sum(rest.values()) - analysis_bytes - checkpoint_bytes,
    )


def _measure_latents(run: Run, location: Location) -> dict[UsageKey, int]:
    found: Counter[UsageKey] = Counter()
    for path, size_bytes in location.sizes().items():
        found[_place(path)] += size_bytes
    places = {place: _layer_name(location, *place) for place in found}
    order = {layer: index for index, layer in enumerate(run.layers)}

    def rank(place: UsageKey) -> tuple[str, bool, int]:
        return str(place[0] or ""), place[1] != SPLITS[0], order.get(places[place], -1)

    return {(*place[:2], places[place]): found[place] for place in sorted(found, key=rank)}


def _place(path: str) -> UsageKey:
    """Return the key, split and encoded layer of a stored object by its path."""
    for split in SPLITS:
        above, found, rest = f"/{path}".partition(f"/{split}/")
        if found:
            layer, _, below = rest.partition("/")
            is_array = layer in ("label", "sample_id") or not below
            return _key_of(above.removeprefix("/")), split, "" if is_array else layer
    group = path.rpartition("/")[0]
    is_shared = group.startswith(EPOCHS) and group.count("/") < 2  # by the poolings below
    return _key_of("" if is_shared else group), "", ""


def _key_of(group: str) -> LatentsKey | None:
    return LatentsKey.parse(group) if group else None


def _layer_name(location: Location, key: LatentsKey | None, split: str, name: str) -> str:
    """Decode a layer's name from its group's; of a shortened name, read it from the group's attributes."""
    if "~" not in name:
        return unquote(name)
    try:
        group = json.loads(location.read(as_key(f"{key or ''}/{split}/{name}/zarr.json")))
        return str(group["attributes"]["layer"])
    except (SatstoreError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return name


def latents_bytes(run: Run) -> int:
    """Return the disk usage of an experiment's latents, in bytes."""
    return sum(run.latents_location.sizes().values())


def check_removable(run: Run) -> None:
    """Check that a run's latents could be extracted again.

    Raises NotFoundError if the checkpoint of the last epoch, or of an epoch with stored latents, is missing,
    and CorruptError if one is not what was committed.
    """
    if run.is_recorded:
        raise NotFoundError(
            f"{run.name} was recorded of {describe_recorded(run)}: its latents could not be extracted again, "
            f"so they stay; to record it anew: {record_call(run)}"
        )
    for epoch in dict.fromkeys([None, *(key.epoch for key in run.manifest.latents)]):
        name = checkpoint_name(epoch)
        if not run.has_file(name):
            raise NotFoundError(
                f"{run.name} has no {name}: its latents could not be extracted again, so they stay"
            )
        run.read_file(name)


def check_own(run: Run, location: Location) -> None:
    """Check that a store outside the run folder belongs to the run: a manifest may have been tampered with.

    Raises CorruptError if it belongs to another run, or is no store of latents.
    """
    if run.manifest.latents_path == LATENTS or not location.sizes():
        return
    try:
        attributes = json.loads(location.read(as_key("zarr.json")))["attributes"]
        found = (str(attributes["run_id"]), str(attributes["experiment"]))
    except (SatstoreError, OSError, ValueError, LookupError, TypeError):
        found = ("", "")
    if found != (run.manifest.run_id, run.manifest.experiment):
        whose = f"those of {'/'.join(found)}" if any(found) else "no store of latents"
        raise CorruptError(
            f"{location} holds {whose}, not those of {run.name}, as its manifest says: nothing was removed"
        )


def remove_latents(run: Run) -> int:
    """Remove a run's latents, and return the freed bytes.

    The manifest's records are removed first; they become ``re_extractable``. An interrupted removal leaves
    files that count as not written; removing again removes them. Raises LockedError if another process writes
    the experiment; see also :func:`check_removable` and :func:`check_own`.
    """
    with run.lock():
        check_removable(run)
        check_own(run, run.latents_location)
        location = run.writable_latents()
        run.commit(change=Manifest.release_latents)
        run.commits.remove(location.name)
        return location.remove()
