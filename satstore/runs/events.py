"""Events of stages, such as progress and warnings: one JSON object per line of ``events.jsonl``."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from satstore.storage.files import append_log
from satstore.storage.safe_files import open_file
from satstore.system.text import printable_content

EventKind = Literal["started", "progress", "message", "warning", "done", "failed", "cancelled"]

Listener = Callable[["Event"], None]


@dataclass(frozen=True)
class Event:
    """A stage's start, progress, message, warning or end.

    Attributes
    ----------
    text
        One line for users.
    done, total
        Units of work done and to do; None where nothing is counted.
    values
        Numbers by name, such as ``{"loss": 0.31}``.
    time
        Seconds since the epoch.
    """

    stage: str
    kind: EventKind
    text: str = ""
    done: int | None = None
    total: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @property
    def is_turn(self) -> bool:
        """Whether the stage started or ended with it, which makes earlier progress obsolete."""
        return self.kind in ("started", "done", "failed", "cancelled")


class EventLog:
    """Appends events to a file and passes them to a listener.

    Progress is written at most a few times per second.
    """

    PROGRESS_INTERVAL_S = 0.25

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        self.path = path
        self.listener = listener
        self._last_progress = -math.inf

    def is_due(self) -> bool:
        """Return whether the next progress would be written, for callers to whom measuring it is costly."""
        return time.monotonic() - self._last_progress >= self.PROGRESS_INTERVAL_S

    def emit(self, event: Event) -> None:
        """Append one event; progress that isn't due is dropped, unless it is the last (``done == total``)."""
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
    """Read the complete lines of an event log from a byte offset on; return events, and where to continue.

    Lines that are no events are left out: torn by a crash, or of a newer version.
    """
    try:
        with open_file(path) as file:
            # A log that shrank was replaced: read it from the start.
            offset = offset if os.fstat(file.fileno()).st_size >= offset else 0
            file.seek(offset)
            content = file.read()
    except OSError:  # there is no log, or it can't be read: events are for display alone
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    return [event for line in whole.splitlines() if (event := parse_event(line))], offset + len(whole)


def parse_event(line: bytes | str) -> Event | None:
    """Parse a line of a log, with its texts made printable; return None if it is no event."""
    try:
        event = Event(**printable_content(json.loads(line)))
        return event if _is_event(event) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _is_event(event: Event) -> bool:
    """Return whether an event's values have the types that satstore writes."""
    counts = [n for n in (event.done, event.total) if n is not None]
    return (
        all(isinstance(text, str) for text in (event.stage, event.kind, event.text))
        and all(isinstance(n, int) and 0 <= n < 2**63 for n in counts)
        and isinstance(event.values, Mapping)
        and all(isinstance(value, int | float) for value in event.values.values())
        and isinstance(event.time, int | float)
        and abs(event.time) < 1e11  # about the year 5138: a time that converts to a date
    )
