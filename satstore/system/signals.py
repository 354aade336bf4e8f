"""Processes that work for this one: what they import, and that they end when they should."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def import_environment() -> dict[str, str]:
    """Return the environment of a command of its own that imports what this process would.

    Whatever lies in the folder that it runs in; it is to be started with ``-P``.
    """
    environment = {key: value for key, value in os.environ.items() if key != "SATSTORE_JOB"}
    environment["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return environment


STOPPED = (130, 143)
"""The exit codes of commands that a user ended: by Ctrl-C, and by SIGTERM."""

told_to_stop = threading.Event()
"""Set once this process was told to stop: what is raised from then on comes of that.

A library that is being imported may turn the interrupt into an error of its own, swallow it, or fail, being
half loaded.
"""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hear a Ctrl-C at the end of this only: in the midst of its import, torch swallows it, or aborts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Start processes in here that don't hear Ctrl-C, not even while they are still importing.

    Ctrl-C reaches every process of the terminal; one of them has to say what becomes of it. It is blocked,
    which children inherit, rather than ignored: one that comes meanwhile is heard at the end.
    """
    from multiprocessing import resource_tracker

    # When it starts on its own, it unblocks what is blocked here.
    resource_tracker.ensure_running()
    with undisturbed():
        yield


def follow_main_process(_: int = 0) -> None:
    """Make this worker end with its main process, however that ends.

    A worker that waits for work does not notice that nobody is left to send any. torch's own watch asks
    whether the worker's parent changed; under a fork server that is the server, which lives as long as its
    workers do: all of them would stay for ever.
    """
    import multiprocessing

    def wait() -> None:
        main = multiprocessing.parent_process()
        if main is not None:
            main.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
