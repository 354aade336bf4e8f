"""Slow work of the app, in threads and in other processes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from textual.app import App
from textual.worker import Worker

from satstore.errors import SatstoreError
from satstore.system.signals import import_environment


def run_in_thread(
    app: App[Any], work: Callable[[], Any], group: str, *, exclusive: bool = True
) -> Worker[Any]:
    """Run slow work in a thread that outlives the screen; the app shows why it failed.

    Exclusive work takes the place of what its group still runs.
    """
    return app.run_worker(work, group=group, thread=True, exclusive=exclusive, exit_on_error=False)


def run_command(arguments: Sequence[str]) -> str:
    """Run a command of satstore that only reads, and return what it prints.

    Raises
    ------
    SatstoreError
        If it fails; with what it says.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "satstore", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=import_environment(),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SatstoreError(lines[-1].removeprefix("satstore: ") if lines else f"{arguments[0]} failed")
    return done.stdout


def export_plot(app: App[Any], arguments: Sequence[str], path: Path) -> None:
    """Draw a plot to a file, and say where it is; in a worker's thread."""
    app.call_from_thread(app.notify, f"drawing {path.name} …")
    run_command(arguments)
    app.call_from_thread(app.notify, f"wrote {path}")
