"""Writing stores of latents: whole shards, each committed before the next but one is begun."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from satstore.config.keys import LatentsKey
from satstore.errors import ConfigError
from satstore.storage.commit_log import CommitLog, is_under
from satstore.storage.location import Location
from satstore.storage.zarr.durable_store import open_store
from satstore.storage.zarr.latent_targets import SplitOpener, Target, open_root_group
from satstore.storage.zarr.layout import FLOAT16_MANTISSA_BITS, MAX_ENCODERS, Shapes, check_shards_fit
from satstore.storage.zarr.precision import Float32s
from satstore.storage.zarr.shard_writer import ShardWriter
from satstore.storage.zarr.value_problems import Problem, find_problem
from satstore.system.cores import count_cores

TargetKey = tuple[LatentsKey, str]
"""The key and the layer of a target."""


@dataclass
class _Filling:
    """A shard in the making: its number, its rows, and the row of the split that comes next."""

    shard: int
    buffer: Float32s
    next_row: int


class LatentWriter:
    """Writes the latents of one split, all layers and poolings of a forward pass at once.

    What is committed and whole stays; what is damaged or missing is to be given: the rows of :attr:`missing`.
    Rows are gathered in memory until the shards are full; then threads encode, write and commit them while
    the next are filled, and no more than these two. What goes wrong in it is raised by the next call. A layer
    is stored as float16, or as float32 where float16 would not keep the spread of all its features; see
    :mod:`satstore.storage.zarr.precision`.

    Parameters
    ----------
    location
        Where the store lies; made if it isn't there.
    log
        The run's commit log.
    attributes
        What the store says of itself: run, config, layers in forward order, class names.
    source
        What the latents are made from, such as the checkpoint's digest; kept as attributes of the split. What
        was committed from another source is written anew.
    shapes
        Key to layer to the shape of one sample's latent.
    split
        ``train`` or ``eval``.
    labels, sample_ids
        Class index and dataset index of every sample of the split; None where they are known only once all
        samples came: :meth:`finish` takes them then. What is stored of such a split is written anew.
    shard_rows
        Samples of a shard; see :func:`choose_shard_rows`. A pooling that has shards keeps its own.
    mantissa_bits
        Bits of float16's mantissa that are kept, 1 to 10, the others rounded to zero; of a layer in float32,
        as many more as its features need.
    memory_bytes
        What writing may take; by default it isn't checked.

    Attributes
    ----------
    problems
        What can't be probed: values that are not finite, or beyond float32's range; each layer's first batch.

    Raises
    ------
    MemoryLimitError
        If shards of the stored size don't fit the memory.
    CorruptError
        If what is stored is of other samples.
    """

    def __init__(
        self,
        location: Location,
        log: CommitLog,
        attributes: Mapping[str, Any],
        source: Mapping[str, str],
        shapes: Shapes,
        split: str,
        labels: NDArray[np.int64] | None,
        sample_ids: NDArray[np.int64] | None,
        shard_rows: int,
        mantissa_bits: int = FLOAT16_MANTISSA_BITS,
        memory_bytes: int | None = None,
    ) -> None:
        self._store = open_store(location, log)
        self._n_samples = None if labels is None else len(labels)
        self.problems: list[Problem] = []
        committed = log.read(location.name)
        for key in shapes:
            path = f"{key}/{split}"
            for damage in list(committed.damaged(location, str(key))):
                if is_under(damage.key, path) or damage.key == f"{key}/zarr.json":
                    self._store.remove_object(damage.key)
            self._store.remove_uncommitted(path)
            if labels is None:
                self._store.remove_group(path)
        above = {f"{group}/zarr.json" for key in shapes for group in key.groups}
        for name in {"zarr.json", *above} - committed.files.keys():
            self._store.remove_object(name)
        self._opener = SplitOpener(
            self._store,
            log.read(location.name),
            {**source, "mantissa_bits": mantissa_bits},
            None if labels is None else np.asarray(labels, np.int64),
            None if sample_ids is None else np.asarray(sample_ids, np.int64),
            shard_rows,
        )
        self._root = open_root_group(self._store, json.loads(json.dumps(attributes)))
        self._paths = [f"{key}/{split}" for key in shapes]
        targets = list(self._opener.open(self._root, shapes, split))
        self._targets: dict[TargetKey, Target] = {(t.key, t.layer): t for t in targets}
        if memory_bytes is not None:
            rows = {t.key: t.shard_rows for t in targets}
            remedy = "write them anew with --overwrite, raise --memory-limit"
            check_shards_fit(shapes, rows, memory_bytes, remedy, self._n_samples)
        self._todo = {place: set(target.missing) for place, target in self._targets.items()}
        self._filling: dict[TargetKey, _Filling] = {}
        self._spare: dict[TargetKey, list[Float32s]] = {place: [] for place in self._targets}
        self._shards = ShardWriter(self._store, mantissa_bits, self._look_at)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="latents")
        # One thread per core, so that a forward pass on the CPU finds all cores equally busy: it waits for
        # the slowest of its threads.
        n_threads = min(MAX_ENCODERS, count_cores())
        self._encoders = ThreadPoolExecutor(n_threads, thread_name_prefix="encoder")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:  # also where Ctrl-C comes while the last shards are waited for
            self._thread.shutdown()
            self._encoders.shutdown()

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The ranges of rows that are to be given, ascending and apart."""
        spans = {
            (target.span(shard).start, target.span(shard).stop)
            for place, target in self._targets.items()
            for shard in self._todo[place]
        }
        ranges: list[tuple[int, int]] = []
        for start, stop in sorted(spans):
            if ranges and start <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
            else:
                ranges.append((start, stop))
        return ranges

    def append(self, latents: Mapping[LatentsKey, Mapping[str, NDArray[Any]]], start: int) -> None:
        """Add samples, in ascending order; those that no layer misses are passed over.

        Parameters
        ----------
        latents
            Key to layer to an array (n, …) of any floating type.
        start
            The row of the split that the first of them is.

        Raises
        ------
        ConfigError
            If samples are left out, are more than there are labels, or are of another shape.
        """
        n_rows = len(next(iter(next(iter(latents.values())).values())))
        if self._n_samples is None:
            self._announce(start, start + n_rows)
        elif start + n_rows > self._n_samples:
            raise ConfigError(f"more samples came than the {self._n_samples} announced")
        step = min((t.shard_rows for t in self._targets.values()), default=1)
        row = start
        while row < start + n_rows:
            stop = min(start + n_rows, (row // step + 1) * step)
            for (key, layer), target in self._targets.items():
                if row // target.shard_rows in self._todo[key, layer]:
                    self._fill(target, latents[key][layer][row - start : stop - start], row)
            self._hand_over()
            row = stop

    def _announce(self, start: int, stop: int) -> None:
        """Begin the shards that rows lie in, of a pass whose end is not known."""
        for place, target in self._targets.items():
            for shard in range(-(-start // target.shard_rows), -(-stop // target.shard_rows)):
                target.missing.add(shard)
                self._todo[place].add(shard)

    def _fill(self, target: Target, values: NDArray[Any], row: int) -> None:
        place, shard = (target.key, target.layer), row // target.shard_rows
        start = target.span(shard).start
        if place not in self._filling:
            n_rows = target.shard_rows if self._n_samples is None else min(target.shard_rows, self._n_samples)
            shape = (n_rows, *target.array.shape[1:])
            buffer = self._spare[place].pop() if self._spare[place] else np.empty(shape, np.float32)
            self._filling[place] = _Filling(shard, buffer, start)
        filling = self._filling[place]
        if row != filling.next_row:
            raise ConfigError(f"layer {target.layer}: samples {filling.next_row} to {row - 1} were left out")
        part = filling.buffer[row - start :][: len(values)]
        if values.shape != part.shape:  # never broadcast
            raise ConfigError(
                f"layer {target.layer}: latents of shape {values.shape[1:]}, expected {part.shape[1:]}"
            )
        with np.errstate(over="ignore"):
            part[...] = values
        self._look_at(target, row, values, part)
        filling.next_row += len(values)

    def _look_at(self, target: Target, row: int, values: NDArray[Any], stored: NDArray[Any]) -> None:
        """Note the first samples of a layer that can't be probed."""
        if (target.key, target.layer) not in {(p.key, p.layer) for p in self.problems}:
            problem = find_problem(target.key, target.layer, row, values, stored)
            self.problems += [] if problem is None else [problem]

    def _hand_over(self) -> None:
        """Hand the shards that are full to the thread, once it is done with those before."""
        full: dict[TargetKey, _Filling] = {}
        for place, filling in self._filling.items():
            if filling.next_row == self._targets[place].span(filling.shard).stop:
                full[place] = filling
        if not full:
            return
        self.drain()
        for place, filling in full.items():
            del self._filling[place]
            self._todo[place].discard(filling.shard)
        self._writing = self._thread.submit(self._write, full)

    def drain(self) -> None:
        """Wait until all full shards are committed.

        Raises
        ------
        WriteError
            If the disk refused one of them.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, full: Mapping[TargetKey, _Filling]) -> None:
        for _ in self._encoders.map(self._write_shard, full.keys(), full.values()):
            pass
        self._store.commit({self._targets[place].path: self._targets[place].n_rows for place in full})

    def _write_shard(self, place: TargetKey, filling: _Filling) -> None:
        target = self._targets[place]
        span = target.span(filling.shard)
        self._shards.write(target, filling.shard, filling.buffer[: span.stop - span.start])
        self._spare[place].append(filling.buffer)

    def finish(self, labels: NDArray[np.int64], sample_ids: NDArray[np.int64]) -> None:
        """Finish a split of which it was not known how many samples come.

        Parameters
        ----------
        labels, sample_ids
            Of all samples that came, in their order.
        """
        self.drain()
        self._n_samples = len(labels)
        for target in self._targets.values():
            target.count(len(labels))
        for path in self._paths:
            self._opener.write_ids(self._root, path, labels, sample_ids)
        self._hand_over()  # the last shards, which end where the split does
        self.close()

    def close(self) -> None:
        """Finish the split, and check that it is whole.

        Raises
        ------
        ConfigError
            If fewer samples came than were announced, or it was not said how many came.
        """
        if self._n_samples is None:
            raise ConfigError("the samples were not counted; end with finish(labels, sample_ids)")
        self.drain()
        for target in self._targets.values():
            if target.missing:
                raise ConfigError(
                    f"layer {target.layer}: samples {target.n_rows} to {self._n_samples - 1} were announced "
                    "and did not come"
                )
            self._shards.finish(target)
        if self._store.has_changes:
            self._store.commit({target.path: target.n_rows for target in self._targets.values()})


def copy_split(
    location: Location, log: CommitLog, keys: Iterable[LatentsKey], source: str, split: str
) -> None:
    """Store a split's latents once more, as those of another split, and commit them."""
    store, committed = open_store(location, log), log.read(location.name)
    for key in keys:
        before, after = f"{key}/{source}", f"{key}/{split}"
        for name in committed.under(before):
            store.write_object(after + name.removeprefix(before), location.read(name))
        groups = {group: n for group, n in committed.n_rows.items() if is_under(group, before)}
        store.commit({after + group.removeprefix(before): n for group, n in groups.items()})


def describe_anew(location: Location, log: CommitLog, attributes: Mapping[str, Any]) -> None:
    """Replace and commit what a store says of itself."""
    store = open_store(location, log)
    open_root_group(store, json.loads(json.dumps(attributes)))
    if store.has_changes:
        store.commit()


def discard(location: Location, log: CommitLog, keys: Iterable[str]) -> None:
    """Let go of objects or whole groups, the log first: they are missing from then on."""
    store = open_store(location, log)
    objects = log.read(location.name).files
    for key in keys:
        if key in objects:
            store.remove_object(key)
        else:
            store.remove_group(key)
