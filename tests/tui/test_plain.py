"""Names from outside in the app: shown as they are on every screen, never read as markup."""

import csv
import json
from pathlib import Path

import hostile_run
import pytest
from hostile_run import DATASET, ERROR, LAYERS, MODEL, RUN_ID
from pilots import (
    make_app,
    press,
    read_screen,
    read_static,
    settle,
    wait_for,
    wait_for_rows,
    wait_for_screen,
)
from textual.pilot import Pilot
from textual.widgets import Checkbox, Select, Tooltip

from satstore.stages.forms import FormEntry
from tui.messages import CancelJob
from tui.screens import new_job
from tui.screens.compare import CompareScreen
from tui.screens.jobs import JobsScreen
from tui.screens.modals import ConfirmScreen, ErrorScreen
from tui.screens.new_job import NewJobScreen
from tui.screens.run import TABS, RunScreen

WIDE = (200, 40)


@pytest.fixture
def logs(hostile_logs: Path) -> Path:
    """Experiments of such names, which tests read."""
    return hostile_logs


def shown(pilot: Pilot[None]) -> str:
    return "\n".join(read_screen(pilot))


async def test_runs_screen__shows_names_as_they_are(logs: Path) -> None:
    app = make_app(logs)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        await wait_for_rows(pilot, 3)
        await press(pilot, "home")
        for text in (MODEL, DATASET[:6], RUN_ID, f"project: {ERROR}"):
            assert text in shown(pilot)
        await press(pilot, "y")
        assert f"'{RUN_ID}/" in shown(pilot), "in the notification"
        await press(pilot, "slash", *"[/a]:1")
        assert not read_static(pilot, "#filter-error")
        await press(pilot, "escape")
        app.notify(ERROR)
        app.screen.notify(ERROR, title=ERROR, severity="error")
        await settle(pilot)
        assert shown(pilot).count("[/a] $\\frac{") >= 4
        app.show_error(ERROR)
        await wait_for_screen(pilot, ErrorScreen)
        await settle(pilot)
        assert ERROR in shown(pilot)


async def test_run_screen__shows_names_as_they_are_in_every_tab(logs: Path) -> None:
    app = make_app(logs)
    async with app.run_test(size=WIDE) as pilot:
        await wait_for_rows(pilot, 3)
        await press(pilot, "home", "enter")
        screen = await wait_for_screen(pilot, RunScreen)
        await wait_for(pilot, lambda: screen._data is not None)
        assert RUN_ID in read_static(pilot, "#title")
        labels = read_screen(pilot)
        for layer in LAYERS:
            assert any(line.count(layer) for line in labels[-8:]), (layer, "below the plot")
            assert layer in read_static(pilot, "#layer")
            await press(pilot, "down")
        for number, tab in enumerate(TABS[:9], start=1):
            await press(pilot, f"{number}")
            assert screen.query_one("TabbedContent").active == tab  # type: ignore[attr-defined]
        await press(pilot, "4")
        for layer in LAYERS:
            assert layer in shown(pilot), (layer, "in the table")
        await press(pilot, "7")
        assert json.dumps(MODEL, ensure_ascii=False) in shown(pilot)


async def test_exports__have_no_formulas(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app(logs)
    async with app.run_test(size=WIDE) as pilot:
        await wait_for_rows(pilot, 3)
        await press(pilot, "home", "e")
        await wait_for(pilot, (tmp_path / "satstore-runs.csv").exists)
        await press(pilot, "enter")
        screen = await wait_for_screen(pilot, RunScreen)
        await wait_for(pilot, lambda: screen._data is not None)
        await press(pilot, "e", "c")
        await wait_for(pilot, lambda: any(tmp_path.glob("*-layers.csv")))
    runs, layers = (
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (tmp_path / "satstore-runs.csv", *tmp_path.glob("*-layers.csv"))
    )
    assert [row["model"] for row in runs] == [f"'{MODEL}"] * 3
    assert runs[0]["run"] == f"'{RUN_ID}"
    assert [row["layer"] for row in layers] == [*LAYERS[:2], f"'{LAYERS[2]}", LAYERS[3]]


async def test_compare_screen__shows_names_as_they_are_and_the_seed_that_differs(logs: Path) -> None:
    app = make_app(logs)
    async with app.run_test(size=WIDE) as pilot:
        await wait_for_rows(pilot, 3)
        await press(pilot, "home", "space", "space", "space", "c")
        await wait_for_screen(pilot, CompareScreen)
        await wait_for(pilot, lambda: "saturation" in read_static(pilot, "#legend-text"))
        names = [line.partition("  ")[0][2:] for line in read_static(pilot, "#legend-text").splitlines()]
        expected = [f"{RUN_ID}: {MODEL}, seed 0", f"{MODEL}, seed 1", f"res: {MODEL}, seed 0"]
        assert sorted(names) == sorted(expected)
        assert LAYERS[0] in shown(pilot)


async def test_jobs_screen__shows_commands_and_errors_as_they_are(logs: Path) -> None:
    app = make_app(logs)
    async with app.run_test(size=WIDE) as pilot:
        await wait_for_rows(pilot, 3)
        await press(pilot, "J")
        await wait_for_screen(pilot, JobsScreen)
        await wait_for(pilot, lambda: shown(pilot).count(ERROR) >= 5)
        app.post_message(CancelJob(app.jobs[0]))
        await wait_for_screen(pilot, ConfirmScreen)
        await settle(pilot)
        assert f"satstore train --run '{ERROR}'" in shown(pilot)


async def test_form__shows_what_a_stage_says_of_its_parameters_as_it_is(
    logs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    switch = FormEntry("overwrite", "--switch[/a]", f"switch {ERROR}", "", is_switch=True)
    choice = FormEntry("choice", "--choice", f"choice {ERROR}", "", choices=("[/a]", "[b]"))
    number = FormEntry("number", "--number[/a]", f"number {ERROR}", "1[/a]")
    monkeypatch.setattr(new_job, "RUN_ENTRIES", (*new_job.RUN_ENTRIES, choice, number))
    app = make_app(logs)
    with hostile_run.hostile_names() as config:
        (tmp_path / "grid.json").write_text(json.dumps({**config, "seed": [0, 1]}))
        async with app.run_test(size=WIDE, tooltips=True) as pilot:
            await wait_for_rows(pilot, 3)
            await press(pilot, "n")
            screen = await wait_for_screen(pilot, NewJobScreen)
            screen.query_one("#field-config").value = str(tmp_path / "grid.json")  # type: ignore[attr-defined]
            await settle(pilot)
            assert f"choice {ERROR}" in shown(pilot)
            assert f"number {ERROR}" in shown(pilot)
            for seed in (0, 1):
                assert f"{MODEL} on {DATASET} at 16 px, 1 epoch, adam, seed {seed}" in shown(pilot)
            screen.query_one("#field-choice", Select).value = "[/a]"
            await settle(pilot)
            assert screen._read("choice") == "[/a]"
            tooltip = screen.query_one(Tooltip)
            tooltip.update(screen.query_one("#field-number").tooltip)
            assert str(tooltip.visual) == f"--number[/a]: number {ERROR}"
            widget = screen._make_widget(switch)
            assert isinstance(widget, Checkbox)
            assert str(widget.label) == f"switch {ERROR}"
            tooltip.update(widget.tooltip)
            assert str(tooltip.visual) == "--switch[/a]"
