"""Explain the death of a loader process, which torch reports in many ways."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from satstore.errors import MemoryLimitError

LOST = re.compile(r"DataLoader worker .*(is killed by signal|exited unexpectedly)", re.DOTALL)


@contextmanager
def explaining_lost_workers(remedy: str) -> Iterator[None]:
    """Turn torch's errors about a dead loader process into one that names the cause and the remedy.

    Parameters
    ----------
    remedy
        The parameter to lower, as the user names it.

    Raises
    ------
    MemoryLimitError
        In place of torch's RuntimeError, or of an error that it caused: torch raises it in a signal handler,
        so anywhere in the pass, even within an import.
    """
    try:
        yield
    except Exception as error:  # of any kind: the loss may be the cause of another error
        lost = next((e for e in _reasons(error) if isinstance(e, RuntimeError) and LOST.search(str(e))), None)
        if lost is None:
            raise
        reason = " ".join(str(lost).split("\n")[0].split())
        raise MemoryLimitError(
            f"a process that reads batches died ({reason}): the system kills those that take more memory "
            f"than there is, or than /dev/shm has room for; {remedy}, and give the same command again"
        ) from error


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its causes, and the errors that were handled when it was raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
