"""Check and split what a caller's loaders yield and what a caller's model returns."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from satstore.errors import ConfigError, SatstoreError, reason_of
from satstore.system.text import list_first

REMEDY = "give the loader a collate_fn that returns (inputs, labels)"


class Batches:
    """Reads a loader once, with its own batches, order and workers.

    Iterating yields inputs and class indices int64 (batch,) of one batch after another; see
    :func:`split_batch` and :func:`class_indices`. ConfigError names the batch, counted from 0, that can't be
    taken.

    Attributes
    ----------
    first
        The inputs of its first batch.
    place
        Names the batch that was yielded last.
    n_expected
        The number of samples by the loader's length; None where it has no length.
    is_one_hot
        Whether labels came as one-hot rows.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self._name = name
        is_samples = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
        if is_samples or not isinstance(loader, Iterable):
            raise ConfigError(
                f"{name} is {_describe(loader)}; expected an iterable of batches (inputs, labels), such as "
                "DataLoader(dataset, batch_size)"
            )
        self.is_one_hot = False
        self.place = name
        self._labels: list[NDArray[np.int64]] = []
        self._digest = hashlib.sha256()
        self._batches = self._read(loader)
        first = next(self._batches, None)
        if first is None:
            raise ConfigError(f"{name} yields no batch; give it one at least")
        self._first_batch, self.first = first, first[1]
        try:
            self.n_expected: int | None = len(loader) * len(self.first)  # type: ignore[arg-type]
        except TypeError:  # a loader of an iterable dataset
            self.n_expected = None

    def _read(self, loader: Iterable[Any]) -> Iterator[tuple[str, Tensor, NDArray[np.int64], bool]]:
        """Yield each batch's name, inputs and classes, and whether its labels are one-hot rows."""
        for n, batch in enumerate(loader):
            place = f"batch {n} of {self._name}"
            inputs, labels = split_batch(batch, place)
            yield place, inputs, *class_indices(labels, len(inputs), place)

    def __iter__(self) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        for place, inputs, classes, is_one_hot in chain([self._first_batch], self._batches):
            self.place = place
            self.is_one_hot |= is_one_hot
            self._labels.append(classes)
            self._digest.update(classes.astype("<i8").tobytes())
            self._digest.update(inputs.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            yield inputs, classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class indices of all batches so far, in their order."""
        return np.concatenate(self._labels)

    def fingerprint(self) -> str:
        """Return the hex sha256 of all inputs and classes so far."""
        return self._digest.hexdigest()


@contextmanager
def explain_forward_errors(inputs: Tensor, place: str) -> Iterator[None]:
    """Turn errors of a model's forward pass into a ConfigError that describes the batch.

    Satstore's own errors and lack of memory pass.
    """
    try:
        yield
    except (SatstoreError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        found = reason_of(error, with_type=True)
        raise ConfigError(
            f"the model's forward pass of {place}, {_describe(inputs)} of {inputs.dtype}, fails ({found}); "
            "make it what the model takes in the loader's dataset or collate_fn"
        ) from error


def split_batch(batch: Any, place: str) -> tuple[Tensor, Any]:
    """Return a batch's inputs and labels: its first two parts.

    ConfigError, naming the `place`, such as ``"batch 3 of loader"``, if it is no tuple or list of two parts
    or more, or its inputs are no tensor with samples on axis 0.
    """
    if isinstance(batch, str | bytes) or not isinstance(batch, Sequence) or len(batch) < 2:
        raise ConfigError(f"{place} is {_describe(batch)}; expected (inputs, labels): {REMEDY}")
    inputs = batch[0]
    if not isinstance(inputs, Tensor) or inputs.ndim < 2 or not len(inputs):
        raise ConfigError(
            f"{place} has {_describe(inputs)} for inputs; expected a tensor of samples (batch, …): {REMEDY}"
        )
    return inputs, batch[1]


def class_indices(labels: Any, n_samples: int, place: str) -> tuple[NDArray[np.int64], bool]:
    """Return the class of each sample of a batch, and whether the labels are one-hot rows.

    Labels are (batch,) or (batch, 1): whole numbers from 0 on, of any type; or (batch, class): in each row a
    1 and otherwise 0. ConfigError, naming the `place`, if they are anything else, or not as many as samples.
    """
    values = _as_array(labels, place)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape[:1] != (n_samples,) or values.ndim > 2:
        raise ConfigError(
            f"{place} has {n_samples} samples and labels of shape {values.shape}; expected a class index "
            f"of each, or one-hot rows: {REMEDY}"
        )
    if values.ndim == 2:
        is_one_hot = ((values == 0) | (values == 1)).all(1) & (values.sum(1) == 1)
        if not is_one_hot.all():
            row = values[~is_one_hot][0]
            raise ConfigError(
                f"{place} has labels {_show(row)} of one sample; expected a class index, or a one-hot row: a "
                "probe is told one class of each sample"
            )
        return values.argmax(1).astype(np.int64), True
    with np.errstate(invalid="ignore"):
        wrong = ~(np.isfinite(values) & (values == np.floor(values)) & (values >= 0) & (values < 2**31))
    if wrong.any():
        raise ConfigError(
            f"{place} has labels {_show(values[wrong])}; expected class indices, whole numbers from 0 on: "
            "number the classes (a Dataset's target_transform), or leave these samples out"
        )
    return values.astype(np.int64), False


def _as_array(labels: Any, place: str) -> NDArray[Any]:
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.float() if labels.dtype == torch.bfloat16 else labels
        return np.asarray(labels.numpy())
    try:
        values = np.asarray(labels)
    except ValueError:  # rows of unequal lengths
        values = np.empty(0, object)
    if values.dtype.kind not in "biuf":
        raise ConfigError(
            f"{place} has {_describe(labels)} for labels; expected class indices, whole numbers from 0 on: "
            f"{REMEDY}"
        )
    return values


def _show(values: NDArray[Any]) -> str:
    return list_first([f"{value:g}" for value in values.astype(float)], 4)


def find_logits(output: Any) -> Tensor | None:
    """Find the logits (batch, class) in a model's output; None if it has none.

    They are a tensor of two axes: the output itself, its ``logits`` if it is a mapping or an object that has
    them, or the first tensor of a tuple or list.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        output = next((part for part in output if isinstance(part, Tensor)), None)
    is_plain = isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point()
    return output if is_plain else None


def _describe(thing: Any) -> str:
    """Describe a value for a message: its type, and its shape, keys or parts."""
    if isinstance(thing, Tensor):
        return f"a tensor of shape {tuple(thing.shape)}"
    if isinstance(thing, Mapping):
        return f"a {type(thing).__name__} of {list_first(list(map(repr, thing)), 4)}"
    if isinstance(thing, tuple | list):
        parts = list_first([type(part).__name__ for part in thing], 4)
        return f"a {type(thing).__name__} of {len(thing)} ({parts})"
    return f"{type(thing).__name__}"
