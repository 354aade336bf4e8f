"""The files and folders that ``--out`` stands for."""

from collections.abc import Sequence
from pathlib import Path

from satstore.errors import ConfigError


def output_file(out: Path | None, default: Path, suffixes: Sequence[str]) -> Path:
    """Return the file that a command writes, given the value of ``--out``.

    That is a file, if it ends in one of the suffixes, such as ``.png``, and is no existing folder; else the
    folder of a file with the name of the default.

    Raises
    ------
    ConfigError
        If ``out`` has another suffix, or is another existing file.
    """
    if out is None:
        return default
    if out.suffix.lower() in suffixes and not out.is_dir():
        return out
    return _folder(out, f"a file that ends in {' or '.join(suffixes)}, or a folder") / default.name


def output_folder(out: Path | None, default: Path) -> Path:
    """Return the folder that a command writes its files to.

    Raises
    ------
    ConfigError
        If ``out`` has a suffix, or is an existing file.
    """
    return default if out is None else _folder(out, "a folder, for several files are written")


def _folder(out: Path, expected: str) -> Path:
    if out.is_dir():
        return out
    if out.suffix or out.exists():
        raise ConfigError(f"--out {out}: expected {expected}")
    return out
