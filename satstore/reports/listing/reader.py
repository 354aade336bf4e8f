"""The reader: a thread that polls the manifests of a logs folder and hands over frozen snapshots.

It knows nothing of the app. A poll costs one ``stat`` per experiment; only a manifest that changed is read.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from satstore.config.validation import describe_invalid
from satstore.errors import NotFoundError, printable
from satstore.jobs.job import Job, list_jobs
from satstore.reports.blocks import main_layers, place_layers
from satstore.runs.events import read_events
from satstore.runs.manifest import StageStatus, drawn_layers
from satstore.runs.run import Run
from satstore.system.text import stage_name
from satstore.system.usage import Usage, UsageMeter

TAIL_BYTES = 4096

Stamp = tuple[int, int, int]
"""Modification time in nanoseconds, size in bytes, and inode; it changes with the content."""


@dataclass(frozen=True)
class Experiment:
    """An experiment as lists show it; where it can't be read, only its path is known."""

    path: Path  # its folder
    model: str = ""
    dataset: str = ""
    resolution: int | None = None
    epochs_done: int | None = None
    epochs: int | None = None
    test_accuracy: float | None = None  # a fraction
    created: float | None = None  # seconds since the epoch
    stages: Mapping[str, StageStatus] = field(default_factory=dict)  # in the order in which they are run
    failure: str = ""  # what the first failed stage said, in one line
    progress: float | None = None  # how far the stage that runs is, in [0, 1]; None where it isn't known
    size_bytes: int | None = None  # on disk, of what is committed
    saturation: tuple[float | None, ...] = ()  # after the last epoch, of the layers that figures show
    problem: str = ""  # why it can't be read, in one line
    stamp: Stamp = (0, 0, 0)  # the manifest's

    @property
    def run_id(self) -> str:
        """The run id that it is under."""
        return printable(self.path.parent.name)

    @property
    def name(self) -> str:
        """Run id and experiment, as commands take them."""
        return printable(f"{self.run_id}/{self.path.name}")

    def has(self, status: StageStatus) -> bool:
        """Tell whether any stage is in that state."""
        return status in self.stages.values()


@dataclass(frozen=True)
class Snapshot:
    """A logs folder at one moment; what did not change is the same object as in the snapshot before."""

    experiments: tuple[Experiment, ...] = ()  # by run id and name
    jobs: tuple[Job, ...] = ()  # the newest first
    problem: str = ""  # why the folder can't be read, in one line; one that isn't there is merely empty


@dataclass
class _Known:
    stamp: Stamp
    experiment: Experiment
    running: Run | None = None  # read again while a stage runs: its process may be killed


class LogsReader:
    """Reads a logs folder again and again, and only what changed in it."""

    def __init__(self, logs_dir: Path) -> None:
        self.logs_dir = logs_dir
        self._known: dict[str, _Known] = {}
        self._jobs: dict[int, Job] = {}
        self._last = Snapshot()

    def poll(self) -> Snapshot:
        """Return what the folder holds now: the same object as before if nothing changed."""
        try:
            snapshot = self._read()
        except Exception as error:  # of any kind: the next poll may find it gone
            reason = error.strerror if isinstance(error, OSError) else None
            problem = f"can't be read: {reason or f'{type(error).__name__}: {error}'}"
            snapshot = Snapshot(self._last.experiments, self._last.jobs, problem)
        if snapshot != self._last:
            self._last = snapshot
        return self._last

    def _read(self) -> Snapshot:
        stamps = find_manifests(self.logs_dir)
        known = {folder: self._read_folder(folder, stamp) for folder, stamp in stamps.items()}
        self._known = {folder: found for folder, found in known.items() if found is not None}
        self._jobs = {job.number: job for job in list_jobs(self.logs_dir, self._jobs)}
        experiments = tuple(found.experiment for found in self._known.values())
        return Snapshot(experiments, tuple(self._jobs.values()))

    def _read_folder(self, folder: str, stamp: Stamp) -> _Known | None:
        known = self._known.get(folder)
        if known is None or known.stamp != stamp:
            return read_experiment(Path(folder), stamp)
        if known.running is not None:
            found = read_experiment(Path(folder), stamp, known.running)
            return found if found is not None and found.experiment != known.experiment else known
        return known


def find_manifests(logs_dir: Path) -> dict[str, Stamp]:
    """Return the folders of all experiments under a logs folder, by run id and name, each with its stamp."""
    found = {}
    for run_folder in _list_folders(str(logs_dir)):
        try:
            folders = _list_folders(run_folder)
        except OSError:
            continue  # no folder of ours
        for folder in folders:
            try:
                stat = os.stat(f"{folder}/manifest.json")  # noqa: PTH116 - Path's takes several times as long
            except OSError:
                continue
            found[folder] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


def _list_folders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [e.path for e in sorted(entries, key=lambda entry: entry.name) if e.is_dir()]
    except FileNotFoundError:
        return []


def read_experiment(path: Path, stamp: Stamp, run: Run | None = None) -> _Known | None:
    """Return what lists show of an experiment, from its manifest or the run given; None if it is gone."""
    try:
        run = Run(path) if run is None else run
        experiment = summarize_experiment(run, stamp)
    except NotFoundError:
        return None
    except ValidationError as error:
        problem = f"manifest.json has a config with {describe_invalid(error)}"
    except Exception as error:  # whatever a file may hold, the others must still be listed
        problem = (str(error) or type(error).__name__).replace(f"{path}/", "")
    else:
        return _Known(stamp, experiment, run if experiment.has("running") else None)
    return _Known(stamp, Experiment(path, problem=problem, stamp=stamp))


def summarize_experiment(run: Run, stamp: Stamp) -> Experiment:
    """Return what lists show of a run."""
    config, manifest = run.config, run.manifest
    stages = run.statuses()
    failure = next((f"{stage_name(key)}: {error}" for key, error in run.failures(stages).items()), "")
    _, layers = main_layers(place_layers(manifest), drawn_layers(manifest))
    return Experiment(
        path=run.path,
        model=config.model,
        dataset=config.dataset,
        resolution=config.resolution,
        epochs_done=manifest.summary.epochs_done,
        epochs=config.epoch,
        test_accuracy=manifest.summary.test_accuracy,
        created=manifest.created,
        stages=stages,
        failure=failure,
        progress=read_progress(run.events.path) if "running" in stages.values() else None,
        size_bytes=manifest.size_bytes,
        saturation=tuple(manifest.summary.saturation.get(layer) for layer in layers),
        stamp=stamp,
    )


def read_progress(path: Path) -> float | None:
    """Return how far an experiment's last stage is, by the end of its events."""
    try:
        start = max(0, path.stat().st_size - TAIL_BYTES)
    except OSError:
        return None
    for event in reversed(read_events(path, start)[0]):
        if event.is_turn:
            return None
        if event.kind == "progress" and event.total and event.done is not None:
            return event.done / event.total
    return None


class ReaderThread(threading.Thread):
    """Polls a logs folder until it is stopped, and posts each snapshot that differs from the one before."""

    def __init__(
        self,
        logs_dir: Path,
        post: Callable[[Snapshot], object],
        post_usages: Callable[[dict[int, Usage]], object],
        interval_s: float,
    ) -> None:
        super().__init__(name="reader", daemon=True)  # a hanging network disk must not keep the app alive
        self.measures = False  # whether what the running jobs use is measured and posted too
        self._reader = LogsReader(logs_dir)
        self._meter = UsageMeter()
        self._post, self._post_usages = post, post_usages
        self._interval_s = interval_s
        self._next_measurement = 0.0
        self._stopped, self._woken = threading.Event(), threading.Event()

    def run(self) -> None:
        """Poll, post, wait."""
        posted: Snapshot | None = None
        while not self._stopped.is_set():
            self._woken.clear()
            started, cpu_s = time.monotonic(), time.thread_time()
            snapshot = self._reader.poll()
            if snapshot is not posted and not self._stopped.is_set():
                self._post(snapshot)
                posted = snapshot
            # A folder of thousands must not keep a core busy, nor one on a slow disk that disk.
            cpu_s, wall_s = time.thread_time() - cpu_s, time.monotonic() - started
            pause_s = max(self._interval_s, 50 * cpu_s, 5 * wall_s)
            if self.measures and time.monotonic() >= self._next_measurement:
                cpu_s = time.thread_time()
                self._measure(snapshot.jobs)
                cpu_s = time.thread_time() - cpu_s
                self._next_measurement = time.monotonic() + max(self._interval_s, 20 * cpu_s)
            self._woken.wait(pause_s)

    def _measure(self, jobs: tuple[Job, ...]) -> None:
        pids = {job.number: job.pid for job in jobs if job.is_running and job.pid and job.is_here}
        found = {number: self._meter.measure(pid) for number, pid in pids.items()}
        self._meter.forget(pids.values())
        if not self._stopped.is_set():
            self._post_usages({number: usage for number, usage in found.items() if usage is not None})

    def poll_now(self) -> None:
        """Poll at once."""
        self._woken.set()

    def stop(self) -> None:
        """Stop, and wait a moment for a poll that is under way."""
        self._stopped.set()
        self._woken.set()
        self.join(timeout=2)
