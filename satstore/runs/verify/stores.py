"""Verification of the two stores: each committed object is read once, compared with the log and decoded."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.config.latent_keys import SPLITS, LatentsKey, ProbeKey
from satstore.errors import CorruptError, NotFoundError
from satstore.runs.manifest import checkpoint_name
from satstore.runs.repair import extract_command, probe_command, repair_command
from satstore.runs.run import Run
from satstore.runs.verify.finding import Finding, note
from satstore.storage.commit_log import Damage, find_file_damage, is_under
from satstore.storage.files import Digest
from satstore.storage.location import Location
from satstore.storage.safe_names import Key, as_key
from satstore.storage.zarr import StoredArray, digest_labels
from satstore.storage.zarr.array_check import Finiteness
from satstore.storage.zarr.latent_reader import NO_LABEL, NO_SAMPLE_ID
from satstore.system.cores import count_cores

COMPARED_ARRAYS = frozenset({"label", "sample_id", "mean", "std"})
"""The small arrays whose values are compared with those of other arrays."""

ARRAY_FORMATS: Mapping[str, tuple[int | None, str]] = {
    "latent": (None, "f"),
    "label": (1, "iu"),
    "sample_id": (1, "iu"),
    "mean": (None, "f"),
    "std": (None, "f"),
}
"""Number of axes (None: any) and kinds of dtype of the arrays whose content is checked."""


@dataclass(frozen=True)
class Part:
    """A committed object, and the array that it belongs to (None: to no known one)."""

    key: Key
    digest: Digest
    array: str | None = None

    @property
    def below(self) -> str:
        """The object's key relative to the array's."""
        return self.key.removeprefix(f"{self.array}/")


@dataclass
class Inspection:
    """Damage and values that were found in a part, or in a whole array."""

    damage: Damage | None = None
    finiteness: Finiteness = field(default_factory=Finiteness)
    values: NDArray[Any] | None = None


class StoreCheck:
    """The verification of one store; `advance` is called with the size of each file that was read."""

    def __init__(self, run: Run, location: Location, advance: Callable[[int], None]) -> None:
        self.run = run
        self.location = location
        self.committed = run.commits.read(location.name)
        self.size_bytes = sum(digest.size_bytes for digest in self.committed.files.values())
        self.arrays: dict[str, StoredArray] = {}
        self.attributes: dict[str, dict[str, Any]] = {}
        self._advance = advance

    def repair(self, key: str) -> str:
        """Return the command that repairs what lies under a key."""
        raise NotImplementedError

    def check_group(self, group: str, seen: Mapping[str, Inspection]) -> Iterator[Finding]:
        """Check the arrays of one group, by name, against each other and against the manifest."""
        return iter(())

    def check_whole(self) -> Iterator[Finding]:
        """Check the store's arrays and groups against the manifest, once its metadata is read."""
        return iter(())

    def findings(self) -> Iterator[Finding]:
        """Read the store, and yield findings on the way."""
        sizes = self.location.sizes()
        if self.committed.files and not sizes:
            yield Finding(f"{self.location.name} is committed but not there", self.repair(""))
            return
        strays = sorted(sizes.keys() - self.committed.files.keys())
        if strays:
            known = f"{self.location.name}: the commit log knows nothing of {strays[0]}"
            yield note(known + (f" and {len(strays) - 1} other files" if len(strays) > 1 else ""))
        yield from self._read_metadata()
        yield from self.check_whole()
        yield from self._read_arrays()

    def _read_metadata(self) -> Iterator[Finding]:
        for key, digest in sorted(self.committed.files.items()):
            if not key.endswith("zarr.json"):
                continue
            content, damage = self._read(key, digest)
            if damage is None:
                damage = self._read_group(key, content)
            if damage is not None:
                yield from self._report(damage, digest)
            self._advance(digest.size_bytes)

    def _read_group(self, key: Key, content: bytes) -> Damage | None:
        """Parse the metadata of an array or a group; return the damage if it is invalid."""
        folder = key.removesuffix("zarr.json").rstrip("/")
        try:
            metadata = json.loads(content)
            if metadata["node_type"] == "array":
                array = StoredArray(content)
                if base(folder) in ARRAY_FORMATS:
                    array.check(*ARRAY_FORMATS[base(folder)])
                self.arrays[folder] = array
            else:
                self.attributes[folder] = dict(metadata["attributes"])
        except CorruptError as error:
            return Damage(key, str(error))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            return Damage(key, f"is not the metadata of a group or an array: {error}")
        return None

    def _read(self, key: Key, digest: Digest) -> tuple[bytes, Damage | None]:
        try:
            content = self.location.read(key)
        except NotFoundError:
            return b"", find_file_damage(key, digest, None)
        except OSError as error:
            return b"", Damage(key, f"can't be read: {error}")
        return content, find_file_damage(key, digest, len(content), Digest.of(content))

    def _report(self, damage: Damage, digest: Digest) -> Iterator[Finding]:
        committed = self.committed
        if self.run.is_being_written:  # the object may have been replaced
            committed = self.run.commits.read(self.location.name)
        if committed.files.get(damage.key) == digest:
            yield Finding(f"{self.location.name}/{damage}", self.repair(damage.key))

    def _parts(self) -> dict[str, list[Part]]:
        """Return the objects to read, by the group of their arrays."""
        rest = {key: d for key, d in self.committed.files.items() if not key.endswith("zarr.json")}
        groups: dict[str, list[Part]] = {}
        for name in sorted(self.arrays):
            parts = groups.setdefault(parent(name), [])
            for below in self.arrays[name].objects:
                key = as_key(f"{name}/{below}")
                if key in rest:
                    parts.append(Part(key, rest.pop(key), name))
        groups[""] = [*groups.get("", []), *(Part(key, digest) for key, digest in sorted(rest.items()))]
        return groups

    def _read_arrays(self) -> Iterator[Finding]:
        groups = self._parts()
        pool = ThreadPoolExecutor(min(4, count_cores()))
        try:
            inspections = pool.map(self._inspect, [part for parts in groups.values() for part in parts])
            for group, parts in groups.items():
                seen = {name: Inspection() for name in self.arrays if parent(name) == group}
                for part in parts:
                    found = next(inspections)
                    if found.damage is not None:
                        yield from self._report(found.damage, part.digest)
                    if part.array is not None:
                        self._merge(seen[part.array], part, found)
                    self._advance(part.digest.size_bytes)
                yield from self.check_group(group, {base(name): whole for name, whole in seen.items()})
        finally:
            pool.shutdown(cancel_futures=True)

    def _inspect(self, part: Part) -> Inspection:
        content, damage = self._read(part.key, part.digest)
        seen = Inspection(damage)
        if damage is not None or part.array is None:
            return seen
        try:
            chunks = []
            for chunk in self.arrays[part.array].chunks(part.below, content):
                if base(part.array) == "latent":
                    seen.finiteness.add(chunk)
                if base(part.array) in COMPARED_ARRAYS:
                    chunks.append(chunk)
        except CorruptError as error:
            return Inspection(Damage(part.key, str(error)))
        seen.values = np.concatenate(chunks) if chunks and chunks[0].ndim else None
        return seen

    def _merge(self, whole: Inspection, part: Part, found: Inspection) -> None:
        assert part.array is not None
        array = self.arrays[part.array]
        whole.damage = whole.damage or found.damage
        whole.finiteness.merge(found.finiteness)
        if found.values is not None:
            if whole.values is None:
                whole.values = array.blank()
            whole.values[array.objects[part.below]] = found.values


class LatentsCheck(StoreCheck):
    """The verification of the latents; see :class:`StoreCheck`."""

    def repair(self, key: str) -> str:
        """Return the command that repairs what lies under a key."""
        return extract_command(self.run, *self._keys(key))

    def _replace(self, key: str) -> str:
        """Return the command that writes the latents under a key again, intact ones too."""
        return extract_command(self.run, *self._keys(key), overwrite=True)

    def _keys(self, path: str) -> list[LatentsKey]:
        above = LatentsKey.above(path)
        known = [*self.run.manifest.latents, *self._unfinished()]
        return [above] if above in known else known

    def _unfinished(self) -> list[LatentsKey]:
        started = {LatentsKey.above(group) for group in self.committed.n_rows}
        return sorted(started - self.run.manifest.latents.keys(), key=str)

    def check_whole(self) -> Iterator[Finding]:
        """Check each record of latents: its rows, files and checkpoint."""
        manifest = self.run.manifest
        for key, record in manifest.latents.items():
            wanted = {"train": record.n_train, "eval": record.n_eval}
            if record.layers:  # a split may be left out
                wanted = {split: n for split, n in wanted.items() if record.layers.get(split)}
            rows = {split: self._n_rows(f"{key}/{split}") for split in wanted}
            again = extract_command(self.run, key, overwrite=True)
            if rows != wanted:
                yield Finding(f"{key} has {rows} rows in the commit log, {wanted} in the manifest", again)
            elif self.committed.digest(str(key)) != record.digest:
                yield Finding(f"{key} has other files in the commit log than the manifest says", again)
            checkpoint = manifest.files.get(checkpoint_name(key.epoch))
            if checkpoint and record.has_checkpoint and record.checkpoint_sha256 != checkpoint.sha256:
                yield Finding(f"{key} is of another checkpoint than the run's", self.repair(str(key)))
        for key in [] if self.run.is_being_written else self._unfinished():
            yield Finding(f"{key} is not finished ({self._progress(key)})", self.repair(str(key)))

    def _n_rows(self, group: str) -> int:
        """Return the number of rows that all layers of a group have; early logs counted them by split."""
        counts = [n for name, n in self.committed.n_rows.items() if is_under(name, group)]
        return min(counts, default=self.committed.n_rows.get(parent(group), 0))

    def _progress(self, key: LatentsKey) -> str:
        dataset = self.run.manifest.dataset
        totals = {"train": dataset.n_train, "eval": dataset.n_eval} if dataset else {}
        rows: dict[str, int] = {split: self._n_rows(f"{key}/{split}") for split in SPLITS}
        of = {split: f" of {total}" if total else "" for split, total in totals.items()}
        return ", ".join(f"{rows[split]}{of[split]} rows of {split}" for split in totals)

    def check_group(self, group: str, seen: Mapping[str, Inspection]) -> Iterator[Finding]:
        """Check the labels of a split, or a layer's latents against its mean and std."""
        if any(found.damage for found in seen.values()):
            return  # the damage was reported
        if {"latent", "mean", "std"} <= seen.keys():
            yield from self._check_layer(group, seen)
        elif {"label", "sample_id"} <= seen.keys():  # unreadable metadata was reported before
            yield from self._check_samples(group, seen)

    def _check_samples(self, group: str, seen: Mapping[str, Inspection]) -> Iterator[Finding]:
        n_rows, again = self._n_rows(group), self._replace(group)
        labels, ids = (self._values(f"{group}/{name}", seen[name], n_rows) for name in ("label", "sample_id"))
        dataset = self.run.manifest.dataset
        is_unknown = dataset is None or (self.run.is_recorded and not dataset.has_fingerprint)
        if dataset is None or is_unknown or n_rows == 0:
            return  # a recording notes its data last
        if dataset.has_labels:
            wrong, expected = (labels < 0) | (labels >= len(dataset.classes)), f"{len(dataset.classes)}"
        else:
            wrong, expected = labels != NO_LABEL, "none, as the data have no labels"
        if wrong.any():
            yield Finding(f"{group}/label has a class {labels[wrong][0]}; there are {expected}", again)
        if (ids == NO_SAMPLE_ID).all():
            return  # without ids, there is nothing to compare labels by
        if len(np.unique(ids)) != len(ids):
            yield Finding(f"{group}/sample_id has samples twice", again)
        known = dataset.labels_sha256.get(base(group))
        if known is None:
            yield note(f"{group}: the manifest is of before it had a digest of the labels to check them by")
        elif n_rows == self.arrays[f"{group}/label"].shape[0] and digest_labels(labels, ids) != known:
            yield Finding(f"{group}: labels or sample ids are not those of the data of the training", again)

    def _values(self, name: str, seen: Inspection, n_rows: int) -> NDArray[np.int64]:
        return (self.arrays[name].blank() if seen.values is None else seen.values)[:n_rows]

    def _check_layer(self, group: str, seen: Mapping[str, Inspection]) -> Iterator[Finding]:
        latent = self.arrays[f"{group}/latent"]
        split, again = parent(group), self._replace(group)
        n_rows = self._n_rows(group)
        shapes = {name: self.arrays[f"{group}/{name}"].shape for name in seen}
        label = self.arrays.get(f"{split}/label")
        if label is None:
            return  # of a recording that is not finished, which writes labels, mean and std last
        if label.shape != latent.shape[:1]:
            yield Finding(f"{group}/latent has shape {latent.shape}, the labels have {label.shape}", again)
            return
        if shapes.get("mean") != latent.shape[1:] or shapes.get("std") != latent.shape[1:]:
            yield Finding(
                f"{group}: latent, mean and std do not fit each other, their shapes are {shapes}", again
            )
            return
        found = seen["latent"].finiteness
        lost = [key for key in latent.objects if latent.rows(key)[0] < n_rows]
        lost = [key for key in lost if f"{group}/latent/{key}" not in self.committed.files]
        if n_rows < latent.shape[0]:
            return  # mean and std are written after the last row
        finite = np.broadcast_to(found.features, latent.shape[1:]) & (not lost)
        for name in ("mean", "std"):
            values = seen[name].values
            stated = np.zeros(latent.shape[1:], bool) if values is None else np.isfinite(values)
            if (found.n_empty or lost) and stated.any():
                where = lost[0] if lost else f"a chunk ({found.n_empty} in all)"
                yield Finding(
                    f"{group}/latent: {where} is lost, nothing but NaN where {name} is finite", again
                )
                return
            if not np.array_equal(stated, finite):
                yield Finding(f"{group}/{name} is not finite where the latents are, or the reverse", again)
                return
        if found.n_non_finite or lost:
            yield note(
                f"{group}/latent has {found.n_non_finite} values that are NaN or infinite, its layer's own"
            )


class AnalysisCheck(StoreCheck):
    """The verification of spectra and probes; `probed` has the layers whose probes each table must have."""

    def __init__(
        self,
        run: Run,
        location: Location,
        advance: Callable[[int], None],
        probed: Mapping[ProbeKey, set[str]],
    ) -> None:
        super().__init__(run, location, advance)
        self._probed = probed

    def repair(self, key: str) -> str:
        """Return the command that repairs what lies under a key."""
        kind, _, rest = key.partition("/")
        table = ProbeKey.parse(rest.split("/")[0])
        known = list(self.run.manifest.probes)
        if kind == "probes" and known:
            tables = [table] if table in known else known
            return "; ".join(f"{probe_command(self.run, table)} --overwrite" for table in tables)
        return repair_command(self.run, "metrics.csv")

    def check_whole(self) -> Iterator[Finding]:
        """Check that each layer has its spectra, and each table of probes its layers' probes."""
        run = self.run
        wanted = {f"spectra/{split}": set(run.layers) for split in SPLITS if run.has_spectra}
        wanted |= {f"probes/{key}": layers for key, layers in self._probed.items()}
        for path, layers in wanted.items():
            stored = {a.get("layer") for name, a in self.attributes.items() if parent(name) == path}
            for layer in self.run.layers:
                if layer in layers - stored and not self._is_damaged(path):
                    yield Finding(
                        f"{self.location.name}/{path} has nothing of layer {layer}", self.repair(path)
                    )

    def _is_damaged(self, path: str) -> bool:
        groups = {parent(key) for key in self.committed.under(path) if key.endswith("zarr.json")}
        return bool(groups - self.attributes.keys() - self.arrays.keys())


def parent(path: str) -> str:
    """Return the path of the group around an array or group."""
    return path.rpartition("/")[0]


def base(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]
