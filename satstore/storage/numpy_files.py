"""Read NumPy's .npy and .npz files without pickles, and without trusting the sizes that they claim."""

import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from satstore.errors import reason_of

MAX_DEFLATION = 1032
"""How many bytes one deflated byte can stand for at most (zlib's technical details)."""

BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, MemoryError)
"""What zipfile and NumPy raise, besides ValueError, for files that are cut off or made to deceive."""

HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(file: IO[bytes], size_bytes: int) -> NDArray[Any]:
    """Read an array of a .npy file of a size in bytes.

    Raises ValueError, saying what was found, if it is no such file, holds Python objects, which are pickled,
    or its header claims another size.
    """
    shape, is_fortran, dtype = read_npy_header(file, size_bytes)
    with as_value_errors():
        values = np.frombuffer(file.read(size_bytes - file.tell()), dtype)
        return values.reshape(shape, order="F" if is_fortran else "C")


def read_npy_header(file: IO[bytes], size_bytes: int) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Read the shape of an array, whether it is in Fortran order, and its dtype, up to its first value.

    Raises ValueError as :func:`read_npy` does.
    """
    with as_value_errors():
        version = np.lib.format.read_magic(file)
        if version not in HEADER_READERS:
            raise ValueError(f"is of version {version[0]}.{version[1]} of the format")
        shape, is_fortran, dtype = HEADER_READERS[version](file)
        if dtype.hasobject:
            raise ValueError("holds Python objects, which are pickled")
        n_values = 1
        for length in shape:  # not NumPy's product, which overflows
            n_values *= max(0, length)
        found, claimed = size_bytes - file.tell(), n_values * dtype.itemsize
        if claimed != found:
            raise ValueError(f"claims {claimed:,} bytes of values {dtype} {shape} and has {found:,}")
        return shape, is_fortran, dtype


def read_npz(
    file: IO[bytes], size_bytes: int, names: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Read arrays of a .npz file of a size in bytes, by name; None for all.

    Raises ValueError as :func:`read_npy` does, and if an array is missing or is packed in another way than
    NumPy's.
    """
    found = {}
    with as_value_errors(), zipfile.ZipFile(file) as packed:
        members = {info.filename.removesuffix(".npy"): info for info in packed.infolist()}
        for name in members if names is None else names:
            if name not in members:
                raise ValueError(f"has no array {name!r}; its arrays are {', '.join(map(repr, members))}")
            check_member(members[name], size_bytes)
            with packed.open(members[name]) as part:
                found[name] = read_npy(part, members[name].file_size)
    return found


def list_npz(file: IO[bytes]) -> list[str]:
    """Return the names of the arrays of a .npz file; raise ValueError if it is none."""
    with as_value_errors(), zipfile.ZipFile(file) as packed:
        return [info.filename.removesuffix(".npy") for info in packed.infolist()]


def check_member(info: zipfile.ZipInfo, size_bytes: int) -> None:
    """Raise ValueError if a member is packed in another way than NumPy's, or claims an impossible size."""
    most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MAX_DEFLATION}.get(info.compress_type)
    if most is None or info.flag_bits & 1:
        raise ValueError(
            f"has the array {info.filename!r} compressed or encrypted in a way that NumPy has not"
        )
    if info.compress_size > size_bytes or info.file_size > most * info.compress_size:
        raise ValueError(f"has an array {info.filename!r} that claims {info.file_size:,} bytes")


@contextmanager
def as_value_errors() -> Iterator[None]:
    """Turn what broken files raise into ValueErrors that tell what was found."""
    try:
        yield
    except BROKEN as error:
        raise ValueError(f"can't be read as NumPy's format ({reason_of(error)})") from error
