"""The free disk of this machine, and the refusal of work that does not fit its disk or memory.

Sizes are projected before the work begins, so that it is refused in its first second and not at its end.
"""

import shutil
from pathlib import Path

from satstore.errors import DiskSpaceError, MemoryLimitError
from satstore.system.memory import available_memory, resident_bytes
from satstore.system.text import describe_size

# Of loader processes, pages that they share counted once: 910 MiB of two, of each 190 its own (torch 2.14).
LOADERS_BYTES, LOADER_BYTES = 530 * 2**20, 190 * 2**20


def nearest_folder(path: Path) -> Path:
    """Return the path, or the nearest one above it that exists and is a folder."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())


def free_disk(path: Path) -> int:
    """Return the free bytes of the disk that a path is on, or will be on."""
    return shutil.disk_usage(nearest_folder(path)).free


def check_disk(path: Path, needed_bytes: int, what: str) -> None:
    """Raise DiskSpaceError if more bytes are still to be written than the path's disk has free.

    The path need not exist yet. `what` is the subject of the message: ``"the latents of res/…"``.
    """
    free = free_disk(path)
    if needed_bytes > free:
        raise DiskSpaceError(
            f"{what}: about {describe_size(needed_bytes)} are to be written to {path}, where "
            f"{describe_size(free)} are free; make room, take a smaller pooling or fewer layers, "
            "or try all the same with --force"
        )


def loader_bytes(n_workers: int) -> int:
    """Return the memory of processes that load images: torch once, which they share, and each one's own."""
    return LOADERS_BYTES + n_workers * LOADER_BYTES if n_workers else 0


def beside_gpu(limit_bytes: int) -> int:
    """Return the memory limit of a process that computes on a GPU: what it holds now is added.

    A GPU's runtime and libraries take 0.7 to 1.3 GiB of a process, depending on the machine. They are loaded
    with the first computations there and are no part of what a stage takes.
    """
    return limit_bytes + resident_bytes()


def check_memory(needed_bytes: int, limit_bytes: int | None, what: str) -> None:
    """Raise MemoryLimitError if work needs more memory than the limit, or than this machine has left.

    `needed_bytes` is the projected peak of this process, including what it holds now; the limit is the
    user's, None for none. `what` is the subject of the message: ``"the probe of layer4.0.conv1"``.
    """
    needed = describe_size(needed_bytes)
    if limit_bytes is not None and needed_bytes > limit_bytes:
        raise MemoryLimitError(
            f"{what}: about {needed} of memory are needed, the limit is {describe_size(limit_bytes)}; "
            "raise --memory-limit, take a smaller pooling, or try all the same with --force"
        )
    available = available_memory()
    if needed_bytes - resident_bytes() > available:
        raise MemoryLimitError(
            f"{what}: about {needed} of memory are needed, {describe_size(available + resident_bytes())} "
            "are available here; end other programs, lower --memory-limit or take a smaller pooling, "
            "or try all the same with --force"
        )
