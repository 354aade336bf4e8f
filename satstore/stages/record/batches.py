"""Check and split what a caller's loaders yield and what a caller's model returns."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from satstore.errors import ConfigError, SatstoreError, reason_of
from satstore.stages.record.inputs import (
    REMEDY,
    Adapt,
    InputBatch,
    describe_given,
    describe_inputs,
    read_batch,
    tensors_of,
)
from satstore.storage.zarr.latent_reader import NO_LABEL
from satstore.system.text import list_first


@dataclass(frozen=True)
class _ReadBatch:
    """A batch, its name and its classes, and whether these came as one-hot rows."""

    place: str
    batch: InputBatch
    classes: NDArray[np.int64]
    is_one_hot: bool


class Batches:
    """Reads a loader once, with its own batches, order and workers.

    Iterating yields each batch and its class indices int64 (batch,), NO_LABEL where the loader has no labels;
    see :func:`.inputs.read_batch` and :func:`class_indices`. ConfigError names the batch, counted from 0,
    that can't be taken.

    Attributes
    ----------
    first
        Its first batch.
    place
        Names the batch that was yielded last.
    n_expected
        The number of samples by the loader's length; None where it has no length.
    is_one_hot
        Whether labels came as one-hot rows.
    marks
        The first eight bytes of the digest of all inputs and classes up to each batch.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        name: str,
        adapt: Adapt | None = None,
        sample_ids: NDArray[np.int64] | None = None,
    ) -> None:
        self._name, self._adapt, self._sample_ids = name, adapt, sample_ids
        is_samples = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
        if is_samples or not isinstance(loader, Iterable):
            raise ConfigError(
                f"{name} is {describe_given(loader)}; expected an iterable of batches (inputs, labels), such "
                "as DataLoader(dataset, batch_size)"
            )
        self.is_one_hot = False
        self.place = name
        self._labels: list[NDArray[np.int64]] = []
        self._digest = hashlib.sha256()
        self.marks: list[int] = []
        self._expected: Sequence[int] = ()
        self._is_whole = False
        self._batches = self._read(loader)
        first = next(self._batches, None)
        if first is None:
            raise ConfigError(f"{name} yields no batch; give it one at least")
        self._first_batch, self.first = first, first.batch
        try:
            self.n_expected: int | None = len(loader) * self.first.n_samples  # type: ignore[arg-type]
        except TypeError:  # a loader of an iterable dataset
            self.n_expected = None

    @property
    def has_labels(self) -> bool:
        """Whether its batches have labels: all have, or none."""
        return self._first_batch.batch.labels is not None

    def _read(self, loader: Iterable[Any]) -> Iterator[_ReadBatch]:
        for n, part in enumerate(loader):
            place = f"batch {n} of {self._name}"
            batch = read_batch(part, self._adapt, place)
            if n and (batch.labels is not None) != self.has_labels:
                found, before = ("no labels", "some") if self.has_labels else ("labels", "none")
                raise ConfigError(f"{place} has {found}, the ones before had {before}")
            if batch.labels is None:
                yield _ReadBatch(place, batch, np.full(batch.n_samples, NO_LABEL), is_one_hot=False)
            else:
                yield _ReadBatch(place, batch, *class_indices(batch.labels, batch.n_samples, place))

    def __iter__(self) -> Iterator[tuple[InputBatch, NDArray[np.int64]]]:
        for found in chain([self._first_batch], self._batches):
            self.place = found.place
            self.is_one_hot |= found.is_one_hot
            self._labels.append(found.classes)
            self._digest.update(found.classes.astype("<i8").tobytes())
            for name, tensor in tensors_of(found.batch.inputs):
                self._digest.update(name.encode())  # that of a plain tensor is empty
                values = tensor.detach().cpu().contiguous().reshape(-1)
                self._digest.update(values.view(torch.uint8).numpy().data)
            self.marks.append(int.from_bytes(self._digest.digest()[:8], "big", signed=True))
            self._check_expected(len(self.marks) - 1)
            yield found.batch, found.classes
        if len(self.marks) < len(self._expected):
            raise self._explain_others()

    def expect(self, marks: Sequence[int], *, is_whole: bool) -> None:
        """Expect batches of these marks first; `is_whole`: and no more.

        Iterating raises ConfigError at the first batch that is another one.
        """
        self._expected, self._is_whole = marks, is_whole

    def _check_expected(self, n: int) -> None:
        """Check the mark of batch n, if it is known."""
        is_beyond = n >= len(self._expected)
        if self._is_whole if is_beyond else self.marks[n] != self._expected[n]:
            raise self._explain_others()

    def _explain_others(self) -> ConfigError:
        return ConfigError(
            f"resume: the first {len(self._expected)} batches of {self._name} are not those recorded so far; "
            "it needs a fixed order (shuffle=False)"
        )

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class indices of all batches so far, in their order."""
        return np.concatenate(self._labels)

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """The ids of the samples of all batches so far; by default their places in the loader's order."""
        n_samples = len(self.labels)
        return np.arange(n_samples) if self._sample_ids is None else self._sample_ids[:n_samples]

    def fingerprint(self) -> str:
        """Return the hex sha256 of all inputs and classes so far."""
        return self._digest.hexdigest()


class Loaders:
    """A caller's loaders, of which one is given at least, and the names of their classes.

    ConfigError if classes are given, and the loader has no labels.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        eval_loader: Iterable[Any] | None,
        adapt: Adapt | None,
        classes: Sequence[str] | None,
        sample_ids: Mapping[str, NDArray[np.int64]],
    ) -> None:
        self.train, self.classes = Batches(loader, "loader", adapt, sample_ids.get("train")), classes
        self._eval_loader, self._adapt, self._eval_ids = eval_loader, adapt, sample_ids.get("eval")
        if classes is not None and not self.train.has_labels:
            raise ConfigError("loader yields no labels for the classes given; leave them out, or give labels")

    @property
    def has_eval(self) -> bool:
        """Whether the eval split has a loader of its own."""
        return self._eval_loader is not None

    def open_eval(self) -> Batches | None:
        """Begin to read the loader of the eval split; None if there is none.

        ConfigError if it has labels and the other has none, or the other way round.
        """
        if self._eval_loader is None:
            return None
        batches = Batches(self._eval_loader, "eval_loader", self._adapt, self._eval_ids)
        if batches.has_labels != self.train.has_labels:
            found, known = ("labels", "none") if batches.has_labels else ("no labels", "some")
            raise ConfigError(f"eval_loader has {found}, loader has {known}; give both labels, or neither")
        return batches


@contextmanager
def explain_forward_errors(inputs: Any, place: str) -> Iterator[None]:
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
            f"the model's forward pass of {place}, {describe_inputs(inputs)}, fails ({found}); "
            "make it what the model takes in the loader's dataset or collate_fn, or by adapt"
        ) from error


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
            f"{place} has {describe_given(labels)} for labels; expected class indices, whole numbers from 0 "
            f"on: {REMEDY}"
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
