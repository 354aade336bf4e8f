"""The latents that probes are fitted on: opened once for all layers, and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from satstore.config.latent_keys import SPLITS, LatentsKey
from satstore.errors import ConfigError, CorruptError, NotFoundError
from satstore.runs.repair import extract_command
from satstore.runs.run import Run
from satstore.runs.targets import class_names
from satstore.storage.commit_log import Committed, is_anything
from satstore.storage.location import Location
from satstore.storage.zarr import LatentSplit
from satstore.storage.zarr.layout import encode_layer
from satstore.system.text import list_first

if TYPE_CHECKING:
    from satstore.analysis.logistic.loss import Codes


@dataclass(frozen=True, kw_only=True)
class ProbeLatents:
    """The latents of all layers at one pooling and epoch, open for reading.

    Attributes
    ----------
    splits
        Of ``train`` and ``eval``.
    store
        The absolute path of their store, or its URL.
    committed
        What is committed to the store.
    labels
        Split to the class index of each sample.
    target
        The name of the labels; empty for the data's own.
    class_names
        The names of their classes, by index.
    remedy
        The command that writes them again.
    """

    run_name: str
    key: LatentsKey
    splits: Mapping[str, LatentSplit]
    store: str
    location: Location
    committed: Committed
    labels: Mapping[str, NDArray[np.int64]]
    target: str
    class_names: list[str]
    remedy: str

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """The labels of the train split, ascending, which a probe tells apart."""
        return np.unique(self.labels["train"])

    def codes(self, split: str) -> "Codes":
        """Return the class number of each sample, its label's place among the classes; −1 if it has none."""
        from satstore.analysis.logistic.evaluation import class_codes

        return class_codes(self.labels[split], self.classes)


def open_probe_latents(run: Run, key: LatentsKey, target: str = "") -> ProbeLatents:
    """Open the latents of both splits at a key, and a target's labels, by default the data's own.

    NotFoundError or CorruptError if they can't be read.
    """
    place, location = run.latents_path, run.latents_location
    splits: dict[str, LatentSplit] = {split: run.latents(str(key), split) for split in SPLITS}
    return ProbeLatents(
        run_name=run.name,
        key=key,
        splits=splits,
        store=place if isinstance(place, str) else str(place.absolute()),
        location=location,
        committed=run.commits.read(location.name),
        labels={split: run.labels(target, split) if target else splits[split].labels for split in SPLITS},
        target=target,
        class_names=class_names(run, target),
        remedy=extract_command(run, key, overwrite=True),
    )


def check_labels(latents: ProbeLatents) -> None:
    """Raise CorruptError unless all labels can be read and are those of the run's classes."""
    n_classes = len(latents.class_names)
    for split in SPLITS:
        strange = sorted(set(latents.labels[split].tolist()) - set(range(n_classes)))
        if strange:
            raise CorruptError(
                f"{latents.run_name}: the {split} labels at {latents.key} hold {strange[0]}, expected 0 to "
                f"{n_classes - 1}, the indices of its classes; write them again with: {latents.remedy}"
            )


def warn_of_missing_classes(run: Run, latents: ProbeLatents) -> None:
    """Warn of classes that one split has and the other lacks."""
    whose = f"target {latents.target}: " if latents.target else ""
    found: dict[str, set[int]] = {split: set(latents.labels[split].tolist()) for split in SPLITS}
    for split, other, effect in (
        ("eval", "train", "their samples count as wrong"),
        ("train", "eval", "the eval accuracy says nothing of them"),
    ):
        lacking = [repr(latents.class_names[index]) for index in sorted(found[split] - found[other])]
        if lacking:
            run.warn(
                "probe",
                f"{whose}at {latents.key.group}, the {split} split has {len(lacking)} classes that the "
                f"{other} split lacks ({list_first(lacking, 5)}): {effect}; give both splits the same "
                "classes",
            )


def check_layer(latents: ProbeLatents, layer: str) -> None:
    """Check that a layer's latents are there, as they were written, one for each label.

    Their files are read once more, for their digests: beside the passes of a fit, that is little, and no
    other way tells a shard from its neighbour that has taken its place. NotFoundError or CorruptError if not.
    """
    for split, found in latents.splits.items():
        if layer not in found:
            raise NotFoundError(
                f"{latents.run_name} has no {split} latents of layer {layer} at {latents.key}; "
                f"write them with: {latents.remedy}"
            )
        for part in (encode_layer(layer), "label", "sample_id"):
            group = f"{latents.key}/{split}/{part}"
            remedy = f"write it again with: {latents.remedy}"
            latents.committed.check(latents.location, group, remedy, is_anything)
        n_samples, n_labels = found[layer].shape[0], len(latents.labels[split])
        if n_samples != n_labels:
            raise CorruptError(
                f"{latents.run_name}: layer {layer} at {latents.key} has {n_samples} {split} samples, but "
                f"there are {n_labels} labels; write them again with: {latents.remedy}"
            )


def check_train_classes(latents: ProbeLatents) -> None:
    """Raise ConfigError if the train split has one class or one sample, and so no classes to tell apart."""
    classes, n_samples = latents.classes, len(latents.labels["train"])
    if len(classes) < 2:
        what = f"one class, {latents.class_names[classes[0]]!r}" if n_samples > 1 else "one sample"
        what = what if n_samples else "no sample"
        raise ConfigError(f"the train split has {what} only; a probe needs samples of two classes or more")
