"""Recording a command's progress and end in its job's folder."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from satstore.errors import reason_of
from satstore.jobs.job import Progress
from satstore.jobs.start import claim_job
from satstore.jobs.supervisor import identify_process, write_json
from satstore.runs.events import Event, EventLog


class JobRecord:
    """Writes the progress of a command, and how it ended, to its job's folder; without a folder, nothing.

    With ``owns_log``, this process alone records the command: there is no supervisor.
    """

    def __init__(self, path: Path | None, owns_log: bool) -> None:
        self.path = path
        self.run = ""
        self._owns_log = owns_log
        self._stage, self._first, self._written = "", (0.0, 0), -math.inf

    def listen(self, event: Event) -> None:
        """Record the progress of a stage, a few times a second at most."""
        if self.path is None:
            return
        now = time.monotonic()
        if event.is_turn:
            self._stage = ""
        if event.kind == "started":
            self._write({"run": self.run, "stage": event.stage})
        if event.kind != "progress" or event.done is None:
            return
        if self._stage != event.stage:
            self._stage, self._first = event.stage, (now, event.done)
        is_last = event.done == event.total
        if now - self._written < EventLog.PROGRESS_INTERVAL_S and not is_last:
            return
        self._written = now
        since, before = self._first
        rate = (event.done - before) / (now - since) if now > since and event.done > before else None
        left_s = (event.total - event.done) / rate if rate and event.total else None
        self._write(
            asdict(Progress(self.run, event.stage, event.done, event.total, event.text, rate, left_s))
        )

    def say(self, text: str) -> None:
        """Write a line to the log, unless a supervisor's log has it already."""
        if self.path is not None and self._owns_log:
            with suppress(OSError), (self.path / "log.txt").open("a", errors="replace") as log:
                log.write(text + "\n")

    def end(self, code: int, error: str = "") -> None:
        """Record how the command ended, unless a supervisor does."""
        if self.path is not None and self._owns_log:
            if error:
                self.say(f"satstore: {error}")
            with suppress(OSError):
                write_json(self.path / "exit.json", {"code": code, "ended": time.time(), "error": error})

    def _write(self, content: Mapping[str, object]) -> None:
        assert self.path is not None
        with suppress(OSError):  # the work must not fail because of its progress file
            write_json(self.path / "progress.json", content)


@contextmanager
def record_job(words: Sequence[str], logs_dir: Path) -> Iterator[JobRecord]:
    """Record the command that runs in here as a job; in a job's own process, record its progress.

    Where the logs folder can't be written, nothing is recorded: the command will fail with that error.
    """
    folder = os.environ.get("SATSTORE_JOB")
    if folder is not None:
        yield JobRecord(Path(folder), owns_log=False)
        return
    path = None
    with suppress(OSError):
        path = claim_job(words, logs_dir, Path.cwd(), detached=False)
        write_json(path / "process.json", identify_process())
    record = JobRecord(path, owns_log=True)
    try:
        yield record
    except KeyboardInterrupt:
        record.end(130, "stopped")
        raise
    except BaseException as error:
        record.end(1, reason_of(error))
        raise
    record.end(0)
