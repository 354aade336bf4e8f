"""The form of a new job."""

import json
import shlex
from pathlib import Path

import pytest
import tiny
from command_line import SMALL, WORKS_S
from pilots import (
    ONE_SIZE,
    Gate,
    make,
    make_app,
    press,
    read_screen,
    read_static,
    run_here,
    send,
    settle,
    wait_for,
    wait_for_rows,
    wait_for_screen,
)
from textual.pilot import Pilot
from textual.widgets import Button, Checkbox, Input, Select, Static
from textual.widgets.select import InvalidSelectValueError

from satstore.config.experiment import ExperimentConfig
from satstore.jobs.job import list_jobs
from satstore.registry import STAGES, Entry
from satstore.runs.logs_folder import make_run
from tui.app import SatstoreApp
from tui.screens.jobs import JobsScreen
from tui.screens.new_job import NewJobScreen
from tui.screens.runs import RunsScreen


async def open_form(pilot: Pilot[None]) -> NewJobScreen:
    await press(pilot, "n")
    screen = await wait_for_screen(pilot, NewJobScreen)
    assert screen.query("#parameters .entry")
    return screen


async def fill(pilot: Pilot[None], **values: str | bool) -> None:
    for name, value in values.items():
        widget = pilot.app.screen.query_one(f"#field-{name}" if name != "stage" else "#stage")
        assert isinstance(widget, Input | Select | Checkbox)
        widget.value = value  # type: ignore[assignment]
        await settle(pilot)


def error(pilot: Pilot[None], name: str) -> str:
    widget = pilot.app.screen.query_one(f"#error-{name}", Static)
    return str(widget.content) if widget.display else ""


@pytest.mark.parametrize("size", ONE_SIZE)
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
        assert "--workers: input should be a valid integer" in error(pilot, "workers")
        assert "expected a number from 1 to 9999, full, or pixelwise" in error(pilot, "pooling")
        assert error(pilot, "C") == ""
        assert screen.query_one("#start", Button).disabled
        await press(pilot, "ctrl+s")
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
        await press(pilot, "ctrl+y")
        words = ["satstore", "probe", "--config", "demo", "--run-id", "mine", "-C", "0.5", "--overwrite"]
        assert pilot.app.clipboard == shlex.join([*words, "--logs-dir", str(tmp_path)])
        await press(pilot, "escape")
        assert isinstance(pilot.app.screen, RunsScreen)
    assert not list_jobs(tmp_path)


@pytest.mark.parametrize("next_field", ["tab", "enter"])
async def test_form__puts_what_is_typed_without_a_pause_into_the_field_that_is_meant(
    tmp_path: Path, next_field: str
) -> None:
    async with make_app(tmp_path / "logs").run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: any("No runs yet" in line for line in read_screen(pilot)))
        await send(pilot, "n", *"demo", next_field, *"rid", next_field, *"cpu", next_field)
        await send(
            pilot, "tab", *"4 full", "tab", "tab", "shift+tab", "shift+tab", "end", *",2x", "backspace"
        )
        screen = await wait_for_screen(pilot, NewJobScreen)
        typed = {name: screen._read(name) for name in ("config", "run_id", "device", "pooling", "run")}
        assert typed == {"config": "demo", "run_id": "rid", "device": "cpu", "pooling": "4 full,2", "run": ""}
        command = (
            "satstore run --config demo --run-id rid --device cpu --pooling 4 --pooling full --pooling 2"
        )
        assert read_static(pilot, "#command") == command


async def test_form__goes_back_and_copies_what_was_typed_last(tmp_path: Path) -> None:
    make(tmp_path, "a")
    async with make_app(tmp_path).run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 1)
        screen = await open_form(pilot)
        screen.set_focus(screen.query_one("#field-device"))
        await send(pilot, *"cpu", "tab", "shift+tab", "end", "backspace", "ctrl+y")
        assert screen._read("device") == "cp"
        assert " --device cp " in pilot.app.clipboard
        assert "expected cpu or cuda:N, found 'cp'" in error(pilot, "device")
        assert screen.query_one("#start", Button).disabled


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
        (tmp_path / "seeds.json").write_text(json.dumps({"epoch": [5, 6], "seed": [0, 1]}))
        await fill(pilot, config=str(tmp_path / "seeds.json"))
        _, *lines = read_static(pilot, "#preview").splitlines()
        pairs = [(epochs, seed) for epochs in (5, 6) for seed in (0, 1)]
        assert lines == [f"resnet18 on Cifar10 at 32 px, {e} epochs, adam, seed {s}" for e, s in pairs]
        await fill(pilot, config="")
        assert not pilot.app.screen.query_one("#preview").display


@pytest.mark.parametrize("runs_here", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_form__estimates_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs_here: bool
) -> None:
    config = SMALL
    if runs_here:
        config = tiny.CONFIG
        monkeypatch.setattr("tui.screens.new_job.run_command", run_here)
    (tmp_path / "small.json").write_text(json.dumps(config))
    async with make_app(tmp_path / "logs").run_test(size=(120, 40)) as pilot:
        await open_form(pilot)
        await fill(pilot, config=str(tmp_path / "small.json"))
        await press(pilot, "ctrl+g")
        await wait_for(pilot, lambda: "free" in read_static(pilot, "#preview"), WORKS_S)
        text = read_static(pilot, "#preview")
        assert "train" in text
        assert "iB" in text
        assert "layers" in text
        await fill(pilot, config="")
        await press(pilot, "ctrl+g")
        assert "free" not in read_static(pilot, "#preview"), "there is nothing to estimate"
        make_run(tmp_path / "logs", "a", ExperimentConfig(**config))
        await fill(pilot, run="a")
        await press(pilot, "ctrl+g")
        await wait_for(pilot, lambda: "free" in read_static(pilot, "#preview"), WORKS_S)


async def test_form__offers_the_stages_that_a_configs_plugins_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gated.json").write_text(json.dumps({"plugins": [Gate.PLUGIN], "stages": ["gated"]}))
    with Gate(tmp_path, monkeypatch):
        async with make_app(tmp_path / "logs").run_test(size=(120, 40)) as pilot:
            screen = await open_form(pilot)
            stage = screen.query_one("#stage", Select)
            with pytest.raises(InvalidSelectValueError):
                stage.value = "gated"
            await fill(pilot, config=str(tmp_path / "gated.json"), run_id="mine")
            assert stage.value == "run"
            stage.value = "gated"
            await settle(pilot)
            assert read_static(pilot, "#command").startswith("satstore gated --config ")


async def test_form__leaves_out_the_stage_of_a_broken_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Entry("broken", "no_such_package:STAGE")
    monkeypatch.setattr(STAGES, "_entries", {**STAGES._entries, "broken": broken})
    async with make_app(tmp_path / "logs").run_test(size=(120, 40)) as pilot:
        screen = await open_form(pilot)
        with pytest.raises(InvalidSelectValueError):
            screen.query_one("#stage", Select).value = "broken"


async def test_form__starts_a_job_and_progress_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gated.json").write_text(json.dumps({"plugins": [Gate.PLUGIN], "stages": ["gated"]}))
    app = make_app(tmp_path / "logs")
    with Gate(tmp_path, monkeypatch) as gate:
        async with app.run_test(size=(120, 40)) as pilot:
            await open_form(pilot)
            await fill(pilot, config=str(tmp_path / "gated.json"), run_id="mine")
            await press(pilot, "ctrl+s")
            await wait_for_screen(pilot, JobsScreen)
            for shown in ("gated 50%", "gated 100%"):
                await wait_for(pilot, lambda shown=shown: any(shown in line for line in read_screen(pilot)))
                assert app.jobs[0].is_running
                gate.open_once()
            await wait_for(pilot, lambda: not app.jobs[0].is_running)
            assert app.jobs[0].state == "done", app.jobs[0]
            await check_where_it_went(pilot, tmp_path / "logs")
    check_words(tmp_path / "logs", tmp_path / "gated.json")


@pytest.mark.long
async def test_form__starts_a_job_that_trains(tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(json.dumps(SMALL | {"epoch": 4, "stages": ["train"]}))
    app = make_app(tmp_path / "logs")
    async with app.run_test(size=(120, 40)) as pilot:
        await open_form(pilot)
        await fill(pilot, config=str(tmp_path / "small.json"), run_id="mine")
        await press(pilot, "ctrl+s")
        await wait_for_screen(pilot, JobsScreen)
        shares: set[float] = set()

        def is_over() -> bool:
            progress = app.jobs[0].progress
            if progress is not None and progress.share is not None:
                shares.add(progress.share)
            return not app.jobs[0].is_running

        await wait_for(pilot, lambda: bool(app.jobs) and is_over(), WORKS_S)
        assert app.jobs[0].state == "done", app.jobs[0]
        assert len(shares) > 1
        await check_where_it_went(pilot, tmp_path / "logs")
    check_words(tmp_path / "logs", tmp_path / "small.json")


async def check_where_it_went(pilot: Pilot[None], logs: Path) -> None:
    """Look for the run among the runs."""
    await press(pilot, "escape")
    await wait_for_rows(pilot, 1)
    assert read_static(pilot, "#detail").splitlines()[0].startswith(str(logs / "mine"))


def check_words(logs: Path, config: Path) -> None:
    [job] = list_jobs(logs)
    assert job.words[:5] == ("run", "--config", str(config), "--run-id", "mine")


async def test_read_only__shows_no_form(tmp_path: Path) -> None:
    app = SatstoreApp(tmp_path, 0.02, read_only=True)
    async with app.run_test() as pilot:
        await press(pilot, "n")
        assert isinstance(app.screen, RunsScreen)
