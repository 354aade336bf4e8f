"""List the arrays of files of several formats, and read them in blocks of rows; nothing in them runs.

Each opener is given a file and an :class:`~contextlib.ExitStack` that closes what it opens, and returns the
file's arrays by name; the name of an array that is a file by itself is empty.
"""

import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from satstore.errors import ConfigError
from satstore.storage.numpy_files import as_value_errors, check_member, read_npy_header
from satstore.storage.safe_files import open_file
from satstore.system.text import list_first

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet
    from torch import Tensor


@dataclass(frozen=True)
class FileArray:
    """An array in a file.

    Attributes
    ----------
    shape
        (row, …).
    dtype
        That of the values which are read.
    read
        Returns the rows from one up to another, in any order of calls, and soonest in ascending order.
    """

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    read: Callable[[int, int], NDArray[Any]]


Arrays = dict[str, FileArray]


def open_npy(path: Path, stack: ExitStack) -> Arrays:
    """Open a .npy file; raise ValueError if it is none, is pickled, or is not as long as it claims."""
    file = stack.enter_context(open_file(path, follow=True))
    shape, is_fortran, dtype = read_npy_header(file, path.stat().st_size)
    if not is_fortran:
        return {"": _read_c_order(file, shape, dtype)}
    offset = file.tell()

    def read(start: int, stop: int) -> NDArray[Any]:
        # Mapped for each block, so that memory holds the pages of one block alone.
        mapped = np.memmap(path, dtype, "r", offset, shape, "F")
        return np.array(mapped[start:stop], order="C")

    return {"": FileArray(shape, dtype, read)}


def open_npz(path: Path, stack: ExitStack) -> Arrays:
    """Open a .npz file, compressed or not; ValueError as of :func:`open_npy`, or for an impossible size."""
    size_bytes, found = path.stat().st_size, {}
    with as_value_errors():
        packed = stack.enter_context(zipfile.ZipFile(stack.enter_context(open_file(path, follow=True))))
        for info in packed.infolist():
            check_member(info, size_bytes)
            name = info.filename.removesuffix(".npy")
            part: Any = stack.enter_context(packed.open(info))  # an IO[bytes], by its type
            shape, is_fortran, dtype = read_npy_header(part, info.file_size)
            if is_fortran:
                raise ConfigError(
                    f"{path}: {name} is stored in Fortran order; save np.ascontiguousarray({name})"
                )
            found[name] = _read_c_order(part, shape, dtype)
    return found


def _read_c_order(file: BufferedIOBase, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> FileArray:
    """Return the array whose values come next in a file, packed or not."""
    offset, row_bytes = file.tell(), math.prod(shape[1:]) * dtype.itemsize

    def read(start: int, stop: int) -> NDArray[Any]:
        content = np.empty((stop - start) * row_bytes, np.uint8)
        with as_value_errors():
            file.seek(offset + start * row_bytes)
            n_read = file.readinto(content.data)
        if n_read != len(content):
            raise ValueError(f"it ends {len(content) - n_read} bytes before row {stop}")
        return content.view(dtype).reshape(stop - start, *shape[1:])

    return FileArray(shape, dtype, read)


def open_safetensors(path: Path, stack: ExitStack) -> Arrays:
    """Open a file of safetensors, which checks its header against its size."""
    from safetensors import safe_open

    open_file(path, follow=True).close()

    def of(name: str) -> FileArray:
        def read(start: int, stop: int) -> NDArray[Any]:
            # Opened for each block: what it maps counts as this process's memory until it is closed.
            with safe_open(path, framework="pt") as file:
                return _as_numpy(file.get_slice(name)[start:stop])

        return FileArray(tuple(shapes[name]), read(0, 0).dtype, read)

    with safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    return {name: of(name) for name in shapes}


def open_pt(path: Path, stack: ExitStack) -> Arrays:
    """Open a file of ``torch.save`` with a tensor, or tensors by name; nothing in it runs."""
    import warnings

    import torch

    open_file(path, follow=True).close()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says what is wrong with the file
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises zipfile's and pickle's errors, and its own
        reason = "it was saved without its zip format" if "mmap" in str(error) else str(error)
        short = reason.split("\n")[0].split(". ")[0][:160]
        raise ConfigError(
            f"{path} is no file of tensors, and is not loaded (weights only): {short}; save one by "
            "torch.save, np.save or as safetensors"
        ) from error
    tensors = found if isinstance(found, Mapping) else {"": found}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            what = f"a {type(value).__name__}" + (f" as {name!r}" if name else "")
            raise ConfigError(f"{path} holds {what}; expected a tensor, or tensors by name")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ConfigError(
                f"{path} claims {value.numel():,} values where it holds fewer, repeated; save tensor.clone()"
            )

    def of(tensor: "Tensor") -> FileArray:
        return FileArray(
            tuple(tensor.shape),
            _as_numpy(tensor[:0]).dtype,
            lambda start, stop: _as_numpy(tensor[start:stop]),
        )

    return {str(name): of(tensor) if tensor.ndim else _scalar() for name, tensor in tensors.items()}


def _scalar() -> FileArray:
    """Return the array of a value that is none, which is listed, and never read."""
    return FileArray((), np.dtype(np.float32), lambda start, stop: np.empty(0))


def _as_numpy(tensor: "Tensor") -> NDArray[Any]:
    """Return a tensor as an array; what NumPy has no dtype for, bfloat16 and the like, as float32."""
    try:
        return np.asarray(tensor.numpy())
    except TypeError:
        return np.asarray(tensor.float().numpy())


def open_parquet(path: Path, stack: ExitStack) -> Arrays:
    """Open a Parquet file: each column of lists is an array, or else all columns of numbers together are one.

    See :func:`choose_columns` for a choice of them.
    """
    return choose_columns(path, stack, None, ())


LABEL_NAMES = frozenset({"label", "labels", "target", "targets", "class", "y", "id", "index"})
"""Names of columns that would tell a probe the answer."""

INDEX = re.compile(r"__index_level_\d+__")
"""The names of columns in which pandas keeps a frame's index."""


def choose_columns(path: Path, stack: ExitStack, pattern: str | None, exclude: Sequence[str]) -> Arrays:
    """Open those columns of a Parquet file whose names match a pattern with ``*`` and ``?``, without some.

    ConfigError if a choice is needed: no pattern is given, and some columns seem to be no features.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(f"{path} needs pyarrow: pip install 'satstore[parquet]'") from None
    file = stack.enter_context(parquet.ParquetFile(stack.enter_context(open_file(path, follow=True))))
    fields = [
        field
        for field in file.schema_arrow
        if field.name not in exclude
        and not INDEX.fullmatch(field.name)
        and (pattern is None or fnmatchcase(field.name, pattern))
    ]
    lists = [
        field for field in fields if hasattr(field.type, "value_type") and pa.types.is_nested(field.type)
    ]
    if lists:
        return {field.name: _open_list(file, field.name) for field in lists}
    numbers = [f for f in fields if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    if not numbers:
        known = list_first(file.schema_arrow.names, 4) or "none"
        raise ConfigError(f"{path} has no columns of numbers or lists of them; its columns are {known}")
    if pattern is None:
        _check_all_features(path, numbers)
    columns = _ParquetColumns(file, [field.name for field in numbers], len(numbers))
    dtype = np.result_type(*(field.type.to_pandas_dtype() for field in numbers))
    return {"": FileArray((file.metadata.num_rows, len(numbers)), dtype, columns.read)}


def _check_all_features(path: Path, fields: "Sequence[pa.Field]") -> None:
    """Raise ConfigError if some of a table's columns of numbers may be labels or ids, not features."""
    suspicious = [field.name for field in fields if field.name.lower() in LABEL_NAMES]
    kinds = {str(field.type): field.name for field in fields}
    if not suspicious and len(kinds) == 1:
        return
    found = (
        f"the column {suspicious[0]}"
        if suspicious
        else "columns of " + list_first([f"{kind} ({name})" for kind, name in kinds.items()], 3)
    )
    example = fields[-1].name.rstrip("0123456789")
    raise ConfigError(
        f"{path} has {found} among its numbers; name those that are features: '{path}:{example}*'"
    )


def _open_list(file: "parquet.ParquetFile", name: str) -> FileArray:
    first = next(file.iter_batches(1, columns=[name]), None)
    width = len(first.column(0)[0] or ()) if first is not None else 0
    columns = _ParquetColumns(file, [name], width)
    dtype = np.dtype(file.schema_arrow.field(name).type.value_type.to_pandas_dtype())
    return FileArray((file.metadata.num_rows, width), dtype, columns.read)


class _ParquetColumns:
    """Reads columns of numbers, or one of lists, of a Parquet file as an array (row, feature)."""

    def __init__(self, file: "parquet.ParquetFile", columns: list[str], n_features: int) -> None:
        self._file, self._columns, self._n_features = file, columns, n_features
        self._batch_rows = max(1, 2**22 // max(1, n_features))
        self._restart()

    def _restart(self) -> None:
        batches = self._file.iter_batches(self._batch_rows, columns=self._columns)
        self._batches: Iterator[pa.RecordBatch] = iter(batches)
        self._first, self._values = 0, np.empty((0, self._n_features))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows; those before the last batch that was read are read from the file's beginning."""
        if start < self._first:
            self._restart()
        parts = []
        while start < stop:
            end = self._first + len(self._values)
            if start < end:
                parts.append(self._values[start - self._first : stop - self._first])
                start += len(parts[-1])
                continue
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(f"it ends after {end} of {self._file.metadata.num_rows} rows")
            self._first, self._values = end, self._convert(batch, end)
        return np.concatenate(parts)

    def _convert(self, batch: "pa.RecordBatch", first_row: int) -> NDArray[Any]:
        parts = []
        for name, column in zip(self._columns, batch.columns, strict=True):
            if hasattr(column.type, "value_type"):
                lengths = np.asarray(column.value_lengths().fill_null(-1))
                if (lengths != self._n_features).any():
                    row = int((lengths != self._n_features).argmax())
                    raise ValueError(
                        f"row {first_row + row} of column {name} has {max(0, lengths[row])} values, the "
                        f"first {self._n_features}"
                    )
                column = column.flatten()
            if column.null_count:
                raise ValueError(f"column {name} has {column.null_count} cells without a value")
            values = column.to_numpy(zero_copy_only=False)
            parts.append(values.reshape(batch.num_rows, -1))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def open_hdf5(path: Path, stack: ExitStack) -> Arrays:
    """Open an HDF5 file for reading: the datasets that lie in it; links to other files are not followed."""
    try:
        import h5py
    except ImportError:
        raise ConfigError(f"{path} needs h5py: pip install 'satstore[hdf5]'") from None
    open_file(path, follow=True).close()
    file = stack.enter_context(h5py.File(path, "r"))
    found: Arrays = {}

    def see(name: str, node: Any) -> None:  # of soft and external links, h5py's visit says nothing
        if isinstance(node, h5py.Dataset) and node.shape:
            if node.external or node.is_virtual:
                raise ConfigError(f"{path}: {name} lies in other files, which are not read; give these")
            found[name] = FileArray(node.shape, node.dtype, lambda start, stop: node[start:stop])

    file.visititems(see)
    return found


FORMATS: Mapping[str, Callable[[Path, ExitStack], Arrays]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    ".pt": open_pt,
    ".pth": open_pt,
    ".parquet": open_parquet,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
}
"""What opens each kind of file, by its ending."""
