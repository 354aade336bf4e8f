"""Slow work of the app, in threads."""

from collections.abc import Callable
from typing import Any

from textual.app import App
from textual.worker import Worker


def run_in_thread(
    app: App[Any], work: Callable[[], Any], group: str, *, exclusive: bool = True
) -> Worker[Any]:
    """Run slow work in a thread that outlives the screen; the app shows why it failed.

    Parameters
    ----------
    group, exclusive
        What the work is about; where it is exclusive, it takes the place of what the group still runs.
    """
    return app.run_worker(work, group=group, thread=True, exclusive=exclusive, exit_on_error=False)
