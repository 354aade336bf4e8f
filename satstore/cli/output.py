"""Where a command writes what it makes: what ``--out`` means, for all commands that have it."""

from collections.abc import Sequence
from pathlib import Path

from satstore.errors import ConfigError


def output_file(out: Path | None, default: Path, suffixes: Sequence[str]) -> Path:
    """Return the file that a command writes.

    Parameters
    ----------
    out
        What was given as ``--out``: a file, if it ends in one of the suffixes and is no folder, or else a
        folder, in which the file has its usual name.
    default
        The file that is written without ``--out``.
    suffixes
        Of the formats that the command writes, such as ``.png``.

    Raises
    ------
    ConfigError
        If ``out`` ends in something else, or is a file.
    """
    if out is None:
        return default
    if out.suffix.lower() in suffixes and not out.is_dir():
        return out
    return _folder(out, f"a file that ends in {' or '.join(suffixes)}, or a folder") / default.name


def output_folder(out: Path | None, default: Path) -> Path:
    """Return the folder that a command writes several files to.

    Raises
    ------
    ConfigError
        If ``out`` is called like a file, or is one.
    """
    return default if out is None else _folder(out, "a folder, for several files are written")


def _folder(out: Path, expected: str) -> Path:
    if out.is_dir():
        return out
    if out.suffix or out.exists():
        raise ConfigError(f"--out {out}: expected {expected}")
    return out
