"""The gate for names that are read from disk: what passes it can only be a file below its folder."""

import re
from functools import lru_cache
from typing import NewType

Key = NewType("Key", str)
"""The name of a file below a folder, its parts joined by slashes; :func:`as_key` alone makes it."""

MAX_NAME, MAX_PART = 2000, 255
"""Characters of a name, and bytes of one of its parts, that file systems take at most."""

DRIVE = re.compile(r"[A-Za-z]:")


def as_key(name: object) -> Key:
    """Return a name if it is that of a file below a folder, whatever the folder.

    Raises
    ------
    ValueError
        If it is absolute, has a part that is empty, ``.`` or ``..``, a backslash, a drive, or a character
        that can't be printed, or is longer than any file's.
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
    """Return the path of a group of a store, which is ``""`` for the store itself.

    Raises
    ------
    ValueError
        As :func:`as_key`.
    """
    return as_key(path) if path else Key("")
