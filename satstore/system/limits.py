"""What this machine has left of disk and memory, and refusing what it can't suffice for.

Sizes are projected before the work begins, so that it is refused in its first second and not at its end.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from satstore.errors import DiskSpaceError, MemoryLimitError
from satstore.system.memory import resident_bytes
from satstore.system.text import describe_size

# Of loader processes, pages that they share counted once: 910 MiB of two, of each 190 its own (torch 2.14).
LOADERS_BYTES, LOADER_BYTES = 530 * 2**20, 190 * 2**20


def available_memory() -> int | None:
    """Return the bytes that can still be taken without swapping, here or in this container; None: unknown."""
    found = []
    with suppress(OSError, KeyError):
        found.append(_fields(Path("/proc/meminfo"))["MemAvailable:"] * 1024)
    with suppress(OSError, KeyError, ValueError):  # "max" is no limit
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - _fields(group / "memory.stat")["anon"])
    return max(0, min(found)) if found else None


def _fields(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}


def nearest_folder(path: Path) -> Path:
    """Return a path, or the nearest above it, that is a folder by now: where it lies, or will lie."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())


def free_disk(path: Path) -> int:
    """Return the bytes that are free where a path lies, or will lie."""
    return shutil.disk_usage(nearest_folder(path)).free


def check_disk(path: Path, needed_bytes: int, what: str) -> None:
    """Refuse what the disk has no room for.

    Parameters
    ----------
    path
        Where it is to be written; it need not be there yet.
    needed_bytes
        What is still to be written.
    what
        Names it in the message: ``"the latents of res/…"``.

    Raises
    ------
    DiskSpaceError
        Naming both quantities.
    """
    free = free_disk(path)
    if needed_bytes > free:
        raise DiskSpaceError(
            f"{what}: about {describe_size(needed_bytes)} are to be written to {path}, where "
            f"{describe_size(free)} are free; make room, take a smaller pooling or fewer layers, "
            "or try all the same with --force"
        )


def loader_bytes(n_workers: int) -> int:
    """Return what processes that load images hold: torch once, which they share, and each its own."""
    return LOADERS_BYTES + n_workers * LOADER_BYTES if n_workers else 0


def beside_gpu(limit_bytes: int) -> int:
    """Return a memory limit for a process that computes on a GPU: beside what it holds by now.

    A GPU's runtime and libraries take 0.7 to 1.3 GiB of a process, by the machine, which are no part of what
    a stage takes; they are loaded with the first computations there.
    """
    return limit_bytes + resident_bytes()


def check_memory(needed_bytes: int, limit_bytes: int | None, what: str) -> None:
    """Refuse what the memory limit, or this machine's memory, does not suffice for.

    Parameters
    ----------
    needed_bytes
        The projected peak of this process, what it holds now included.
    limit_bytes
        The limit that the user set; None for none.
    what
        Names it in the message: ``"the probe of layer4.0.conv1"``.

    Raises
    ------
    MemoryLimitError
        Naming both quantities.
    """
    needed = describe_size(needed_bytes)
    if limit_bytes is not None and needed_bytes > limit_bytes:
        raise MemoryLimitError(
            f"{what}: about {needed} of memory are needed, the limit is {describe_size(limit_bytes)}; "
            "raise --memory-limit, take a smaller pooling, or try all the same with --force"
        )
    available = available_memory()
    if available is not None and needed_bytes - resident_bytes() > available:
        raise MemoryLimitError(
            f"{what}: about {needed} of memory are needed, {describe_size(available + resident_bytes())} "
            "are available here; end other programs, lower --memory-limit or take a smaller pooling, "
            "or try all the same with --force"
        )
