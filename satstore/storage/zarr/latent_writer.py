"""Write stores of latents in whole shards, each committed before the next but one is begun."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError
from satstore.storage.commit_log import CommitLog, is_under
from satstore.storage.location import Location
from satstore.storage.zarr.durable_store import DurableStore, open_store
from satstore.storage.zarr.layer_arrays import KeptRows, LayerArray, SplitOpener, open_root_group
from satstore.storage.zarr.layout import FLOAT16_MANTISSA_BITS, MAX_ENCODERS, Shapes, check_shards_fit
from satstore.storage.zarr.precision import Float32s
from satstore.storage.zarr.shard_writer import ShardWriter
from satstore.storage.zarr.value_problems import ValueProblem, find_value_problem
from satstore.system.cores import count_cores

LayerKey = tuple[LatentsKey, str]
"""The key of latents, and the name of a layer."""


@dataclass
class _Filling:
    """A shard that is being filled: its number, its rows, and the row of the split that comes next."""

    shard: int
    buffer: Float32s
    next_row: int


class LatentWriter:
    """Writes the latents of one split, all layers and poolings of a forward pass at once.

    Committed shards are kept; rows that are damaged or missing have to be given: those of :attr:`missing`.
    Rows are gathered in memory until the shards are full; then threads encode, write and commit them while
    the next are filled: at most two shards per layer at a time. Errors of the threads are raised by the next
    call. A layer is stored as float16, or as float32 if float16 would not keep the spread of all its
    features; see :mod:`satstore.storage.zarr.precision`.

    Parameters
    ----------
    location
        The store's location; the store is created if it doesn't exist.
    log
        The run's commit log.
    attributes
        The store's attributes: run, config, layers in forward order, class names.
    source
        The source of the latents, such as the checkpoint's digest; kept as attributes of the split. Latents
        that were committed from another source are written again.
    shapes
        Key to layer to the shape of one sample's latent.
    split
        ``train`` or ``eval``.
    labels, sample_ids
        Class index and dataset index of every sample of the split; None if they are known only after all
        samples: :meth:`finish` takes them then. Stored latents of such a split are written again, except
        those kept.
    shard_rows
        Samples of a shard; see :func:`choose_shard_rows`. A pooling that has shards keeps its own.
    kept
        The rows of a split of unknown length to go on from, which :meth:`committed_rows` returned.
    mantissa_bits
        Bits of float16's mantissa that are kept, 1 to 10, the others are rounded to zero; a layer in float32
        keeps as many more as its features need.
    memory_bytes
        The most memory that writing may take; by default it isn't checked.

    Attributes
    ----------
    problems
        The first batch of each layer with values that can't be probed.
    n_handed_over
        How often full shards were passed to the threads that commit them.

    Raises
    ------
    MemoryLimitError
        If shards of the stored size don't fit the memory.
    CorruptError
        If the stored latents are of other samples.
    """

    n_handed_over = 0
    _writing: Future[None] | None = None

    def __init__(
        self,
        location: Location,
        log: CommitLog,
        *,
        attributes: Mapping[str, Any],
        source: Mapping[str, str],
        shapes: Shapes,
        split: str,
        labels: NDArray[np.int64] | None = None,
        sample_ids: NDArray[np.int64] | None = None,
        shard_rows: int,
        kept: KeptRows | None = None,
        mantissa_bits: int = FLOAT16_MANTISSA_BITS,
        memory_bytes: int | None = None,
    ) -> None:
        self._store = open_store(location, log)
        self._n_samples = None if labels is None else len(labels)
        self.problems: list[ValueProblem] = []
        _remove_unusable(self._store, log, shapes, split, is_whole_split=labels is None and kept is None)
        self._opener = SplitOpener(
            self._store,
            log.read(location.name),
            {**source, "mantissa_bits": mantissa_bits},
            None if labels is None else np.asarray(labels, np.int64),
            None if sample_ids is None else np.asarray(sample_ids, np.int64),
            shard_rows if kept is None else kept.shard_rows,
            kept,
        )
        self._root = open_root_group(self._store, json.loads(json.dumps(attributes)))
        self._paths = [f"{key}/{split}" for key in shapes]
        arrays = self._opener.open(self._root, shapes, split)
        self._layers: dict[LayerKey, LayerArray] = {(array.key, array.name): array for array in arrays}
        self._check_memory(shapes, memory_bytes)
        self._todo = {layer_key: set(layer.missing) for layer_key, layer in self._layers.items()}
        self._filling: dict[LayerKey, _Filling] = {}
        self._spare: dict[LayerKey, list[Float32s]] = {layer_key: [] for layer_key in self._layers}
        self._shards = ShardWriter(self._store, mantissa_bits, self._note_problem)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="latents")
        # One thread per core: a forward pass on the CPU waits for its slowest thread.
        self._encoders = ThreadPoolExecutor(min(MAX_ENCODERS, count_cores()), thread_name_prefix="encoder")

    def _check_memory(self, shapes: Shapes, memory_bytes: int | None) -> None:
        """Check that shards of the stored sizes fit the memory, if it is limited."""
        if memory_bytes is None:
            return
        rows = {layer.key: layer.shard_rows for layer in self._layers.values()}
        remedy = "write them anew with --overwrite, raise --memory-limit"
        check_shards_fit(shapes, rows, memory_bytes, remedy, self._n_samples)

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
        """The ranges of rows that have to be given, ascending and apart."""
        spans = {
            (layer.span(shard).start, layer.span(shard).stop)
            for layer_key, layer in self._layers.items()
            for shard in self._todo[layer_key]
        }
        ranges: list[tuple[int, int]] = []
        for start, stop in sorted(spans):
            if ranges and start <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
            else:
                ranges.append((start, stop))
        return ranges

    @property
    def n_committed(self) -> int:
        """The rows that all layers have: the next one has to be given."""
        return min(layer.n_rows for layer in self._layers.values())

    def committed_rows(self) -> KeptRows:
        """Wait until full shards are committed, and return what a writer of this split can go on from."""
        self.drain()
        layers = self._layers.values()
        precisions = {
            layer.path: (layer.precision.dtype.name, layer.precision.mantissa_bits) for layer in layers
        }
        return KeptRows(self.n_committed, next(iter(layers)).shard_rows, precisions)

    def append(self, latents: Mapping[LatentsKey, Mapping[str, NDArray[Any]]], start: int) -> None:
        """Add samples, in ascending order, from a row of the split on; those that no layer needs are ignored.

        They are key to layer to an array (n, …) of any floating type. Raises ConfigError if samples are left
        out, exceed the labels, or have another shape.
        """
        n_rows = len(next(iter(next(iter(latents.values())).values())))
        if self._n_samples is None:
            self._announce(start, start + n_rows)
        elif start + n_rows > self._n_samples:
            raise ConfigError(f"more samples came than the {self._n_samples} announced")
        step = min((array.shard_rows for array in self._layers.values()), default=1)
        row = start
        while row < start + n_rows:
            stop = min(start + n_rows, (row // step + 1) * step)
            for (key, name), layer in self._layers.items():
                if row // layer.shard_rows in self._todo[key, name]:
                    self._fill(layer, latents[key][name][row - start : stop - start], row)
            self._hand_over()
            row = stop

    def _announce(self, start: int, stop: int) -> None:
        """Begin the shards of some rows, in a split whose length is not known."""
        for layer_key, layer in self._layers.items():
            for shard in range(-(-start // layer.shard_rows), -(-stop // layer.shard_rows)):
                if shard * layer.shard_rows >= layer.n_kept:
                    layer.missing.add(shard)
                    self._todo[layer_key].add(shard)

    def _fill(self, layer: LayerArray, values: NDArray[Any], row: int) -> None:
        layer_key, shard = (layer.key, layer.name), row // layer.shard_rows
        start = layer.span(shard).start
        if layer_key not in self._filling:
            n_rows = layer.shard_rows if self._n_samples is None else min(layer.shard_rows, self._n_samples)
            shape = (n_rows, *layer.array.shape[1:])
            buffer = self._spare[layer_key].pop() if self._spare[layer_key] else np.empty(shape, np.float32)
            self._filling[layer_key] = _Filling(shard, buffer, start)
        filling = self._filling[layer_key]
        if row != filling.next_row:
            raise ConfigError(f"layer {layer.name}: samples {filling.next_row} to {row - 1} were left out")
        part = filling.buffer[row - start :][: len(values)]
        if values.shape != part.shape:  # never broadcast
            raise ConfigError(
                f"layer {layer.name}: latents of shape {values.shape[1:]}, expected {part.shape[1:]}"
            )
        with np.errstate(over="ignore"):
            part[...] = values
        self._note_problem(layer, row, values, part)
        filling.next_row += len(values)

    def _note_problem(self, layer: LayerArray, row: int, values: NDArray[Any], stored: NDArray[Any]) -> None:
        """Note the first samples of a layer that can't be probed."""
        if (layer.key, layer.name) not in {(p.key, p.layer) for p in self.problems}:
            problem = find_value_problem(layer.key, layer.name, row, values, stored)
            self.problems += [] if problem is None else [problem]

    def _hand_over(self) -> None:
        """Pass full shards to the thread, after it has finished the previous ones."""
        full: dict[LayerKey, _Filling] = {}
        for layer_key, filling in self._filling.items():
            if filling.next_row == self._layers[layer_key].span(filling.shard).stop:
                full[layer_key] = filling
        if not full:
            return
        self.drain()
        for layer_key, filling in full.items():
            del self._filling[layer_key]
            self._todo[layer_key].discard(filling.shard)
        self._writing = self._thread.submit(self._write, full)
        self.n_handed_over += 1

    def drain(self) -> None:
        """Wait until all full shards are committed; raise WriteError if the disk refused one of them."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, full: Mapping[LayerKey, _Filling]) -> None:
        list(self._encoders.map(self._write_shard, full.keys(), full.values()))  # raises their errors
        layers = [self._layers[layer_key] for layer_key in full]
        self._store.commit({layer.path: layer.n_rows for layer in layers})

    def _write_shard(self, layer_key: LayerKey, filling: _Filling) -> None:
        layer = self._layers[layer_key]
        span = layer.span(filling.shard)
        self._shards.write(layer, filling.shard, filling.buffer[: span.stop - span.start])
        self._spare[layer_key].append(filling.buffer)

    def finish(self, labels: NDArray[np.int64], sample_ids: NDArray[np.int64]) -> None:
        """Finish a split of unknown length, given label and dataset index of all samples in their order."""
        self.drain()
        self._n_samples = len(labels)
        for layer in self._layers.values():
            layer.set_length(len(labels))
        for path in self._paths:
            self._opener.write_ids(self._root, path, labels, sample_ids)
        self._hand_over()  # the last shards, which end where the split does
        self.close()

    def close(self) -> None:
        """Finish the split; raise ConfigError if samples are missing, or their number is not known."""
        if self._n_samples is None:
            raise ConfigError("the samples were not counted; end with finish(labels, sample_ids)")
        self.drain()
        for layer in self._layers.values():
            if layer.missing:
                raise ConfigError(
                    f"layer {layer.name}: samples {layer.n_rows} to {self._n_samples - 1} were announced "
                    "and did not come"
                )
            self._shards.finish(layer)
        if self._store.has_changes:
            self._store.commit({layer.path: layer.n_rows for layer in self._layers.values()})


def _remove_unusable(
    store: DurableStore, log: CommitLog, shapes: Shapes, split: str, *, is_whole_split: bool
) -> None:
    """Remove a split's damaged and uncommitted objects, or all of it, and uncommitted metadata above it."""
    committed = log.read(store.location.name)
    for key in shapes:
        path = f"{key}/{split}"
        for damage in list(committed.damaged(store.location, str(key))):
            if is_under(damage.key, path) or damage.key == f"{key}/zarr.json":
                store.remove_object(damage.key)
        store.remove_uncommitted(path)
        if is_whole_split:
            store.remove_group(path)
    above = {f"{group}/zarr.json" for key in shapes for group in key.groups}
    for name in {"zarr.json", *above} - committed.files.keys():
        store.remove_object(name)


def copy_split(
    location: Location, log: CommitLog, keys: Iterable[LatentsKey], source: str, split: str
) -> None:
    """Copy a split's latents to another split, and commit them."""
    store, committed = open_store(location, log), log.read(location.name)
    for key in keys:
        before, after = f"{key}/{source}", f"{key}/{split}"
        for name in committed.under(before):
            store.write_object(after + name.removeprefix(before), location.read(name))
        groups = {group: n for group, n in committed.n_rows.items() if is_under(group, before)}
        store.commit({after + group.removeprefix(before): n for group, n in groups.items()})


def replace_attributes(location: Location, log: CommitLog, attributes: Mapping[str, Any]) -> None:
    """Replace a store's attributes, and commit them."""
    store = open_store(location, log)
    open_root_group(store, json.loads(json.dumps(attributes)))
    if store.has_changes:
        store.commit()


def discard(location: Location, log: CommitLog, keys: Iterable[str]) -> None:
    """Remove objects or whole groups, first from the log."""
    store = open_store(location, log)
    objects = log.read(location.name).files
    for key in keys:
        if key in objects:
            store.remove_object(key)
        else:
            store.remove_group(key)
