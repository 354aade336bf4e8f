"""The command line that runs, and what ends it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from satstore.system import signals

words: tuple[str, ...] = ()
"""The words of the command line that runs, without ``satstore``."""


PATIENCE_S = 5.0
"""How long a command that was told to stop may take to do so before being told again ends it at once."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the work in here alike, so that the manifest says that it was stopped.

    Who presses Ctrl-C twice does not disturb the end that has begun; where that takes too long, another one
    is as good as a kill, which loses nothing either.
    """
    told: list[float] = []
    kind = KeyboardInterrupt

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal kind
        told.append(time.monotonic())
        if len(told) == 1:
            kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
            signals.stop_requested.set()
            raise kind
        if told[-1] - told[0] > PATIENCE_S:
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    both = (signal.SIGINT, signal.SIGTERM)
    numbers = [number for number in both if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if told and not isinstance(error, kind):
            raise kind from error
        raise
    finally:
        signals.stop_requested.clear()
        for number, handler in before.items():
            # Who is told to stop has yet to say so, and to end its threads.
            signal.signal(number, signal.SIG_IGN if told else handler)


def words_without(*flags: str) -> list[str]:
    """Return the words of the command line that runs, less flags and their values.

    Parameters
    ----------
    *flags
        Such as ``--detach``, which may be given as ``--detach=true``, or ``--logs-dir=`` where a value
        belongs to it.
    """
    kept, skips_value = [], False
    for word in words:
        if skips_value:
            skips_value = False
        elif word.partition("=")[0] in flags or any(word.startswith(f) for f in flags if f.endswith("=")):
            continue
        elif f"{word}=" in flags:
            skips_value = True
        else:
            kept.append(word)
    return kept
