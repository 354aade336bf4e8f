"""Events: what a stage tells those who watch it, one JSON object per line of ``events.jsonl``."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from satstore.storage.files import append_log
from satstore.storage.safe_files import open_file
from satstore.system.text import printable_content

Kind = Literal["started", "progress", "message", "warning", "done", "failed", "cancelled"]

Listener = Callable[["Event"], None]


@dataclass(frozen=True)
class Event:
    """Something that happened in a stage.

    Attributes
    ----------
    stage
        The stage's name.
    kind
        What happened.
    text
        One line for people.
    done, total
        Units of work done and to do; None where nothing is counted.
    values
        Numbers that belong to it, such as ``{"loss": 0.31}``.
    time
        Seconds since the epoch.
    """

    stage: str
    kind: Kind
    text: str = ""
    done: int | None = None
    total: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @property
    def is_turn(self) -> bool:
        """Whether its stage began or ended with it, so that progress told before counts no more."""
        return self.kind in ("started", "done", "failed", "cancelled")


class EventLog:
    """Appends events to a file and hands them to a listener.

    Progress is written a few times a second at most: the file is for watching, not for accounting.
    """

    PROGRESS_INTERVAL_S = 0.25

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        self.path = path
        self.listener = listener
        self._last_progress = -math.inf

    def is_due(self) -> bool:
        """Tell whether it is time for the next progress, for those to whom measuring it costs something."""
        return time.monotonic() - self._last_progress >= self.PROGRESS_INTERVAL_S

    def emit(self, event: Event) -> None:
        """Append one event; progress that isn't due is left out, but never the last (``done == total``)."""
        if event.kind == "progress":
            is_last = event.total is not None and event.done == event.total
            if not is_last and not self.is_due():
                return
            self._last_progress = time.monotonic()
        line = json.dumps(asdict(event), ensure_ascii=True) + "\n"
        # One write to a file opened for appending: lines of two processes never mix.
        append_log(self.path, line.encode(), durable=False)
        if self.listener is not None:
            self.listener(event)


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Read the whole lines of an event log from a byte offset on.

    Returns
    -------
    events
        Lines that are no events (torn by a crash, or of a newer version) are passed over.
    offset
        Where to go on reading.
    """
    try:
        with open_file(path) as file:
            # A log that shrank was started anew.
            offset = offset if os.fstat(file.fileno()).st_size >= offset else 0
            file.seek(offset)
            content = file.read()
    except OSError:  # there is none, or what is there is no log: it is for watching, and no number is in it
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    return list(_parse(whole.splitlines())), offset + len(whole)


def _parse(lines: list[bytes]) -> Iterator[Event]:
    for line in lines:
        event = parse_event(line)
        if event is not None:
            yield event


def parse_event(line: bytes | str) -> Event | None:
    """Return the event of a line of a log, its texts printable; None if it is none."""
    try:
        event = Event(**printable_content(json.loads(line)))
        return event if _is_event(event) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _is_event(event: Event) -> bool:
    """Tell whether an event's values are of the types that they are written with."""
    counts = [n for n in (event.done, event.total) if n is not None]
    return (
        all(isinstance(text, str) for text in (event.stage, event.kind, event.text))
        and all(isinstance(n, int) and 0 <= n < 2**63 for n in counts)
        and isinstance(event.values, Mapping)
        and all(isinstance(value, int | float) for value in event.values.values())
        and isinstance(event.time, int | float)
        and abs(event.time) < 1e11  # which is a date
    )
