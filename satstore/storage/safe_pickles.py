"""Read pickle files of plain values and NumPy arrays without running anything that they name.

A pickle names functions to be called. Here each of the few names in an array's pickle stands for a function
of this module, which records its arguments; any other name is refused. The arrays are made from these
records: nothing of NumPy's runs either.
"""

import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.errors import CorruptError, reason_of
from satstore.storage.safe_files import open_file


def read_arrays(path: Path) -> Iterator[NDArray[Any]]:
    """Yield the arrays of a file of consecutive pickles, one at a time.

    They are of floats, integers or booleans, of any shape and byte order. Raises CorruptError if the file
    can't be read, is cut off, or holds anything else.
    """
    number = 0
    with _refusing(f"{path} can't be read"):
        file = open_file(path, follow=True)
    with file:
        while True:
            with _refusing(f"{path}: batch {number + 1} is no pickle of a NumPy array"):
                if not file.peek(1):
                    return
                found = _Unpickler(file).load()
                if not isinstance(found, _Array):
                    raise pickle.UnpicklingError(f"it holds a {type(found).__name__}")
                array = found.array()
            yield array
            number += 1


def read_pickle(path: Path) -> Any:
    """Read a file's first pickle: numbers, text, arrays, and lists and dictionaries of them.

    Any Python may have written it; Python 2's strings are read as Latin-1. Raises CorruptError if it can't be
    read, is cut off, or holds anything else.
    """
    with _refusing(f"{path} is no pickle of plain values and NumPy arrays"), path.open("rb") as file:
        return _with_arrays(_Unpickler(file, encoding="latin1").load(), {})


@contextmanager
def _refusing(problem: str) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
        pickle.PickleError,
    ) as error:
        reason = reason_of(error)[:200]
        raise CorruptError(f"{problem}, and is not loaded ({reason})") from error


def _with_arrays(found: Any, known: dict[int, Any]) -> Any:
    """Replace the records of arrays by arrays; an object that occurs twice is converted once."""
    if isinstance(found, str | bytes | int | float | None):
        return found
    if id(found) not in known:
        if isinstance(found, _Array):
            known[id(found)] = found.array()
        elif isinstance(found, dict):
            known[id(found)] = {key: _with_arrays(value, known) for key, value in found.items()}
        elif isinstance(found, list | tuple):
            known[id(found)] = [_with_arrays(value, known) for value in found]
        else:
            raise pickle.UnpicklingError(f"it holds a {type(found).__name__}")
    return known[id(found)]


class _DType:
    """Records the arguments of a dtype."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}; expected numbers")
        self._code, self._order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self._order, *structure = state[:5]
        if any(structure) or self._order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("it holds an array of a structure; expected numbers")

    def dtype(self) -> "np.dtype[Any]":
        return np.dtype(f"{self._order}{self._code}")


class _Array:
    """Records the arguments of an array."""

    _state: tuple[tuple[int, ...], _DType, str, bytes | str]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        self._state = shape, kind, "F" if is_fortran else "C", content

    def array(self) -> NDArray[Any]:
        shape, kind, order, content = self._state
        if isinstance(content, str):  # bytes of Python 2
            content = content.encode("latin-1")
        if not isinstance(kind, _DType):
            raise pickle.UnpicklingError("it holds an array of no dtype")
        flat = np.frombuffer(content, kind.dtype())
        return flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: bytes, kind: _DType, shape: tuple[int, ...], order: str) -> _Array:
    found = _Array()
    found.__setstate__((1, shape, kind, order == "F", content))
    return found


def _scalar(kind: _DType, content: bytes | str) -> Any:
    found = _Array()
    found.__setstate__((1, (), kind, False, content))
    return found.array().item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding!r}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _refuse_to_call(*_: Any) -> None:
    raise pickle.UnpicklingError("it calls numpy.ndarray")


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _refuse_to_call,
    # Bytes in protocol 2 and before; where there are none, as an empty call.
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}
for package in ("numpy.core", "numpy._core"):  # of NumPy 1 and 2
    STAND_INS[f"{package}.multiarray", "_reconstruct"] = _reconstruct
    STAND_INS[f"{package}.multiarray", "scalar"] = _scalar
    STAND_INS[f"{package}.numeric", "_frombuffer"] = _from_buffer  # of protocol 5


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, or refuse it."""
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return STAND_INS[module, name]
