"""Archives of runs: packing a run into a zip file, and unpacking and verifying it elsewhere."""

import hashlib
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from satstore.errors import ConfigError, CorruptError, DiskSpaceError, NotFoundError, SatstoreError, reason_of
from satstore.runs.logs_folder import check_run_id
from satstore.runs.manifest import LATENTS, Manifest
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.storage.files import Digest, make_folder, refusals, sync_folder, write_file
from satstore.storage.location import Folder
from satstore.storage.safe_files import check_folders, is_file, open_file
from satstore.storage.safe_names import is_key
from satstore.system.limits import free_disk
from satstore.system.text import describe_size

UNCOMMITTED = ("manifest.json", "commits.jsonl", "events.jsonl")
"""Files of a run folder that are packed although neither manifest nor commit log names them."""

PART_BYTES = 2**20
"""Bytes that are read of a file at once."""


def pack_run(run: Run, path: Path, with_latents: bool = False) -> Path:
    """Pack a run into a zip file, by default without its latents, which ``extract`` can write again.

    Raises NotFoundError if latents are to be packed and lie on object storage, CorruptError if a file is not
    as it was committed, and WriteError if the zip file can't be written.
    """
    if with_latents and run.manifest.latents and not isinstance(run.latents_location, Folder):
        raise NotFoundError(f"{run.name}: its latents lie at {run.latents_path}; leave --latents out")
    make_folder(path.absolute().parent)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        # Checkpoints and shards are compressed already.
        with refusals(path, 0), run.lock(), zipfile.ZipFile(partial, "x", zipfile.ZIP_STORED) as packed:
            for name, source, digest in packed_files(run, with_latents):
                member = zipfile.ZipInfo.from_file(source) if is_file(source) else zipfile.ZipInfo(name)
                member.filename = f"{run.run_id}/{run.experiment}/{name}"
                with packed.open(member, "w", force_zip64=True) as file:
                    for part in _read_checked(run, source, digest):
                        file.write(part)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.absolute().parent)
    return path.absolute()


def _read_checked(run: Run, path: Path, expected: Digest | None) -> Iterator[bytes]:
    """Yield a file's content in parts; raise CorruptError if its digest differs or it can't be read."""
    remedy = f"satstore verify {run.name} names what makes it again"
    seen, n_bytes = hashlib.sha256(), 0
    try:
        with open_file(path) as file:
            while part := file.read(PART_BYTES):
                seen.update(part)
                n_bytes += len(part)
                yield part
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        reason = "is committed but not there" if is_gone else f"can't be read ({error.strerror})"
        raise CorruptError(f"{path} {reason}; {remedy}") from error
    if expected is not None and (n_bytes, seen.hexdigest()) != (expected.size_bytes, expected.sha256):
        raise CorruptError(f"{path} is not what was committed; {remedy}")


def packed_files(run: Run, with_latents: bool) -> Iterator[tuple[str, Path, Digest | None]]:
    """Yield the name in the run folder, path and digest (None: not committed) of each file to pack."""
    for name in UNCOMMITTED:
        if os.path.lexists(run.path / name):  # reading refuses one that is no file
            yield name, run.path / name, None
    for name, record in run.manifest.files.items():
        yield name, run.path_of(name), record.digest
    folders = [Folder(run.analysis_path)]
    if with_latents and isinstance(run.latents_location, Folder):
        folders.append(run.latents_location)
    for folder in folders:
        for key, digest in sorted(run.commits.read(folder.name).files.items()):
            yield f"{folder.name}/{key}", folder.path_of(key), digest


def unpack_run(path: Path, logs_dir: Path, run_id: str | None = None) -> Run:
    """Unpack a run that :func:`pack_run` packed, and verify it before it appears in the logs folder.

    Its run id is by default the packed run's. Raises NotFoundError if there is no such file, CorruptError if
    it is no zip file of a run or its files aren't what was committed, ConfigError if such an experiment
    exists already or the run id is invalid, and DiskSpaceError if its content needs more than the free disk
    space.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}")
    try:
        with zipfile.ZipFile(path) as packed:
            members = {info.filename: info for info in packed.infolist() if not info.is_dir()}
            home = find_run_folder(path, members.values())
            target = logs_dir / check_run_id(run_id or home.parts[0]) / home.parts[1]
            if os.path.lexists(target):
                raise ConfigError(f"{target} is there already; give it another name with --run-id")
            n_bytes = sum(info.file_size for info in members.values())
            if n_bytes > free_disk(logs_dir):
                free = describe_size(free_disk(logs_dir))
                raise DiskSpaceError(f"{path} holds {describe_size(n_bytes)}, {free} are free in {logs_dir}")
            return _unpack(packed, members, home, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, SatstoreError):
            raise
        raise CorruptError(f"{path} can't be unpacked: {reason_of(error)}") from error


def find_run_folder(path: Path, members: Iterable[zipfile.ZipInfo]) -> PurePosixPath:
    """Return the folder ``RES/<experiment>`` that all members of a zip file lie in.

    Raises CorruptError if they lie in several, or a member's path leads out of it.
    """
    homes = set()
    for info in members:
        name, mode = PurePosixPath(info.filename), info.external_attr >> 16
        is_plain = is_key(info.filename) and stat.S_IFMT(mode) in (0, stat.S_IFREG)
        if not is_plain or len(name.parts) < 3:
            raise CorruptError(f"{path} is no run of satstore: it holds {info.filename!r}")
        homes.add(PurePosixPath(*name.parts[:2]))
    if len(homes) != 1:
        raise CorruptError(f"{path} is no run of satstore: {len(homes)} experiments in it, expected one")
    return homes.pop()


def _unpack(
    packed: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], home: PurePosixPath, target: Path
) -> Run:
    # Unpack beside its place, in a folder that no command lists, and rename at the end: a run appears whole.
    beside = target.parent / f".{target.name}.partial" / target.name
    check_folders(target.parent.parent, beside / "*")
    shutil.rmtree(beside.parent, ignore_errors=True)
    try:
        for name in members:
            below = PurePosixPath(name).relative_to(home)
            write_file(beside / below, packed.read(members[name]))
        run = Run(beside)
        if run.manifest.experiment != target.name:
            found = run.manifest.experiment
            raise CorruptError(f"{packed.filename} holds the experiment {found!r} as {home.name!r}")
        with run.lock():
            _settle(run, target)
        wrong = [finding for finding in Verification(run).findings() if finding.is_wrong]
        if wrong:
            raise CorruptError(f"{packed.filename}: {wrong[0]}")
        beside.replace(target)
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)
        with suppress(OSError):  # it holds other experiments, or was not created
            target.parent.rmdir()
    sync_folder(target.parent)
    return Run(target)


def _settle(run: Run, target: Path) -> None:
    """Set the run's new run id and place of latents; mark latents that were not packed as re-extractable."""
    has_latents = (run.path / LATENTS / "zarr.json").exists()

    def change(manifest: Manifest) -> None:
        manifest.run_id = target.parent.name
        manifest.latents_path = LATENTS
        if not has_latents:
            manifest.release_latents()

    run.commit(change=change)
    if not has_latents:
        run.commits.remove(LATENTS)
