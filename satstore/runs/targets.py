"""Targets: labels that are added to a run, to fit probes to other tasks than the training's."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satstore.config.latent_keys import SPLITS, ProbeKey, check_prefix
from satstore.errors import ConfigError, CorruptError, NotFoundError, UnknownNameError
from satstore.registry import suggest
from satstore.runs.folder import RunFolder
from satstore.runs.manifest import DatasetRecord, FileRecord, Manifest, TargetRecord, target_file
from satstore.storage.files import Digest
from satstore.storage.label_files import GivenLabels, number_labels
from satstore.storage.numpy_files import read_npz


@dataclass(frozen=True)
class NewTarget:
    """Labels of a run's samples, checked and not yet committed; ``content`` is that of their file."""

    name: str
    record: TargetRecord
    content: bytes

    @property
    def file(self) -> str:
        """The name of their file in the run folder."""
        return target_file(self.name)

    def is_committed(self, run: RunFolder) -> bool:
        """Return whether a run has these labels and class names under this name, undamaged."""
        try:
            known = run.manifest.targets.get(self.name)
            return known == self.record and run.read_file(self.file) == self.content
        except (CorruptError, NotFoundError):
            return False

    def outdated_probes(self, manifest: Manifest) -> list[ProbeKey]:
        """Return the tables of probes that were fitted to other labels of this name."""
        if manifest.files.get(self.file) == FileRecord.of(Digest.of(self.content)):
            return []
        return [key for key, record in manifest.probes.items() if record.target == self.name]


def make_target(
    run: RunFolder,
    name: str,
    train: GivenLabels,
    evaluated: GivenLabels | None,
    classes: Sequence[str] | None = None,
) -> NewTarget:
    """Check labels of both splits of a run, which may share those of train if they are the same samples.

    Raises ConfigError if the name can't be used, or there isn't a label for each sample, of shared classes.
    """
    try:
        check_prefix(name)
    except ValueError as error:
        raise ConfigError(f"target {name!r}: {error}; name it so (--target, or name=)") from None
    dataset = run.manifest.dataset
    if dataset is None:
        raise NotFoundError(f"{run.name} has no samples to label yet; train or record it first")
    given = [train] if evaluated is None else [train, evaluated]
    for labels, split, n_samples in zip(given, SPLITS, (dataset.n_train, dataset.n_eval), strict=False):
        if len(labels.array) != n_samples:
            raise ConfigError(
                f"{labels.source} has {len(labels.array)} labels, the {split} split {n_samples} samples; "
                "give a label for each, in their order"
            )
    if evaluated is None and not has_equal_splits(run, dataset):
        raise ConfigError(
            f"{run.name} has {dataset.n_eval} eval samples of their own; give their labels too (eval=, or "
            "--eval-labels)"
        )
    codes, names = number_labels(given, classes)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, train=codes[0], eval=codes[-1])
    record = TargetRecord(classes=names, n_train=dataset.n_train, n_eval=dataset.n_eval)
    return NewTarget(name, record, file.getvalue())


def has_equal_splits(run: RunFolder, dataset: DatasetRecord) -> bool:
    """Return whether the eval split is a copy of the train split, as one loader gives for both."""
    if dataset.n_train != dataset.n_eval or not run.manifest.latents:
        return False
    key = next(iter(run.manifest.latents))
    committed = run.commits.read(run.latents_location.name)
    train, evaluated = (
        {path.removeprefix(group): digest for path, digest in committed.under(group).items()}
        for group in (f"{key}/{split}" for split in SPLITS)
    )
    return bool(train) and train == evaluated


def parse_target(content: bytes, record: TargetRecord) -> Mapping[str, NDArray[np.int64]]:
    """Return the class index of each sample, by split, that a target's file holds.

    Raises ValueError if it holds anything else than what the manifest's record of it says.
    """
    found = read_npz(io.BytesIO(content), len(content), SPLITS)
    for split, n_samples in zip(SPLITS, (record.n_train, record.n_eval), strict=True):
        codes = found[split]
        if codes.dtype != np.int64 or codes.shape != (n_samples,):
            raise ValueError(f"has {codes.dtype} {codes.shape} of {split}; expected int64 ({n_samples},)")
        if n_samples and not 0 <= codes.min() <= codes.max() < len(record.classes):
            raise ValueError(
                f"has the classes {codes.min()} to {codes.max()} in {split}, and there are "
                f"{len(record.classes)}"
            )
    return found


def find_target(manifest: Manifest, name: str, run_name: str) -> TargetRecord:
    """Return the record of a target; raise UnknownNameError if there is none of that name."""
    if name not in manifest.targets:
        raise UnknownNameError(f"{run_name} has no target {name!r}{suggest(name, manifest.targets)}")
    return manifest.targets[name]


def choose_target(run: RunFolder, name: str | None) -> str:
    """Return the target that probes are to be fitted to: the given one, else ``""``, the data's own labels.

    Without labels of its own, a run's only target is taken. Raises UnknownNameError if there is no such
    target, ConfigError if there is none at all, or one of several has to be named.
    """
    manifest = run.manifest
    if name is not None:
        find_target(manifest, name, run.name)
        return name
    if manifest.dataset is None or manifest.dataset.has_labels:
        return ""
    if not manifest.targets:
        raise ConfigError(f"{run.name} has no labels; add some: run.set_labels(…), or --labels FILE")
    if len(manifest.targets) > 1:
        known = ", ".join(manifest.targets)
        raise ConfigError(f"{run.name} has the targets {known}; name one: --target")
    return next(iter(manifest.targets))


def class_names(run: RunFolder, target: str) -> list[str]:
    """Return the names of a target's classes, by index, or of the data's own where the target is ``""``."""
    if target:
        return find_target(run.manifest, target, run.name).classes
    return run.manifest.dataset.classes if run.manifest.dataset else []
