"""How Ctrl-C and SIGTERM stop a command."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from satstore.system import signals

PATIENCE_S = 5.0
"""Seconds after the first signal from which another one ends the process at once."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command as Ctrl-C does."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block at the first SIGINT or SIGTERM, so that the manifest records it.

    A second signal is ignored, for the block is about to end. After :data:`PATIENCE_S` a further one ends
    the process at once, which loses nothing either.

    Raises
    ------
    KeyboardInterrupt
        On SIGINT.
    Terminated
        On SIGTERM.
    """
    times: list[float] = []
    error_type = KeyboardInterrupt

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal error_type
        times.append(time.monotonic())
        if len(times) == 1:
            error_type = Terminated if number == signal.SIGTERM else KeyboardInterrupt
            signals.stop_requested.set()
            raise error_type
        if times[-1] - times[0] > PATIENCE_S:
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
        if times and not isinstance(error, error_type):
            raise error_type from error
        raise
    finally:
        signals.stop_requested.clear()
        for number, handler in before.items():
            # A stopped command ignores further signals: it still has to report, and to end its threads.
            signal.signal(number, signal.SIG_IGN if times else handler)
