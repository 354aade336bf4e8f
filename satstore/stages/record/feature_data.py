"""Features that somebody computed, and their labels, as two splits that are read block by block."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.datasets.random_split import split_at_random
from satstore.errors import ConfigError
from satstore.stages.record.feature_parameters import FeatureParameters
from satstore.storage.feature_files import FeatureFile, open_features
from satstore.storage.label_files import GivenLabels, number_labels, read_label_file
from satstore.storage.zarr.latent_reader import NO_LABEL
from satstore.system.text import list_first

BLOCK_BYTES = 16 * 2**20
"""Of the samples that are read at once, all layers of them, as float32."""

FeatureFiles = Mapping[str, FeatureFile]


@dataclass(frozen=True)
class FeatureSplit:
    """The samples of a split.

    Attributes
    ----------
    layers
        Name to file; the files may have other samples too.
    rows
        (sample,) int64, the places of the samples in the files, ascending.
    labels
        (sample,) int64 class indices; NO_LABEL where there are none.
    """

    layers: FeatureFiles
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def read(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the samples in order, some at once, by layer; each file is read once, in ascending order."""
        n_rows = count_rows(self.layers)
        step = block_rows(self.layers)
        for start in range(0, n_rows, step):
            first, last = np.searchsorted(self.rows, (start, start + step))
            if first == last:
                continue
            taken = self.rows[first:last] - start
            stop = int(taken[-1]) + 1
            blocks = {name: layer.read(start, start + stop) for name, layer in self.layers.items()}
            yield blocks if len(taken) == stop else {name: block[taken] for name, block in blocks.items()}


@dataclass(frozen=True)
class FeatureData:
    """What is imported.

    Attributes
    ----------
    splits
        ``train`` and ``eval``; without the second, the first is both.
    classes
        Their names; none without labels.
    """

    splits: Mapping[str, FeatureSplit]
    classes: Sequence[str]
    has_labels: bool

    def split(self, name: str) -> FeatureSplit:
        """Return a split, which may be the other one's samples."""
        return self.splits.get(name, self.splits["train"])


class FeatureDigest:
    """The sha256 of the values of a pass: labels first, then the blocks, layer by layer."""

    def __init__(self, split: FeatureSplit) -> None:
        self._digest = hashlib.sha256(split.labels.astype("<i8").tobytes())

    def update(self, blocks: Mapping[str, NDArray[Any]]) -> None:
        """Count a block of each layer."""
        for name, block in blocks.items():
            self._digest.update(name.encode())
            self._digest.update(np.ascontiguousarray(block).data)

    def __str__(self) -> str:
        """Return it in hex."""
        return self._digest.hexdigest()


def count_rows(layers: FeatureFiles) -> int:
    """Return the number of samples in files of features."""
    return next(iter(layers.values())).shape[0]


def block_rows(layers: FeatureFiles) -> int:
    """Return the samples that are read at once; it depends on shapes alone, so that results do too."""
    row_bytes = sum(4 * math.prod(layer.shape[1:]) for layer in layers.values())
    return max(1, min(BLOCK_BYTES // row_bytes, count_rows(layers)))


@contextmanager
def open_data(features: Sequence[str], parameters: FeatureParameters) -> Iterator[FeatureData]:
    """Open files of features and read those of labels, while the context lasts.

    ConfigError if they don't fit each other; see also :func:`open_features`, :func:`read_label_file`.
    """
    _check_parameters(features, parameters)
    given = [place for place in (parameters.labels, parameters.eval_labels) if place is not None]
    labels = [read_label_file(place) for place in given]
    with ExitStack() as stack:
        train = stack.enter_context(open_features(features, exclude=given))
        layers: dict[str, FeatureFiles] = {"train": train}
        if parameters.eval_features:
            found = stack.enter_context(open_features(parameters.eval_features, exclude=given))
            layers["eval"] = _match_layers(train, found)
        for split, one in zip(layers, labels, strict=False):
            _check_length(one, layers[split])
        codes, classes = number_labels(labels) if labels else ([], [])
        yield FeatureData(_make_splits(layers, codes, parameters), classes, bool(labels))


def _check_parameters(features: Sequence[str], parameters: FeatureParameters) -> None:
    if not features:
        raise ConfigError("there are no features; give their files")
    if parameters.split is not None and parameters.eval_features:
        raise ConfigError("--split and --eval-features exclude each other; give one")
    if parameters.eval_labels is not None and not parameters.eval_features:
        raise ConfigError("--eval-labels are those of --eval-features; give these too")
    has_labels = parameters.labels is not None
    if parameters.eval_features and has_labels != (parameters.eval_labels is not None):
        missing, given = ("--eval-labels", "--labels") if has_labels else ("--labels", "--eval-labels")
        raise ConfigError(f"{given} are of one split; give {missing} too, or neither")


def _match_layers(train: FeatureFiles, found: FeatureFiles) -> FeatureFiles:
    """Return the files for evaluation by the names of the others; where each has one layer, it is the same.

    ConfigError if the layers differ in name or shape.
    """
    if len(train) == len(found) == 1:
        found = dict(zip(train, found.values(), strict=True))
    if train.keys() != found.keys():
        raise ConfigError(
            f"--eval-features have the layers {list_first(list(found), 4)}, the others "
            f"{list_first(list(train), 4)}; give the same names, such as those of files in two folders"
        )
    for name, layer in train.items():
        if found[name].shape[1:] != layer.shape[1:]:
            raise ConfigError(
                f"{found[name].place} has samples of shape {found[name].shape[1:]}, {layer.place} of "
                f"{layer.shape[1:]}; expected the same"
            )
    return {name: found[name] for name in train}


def _check_length(labels: GivenLabels, layers: FeatureFiles) -> None:
    first = next(iter(layers.values()))
    if len(labels.array) != first.shape[0]:
        raise ConfigError(
            f"{labels.source} has {len(labels.array)} labels, {first.place} {first.shape[0]} rows; give a "
            "label for each, in their order"
        )


def _make_splits(
    layers: Mapping[str, FeatureFiles], codes: Sequence[NDArray[np.int64]], parameters: FeatureParameters
) -> dict[str, FeatureSplit]:
    train, n_rows = layers["train"], count_rows(layers["train"])
    if parameters.split is not None:
        labels = codes[0] if codes else np.full(n_rows, NO_LABEL)
        parts = split_at_random(n_rows, parameters.split, parameters.seed)
        return {
            name: FeatureSplit(train, rows, labels[rows])
            for name, rows in zip(("train", "eval"), parts, strict=True)
        }
    found = {}
    for n, (name, files) in enumerate(layers.items()):
        rows = np.arange(count_rows(files))
        found[name] = FeatureSplit(files, rows, codes[n] if codes else np.full(len(rows), NO_LABEL))
    return found
