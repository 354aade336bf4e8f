"""Writing stores of latents: whole shards, each committed before the next is begun."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from satstore.commits import CommitLog
from satstore.errors import ConfigError
from satstore.location import Location
from satstore.store.durable import open_store
from satstore.store.layout import (
    Shapes,
    choose_chunk_rows,
    create_array,
    encode_layer,
    get_array,
)


@dataclass(frozen=True)
class Problem:
    """The first batch of a layer, samples first_row to last_row - 1, with values that can't be probed.

    In what was committed before the writer was opened, an infinity counts as an overflow.
    """

    pooling: str
    layer: str
    first_row: int
    last_row: int
    n_non_finite: int
    n_overflows: int

    def __str__(self) -> str:
        found = [f"{self.n_non_finite} values are NaN or infinite"] if self.n_non_finite else []
        found += [f"{self.n_overflows} are beyond float16 (65504)"] if self.n_overflows else []
        where = f"samples {self.first_row} to {self.last_row - 1}"
        return f"layer {self.layer}: {' and '.join(found)} in {where}, {self.pooling},"


class FeatureMoments:
    """Running mean and variance of every feature, merged block by block in float64 (Chan)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.scatter = np.zeros(shape)

    def update(self, block: NDArray[np.float16]) -> None:
        """Take in samples (n, …); what is not finite makes its feature's moments NaN."""
        with np.errstate(invalid="ignore", over="ignore"):
            mean = block.mean(axis=0, dtype=np.float64)
            scatter = np.square(block - mean).sum(axis=0)
            n, total = len(block), self.count + len(block)
            shift = mean - self.mean
            self.mean += shift * (n / total)
            self.scatter += scatter + np.square(shift) * (self.count * n / total)
            self.count = total

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation, divided by n."""
        return np.sqrt(self.scatter / max(1, self.count))


class LatentWriter:
    """Writes the latents of one split, all layers and poolings of a forward pass at once.

    Samples are gathered in memory until every layer's shard is full; then the shards are written, and the
    commit log says so. A writer that finds committed shards goes on after them: give it the samples from
    ``n_rows`` on.

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
        was committed from another source is not gone on with, but written anew.
    shapes
        Pooling key (``pool4``) to layer to the shape of one sample's latent.
    split
        ``train`` or ``eval``.
    n_samples
        Samples of the split.
    shard_rows
        Samples of a shard; see :func:`choose_shard_rows`. A store that is gone on with keeps its own.

    Attributes
    ----------
    n_rows
        Samples committed.
    problems
        What can't be probed: values that are not finite, or beyond float16's range; each layer's first batch.
    """

    def __init__(
        self,
        location: Location,
        log: CommitLog,
        attributes: Mapping[str, Any],
        source: Mapping[str, str],
        shapes: Shapes,
        split: str,
        n_samples: int,
        shard_rows: int,
    ) -> None:
        self._log = log
        self._location = location
        self._store = open_store(location, log)
        self._shapes = shapes
        self._source = dict(source)
        self._groups = {pooling: f"{pooling}/{split}" for pooling in shapes}
        self._n_samples = n_samples
        self.problems: list[Problem] = []
        root_group = zarr.open_group(self._store, mode="a")
        if dict(root_group.attrs) != json.loads(json.dumps(attributes)):
            root_group.attrs.put(dict(attributes))
        self.n_rows = self._find_committed()
        if self.n_rows == 0:
            self._create(root_group, shard_rows)
        elif self.n_rows < n_samples:
            for path in self._groups.values():
                self._store.remove_uncommitted(path)
        groups = {pooling: root_group[path] for pooling, path in self._groups.items()}
        self._labels = {p: get_array(g, "label") for p, g in groups.items()}  # type: ignore[arg-type]
        self._sample_ids = {p: get_array(g, "sample_id") for p, g in groups.items()}  # type: ignore[arg-type]
        self._layer_groups: dict[tuple[str, str], zarr.Group] = {
            (p, layer): groups[p][encode_layer(layer)]  # type: ignore[index, misc]
            for p, layers in shapes.items()
            for layer in layers
        }
        self._arrays = {key: get_array(group, "latent") for key, group in self._layer_groups.items()}
        self._open_buffers()

    def _find_committed(self) -> int:
        """Return the rows that every group holds; 0 if they differ: one pass goes on from one place."""
        committed = self._log.read(self._location.name)
        found = {committed.n_rows.get(path, 0) for path in self._groups.values()}
        if len(found) != 1 or 0 in found:
            return 0
        specs = set()
        for pooling, path in self._groups.items():
            committed.check(self._location, path, "write it again with: satstore extract --overwrite")
            group = zarr.open_group(self._store, mode="r", path=path)
            stored = {str(g.attrs["layer"]): get_array(g, "latent").shape for _, g in group.groups()}
            wanted = {layer: (self._n_samples, *shape) for layer, shape in self._shapes[pooling].items()}
            if stored != wanted or dict(group.attrs) != self._source:
                return 0
            specs.add(get_array(group, "label").chunks)
        n_rows = found.pop()
        return n_rows if len(specs) == 1 else 0

    def _create(self, root_group: zarr.Group, shard_rows: int) -> None:
        for pooling, path in self._groups.items():
            self._store.remove_group(path)
            group = root_group.create_group(path, attributes=self._source)
            for name in ("label", "sample_id"):
                create_array(group, name, (self._n_samples,), np.int64, ("sample",), chunks=(shard_rows,))
            for layer, shape in self._shapes[pooling].items():
                layer_group = group.create_group(encode_layer(layer), attributes={"layer": layer})
                axes = ("channel", "y", "x") if len(shape) == 3 else ("feature", "step")[: len(shape)]
                create_array(
                    layer_group,
                    "latent",
                    (self._n_samples, *shape),
                    np.float16,
                    ("sample", *axes),
                    chunks=(choose_chunk_rows(shape, shard_rows), *shape),
                    shards=(shard_rows, *shape),
                )
                for name in ("mean", "std"):
                    create_array(layer_group, name, shape, np.float32, axes, chunks=shape)

    def _open_buffers(self) -> None:
        first = next(iter(self._labels.values()))
        self._shard_rows = first.chunks[0]
        self._filled = 0
        rows = min(self._shard_rows, self._n_samples)
        self._buffers = {key: np.empty((rows, *a.shape[1:]), np.float16) for key, a in self._arrays.items()}
        self._label_buffer = np.empty((2, rows), np.int64)
        self._moments = {key: FeatureMoments(a.shape[1:]) for key, a in self._arrays.items()}
        for key, array in self._arrays.items():  # what was committed before has to count in the moments too
            for start in range(0, self.n_rows, self._shard_rows):
                block = np.asarray(array[start : min(start + self._shard_rows, self.n_rows)])
                self._take_in(key, block)
                self._look_at(block, block, key, start)

    def _take_in(self, key: tuple[str, str], block: NDArray[np.float16]) -> None:
        rows = self._arrays[key].chunks[0]
        for start in range(0, len(block), rows):
            self._moments[key].update(block[start : start + rows])

    def append(
        self,
        latents: Mapping[str, Mapping[str, NDArray[Any]]],
        labels: NDArray[np.int64],
        sample_ids: NDArray[np.int64],
    ) -> None:
        """Add a batch of samples.

        Parameters
        ----------
        latents
            Pooling key to layer to an array (n, …) of any floating type.
        labels, sample_ids
            Class indices and dataset indices, shape (n,).

        Raises
        ------
        ConfigError
            If more samples come than were announced, or of another shape.
        """
        if self.n_rows + self._filled + len(labels) > self._n_samples:
            raise ConfigError(f"more samples came than the {self._n_samples} announced")
        start = 0
        while start < len(labels):
            rows = min(len(labels) - start, self._shard_rows - self._filled)
            here, there = slice(start, start + rows), slice(self._filled, self._filled + rows)
            for (pooling, layer), buffer in self._buffers.items():
                self._fill(buffer[there], latents[pooling][layer][here], (pooling, layer))
            self._label_buffer[:, there] = labels[here], sample_ids[here]
            self._filled += rows
            start += rows
            if self._filled == self._shard_rows or self.n_rows + self._filled == self._n_samples:
                self._flush()

    def _fill(self, buffer: NDArray[np.float16], values: NDArray[Any], key: tuple[str, str]) -> None:
        if values.shape != buffer.shape:  # never broadcast
            raise ConfigError(
                f"layer {key[1]}: latents of shape {values.shape[1:]}, expected {buffer.shape[1:]}"
            )
        with np.errstate(over="ignore"):
            buffer[...] = values
        self._look_at(buffer, values, key, self.n_rows + self._filled)

    def _look_at(
        self, stored: NDArray[np.float16], values: NDArray[Any], key: tuple[str, str], row: int
    ) -> None:
        # One cheap look at the extremes; only a layer's first bad batch is counted value by value.
        if np.isfinite(stored.max(initial=0)) and np.isfinite(stored.min(initial=0)):
            return
        if key not in {(problem.pooling, problem.layer) for problem in self.problems}:
            was_committed = values is stored
            found = np.isnan(values) if was_committed else ~np.isfinite(values)
            n_non_finite = int(found.sum())
            n_overflows = int((~np.isfinite(stored)).sum()) - n_non_finite
            self.problems.append(Problem(*key, row, row + len(values), n_non_finite, n_overflows))

    def _flush(self) -> None:
        rows = slice(self.n_rows, self.n_rows + self._filled)
        for key, array in self._arrays.items():
            block = self._buffers[key][: self._filled]
            array[rows] = block
            self._take_in(key, block)
        for pooling in self._groups:
            self._labels[pooling][rows], self._sample_ids[pooling][rows] = self._label_buffer[
                :, : self._filled
            ]
        self.n_rows += self._filled
        self._filled = 0
        if self.n_rows == self._n_samples:
            for key, moments in self._moments.items():
                get_array(self._layer_groups[key], "mean")[...] = moments.mean.astype(np.float32)
                get_array(self._layer_groups[key], "std")[...] = moments.std.astype(np.float32)
        self._store.commit(dict.fromkeys(self._groups.values(), self.n_rows))

    def close(self) -> None:
        """Check that the split is whole.

        Raises
        ------
        ConfigError
            If fewer samples came than were announced.
        """
        if self.n_rows != self._n_samples:
            raise ConfigError(f"{self.n_rows} samples were written of {self._n_samples} announced")
