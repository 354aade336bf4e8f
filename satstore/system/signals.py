"""Signals that end work, and the processes that this one starts: what they import, and that they end."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def import_environment() -> dict[str, str]:
    """Return the environment of a new Python process that imports what this one would.

    It is independent of the folder that the process runs in, if Python is started with ``-P``.
    """
    environment = {key: value for key, value in os.environ.items() if key != "SATSTORE_JOB"}
    environment["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return environment


STOPPED = (130, 143)
"""The exit codes of commands that a user ended: by Ctrl-C, and by SIGTERM."""

stop_requested = threading.Event()
"""Set once this process got Ctrl-C or SIGTERM; errors that are raised from then on are its consequence.

A library that is being imported may turn the interrupt into an error of its own, swallow it, or fail because
it is half loaded.
"""


@contextmanager
def sigint_deferred() -> Iterator[None]:
    """Defer SIGINT until the block ends: torch's import swallows it or aborts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def children_ignoring_sigint() -> Iterator[None]:
    """Start processes in this block that ignore Ctrl-C from their first moment, their imports included.

    Ctrl-C reaches every process of the terminal; the main process alone decides what becomes of the others.
    SIGINT is blocked, which children inherit, rather than ignored: one that arrives meanwhile is delivered
    when the block ends.
    """
    from multiprocessing import resource_tracker

    # Starting it later would unblock SIGINT, in the middle of this block.
    resource_tracker.ensure_running()
    with sigint_deferred():
        yield


def follow_main_process(_: int = 0) -> None:
    """Make this worker process end when its main process ends, however that happens.

    A worker that waits for work does not notice that its main process is gone. torch's own check compares
    the parent's process id; under a fork server the parent is the server, which lives as long as its workers:
    they would all stay for ever.
    """
    import multiprocessing

    def wait() -> None:
        main = multiprocessing.parent_process()
        if main is not None:
            main.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
