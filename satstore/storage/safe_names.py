"""Check names that are read from disk: a valid one can only be a file below its folder."""

import re
from functools import lru_cache
from typing import NewType

Key = NewType("Key", str)
"""The name of a file below a folder, with slashes between its parts; made by :func:`as_key` alone."""

MAX_NAME, MAX_PART = 2000, 255
"""The most characters of a name, and bytes of one of its parts, that file systems take."""

DRIVE = re.compile(r"[A-Za-z]:")


def as_key(name: object) -> Key:
    """Check that a name is that of a file below a folder, for any folder; return it.

    Raises ValueError if it is absolute, too long, has a part that is empty, ``.`` or ``..``, a backslash, a
    drive, or a character that can't be printed.
    """
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
        raise ValueError("expected the name of a file: of characters that can be printed, not too long")
    return _check_parts(name)


@lru_cache(maxsize=4096)  # the same names are read again and again
def _check_parts(name: str) -> Key:
    parts = name.split("/")
    is_plain = all(part not in ("", ".", "..") and len(part.encode()) <= MAX_PART for part in parts)
    if not is_plain or "\\" in name or DRIVE.match(name):
        raise ValueError("expected the name of a file below the folder, such as a/b: no '..', no backslash")
    return Key(name)


def is_key(name: object) -> bool:
    """Tell whether a name passes :func:`as_key`."""
    try:
        as_key(name)
    except ValueError:
        return False
    return True


def as_group(path: str) -> Key:
    """Check the path of a group of a store as :func:`as_key` does; ``""`` is the store itself."""
    return as_key(path) if path else Key("")
