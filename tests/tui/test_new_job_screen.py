"""The form of a new job."""

import json
import shlex
from pathlib import Path

import pytest
from conftest import SMALL
from pilots import SIZES, make, make_app, read_screen, read_static, wait_for, wait_for_rows
from textual.pilot import Pilot
from textual.widgets import Button, Checkbox, Input, Select, Static

from satstore.jobs import list_jobs
from satstore.registry import STAGES
from tui.app import SatstoreApp
from tui.screens.jobs import JobsScreen
from tui.screens.new_job import NewJobScreen
from tui.screens.runs import RunsScreen


async def open_form(pilot: Pilot[None]) -> NewJobScreen:
    await pilot.press("n")
    await wait_for(pilot, lambda: isinstance(pilot.app.screen, NewJobScreen))
    screen = pilot.app.screen
    assert isinstance(screen, NewJobScreen)
    await wait_for(pilot, lambda: bool(screen.query("#parameters .entry")))
    return screen


async def fill(pilot: Pilot[None], **values: str | bool) -> None:
    for name, value in values.items():
        widget = pilot.app.screen.query_one(f"#field-{name}" if name != "stage" else "#stage")
        if name == "stage" and getattr(widget, "value", None) != value:
            await pilot.app.screen.query_one("#parameters").remove_children()
        assert isinstance(widget, Input | Select | Checkbox)
        widget.value = value  # type: ignore[assignment]
        await pilot.pause()
        if name == "stage":
            await wait_for(pilot, lambda: bool(pilot.app.screen.query("#parameters .entry")))
    await pilot.pause()


def error(pilot: Pilot[None], name: str) -> str:
    widget = pilot.app.screen.query_one(f"#error-{name}", Static)
    return str(widget.content) if widget.display else ""


@pytest.mark.parametrize("size", SIZES)
async def test_form__is_made_from_each_stages_parameters(tmp_path: Path, size: tuple[int, int]) -> None:
    make(tmp_path, "a")
    async with make_app(tmp_path).run_test(size=size) as pilot:
        await wait_for_rows(pilot, 1)
        screen = await open_form(pilot)
        assert screen.query_one("#stage", Select).value == "train", "the first that the run lacks"
        for stage in (*STAGES, "run"):
            await fill(pilot, stage=stage)
            assert screen.query_one("#stage", Select).value == stage
            if stage != "run":
                for name in STAGES[stage].parameters.model_fields:
                    assert screen.query(f"#field-{name}"), (stage, name)
                assert STAGES[stage].description in read_static(pilot, "#about")
            assert read_static(pilot, "#command").startswith(f"satstore {stage} --run a/")


async def test_form__says_what_is_wrong_beside_the_field(tmp_path: Path) -> None:
    run = make(tmp_path, "a", stages={"train": "done", "extract": "done", "saturation": "done"})
    async with make_app(tmp_path).run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 1)
        screen = await open_form(pilot)
        assert screen.query_one("#stage", Select).value == "probe"
        await fill(pilot, pooling="2 4", workers="3", C="0.5", overwrite=True)
        command = f"satstore probe --run {run.name} --pooling 2 --pooling 4 --workers 3 -C 0.5 --overwrite"
        assert read_static(pilot, "#command") == command
        assert not screen.query_one("#start", Button).disabled
        await fill(pilot, workers="many", pooling="4x")
        assert "'workers': input should be a valid integer" in error(pilot, "workers")
        assert "expected a number from 1 to 9999, full, or pixelwise" in error(pilot, "pooling")
        assert error(pilot, "C") == ""
        assert screen.query_one("#start", Button).disabled
        await pilot.press("ctrl+s")
        assert isinstance(pilot.app.screen, NewJobScreen)
        assert screen.query_one("#field-pooling").has_focus or screen.query_one("#field-workers").has_focus
        await fill(pilot, workers="", pooling="", run="b")
        assert "no run 'b'" in error(pilot, "run")
        await fill(pilot, run="a", config="demo")
        assert "exclude each other" in error(pilot, "config")
        await fill(pilot, run="", config="dmo")
        assert "no shipped config of that name; did you mean 'demo'?" in error(pilot, "config")
        await fill(pilot, config="demo", run_id="a/b")
        assert "run id 'a/b' can't be used" in error(pilot, "run_id")
        await fill(pilot, run_id="mine")
        assert not screen.query_one("#start", Button).disabled
        await pilot.press("ctrl+y")
        words = ["satstore", "probe", "--config", "demo", "--run-id", "mine", "-C", "0.5", "--overwrite"]
        assert pilot.app.clipboard == shlex.join([*words, "--logs-dir", str(tmp_path)])
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunsScreen)
    assert not list_jobs(tmp_path)


async def test_form__previews_the_grid_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "grid.json").write_text(
        json.dumps({"model": ["vgg11", "vgg16"], "resolution": [32, 64, 96, 128]})
    )
    async with make_app(tmp_path / "logs").run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: any("No runs yet" in line for line in read_screen(pilot)))
        await open_form(pilot)
        await fill(pilot, config=str(tmp_path / "grid.json"))
        assert read_static(pilot, "#counts") == "8 experiments"
        text = read_static(pilot, "#preview")
        assert "vgg11 on Cifar10 at 96 px, 30 epochs, adam" in text
        assert "and 2 more" in text
        await fill(pilot, config="")
        assert not pilot.app.screen.query_one("#preview").display


async def test_form__estimates_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    async with make_app(tmp_path / "logs").run_test(size=(120, 40)) as pilot:
        await open_form(pilot)
        await fill(pilot, config=str(tmp_path / "small.json"))
        await pilot.press("ctrl+g")
        await wait_for(pilot, lambda: "free" in read_static(pilot, "#preview"), 120)
        text = read_static(pilot, "#preview")
        assert "train" in text
        assert "MiB" in text
        assert "layers" in text


async def test_form__starts_a_job_and_progress_moves(tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(json.dumps(SMALL | {"epoch": 2, "stages": ["train"]}))
    app = SatstoreApp(tmp_path / "logs", 0.02)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_form(pilot)
        await fill(pilot, config=str(tmp_path / "small.json"), run_id="mine")
        await pilot.press("ctrl+s")
        await wait_for(pilot, lambda: isinstance(app.screen, JobsScreen), 60)
        shares: set[float] = set()

        def is_over() -> bool:
            progress = app.jobs[0].progress
            if progress is not None and progress.share is not None:
                shares.add(progress.share)
            return not app.jobs[0].is_running

        await wait_for(pilot, lambda: bool(app.jobs) and is_over(), 120)
        assert app.jobs[0].state == "done", app.jobs[0]
        assert len(shares) > 1
        await pilot.press("escape")
        await wait_for_rows(pilot, 1)
        assert read_static(pilot, "#detail").splitlines()[0].startswith(str(tmp_path / "logs" / "mine"))
    [job] = list_jobs(tmp_path / "logs")
    assert job.words[:5] == ("run", "--config", str(tmp_path / "small.json"), "--run-id", "mine")


async def test_read_only__shows_no_form(tmp_path: Path) -> None:
    app = SatstoreApp(tmp_path, 0.02, read_only=True)
    async with app.run_test() as pilot:
        await pilot.press("n")
        assert isinstance(app.screen, RunsScreen)
