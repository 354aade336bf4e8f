"""Find the files of downloadable datasets, unpack or download them, or say how to get them."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from satstore.datasets.archives import unpack
from satstore.errors import NotFoundError

logger = logging.getLogger(__name__)

_may_download: ContextVar[bool] = ContextVar("may_download", default=True)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Refuse downloads within the context; missing files are errors instead."""
    token = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(token)


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a downloadable dataset.

    Attributes
    ----------
    archive
        An archive of the folder, which may lie in the data folder instead.
    may_be_gzipped
        Whether each file may be compressed, with ``.gz`` at the end of its name.
    elsewhere
        Folders outside the data folder that may hold the files too, such as a system package's.
    """

    name: str
    folder: str
    names: Sequence[str]
    page: str
    archive: str | None = None
    may_be_gzipped: bool = False
    elsewhere: Sequence[Path] = ()

    def missing(self, folder: Path) -> list[str]:
        """Return the names of the files that a folder lacks."""
        return [name for name in self.names if not self._find(folder, name)]

    def locate(self, data_dir: str | os.PathLike[str]) -> Path | None:
        """Return the folder that holds all files; None if there is none."""
        folders = (Path(data_dir).absolute() / self.folder, *self.elsewhere)
        return next((folder for folder in folders if not self.missing(folder)), None)

    def file(self, folder: Path, name: str) -> Path:
        """Return the path of one of the files, compressed or not."""
        found = self._find(folder, name)
        assert found is not None
        return found

    def _find(self, folder: Path, name: str) -> Path | None:
        names = (name, f"{name}.gz") if self.may_be_gzipped else (name,)
        return next((folder / n for n in names if (folder / n).is_file()), None)


def locate_or_download(
    files: DatasetFiles, data_dir: str | os.PathLike[str], download: Callable[[Path], object]
) -> Path:
    """Find the folder of a dataset's files; unpack an archive or download them if they are missing.

    Parameters
    ----------
    download
        Downloads the dataset into an empty folder, which it is called with, as into a data folder.
    """
    data_dir = Path(data_dir).absolute()
    if found := files.locate(data_dir):
        return found
    if files.archive and (data_dir / files.archive).is_file():
        for _ in unpack(data_dir / files.archive, data_dir):
            pass
        if found := files.locate(data_dir):
            return found
    wanted = [f"{files.folder}/ with {', '.join(files.names)}"]
    wanted += [files.archive] if files.archive else []
    wanted += ["each with .gz"] if files.may_be_gzipped else []
    advice = (
        f"expected {' or '.join(wanted)} there: get them from {files.page}, or name the folder that "
        "holds them with the config key cache_dir or with TORCH_DATADIR"
    )
    if not _may_download.get():
        raise NotFoundError(
            f"{files.name} is not in {data_dir}; {advice}, or download them: satstore dataset check "
            f"{files.name} --download"
        )
    logger.info("%s is not in %s; downloading it (%s)", files.name, data_dir, files.page)
    try:
        return _download(files, data_dir, download)
    except (RuntimeError, OSError) as error:  # torchvision raises nothing more specific
        reason = str(error).strip().splitlines()[-1]
        raise NotFoundError(
            f"{files.name} is not in {data_dir} and can't be downloaded ({reason}); {advice}"
        ) from error


def _download(files: DatasetFiles, data_dir: Path, download: Callable[[Path], object]) -> Path:
    # Into a folder of its own: existing files are kept, and a failed download leaves no half of a dataset.
    data_dir.mkdir(parents=True, exist_ok=True)
    waiting = data_dir / f".{files.name}.download"
    with FileLock(data_dir / f".{files.name}.lock"):  # if two runs begin together, one downloads
        if found := files.locate(data_dir):
            return found
        try:
            waiting.mkdir(exist_ok=True)
            download(waiting)
            folder = data_dir / files.folder
            folder.mkdir(parents=True, exist_ok=True)
            for name in files.missing(folder):
                path = files.file(waiting / files.folder, name)
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(waiting, ignore_errors=True)
    return folder
