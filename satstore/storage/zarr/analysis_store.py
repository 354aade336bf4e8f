"""The small store of results: spectra, last moments, probe coefficients and confusion matrices."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from satstore.errors import NotFoundError
from satstore.storage.commit_log import CommitLog
from satstore.storage.files import FORMAT_VERSION
from satstore.storage.location import Folder
from satstore.storage.zarr.durable_store import DurableStore, open_or_mend, open_store
from satstore.storage.zarr.layout import (
    Array,
    check_axes,
    check_version,
    create_array,
    encode_layer,
    explaining_decode_errors,
    explaining_metadata_errors,
    get_array,
    open_root,
)

PROBE_DIMENSIONS: Mapping[tuple[str, int], tuple[str, ...]] = {
    ("coef", 2): ("class", "feature"),
    ("coef", 4): ("y", "x", "class", "channel"),
    ("intercept", 1): ("class",),
    ("intercept", 3): ("y", "x", "class"),
    ("confusion", 2): ("true_class", "predicted_class"),
    ("confusion", 4): ("y", "x", "true_class", "predicted_class"),
    ("accuracy", 2): ("y", "x"),
    ("class_index", 1): ("true_class",),
}
"""The axes of a probe's arrays, by name and number of axes; with y and x, there is a probe per position."""

CHUNK_BYTES = 64 * 2**20
"""The largest size of an array's chunk."""

KINDS: Mapping[str, str] = {"confusion": "iu", "class_index": "iu"}
"""The arrays of whole numbers; see :func:`satstore.storage.zarr.layout.check_axes`."""


class AnalysisStore:
    """The store ``analysis.zarr`` of one experiment; without the run's commit log, for reading only.

    Groups: ``spectra/<split>/<layer>`` with ``eigenvalues`` (epoch, eigenvalue) and, after the last epoch,
    ``mean`` (feature) and ``covariance`` (feature, other_feature); ``probes/<table>/<layer>`` with ``coef``
    (class, feature), ``intercept`` (class), ``confusion`` (true_class, predicted_class) and ``class_index``
    (true_class), the dataset's index of each class. Two classes have one row of ``coef``. Probes of each
    position have axes (y, x) before these, ``channel`` in place of ``feature``, and ``accuracy`` (y, x).
    """

    def __init__(self, path: Path, log: CommitLog | None = None) -> None:
        self.path = path
        self._log = log

    def write_spectra(
        self, split: str, epoch: int, n_epochs: int, spectra: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """Write one epoch's eigenvalues (n_features,) by layer, descending; NaN where the layer failed.

        Epochs are counted from 0; arrays are made for `n_epochs`.
        """
        with self._writing() as root:
            for layer, eigenvalues in spectra.items():
                group = _layer_group(root, f"spectra/{split}", layer)
                if "eigenvalues" not in group:
                    shape = (n_epochs, len(eigenvalues))
                    create_array(
                        group, "eigenvalues", shape, np.float64, ("epoch", "eigenvalue"), chunks=(1, shape[1])
                    )
                get_array(group, "eigenvalues")[epoch] = eigenvalues

    def finish_spectra(self, n_epochs: int) -> None:
        """Cut the spectra to the epochs that were trained, if training stopped early."""
        with self._writing() as root:
            for split in ("train", "eval"):
                for layer in self.spectra(split):
                    array = get_array(_layer_group(root, f"spectra/{split}", layer), "eigenvalues")
                    if array.shape[0] != n_epochs:
                        array.resize((n_epochs, array.shape[1]))

    def write_moments(
        self, split: str, moments: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    ) -> None:
        """Write each layer's mean (n_features,) and covariance (n_features, n_features) of the last epoch."""
        for layer, (mean, covariance) in moments.items():
            with self._writing() as root:  # a commit of its own: one that fails leaves the others
                group = _layer_group(root, f"spectra/{split}", layer)
                _put(group, "mean", mean, ("feature",))
                _put(group, "covariance", covariance, ("feature", "other_feature"))

    def write_probe(self, table: str, layer: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the arrays of a probe, or of the probes of all positions, by their names of PROBE_DIMENSIONS.

        Existing ones are replaced. The table's name is a pooling's key, such as ``pool4``, with or without a
        prefix.
        """
        with self._writing() as root:
            group = _layer_group(root, f"probes/{table}", layer)
            for name, values in arrays.items():
                _put(group, name, values, PROBE_DIMENSIONS[name, values.ndim])

    def drop_probes(self, table: str) -> None:
        """Remove a table's probes."""
        self._open_writable().remove_group(f"probes/{table}")

    def remove_probes(self, table: str) -> None:
        """Remove a table's probes, damaged or not, so that new ones can be written."""
        self.drop_probes(table)
        self._open_writable().remove_object("probes/zarr.json")  # written again with the first probe

    def spectra(self, split: str, layers: Collection[str] | None = None) -> dict[str, NDArray[np.float64]]:
        """Return eigenvalues (epoch, eigenvalue) of all or some layers; descending, NaN where one failed."""
        groups = self._layers(f"spectra/{split}")
        if layers is not None:
            groups = {layer: group for layer, group in groups.items() if layer in layers}
        found = {}
        for layer, group in groups.items():
            with explaining_decode_errors(
                f"{group.store_path}: the spectra of layer {layer}", "satstore verify says what to do"
            ):
                found[layer] = np.asarray(check_axes(get_array(group, "eigenvalues"), None, None)[...])
        return found

    def moments(self, split: str, layer: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a layer's mean and covariance after the last epoch; errors are those of :meth:`probe`."""
        group = self._layer(f"spectra/{split}", layer)
        with explaining_decode_errors(
            f"{group.store_path}: the moments of layer {layer}", "satstore verify says what to do"
        ):
            mean = check_axes(get_array(group, "mean"), None)
            covariance = check_axes(get_array(group, "covariance"), *mean.shape, *mean.shape)
            return np.asarray(mean[...]), np.asarray(covariance[...])

    def probe(self, table: str, layer: str) -> dict[str, NDArray[Any]]:
        """Return a probe's arrays, by name.

        Raises NotFoundError if there is none, CorruptError if a stored array isn't as it was written.
        """
        group = self._layer(f"probes/{table}", layer)
        with explaining_decode_errors(
            f"{group.store_path}: the probe of layer {layer}",
            "make it again with: satstore probe --overwrite",
        ):
            names = sorted({name for name, _ in PROBE_DIMENSIONS})
            arrays = {name: get_array(group, name) for name in names if name in group}
            _check_probe(arrays)
            return {name: np.asarray(array[...]) for name, array in arrays.items()}

    def _open_writable(self) -> DurableStore:
        if self._log is None:
            raise NotFoundError(f"{self.path} is open for reading only")
        return open_store(Folder(self.path), self._log)

    @contextmanager
    def _writing(self) -> Iterator[zarr.Group]:
        """Open the store for one write, and commit it unless there was an error."""
        store = self._open_writable()
        root = open_or_mend(store)
        if not root.attrs:
            root.attrs["format_version"] = FORMAT_VERSION
        check_version(root, store.location)
        yield root
        store.commit()

    def _layer(self, path: str, layer: str) -> zarr.Group:
        groups = self._layers(path)
        if layer not in groups:
            raise NotFoundError(f"{self.path} has nothing of layer {layer!r} under {path}")
        return groups[layer]

    def _layers(self, path: str) -> dict[str, zarr.Group]:
        if not (self.path / path).exists():
            return {}
        with explaining_metadata_errors(self.path / path):
            parent = open_root(Folder(self.path))[path]
            assert isinstance(parent, zarr.Group)
            groups = {str(group.attrs["layer"]): group for _, group in parent.groups()}
        return dict(sorted(groups.items()))  # a folder lists its files in any order


def _check_probe(arrays: Mapping[str, Array]) -> None:
    """Check that a probe's arrays have the axes of PROBE_DIMENSIONS, of consistent sizes."""
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        known = [n_axes for of, n_axes in PROBE_DIMENSIONS if of == name]
        n_axes = array.ndim if array.ndim in known else known[0]
        axes = [axis.replace("predicted", "true") for axis in PROBE_DIMENSIONS[name, n_axes]]
        for axis, size in zip(axes, array.shape, strict=False):
            sizes.setdefault(axis, size)
        check_axes(array, *(sizes.get(axis) for axis in axes), kinds=KINDS.get(name, "fiu"))


def _layer_group(root: zarr.Group, path: str, layer: str) -> zarr.Group:
    group = root.require_group(f"{path}/{encode_layer(layer)}")
    if "layer" not in group.attrs:
        group.attrs["layer"] = layer
    return group


def _put(group: zarr.Group, name: str, values: NDArray[Any], dimensions: tuple[str, ...]) -> None:
    chunks = choose_chunks(values.shape, values.dtype.itemsize)
    array = create_array(group, name, values.shape, values.dtype, dimensions, chunks=chunks, overwrite=True)
    array[...] = values


def choose_chunks(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """Choose chunks of at most CHUNK_BYTES: the whole array, or as much of its last axes as fits.

    Blosc takes less than 2 GiB at once; the covariance of 16,384 features has 2 GiB.
    """
    chunks: list[int] = []
    left = max(1, CHUNK_BYTES // item_bytes)
    for size in reversed(shape):
        chunks.append(max(1, min(size, left)))
        left //= chunks[-1]
    return tuple(reversed(chunks))
