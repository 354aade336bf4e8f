"""What the tests of the terminal app share."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Static

from satstore.config import ExperimentConfig
from satstore.logs import make_run
from satstore.manifest import Manifest, StageRecord, StageStatus
from satstore.run import Run
from tui.app import SatstoreApp
from tui.rows import describe_problem, describe_row
from tui.screens.runs import RunsTable

SIZES = [(80, 24), (120, 40), (200, 60)]
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


async def wait_for(pilot: Pilot[None], condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true in {seconds} s"
        await pilot.pause(0.01)
    await pilot.pause()


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
