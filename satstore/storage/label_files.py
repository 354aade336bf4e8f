"""Read labels that somebody made: a class index or a text for each sample, from files of several kinds."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.errors import ConfigError, NotFoundError, UnknownNameError, reason_of
from satstore.registry import suggest
from satstore.storage.numpy_files import list_npz, read_npy, read_npz
from satstore.storage.safe_files import open_file
from satstore.system.text import list_first

MAX_CLASSES = 2**20
"""The most classes that labels may number: an index above is a sample's id, a time or the like."""

EXPECTED = "expected class indices, whole numbers from 0 on, or texts"

_COUNT = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,4})?|inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class GivenLabels:
    """Labels of some samples, as they were given.

    Attributes
    ----------
    array
        (sample,): class indices int64, or texts in an array of objects.
    source
        Where they came from, as errors name it: ``labels.npy``.
    """

    array: NDArray[Any]
    source: str

    @property
    def are_texts(self) -> bool:
        """Whether they are texts."""
        return self.array.dtype == object


def as_labels(values: Any, source: str) -> GivenLabels:
    """Check labels of any kind of array: a tensor, a list, a Series; `source` names them in errors.

    Raises ConfigError if they are not one class index or text for each sample.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    try:
        # A list of numbers and texts must not become texts, as NumPy would make it.
        array = np.asarray(values, dtype=None if hasattr(values, "dtype") else object)
    except ValueError:  # of unequal lengths
        raise ConfigError(f"{source} holds lists of several lengths; {EXPECTED}") from None
    if array.ndim != 1:
        raise ConfigError(f"{source} has shape {array.shape}; expected one label of each sample, (sample,)")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind not in "biuf":
        array = array.astype(object)
        if len(array) and all(isinstance(value, str) for value in array):
            return GivenLabels(array, source)
        if not all(isinstance(value, Real) for value in array):
            kinds = dict.fromkeys(type(value).__name__ for value in array)
            raise ConfigError(f"{source} holds {list_first(list(kinds), 3)}; {EXPECTED}")
        array = array.astype(float)
    return GivenLabels(_check_indices(array, source), source)


def _check_indices(values: NDArray[Any], source: str) -> NDArray[np.int64]:
    with np.errstate(invalid="ignore"):
        wrong = ~(np.isfinite(values) & (values == np.floor(values)) & (values >= 0))
    if wrong.any():
        raise ConfigError(f"{source} holds {float(values[wrong][0]):g}; {EXPECTED}")
    if len(values) and values.max() >= MAX_CLASSES:
        raise ConfigError(
            f"{source} holds the class index {values.max():.0f}; expected indices below {MAX_CLASSES:,}: "
            "number the classes from 0 on, or give texts"
        )
    return values.astype(np.int64)


def number_labels(
    labels: Sequence[GivenLabels], classes: Sequence[str] | None = None
) -> tuple[list[NDArray[np.int64]], list[str]]:
    """Return the class index of each sample, and the classes' names, of labels that share their classes.

    Texts are numbered in the order of `classes`, by default in their own; indices are named by `classes`, by
    default by their numbers. Raises ConfigError if some are indices and some texts, or `classes` lacks one.
    """
    kinds = {given.are_texts: given.source for given in labels if len(given.array)}
    if len(kinds) == 2:
        raise ConfigError(f"{kinds[False]} holds numbers, {kinds[True]} texts; expected the same of both")
    if kinds.get(True):
        return _number_texts(labels, classes)
    n_found = 1 + max((int(given.array.max()) for given in labels if len(given.array)), default=-1)
    names = _check_names(range(n_found) if classes is None else classes)
    for given in labels:
        if len(given.array) and given.array.max() >= len(names):
            raise ConfigError(
                f"{given.source} has labels up to {given.array.max()}, for which {len(names)} classes are "
                "too few; labels count from 0"
            )
    return [given.array.astype(np.int64) for given in labels], names


def _number_texts(
    labels: Sequence[GivenLabels], classes: Sequence[str] | None
) -> tuple[list[NDArray[np.int64]], list[str]]:
    names = _check_names(
        sorted({text for given in labels for text in given.array}) if classes is None else classes
    )
    numbers = {name: number for number, name in enumerate(names)}
    for given in labels:
        unknown = sorted({text for text in given.array if text not in numbers})
        if unknown:
            raise ConfigError(f"{given.source} has the label {unknown[0]!r}{suggest(unknown[0], names)}")
    return [np.array([numbers[text] for text in given.array], np.int64) for given in labels], names


def _check_names(classes: Iterable[object]) -> list[str]:
    names = list(map(str, classes))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"classes has {twice!r} twice; expected a name for each class")
    unprintable = [name for name in names if not name.isprintable()]
    if unprintable:
        raise ConfigError(f"the class {unprintable[0]!r} has characters that can't be printed; rename it")
    if len(names) > MAX_CLASSES:
        raise ConfigError(f"there are {len(names):,} classes; at most {MAX_CLASSES:,} are told apart")
    return names


def name_labels(place: str | Path) -> str:
    """Return what labels of a file are called by default: as their column or array, else as the file."""
    path, column = _split_place(str(place))
    return column or path.stem


def read_label_file(place: str | Path) -> GivenLabels:
    """Read labels, one of each sample, from a file; of several columns or arrays, from one: ``a.csv:label``.

    - ``.npy``, ``.npz``: class indices or texts, not pickled.
    - ``.txt``: a label a line. ``.csv``: columns with a header. They are numbers if all cells are.
    - ``.pt``: a tensor, or a dictionary of tensors; weights only, so that nothing in it runs.
    - ``.parquet``: columns of numbers or texts; needs pyarrow.
    - ``.safetensors``, ``.h5``, ``.hdf5``, ``.zarr``: arrays, as they lie beside features.

    Raises NotFoundError if there is no such file, UnknownNameError if it has no such column, and ConfigError
    if it is no file of labels.
    """
    path, column = _split_place(str(place))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"{path} has the ending {path.suffix!r}; labels are read from {', '.join(READERS)} files"
        )
    if not path.exists():
        raise NotFoundError(f"no file {path}")
    source = str(place)
    try:
        return as_labels(reader(path, column), source)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError | NotFoundError):
            raise
        raise ConfigError(f"{source} can't be read as labels: {reason_of(error)}") from error


def _split_place(place: str) -> tuple[Path, str | None]:
    """Return the path of a file, and the name of the column or array in it."""
    named = re.fullmatch(r"(.+\.(?:npz|csv|pt|parquet|safetensors|h5|hdf5|zarr)):(.+)", place, re.IGNORECASE)
    if named and not Path(place).exists():
        return Path(named[1]), named[2]
    return Path(place), None


def _choose(names: Iterable[str], column: str | None, path: Path, what: str) -> str:
    """Return the name of the column to read, which has to be given if there are several."""
    known = list(map(str, names))
    if column is None and len(known) == 1:
        return known[0]
    if column is None:
        listed = list_first(known, 8) or "none"
        example = f": {path}:{known[0]}" if known else ""
        raise ConfigError(f"{path} has the {what}s {listed}; name one{example}")
    if column not in known:
        raise UnknownNameError(f"{path} has no {what} {column!r}{suggest(column, known)}")
    return column


def _read_npy(path: Path, _: str | None) -> Any:
    with open_file(path, follow=True) as file:
        return read_npy(file, path.stat().st_size)


def _read_npz(path: Path, column: str | None) -> Any:
    with open_file(path, follow=True) as file:
        name = _choose(list_npz(file), column, path, "array")
        return read_npz(file, path.stat().st_size, [name])[name]


def _read_text(path: Path, _: str | None) -> Any:
    with open_file(path, follow=True) as file:
        text = file.read().decode("utf-8-sig").replace("\r\n", "\n")
    return _parse_cells(text.removesuffix("\n").split("\n"), first_line=1)


def _read_csv(path: Path, column: str | None) -> Any:
    with open_file(path, follow=True) as file:
        text = io.StringIO(file.read().decode("utf-8-sig"), newline="")
    try:
        header, *rows = filter(None, csv.reader(text))
    except csv.Error as error:
        raise ConfigError(f"{path} is no table: {error}") from error
    except ValueError:
        raise ConfigError(f"{path} is empty; expected a header and a label a line") from None
    if column is None and len(header) == 1 and _NUMBER.fullmatch(header[0]):
        raise ConfigError(
            f"{path} begins with {header[0]!r} where a column's name is expected; give labels without a "
            "header in a .txt file"
        )
    place = header.index(_choose(header, column, path, "column"))
    return _parse_cells([row[place] if place < len(row) else "" for row in rows], first_line=2)


def _parse_cells(cells: list[str], *, first_line: int) -> Any:
    """Return cells as numbers, if all are, else as texts."""
    if "" in cells:
        raise ValueError(f"there is no label in line {cells.index('') + first_line}")
    if all(map(_COUNT.fullmatch, cells)):
        return np.array(list(map(int, cells)), np.int64)
    return list(map(float, cells)) if all(map(_NUMBER.fullmatch, cells)) else cells


def _read_pt(path: Path, column: str | None) -> Any:
    import pickle

    import torch

    try:
        with open_file(path, follow=True) as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(
            f"{path} is no file of tensors, and is not loaded (weights only): {reason_of(error)[:200]}"
        ) from error
    if isinstance(found, Mapping):
        return found[_choose(found, column, path, "tensor")]
    if column is not None:
        raise UnknownNameError(f"{path} holds one tensor and no {column!r}; leave the name out")
    return found


def _read_parquet(path: Path, column: str | None) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(f"{path} needs pyarrow: pip install 'satstore[parquet]'") from None
    try:
        with open_file(path, follow=True) as file:
            stored = parquet.ParquetFile(file)
            name = _choose(stored.schema_arrow.names, column, path, "column")
            values = stored.read([name]).column(0)
            if values.null_count:
                raise ConfigError(f"{path}: column {name} has {values.null_count} cells without a label")
            return values.to_pandas()
    except ArrowException as error:
        raise ConfigError(f"{path} can't be read as a Parquet file: {reason_of(error)}") from error


def _read_array(path: Path, column: str | None) -> Any:
    from satstore.storage.feature_files import open_arrays

    with ExitStack() as stack:
        arrays = open_arrays(path, stack)
        array = arrays[_choose(arrays, column, path, "array")]
        if len(array.shape) != 1:
            raise ConfigError(f"{path} has shape {array.shape}; expected one label of each sample, (sample,)")
        return array.read(0, array.shape[0])


READERS: Mapping[str, Callable[[Path, str | None], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".pt": _read_pt,
    ".parquet": _read_parquet,
    ".safetensors": _read_array,
    ".h5": _read_array,
    ".hdf5": _read_array,
    ".zarr": _read_array,
}
"""The functions that read each kind of file, by its ending."""
