"""Runs that somebody else made: what can lie in the place of their files, and a watch over what is written.

Decoys lie beside the logs folder, as a user's own files do: none of them may change, and nothing may be
written or removed but in the folders that a command is told of.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command_line import HANGS_S, satstore
from tiny import run_tiny

from satstore.reports.listing.reader import LogsReader
from satstore.runs.run import Run

MEMORY = ("--memory-limit", "2GiB")


def make_decoys(folder: Path) -> None:
    """Make files of a user's: some that a link leads to, and a folder with what satstore would tidy up."""
    (folder / "thesis" / "pool2").mkdir(parents=True)
    for name in ("rc", "key", "thesis/chapter.tex", "thesis/zarr.json", "thesis/pool2/notes"):
        (folder / name).write_text(f"{name}, the user's own\n")
    for name in ("thesis/.a.12345678.12345678.partial", "thesis/b.new"):
        (folder / name).write_text("unsaved")


def read_tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return of each path under a folder what it is: mode, size, time and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(folder))] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, content)
    return found


# The watch

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "shutil.rmtree": 1,
}
"""Events of Python's audit that change paths, and how many of their arguments are such."""

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")


@dataclass
class Watch:
    """What was written, removed or started while it was on."""

    changed: list[tuple[str, str]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def outside(self, *folders: Path) -> list[tuple[str, str]]:
        """Return the changes that are in none of some folders; compiled modules and devices left out."""
        roots = [f"{os.path.realpath(folder)}/" for folder in folders]
        return [
            (event, path)
            for event, path in self.changed
            if not f"{path}/".startswith(tuple(roots))
            and "/__pycache__/" not in path
            and not path.startswith(("/dev/", "/proc/self/", f"/proc/{os.getpid()}/"))
        ]


_on: list[Watch] = []


def _where(path: Any, descriptor: Any = -1, *, follow: bool = False) -> str:
    """Return the real path that an event is about; its last part is followed where the call would."""
    found = Path(os.fsdecode(path))
    if isinstance(descriptor, int) and descriptor >= 0:
        found = Path(f"/proc/self/fd/{descriptor}").readlink() / found
    return str(found.resolve() if follow else found.parent.resolve() / found.name)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _on:
        return
    watch = _on[-1]
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and (flags or 0) & WRITES:
            is_new = bool((flags & os.O_EXCL and flags & os.O_CREAT) or flags & getattr(os, "O_NOFOLLOW", 0))
            watch.changed.append((event, _where(path, follow=not is_new)))
    elif event in CHANGES:
        n_paths = CHANGES[event]
        descriptors = arguments[n_paths:] if event in ("os.remove", "os.rename", "os.rmdir") else ()
        for place, path in enumerate(arguments[:n_paths]):
            if event in ("os.link", "os.symlink") and place == 0:
                continue
            descriptor = descriptors[place] if place < len(descriptors) else -1
            watch.changed.append((event, _where(path, descriptor)))
    elif event in STARTS:
        watch.started.append(f"{event} {arguments}")


_is_hooked = False


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Watch this process; a hook can't be taken out again, so that there is one for all tests."""
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(_hear)
        _is_hooked = True
    watch = Watch()
    _on.append(watch)
    try:
        yield watch
    finally:
        _on.remove(watch)


# What lies in the place of a file or a folder


def link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "rc")


def link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "thesis")


def link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "created")


def link_to_a_copy(path: Path, outside: Path) -> None:
    """A link to what was there, byte for byte: only that it is a link tells."""
    path.symlink_to(outside / "copy")


def hard_link(path: Path, outside: Path) -> None:
    os.link(outside / "rc", path)


def named_pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "file").write_text("in a folder")


THINGS: tuple[Callable[[Path, Path], None], ...] = (
    link_to_file,
    link_to_folder,
    link_to_nothing,
    link_to_a_copy,
    hard_link,
    named_pipe,
    device,
    folder,
)

ARRAY = "latents.zarr/pool2/train/0/latent"
PLACES = (
    "manifest.json",
    "config.json",
    "checkpoint.pt",
    "metrics.csv",
    "saturation.csv",
    "probe-pool2.csv",
    "target-made.npz",
    "events.jsonl",
    "commits.jsonl",
    ".lock",
    ".holder.json",
    "metrics.csv.new",
    "manifest.json.new",
    "latents.zarr",
    "latents.zarr/zarr.json",
    "latents.zarr/pool2",
    "latents.zarr/pool2/train",
    "latents.zarr/pool2/zarr.json",
    ARRAY,
    f"{ARRAY}/zarr.json",
    f"{ARRAY}/c",
    f"{ARRAY}/c/0/0/0/0",
    "latents.zarr/pool2/eval/label/c/0",
    "analysis.zarr",
    "analysis.zarr/zarr.json",
    "analysis.zarr/spectra/train/0/eigenvalues/zarr.json",
    "analysis.zarr/probes",
    "",
    "..",
    "../../.jobs",
    "../../.jobs/1",
    "../../.jobs/1/job.json",
    "../../.jobs/1/exit.json",
    "../../.jobs/1/progress.json",
    "../../.jobs/1/log.txt",
    "../../.jobs/1/cancel",
)
"""Paths from the run folder: every kind of file and folder that a command meets."""


@dataclass(frozen=True)
class Received:
    """A logs folder of somebody else's, and what lies around it.

    Attributes
    ----------
    home
        A user's folder, with ``outside`` (the decoys), ``logs``, ``out`` and ``temp``.
    """

    home: Path

    @property
    def outside(self) -> Path:
        return self.home / "outside"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def run(self) -> Path:
        return self.logs / "res" / (self.home / "name").read_text()


def receive(logs: Path, home: Path) -> Received:
    """Lay out a copy of a logs folder among a user's own files."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    shutil.copytree(logs, home / "logs", symlinks=True)
    [path] = (home / "logs").glob("res/*")
    (home / "name").write_text(path.name)
    make_decoys(home / "outside")
    for name in ("out", "temp", "state"):
        (home / name).mkdir()
    return Received(home)


def make_received(logs: Path) -> Path:
    """Make the logs folder that is received: all stages of the tiny experiment, and a job."""
    import matplotlib.pyplot  # noqa: F401 - which makes folders for its fonts when it is first imported

    run = run_tiny(logs)
    dataset = run.manifest.dataset
    assert dataset is not None
    run.set_labels(
        [i % 2 for i in range(dataset.n_train)], [i % 2 for i in range(dataset.n_eval)], name="made"
    )
    job = logs / ".jobs" / "1"
    job.mkdir(parents=True)
    about = {
        "words": ["train", "--run", "res"],
        "started": 1.0,
        "host": os.uname().nodename,
        "detached": True,
    }
    for name, content in (
        ("job.json", about),
        ("exit.json", {"code": 1, "ended": 2.0, "error": "x"}),
        ("progress.json", {"run": "res/x", "stage": "train", "done": 1, "total": 2}),
    ):
        (job / name).write_text(json.dumps(content))
    (job / "log.txt").write_text("a line\n")
    return logs


def plant(received: Received, place: str, thing: Callable[[Path, Path], None]) -> None:
    """Put a thing in the place of a file or a folder, which goes to ``outside/copy``."""
    path = Path(os.path.normpath(received.run / place))
    if path.exists():
        path.rename(received.outside / "copy")
    elif thing is link_to_a_copy:
        (received.outside / "copy").write_text("")
    path.parent.mkdir(parents=True, exist_ok=True)
    thing(path, received.outside)


# Commands

READERS: dict[str, tuple[str, ...]] = {
    "ls": ("ls",),
    "show": ("show", "res"),
    "status": ("status",),
    "verify": ("verify", "res"),
    "du": ("du",),
    "jobs": ("jobs",),
    "log": ("log", "1"),
    "cancel": ("cancel", "1"),
    "export csv": ("export", "res", "--to", "csv", "--out", "OUT"),
    "export zip": ("export", "res", "--to", "zip", "--latents", "--out", "OUT"),
    "report": ("report", "res", "--out", "OUT/report.html"),
    "plot": ("plot", "res", "--out", "OUT/curves.svg"),
}
WRITERS: dict[str, tuple[str, ...]] = {
    "extract": ("extract", "--run", "res", "-d", "2"),
    "extract anew": ("extract", "--run", "res", "-d", "2", "--overwrite"),
    "probe": ("probe", "--run", "res", "-d", "2", "--overwrite"),
    "probe a target": ("probe", "--run", "res", "-d", "2", "--target", "made"),
    "saturation": ("saturation", "--run", "res", "--overwrite"),
    "clean": ("clean", "res", "--latents", "--yes"),
    "train": ("train", "--run", "res", "--overwrite"),
}


@contextlib.contextmanager
def within_time() -> Iterator[None]:
    """Fail where something waits for what never comes, such as the other end of a named pipe."""

    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HANGS_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_command(received: Received, words: tuple[str, ...]) -> None:
    """Run a command: it ends, in one line at most where it fails, and changes nothing that isn't its own."""
    before = read_tree(received.outside)
    said = [word.replace("OUT", str(received.home / "out")) for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(received.home / "temp"))
        patch.setenv("XDG_STATE_HOME", str(received.home / "state"))
        patch.chdir(received.home / "temp")
        with watching() as watch, within_time():
            done = satstore(*said, "--logs-dir", received.logs)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("satstore: warning: ")]
    errors = [line for line in lines if line.startswith("satstore: ")]
    assert done.returncode in (0, 1), (words, done.stderr)
    assert len(errors) == done.returncode, (words, done.stderr)
    assert "Traceback" not in done.stderr, (words, done.stderr)
    assert "(see --debug)" not in done.stderr, (words, done.stderr)
    assert read_tree(received.outside) == before, (words, done.stderr)
    # A run folder that is a link leads elsewhere: what lies there is not this run's own.
    own = [received.logs if not received.run.is_symlink() else received.logs / ".jobs"]
    wrong = watch.outside(*own, received.home / "out", received.home / "temp", received.home / "state")
    assert not wrong, (words, wrong)
    assert not watch.started, (words, watch.started)


def check_reader(received: Received) -> None:
    """Let the terminal app's reader look, as it does a few times a second."""
    before = read_tree(received.outside)
    with watching() as watch, within_time():
        LogsReader(received.logs).poll()
        for path in received.logs.glob("*/*"):
            with contextlib.suppress(OSError):
                Run(path)
    assert not watch.changed
    assert read_tree(received.outside) == before
