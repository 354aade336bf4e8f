"""Archives of datasets: zip and tar files, unpacked safely."""

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from satstore.errors import CorruptError, NotFoundError, reason_of


def unpack(archive: Path, into: Path) -> Iterator[int]:
    """Unpack a zip or tar archive; skip files that are there already, and yield the number of files so far.

    Raises
    ------
    CorruptError
        If it can't be read to its end, or has a file that would land outside the folder.
    NotFoundError
        If there is no such archive.
    """
    if not archive.is_file():
        raise NotFoundError(f"no archive {archive.absolute()}; give a zip or tar archive, or a folder")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield from _extract(zipped, into)
        else:
            with tarfile.open(archive) as tar:
                for done, member in enumerate(tar, start=1):
                    place = into / member.name
                    if not (place.is_file() and place.stat().st_size == member.size):
                        tar.extract(member, into, filter="data")
                    yield done
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        reason = reason_of(error)
        raise CorruptError(f"{archive} can't be unpacked: {reason}; get it again") from error


def _extract(zipped: zipfile.ZipFile, into: Path) -> Iterator[int]:
    for done, member in enumerate(zipped.infolist(), start=1):
        place = (into / member.filename).resolve()
        if not place.is_relative_to(into.resolve()):
            raise CorruptError(
                f"{zipped.filename} has {member.filename!r}, which would land outside of {into}; distrust it"
            )
        if not (place.is_file() and place.stat().st_size == member.file_size):
            zipped.extract(member, into)
        yield done
