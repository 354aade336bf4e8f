"""A query at which a worker of a cluster dies."""

import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any


class Mortal:
    """A query that kills a worker that receives it: of all receipts, the one of a number."""

    def __init__(self, query: Any, folder: Path, number: int) -> None:
        self.query, self.folder, self.number = query, folder, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.query, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return receive, (self.query, self.folder, self.number)


def receive(query: Any, folder: Path, number: int) -> Mortal:
    """Take a query out of a message, and die of it."""
    if multiprocessing.parent_process() is not None and take_number(folder) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return Mortal(query, folder, number)


def take_number(folder: Path) -> int:
    """Return how many have asked before, and one, as any process counts."""
    for number in itertools.count(1):
        try:
            (folder / f"{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        break
    return number
