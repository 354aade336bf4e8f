"""The command line that runs, and what ends it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

words: tuple[str, ...] = ()
"""The words of the command line that runs, without ``satstore``."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work in here as Ctrl-C does, so that the manifest says that it was stopped."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def words_without(*flags: str) -> list[str]:
    """Return the words of the command line that runs, less flags and their values.

    Parameters
    ----------
    *flags
        Such as ``--detach``, or ``--logs-dir=`` where a value belongs to it.
    """
    kept, skips_value = [], False
    for word in words:
        if skips_value:
            skips_value = False
        elif word in flags or any(flag.endswith("=") and word.startswith(flag) for flag in flags):
            continue
        elif f"{word}=" in flags:
            skips_value = True
        else:
            kept.append(word)
    return kept
