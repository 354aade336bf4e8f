"""Loader processes that die while a pass waits for their batches, which torch tells of in many ways."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from satstore.errors import MemoryLimitError

LOST = re.compile(r"DataLoader worker .*(is killed by signal|exited unexpectedly)", re.DOTALL)


@contextmanager
def explaining_lost_workers(remedy: str) -> Iterator[None]:
    """Say of a loader process that died what ends such processes, and what to lower.

    Parameters
    ----------
    remedy
        What to lower, as the user names it.

    Raises
    ------
    MemoryLimitError
        In place of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        reason = " ".join(str(error).split("\n")[0].split())
        raise MemoryLimitError(
            f"a process that reads batches died ({reason}): the system kills those that take more memory "
            f"than there is, or than /dev/shm has room for; {remedy}, and give the same command again"
        ) from error
