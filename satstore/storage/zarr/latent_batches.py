"""Minibatches of one layer's latents in random order, block by block: a torch dataset to train on.

To read one sample, its whole chunk has to be decoded. So chunks are read in random order until they fill a
buffer, and its samples are passed on in random order while the next buffer is filled.
"""

import operator
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from satstore.errors import ConfigError
from satstore.storage.zarr.layout import Array

LatentBatch = tuple[Tensor, Tensor]
Places = NDArray[np.int64]

N_READERS, N_WORKER_READERS, N_REMOTE_READERS = 2, 1, 8
"""Threads that read chunks: without workers, in a worker, and from object storage, where they mostly wait."""


class StoredSamples(Protocol):
    """The samples of one layer that batches are made of; pickled, they are opened anew."""

    array: Array

    @property
    def layer(self) -> str:
        """Return the layer's PyTorch name."""

    @property
    def is_remote(self) -> bool:
        """Tell whether they lie on object storage."""

    def read_into(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Read samples start to stop; many threads may call it at once."""


class LatentBatches(IterableDataset[LatentBatch]):
    """Batches (latents, labels) of one layer, each sample once a pass; for ``DataLoader(batch_size=None)``.

    See :meth:`satstore.storage.zarr.LatentArray.dataset` for parameters, order and errors.

    Attributes
    ----------
    n_samples
        The samples of a pass. There is no length in batches, which would depend on the number of workers.
    """

    def __init__(
        self,
        stored: StoredSamples,
        labels: ArrayLike,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        buffer_bytes: int,
        dtype: torch.dtype | None,
    ) -> None:
        self.n_samples = stored.array.shape[0]
        self.batch_size = _check_count("batch_size", batch_size, 1)
        self.seed = _check_count("seed", seed, 0)
        self.shuffle = shuffle
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ConfigError(f"dtype is {dtype!r}; expected a floating-point dtype of torch, or None")
        self.dtype = dtype
        self._stored, self._labels = stored, _make_labels(labels, stored.layer, self.n_samples)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._chunk_rows = stored.array.chunks[0]
        chunk_bytes = int(np.prod(stored.array.chunks)) * stored.array.dtype.itemsize
        n_chunks = _check_count("buffer_bytes", buffer_bytes, 1) // max(1, chunk_bytes)
        # The samples of a buffer make a batch at least.
        n_chunks = max(n_chunks, -(-self.batch_size // self._chunk_rows))
        self._n_chunks = -(-self.n_samples // self._chunk_rows)
        self._most_chunks = min(n_chunks, self._n_chunks)
        self._spare_buffers: list[_Buffer] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_spare_buffers": []}

    @property
    def epoch(self) -> int:
        """The epoch whose order the next pass has."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose order the next pass has; to be called between passes.

        Workers that live on between passes learn of it. Raises ConfigError if it is negative.
        """
        self._epoch[0] = _check_count("epoch", epoch, 0)

    def __iter__(self) -> Iterator[LatentBatch]:
        worker = get_worker_info()
        number, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        n_readers = N_READERS if worker is None else N_WORKER_READERS
        n_readers = N_REMOTE_READERS if self._stored.is_remote else n_readers
        chunks = np.arange(self._n_chunks)
        if not self.shuffle:
            # A loader takes a batch of each worker in turn: so they come in stored order.
            batches = self._read_batches(chunks, None, n_readers)
            return (batch for place, batch in enumerate(batches) if place % n_workers == number)
        chunks = np.random.default_rng([self.seed, self.epoch]).permutation(chunks)[number::n_workers]
        generator = np.random.default_rng([self.seed, self.epoch, 1 + number])
        return self._read_batches(chunks, generator, n_readers)

    def _read_batches(
        self, chunks: Places, generator: np.random.Generator | None, n_readers: int
    ) -> Iterator[LatentBatch]:
        """Yield batches of the samples of some chunks, each buffer's in the random order of a generator."""
        remainder = _Buffer(self._stored, 0, 0).take(np.arange(0))
        with closing(self._fill_buffers(chunks, n_readers)) as buffers:
            for buffer in buffers:
                buffer.prepend(*remainder)
                rows = np.arange(buffer.start, buffer.stop)
                if generator is not None:
                    generator.shuffle(rows)
                n_whole = len(rows) // self.batch_size * self.batch_size
                for first in range(0, n_whole, self.batch_size):
                    yield self._make_batch(*buffer.take(rows[first : first + self.batch_size]))
                remainder = buffer.take(rows[n_whole:])
        if len(remainder[1]):
            yield self._make_batch(*remainder)

    def _fill_buffers(self, chunks: Places, n_readers: int) -> "Generator[_Buffer]":
        """Yield buffers full of chunks; while one is in use, the next is filled in the memory of the last."""
        parts = [chunks[i : i + self._most_chunks] for i in range(0, len(chunks), self._most_chunks)]
        n_before = min(self.batch_size, self.n_samples) - 1
        # Memory is used again in the next pass: where the system has to find it anew, that takes as long as
        # to decode what it is for.
        spare = self._spare_buffers
        buffers = [
            spare.pop() if spare else _Buffer(self._stored, n_before, self._most_chunks) for _ in parts[:2]
        ]
        pool = ThreadPoolExecutor(n_readers)
        try:
            begun = (buffer.begin(pool, part) for buffer, part in zip(cycle(buffers), parts, strict=False))
            following = next(begun, None)
            while following is not None:
                buffer = following.wait()
                following = next(begun, None)
                yield buffer
        finally:
            pool.shutdown(cancel_futures=True)
            spare.extend(buffers)

    def _make_batch(self, latents: NDArray[Any], samples: Places) -> LatentBatch:
        return torch.from_numpy(latents).to(self.dtype), self._labels[torch.from_numpy(samples)]


class _Buffer:
    """Samples of several chunks in memory, and space before them for those that the last buffer left over.

    Attributes
    ----------
    start, stop
        The first row that holds a sample, and the one behind the last.
    """

    def __init__(self, stored: StoredSamples, n_before: int, n_chunks: int) -> None:
        self._stored, self._n_before = stored, n_before
        self._chunk_rows = stored.array.chunks[0]
        n_rows = n_before + n_chunks * self._chunk_rows
        self._latents = np.empty((n_rows, *stored.array.shape[1:]), stored.array.dtype)
        self._samples = np.empty(n_rows, np.int64)
        self.start = self.stop = n_before
        self._reads: list[Future[None]] = []

    def begin(self, pool: ThreadPoolExecutor, chunks: Places) -> "_Buffer":
        """Begin to read chunks in the threads of a pool."""
        self.start = self.stop = self._n_before
        self._reads = []
        for chunk in chunks.tolist():
            first = chunk * self._chunk_rows
            last = min(first + self._chunk_rows, self._stored.array.shape[0])
            rows = slice(self.stop, self.stop + last - first)
            self._samples[rows] = np.arange(first, last)
            self._reads.append(pool.submit(self._stored.read_into, first, last, self._latents[rows]))
            self.stop = rows.stop
        return self

    def wait(self) -> "_Buffer":
        """Wait until all is read; raise the error of the first chunk that could not be."""
        for read in self._reads:
            read.result()
        return self

    def prepend(self, latents: NDArray[Any], samples: Places) -> None:
        """Put samples before those that were read."""
        self.start = self._n_before - len(samples)
        self._latents[self.start : self._n_before] = latents
        self._samples[self.start : self._n_before] = samples

    def take(self, rows: Places) -> tuple[NDArray[Any], Places]:
        """Copy the latents and the numbers of the samples in some rows."""
        return np.take(self._latents, rows, axis=0, mode="clip"), self._samples[rows]


def _check_count(name: str, value: Any, least: int) -> int:
    """Return a whole number; raise ConfigError if it is none, or less than the least."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {least} on")
    return count


def _make_labels(labels: ArrayLike, layer: str, n_samples: int) -> Tensor:
    """Return labels as a tensor; raise ConfigError if they aren't numbers, one for each sample."""
    values = np.asarray(labels)
    n_labels = len(values) if values.ndim else 0
    if n_labels != n_samples:
        raise ConfigError(
            f"labels: {n_labels} of {n_samples} samples of layer {layer}; give one for each, in stored order"
        )
    if values.dtype.kind not in "biuf":
        raise ConfigError(f"labels are of dtype {values.dtype}; expected numbers, such as class indices")
    return torch.tensor(values)
