"""What the tests of the terminal app share.

Textual's pilot waits until the process takes no CPU time for 20 ms, which on a busy machine says nothing of
whether the app is done; :func:`settle` waits until it is.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from command_line import HANGS_S, satstore
from textual import events
from textual.keys import _character_to_key
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from satstore.config.experiment import ExperimentConfig
from satstore.errors import SatstoreError
from satstore.registry import STAGES
from satstore.reports.listing.columns import describe_problem, describe_row
from satstore.runs.logs_folder import make_run
from satstore.runs.manifest import Manifest, StageRecord, StageStatus
from satstore.runs.run import Run
from tui.app import SatstoreApp
from tui.screens.runs import RunsTable

S = TypeVar("S", bound=Screen[Any])

SIZES = [(80, 24), (120, 40), (200, 60)]
ONE_SIZE = [SIZES[0], *(pytest.param(size, marks=pytest.mark.long) for size in SIZES[1:])]
"""For tests that draw much: the smallest screen, and in ``make test-long`` the others."""
DAY_S = 86400


def make(
    logs_dir: Path,
    run_id: str,
    epochs_done: int = 0,
    accuracy: float | None = None,
    stages: dict[str, StageStatus] | None = None,
    age_s: float = 3 * DAY_S,
    **config: Any,
) -> Run:
    run = make_run(logs_dir, run_id, ExperimentConfig(**config))

    def change(manifest: Manifest) -> None:
        manifest.created = time.time() - age_s - 60
        manifest.summary.epochs_done = epochs_done
        manifest.summary.test_accuracy = accuracy
        for stage, status in (stages or {}).items():
            error = "out of memory" if status == "failed" else None
            manifest.stages[stage] = StageRecord(status=status, started=1.0, error=error)

    run.commit(change=change)
    return run


def make_app(logs_dir: Path) -> SatstoreApp:
    return SatstoreApp(logs_dir, poll_interval_s=0.02)


N_FRAMES = 3
"""So often a screen is drawn until it stands: some of it is drawn only once the rest is laid out."""


async def settle(pilot: Pilot[None]) -> None:
    """Let the app handle all that it was told and all that follows from it, and draw what became of it.

    Whatever a thread or another process still works on is not waited for.
    """
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    async with asyncio.timeout(HANGS_S):
        for _ in range(N_FRAMES):
            await asyncio.sleep(0)
            while ready:  # some task has something to do, other than this one
                await asyncio.sleep(0)
            if pilot.app.is_running:
                pilot.app.screen._on_timer_update()


async def press(pilot: Pilot[None], *keys: str) -> None:
    """Press keys, each once the app is done with the one before."""
    for key in keys:
        await pilot.press(key)
        await settle(pilot)


async def send(pilot: Pilot[None], *keys: str) -> None:
    """Send keys, none of which waits for what the app does with those before, and let it handle them."""
    for key in keys:
        is_text = len(key) == 1
        pilot.app.post_message(
            events.Key(_character_to_key(key) if is_text else key, key if is_text else None)
        )
    await settle(pilot)


async def click(pilot: Pilot[None], where: type[Widget] | None = None, **options: Any) -> None:
    """Click, and let the app handle it."""
    await pilot.click(where, **options)
    await settle(pilot)


async def _poll(
    condition: Callable[[], object], limit_s: float, describe: Callable[[], object] = str
) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true in {limit_s} s: {describe()}"
        await asyncio.sleep(0.01)


async def wait_for(pilot: Pilot[None], condition: Callable[[], object], limit_s: float = HANGS_S) -> None:
    """Wait for what threads, processes and timers bring about."""

    def is_true() -> object:
        assert pilot.app.is_running, "the app has ended"
        return condition()

    await _poll(is_true, limit_s, lambda: "\n".join([f"{pilot.app.screen}", *read_screen(pilot)]))
    await settle(pilot)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what another process brings about, where no app runs here."""
    asyncio.run(_poll(condition, HANGS_S))


async def wait_for_screen(pilot: Pilot[None], kind: type[S]) -> S:
    """Wait until a screen of some kind is in front."""
    await wait_for(pilot, lambda: isinstance(pilot.app.screen, kind))
    assert isinstance(pilot.app.screen, kind)
    return pilot.app.screen


def run_here(words: Sequence[str]) -> str:
    """Run a command that the app runs in a process of its own in this one, where torch is imported once."""
    done = satstore(*words)
    if done.returncode:
        raise SatstoreError(done.stderr.strip().removeprefix("satstore: "))
    return done.stdout


class Gate:
    """A gate, in a folder, that a job stands at twice until it is opened: its stage is called ``gated``.

    Where this process reads the config of such a job, it forgets the stage at the test's end.
    """

    PLUGIN = "gating"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(STAGES, "_entries", dict(STAGES._entries))
        monkeypatch.syspath_prepend(str(folder))
        path = folder / "gate"
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDWR)
        (folder / f"{self.PLUGIN}.py").write_text(GATED.format(path=str(path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._end)  # whoever still stands there goes through
        sys.modules.pop(self.PLUGIN, None)

    def open_once(self) -> None:
        """Let the job through once."""
        os.write(self._end, b".")


GATED = '''
from satstore.stages.stage import stage

@stage("gated", needs=(), pending=lambda run, parameters: ["wait"])
def gated(run, parameters):
    """Wait for who watches, twice."""
    with open({path!r}, "rb", buffering=0) as gate:
        for done in (1, 2):
            run.emit("gated", "progress", "at the gate", done=done, total=2)
            gate.read(1)
'''


class Calls:
    """Counts the calls of a method that have returned, from now on; it does what it does all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.n = 0
        method = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            finally:
                self.n += 1

        monkeypatch.setattr(owner, name, counted)

    async def wait_for_more(self, pilot: Pilot[None]) -> None:
        """Wait for one that begins after this, and until whoever made it is done with what it returned."""
        wanted = self.n + 3  # one may have begun before; of the next, its caller is done when it calls again
        await wait_for(pilot, lambda: self.n >= wanted)


async def wait_for_rows(pilot: Pilot[None], n_rows: int) -> RunsTable:
    app = pilot.app
    assert isinstance(app, SatstoreApp)
    table = app.screen.query_one(RunsTable)
    await wait_for(pilot, lambda: app.snapshot is not None and table.row_count == n_rows)
    return table


def read_row(table: RunsTable, row: int) -> dict[str, str]:
    experiment = table.rows[row]
    return describe_row(experiment) | {"problem": describe_problem(experiment)}


def read_static(pilot: Pilot[None], selector: str) -> str:
    return str(pilot.app.screen.query_one(selector, Static).content)


def read_screen(pilot: Pilot[None]) -> list[str]:
    """What a user sees, line by line."""
    return [
        "".join(segment.text for segment in strip) for strip in pilot.app.screen._compositor.render_strips()
    ]
