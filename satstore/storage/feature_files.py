"""Read features that somebody computed, for each sample, from files of eight kinds, block by block."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.errors import (
    ConfigError,
    CorruptError,
    NotFoundError,
    SatstoreError,
    UnknownNameError,
    reason_of,
)
from satstore.registry import suggest
from satstore.storage.feature_formats import FORMATS, Arrays, FileArray, choose_columns, open_parquet
from satstore.storage.safe_files import walk_files
from satstore.system.text import list_first

ENDINGS = (*FORMATS, ".zarr")

PICKLES = (".pkl", ".pickle", ".p", ".joblib")

ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")

MAX_AXES = 5
"""The most axes of features: sample, channel, z, y, x."""


@dataclass(frozen=True)
class FeatureFile:
    """The features of one layer, in a file that is open.

    Attributes
    ----------
    name
        The layer's name: of an array that is alone in its file, the file's name without its ending, otherwise
        the array's name.
    place
        Names it in messages: ``a.npz:x``.
    shape
        (sample, feature), (sample, token, feature), or (sample, channel, …).
    array
        The file's array.
    """

    name: str
    place: str
    shape: tuple[int, ...]
    array: FileArray

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the features of some samples, float32, or float64 where they are stored so.

        Raises CorruptError if they can't be read.
        """
        with _refusing(self.place):
            values = self.array.read(start, stop)
            expected = (stop - start, *self.shape[1:])
            if values.shape != expected:
                raise ValueError(f"samples {start} to {stop - 1} have shape {values.shape}, not {expected}")
        is_double = values.dtype.kind == "f" and values.dtype.itemsize >= 8
        return np.require(values, np.float64 if is_double else np.float32, ["C", "W"])


@contextmanager
def open_features(
    places: Sequence[str | Path], *, exclude: Sequence[str] = ()
) -> Iterator[dict[str, FeatureFile]]:
    """Open files of features while the context lasts; yield the layers by name, in the order given.

    Parameters
    ----------
    places
        Paths of .npy, .npz, .safetensors, .pt, .parquet, .h5 files or Zarr folders. After a colon, the name
        of the array that is taken, or of a Parquet file a pattern of the columns: ``a.h5:x``,
        ``a.parquet:f*``. Otherwise all arrays of a file are layers.
    exclude
        Columns of Parquet files, given as ``a.parquet:label``, that are no features.

    Raises
    ------
    NotFoundError
        If there is no such file.
    ConfigError
        If its arrays are no features, or not of the same samples, or two layers have the same name.
    CorruptError
        If it can't be read as what its name says.
    """
    layers: dict[str, FeatureFile] = {}
    with ExitStack() as stack:
        for place in places:
            for layer in _open_place(str(place), stack, exclude):
                if layer.name in layers:
                    raise ConfigError(
                        f"{layers[layer.name].place} and {layer.place} are both called {layer.name}; "
                        "rename one"
                    )
                layers[layer.name] = layer
        first, *others = layers.values()
        for other in others:
            if other.shape[0] != first.shape[0]:
                raise ConfigError(
                    f"{first.place} has {first.shape[0]} rows, {other.place} {other.shape[0]}; layers of one "
                    "run are of the same samples"
                )
        yield layers


def is_of_features(place: str) -> bool:
    """Tell whether a path, maybe with the name of an array, has the ending of a file of features."""
    path, _ = split_place(place)
    return path.suffix.lower() in (*ENDINGS, *PICKLES) or is_zarr(path)


def is_zarr(path: Path) -> bool:
    """Tell whether a path is a folder with a Zarr array or group."""
    return path.is_dir() and any((path / name).is_file() for name in ZARR_METADATA)


def split_place(place: str) -> tuple[Path, str | None]:
    """Return the path of a file of features or labels, and the name of the array or column in it."""
    endings = "|".join(ending[1:] for ending in (*ENDINGS, *PICKLES, ".csv"))
    named = re.fullmatch(rf"(.+\.(?:{endings})/?):(.+)", place, re.IGNORECASE)
    if named and not Path(place).exists():
        return Path(named[1]), named[2]
    return Path(place), None


def identify_file(path: Path) -> list[Any]:
    """Return what tells whether a file is still the same: path, bytes, and nanoseconds of its last change."""
    absolute = path.absolute()
    if path.is_dir():
        sizes = dict(walk_files(absolute))
        return [str(absolute), sum(sizes.values()), max((p.stat().st_mtime_ns for p in sizes), default=0)]
    found = absolute.stat()
    return [str(absolute), found.st_size, found.st_mtime_ns]


def _open_place(place: str, stack: ExitStack, exclude: Sequence[str]) -> Iterator[FeatureFile]:
    """Yield the layers of a file, checked."""
    path, name = split_place(place)
    columns = [column for file, column in map(split_place, exclude) if file == path and column is not None]
    arrays = open_arrays(path, stack, name, columns)
    if not arrays:
        raise ConfigError(f"{path} holds no arrays; expected features (sample, feature, …)")
    if name is not None and path.suffix.lower() != ".parquet":
        if name not in arrays:
            raise UnknownNameError(f"{path} has no array {name!r}{suggest(name, arrays)}")
        arrays = {name: arrays[name]}
    elif len(arrays) > 1:
        _check_all_layers(path, arrays)
    for key, array in arrays.items():
        is_file = not key or (len(arrays) == 1 and name is None)
        layer, named = (path.name.removesuffix(path.suffix), f"{path}") if is_file else (key, f"{path}:{key}")
        _check_features(named, array)
        yield FeatureFile(layer, named, array.shape, array)


def open_arrays(path: Path, stack: ExitStack, name: str | None = None, exclude: Sequence[str] = ()) -> Arrays:
    """Open the arrays of a file, features or not, by name; of a Parquet file, some of its columns.

    Raises NotFoundError, ConfigError or CorruptError as :func:`open_features` does.
    """
    ending = path.suffix.lower()
    if not path.exists():
        raise NotFoundError(f"no file {path}")
    if ending in PICKLES:
        raise ConfigError(f"{path}: pickles of others are not read; save it by np.save or as safetensors")
    with _refusing(str(path)):
        if is_zarr(path) or ending == ".zarr":
            from satstore.storage.zarr.feature_arrays import open_zarr

            return open_zarr(path, stack)
        if ending not in FORMATS:
            raise ConfigError(
                f"{path} has the ending {ending!r}; features are read from {', '.join(ENDINGS)}"
            )
        if FORMATS[ending] is open_parquet:
            return choose_columns(path, stack, name, exclude)
        return FORMATS[ending](path, stack)


def _check_all_layers(path: Path, arrays: Mapping[str, FileArray]) -> None:
    """Raise ConfigError unless all arrays of a file may be layers: of numbers, and of the same samples."""
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(lengths) > 1 or any(len(a.shape) < 2 or a.dtype.kind not in "biuf" for a in arrays.values()):
        known = [f"{name} ({_describe(array)})" for name, array in arrays.items()]
        example = max(arrays, key=lambda name: len(arrays[name].shape))
        raise ConfigError(f"{path} has the arrays {list_first(known, 6)}; name one: {path}:{example}")


def _describe(array: FileArray) -> str:
    return f"{' × '.join(map(str, array.shape)) or 'a single value'}, {array.dtype}"


def _check_features(place: str, array: FileArray) -> None:
    """Raise ConfigError unless an array has numbers of samples on its first axis."""
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{place} holds {array.dtype}; expected numbers")
    if not 2 <= len(array.shape) <= MAX_AXES or 0 in array.shape:
        raise ConfigError(
            f"{place} has shape {array.shape}; expected features (sample, feature), "
            "(sample, token, feature) or (sample, channel, y, x)"
        )
    if len(array.shape) == 4 and array.shape[1] == array.shape[2] != array.shape[3]:
        raise ConfigError(
            f"{place} has maps of {' × '.join(map(str, array.shape[1:]))}, whose channels seem to come last; "
            "expected (sample, channel, y, x): save np.moveaxis(array, -1, 1)"
        )


@contextmanager
def _refusing(place: str) -> Iterator[None]:
    """Turn what libraries raise for files that they can't read into a CorruptError of one line."""
    try:
        yield
    except (SatstoreError, MemoryError):
        raise
    except Exception as error:  # h5py, pyarrow, safetensors, zarr and torch have no common type
        raise CorruptError(f"{place} can't be read: {reason_of(error)[:200]}") from error
