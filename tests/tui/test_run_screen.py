"""The screens of one run and of several, on what the demo's stages made."""

import csv
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from command_line import HANGS_S, WORKS_S, satstore
from pilots import (
    ONE_SIZE,
    SIZES,
    Calls,
    Gate,
    click,
    make,
    make_app,
    press,
    read_screen,
    read_static,
    run_here,
    settle,
    wait_for,
    wait_for_rows,
    wait_for_screen,
)
from textual.geometry import Region
from textual.pilot import Pilot
from textual.widgets import Log, Static, TabbedContent
from textual_plot import PlotWidget

from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.reports.listing.job_text import describe_job
from satstore.reports.run_curves import DELTAS, RunCurves, read_curves
from satstore.runs.manifest import Manifest
from satstore.runs.run import Run
from tui.app import SatstoreApp
from tui.layers import View, make_layer_rows, make_reference_lines
from tui.messages import StartJob
from tui.screens.compare import CompareScreen
from tui.screens.jobs import JobsScreen
from tui.screens.modals import ConfirmScreen, ErrorScreen
from tui.screens.run import TABS, RunScreen
from tui.screens.run_panes import LayersTable
from tui.screens.runs import RunsScreen
from tui.widgets.curve_plot import decimate
from tui.widgets.heat_map import HeatMap
from tui.widgets.slider import Slider


@pytest.fixture(scope="module")
def logs(demo_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's logs with receptive fields, and pixelwise probes of one layer, which tests read."""
    logs = tmp_path_factory.mktemp("maps") / "logs"
    shutil.copytree(demo_logs, logs)
    for words in (
        ["receptive-field"],
        ["extract", "-d", "pixelwise", "--layers", "features.18"],
        ["probe", "-d", "pixelwise", "--layers", "features.18"],
    ):
        done = satstore(*words, "--run", "demo", "--logs-dir", logs)
        assert done.returncode == 0, done.stderr
    return logs


@pytest.fixture
def logs_copy(logs: Path, tmp_path: Path) -> Path:
    """A copy of these logs, which the test may write to."""
    return Path(shutil.copytree(logs, tmp_path / "logs"))


def run_of(logs: Path, run_id: str = "demo") -> Run:
    [manifest] = logs.glob(f"{run_id}/*/manifest.json")
    return Run(manifest.parent)


@asynccontextmanager
async def open_run(
    logs: Path, size: tuple[int, int] = (120, 40)
) -> AsyncIterator[tuple[Pilot[None], RunScreen]]:
    """Open the app and the first run of a logs folder, and wait until it is drawn."""
    app = make_app(logs)
    async with app.run_test(size=size) as pilot:
        await wait_for(pilot, lambda: app.snapshot is not None and bool(app.snapshot.experiments))
        await press(pilot, "enter")
        screen = await wait_for_screen(pilot, RunScreen)
        await wait_for(pilot, lambda: screen._data is not None)
        yield pilot, screen


def shown_saturation(pilot: Pilot[None]) -> str:
    return read_static(pilot, "#values").split("saturation ")[1].split("%")[0]


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_run_screen__draws_both_curves_and_reads_out_the_cursor(
    logs: Path, size: tuple[int, int]
) -> None:
    run = run_of(logs)
    async with open_run(logs, size) as (pilot, screen):
        assert run.name in read_static(pilot, "#title")
        assert f"{run.manifest.summary.test_accuracy:.2%}" in read_static(pilot, "#counts")
        layer = run.layers[0]
        saturation = run.manifest.summary.saturation[layer]
        assert layer in read_static(pilot, "#layer")
        assert "sees 3 px" in read_static(pilot, "#layer")
        assert f"saturation {saturation:.1%}" in read_static(pilot, "#values")
        probe = run.manifest.summary.probe_accuracy[ProbeKey(LatentsKey("4"))][layer]
        assert f"probe pool4 {probe:.1%}" in read_static(pilot, "#values")
        assert f"border {run.manifest.summary.border_layer}" in read_static(pilot, "#values")
        lines = read_screen(pilot)
        assert sum(line.count("●") for line in lines) >= 5
        assert sum(line.count("■") for line in lines) >= 5
        assert any("╌╌" in line for line in lines), "the model's accuracy"
        assert any("features.0" in line for line in lines[6:]), "names on the axis"
        await press(pilot, "j", "down", "k")
        assert run.layers[1] in read_static(pilot, "#layer")
        assert screen.query_one("#layer-plot", PlotWidget).size.height >= 10


async def test_run_screen__moves_delta_as_the_spectra_say(logs: Path) -> None:
    run = run_of(logs)
    async with open_run(logs) as (pilot, screen):
        slider = screen.query_one("#delta", Slider)
        assert slider.text == "0.99"
        for keys in (["left"] * 3, ["right"] * 5, ["left"] * 12):
            await press(pilot, *keys)
            table = run.saturation(float(slider.text), split="train").query("epoch == 1")
            expected = table.set_index("layer")["saturation"][run.layers[0]]
            assert shown_saturation(pilot) == f"{100 * expected:.1f}"
        slider.place = 0
        assert slider.text == "0.5"
        slider.place = 10**6
        assert slider.text == "0.9999"
        slider.focus()
        await press(pilot, "home")
        assert slider.text == "0.5"
        await click(pilot, Slider, offset=(60, 0))
        assert slider.text not in ("0.5", "0.9999")


async def test_run_screen__scrubs_through_the_epochs(logs: Path) -> None:
    run = run_of(logs)
    async with open_run(logs) as (pilot, screen):
        assert screen.query_one("#epoch", Slider).text == "2/2"
        await press(pilot, "left_square_bracket")
        assert screen.query_one("#epoch", Slider).text == "1/2"
        table = run.saturation(split="train").query("epoch == 0").set_index("layer")
        assert shown_saturation(pilot) == f"{100 * table['saturation'][run.layers[0]]:.1f}"
        reached = run.table("metrics")["eval_accuracy"][0]
        assert f"model {reached:.1%}" in read_static(pilot, "#values")
        assert "probe" not in read_static(pilot, "#values").replace("probe pool4 –", "").replace(
            "probe pixelwise –", ""
        )
        await press(pilot, "right_square_bracket")
        assert "probe pool4 –" not in read_static(pilot, "#values")


async def test_run_screen__shows_all_layers_on_request(logs: Path) -> None:
    run = run_of(logs)
    async with open_run(logs) as (pilot, _):
        assert "1/9" in read_static(pilot, "#layer")
        await press(pilot, "a")
        assert f"1/{len(run.layers)}" in read_static(pilot, "#layer")
        await press(pilot, *["j"] * 20)
        assert run.layers[-1] in read_static(pilot, "#layer")
        await press(pilot, "a")
        assert "9/9" in read_static(pilot, "#layer")


PLOT_TABS = ("layers", "training", "spectrum")


async def go_through_plots(pilot: Pilot[None], screen: RunScreen) -> dict[str, list[str]]:
    """Show each tab with a plot, and return what is seen of it."""
    seen = {}
    for tab in PLOT_TABS:
        await press(pilot, f"{TABS.index(tab) + 1}")
        await wait_for(pilot, lambda tab=tab: screen.query_one(f"#{tab}").query_one(PlotWidget)._datasets)
        # The bar under the tabs moves for a while.
        seen[tab] = [line for line in read_screen(pilot) if "╸━" not in line and "━╺" not in line]
    return seen


async def test_plots__are_the_same_when_one_comes_back_to_their_tab(logs: Path) -> None:
    async with open_run(logs, (100, 30)) as (pilot, screen):
        before = [line for line in read_screen(pilot) if "━╺" not in line]
        first = await go_through_plots(pilot, screen)
        assert await go_through_plots(pilot, screen) == first
        assert first["layers"] == before


@pytest.mark.long
async def test_plots__are_drawn_to_the_size_of_a_terminal_that_changes(logs: Path) -> None:
    sizes = ((80, 24), (120, 40))
    opened = []
    for size in sizes:
        async with open_run(logs, size) as (pilot, screen):
            opened.append(await go_through_plots(pilot, screen))
    async with open_run(logs, sizes[0]) as (pilot, screen):
        for size, seen in (*zip(sizes, opened, strict=True), (sizes[0], opened[0])):
            await pilot.resize_terminal(*size)  # while the last of the plots is in sight, the others hidden
            await settle(pilot)
            assert await go_through_plots(pilot, screen) == seen


async def test_plot__zooms_without_stealing_the_screens_keys(logs: Path) -> None:
    async with open_run(logs) as (pilot, screen):
        plot = screen.query_one("#layer-plot", PlotWidget)
        assert plot.has_focus
        limits = (plot._x_min, plot._x_max)
        await press(pilot, "plus")
        assert plot._x_max - plot._x_min < limits[1] - limits[0]
        zoomed = (plot._x_min, plot._x_max)
        await press(pilot, "shift+right")
        assert plot._x_min > zoomed[0]
        moved = (plot._x_min, plot._x_max)
        await press(pilot, "left", "j")  # delta and cursor: what is seen stays
        assert (plot._x_min, plot._x_max) == moved
        assert screen.query_one("#delta", Slider).text == "0.98"
        assert "features.4" in read_static(pilot, "#layer")
        await press(pilot, "0")
        assert (plot._x_min, plot._x_max) == limits
        await press(pilot, "minus")
        assert plot._x_max - plot._x_min > limits[1] - limits[0]


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_run_screen__has_a_tab_for_all_that_is_known(logs: Path, size: tuple[int, int]) -> None:
    run = run_of(logs)
    async with open_run(logs, size) as (pilot, screen):
        tabs = screen.query_one(TabbedContent)

        async def show(tab: str, condition: Callable[[], bool]) -> str:
            await press(pilot, f"{TABS.index(tab) + 1}" if tab != TABS[-1] else "l")
            assert tabs.active == tab
            await wait_for(pilot, condition)
            return "\n".join(read_screen(pilot))

        text = await show("training", lambda: "eval accuracy" in read_static(pilot, "#training-values"))
        assert f"eval accuracy {run.manifest.summary.test_accuracy:.1%}" in " ".join(text.split())
        await show("spectrum", lambda: "directions hold" in read_static(pilot, "#spectrum-layer"))
        dimension = run.manifest.summary.intrinsic_dimension[run.layers[0]]
        assert f"\n{dimension} of 16 directions hold 0.99" in read_static(pilot, "#spectrum-layer")
        text = await show("table", lambda: screen.query_one(LayersTable).row_count == 9)
        assert "features.25" in text
        assert "probe pool4" in text
        await show("pixelwise", lambda: "no pixelwise probe" in read_static(pilot, "#pixelwise-layer"))
        text = await show("config", lambda: bool(screen.query_one("#config-text", Log).lines))
        assert '"model": "vgg11_XS"' in text
        text = await show("manifest", lambda: bool(screen.query_one("#manifest-text", Log).lines))
        assert '"format_version": 1' in text
        text = await show("events", lambda: "probe done" in "\n".join(read_screen(pilot)))
        text = await show("log", lambda: "job 1, done" in read_static(pilot, "#log-job") or True)
        assert "satstore" in text


async def test_run_screen__keeps_the_cursor_from_the_table_to_the_plot(logs: Path) -> None:
    async with open_run(logs) as (pilot, screen):
        await press(pilot, "4")
        await wait_for(pilot, lambda: screen.query_one(LayersTable).row_count == 9)
        assert screen.query_one(LayersTable).has_focus
        await press(pilot, "j", "j", "j")
        await press(pilot, "1")
        await wait_for(pilot, lambda: "features.11" in read_static(pilot, "#layer"))


async def test_run_screen__maps_the_probes_of_every_position(logs: Path) -> None:
    async with open_run(logs) as (pilot, screen):
        await press(pilot, "5", *["j"] * 5)
        await wait_for(pilot, lambda: screen.query_one(HeatMap)._values.shape == (4, 4))
        assert "features.18" in read_static(pilot, "#pixelwise-layer")
        from satstore.storage.zarr import AnalysisStore

        values = AnalysisStore(run_of(logs).analysis_path).probe("pixelwise", "features.18")["accuracy"]
        text = "\n".join(read_screen(pilot))
        assert f"{min(99, round(100 * values[0, 0]))}" in text
        assert "100 %" in text
        screen.query_one(HeatMap).show(np.full((300, 300), 0.5))
        await settle(pilot)
        assert any("means of" in line for line in read_screen(pilot))


@pytest.mark.parametrize("runs_here", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("key", "kind", "starts"),
    [
        pytest.param("p", "png", b"\x89PNG", marks=pytest.mark.long),
        pytest.param("s", "svg", b"<?xml", marks=pytest.mark.long),
        ("c", "csv", b"layer,kind"),
    ],
)
async def test_run_screen__exports(
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    key: str,
    kind: str,
    starts: bytes,
    runs_here: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    if runs_here:
        monkeypatch.setattr("tui.threads.run_command", run_here)
    run = run_of(logs)
    path = tmp_path / f"demo-{run.experiment}-layers.{kind}"
    async with open_run(logs) as (pilot, _):
        await press(pilot, "left", "e", key)
        await wait_for(pilot, path.exists, WORKS_S)
        assert path.read_bytes().startswith(starts)
    if kind == "csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
        table = run.saturation(0.98, split="train").query("epoch == 1").set_index("layer")
        for row in rows:
            assert float(row["saturation"]) == pytest.approx(table["saturation"][row["layer"]])
            accuracy = run.manifest.summary.probe_accuracy[ProbeKey(LatentsKey("4"))][row["layer"]]
            assert float(row["probe_pool4"]) == pytest.approx(accuracy)


async def test_run_screen__copies_its_command(logs: Path) -> None:
    async with open_run(logs) as (pilot, _):
        await press(pilot, "y")
        assert pilot.app.clipboard == f"satstore show {run_of(logs).name} --logs-dir {logs}"


# States


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_run_screen__says_which_key_starts_what_is_missing(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    make(tmp_path, "a")
    async with open_run(tmp_path, size) as (pilot, _):
        assert "no spectra yet: press n to start train" in read_static(pilot, "#notice")
        for key in "123456789":
            await press(pilot, key)


async def test_run_screen__says_what_failed(tmp_path: Path) -> None:
    make(tmp_path, "a", 0, None, {"train": "failed"})
    async with open_run(tmp_path) as (pilot, _):
        assert "train: out of memory" in read_static(pilot, "#notice")


async def test_run_screen__names_what_is_damaged_and_shows_the_rest(logs_copy: Path) -> None:
    run = run_of(logs_copy)
    (run.path / "probe-pool4.csv").write_text("layer,eval_accuracy\nfeatures.0,1.0\n")
    async with open_run(logs_copy) as (pilot, _):
        assert "is not what was committed" in read_static(pilot, "#notice")
        assert "saturation" in read_static(pilot, "#values")
        assert "probe pool4" not in read_static(pilot, "#values")


def commit_border(run: Run, layer: str) -> None:
    run.commit(change=lambda manifest: setattr(manifest.summary, "border_layer", layer))


async def test_run_screen__follows_a_run_that_changes(logs_copy: Path) -> None:
    run = run_of(logs_copy)
    async with open_run(logs_copy) as (pilot, screen):
        commit_border(run, "features.4")
        await wait_for(pilot, lambda: "border features.4" in read_static(pilot, "#values"))

        def forget_last_epoch(manifest: Manifest) -> None:
            manifest.summary.epochs_done = 1

        run.commit(change=forget_last_epoch)
        await wait_for(pilot, lambda: screen.query_one("#epoch", Slider).text == "1/1")


async def test_run_screen__shows_the_newest_of_reads_that_overlap(
    logs_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(logs_copy)
    begun: list[str | None] = []
    newer_is_shown = threading.Event()

    def read_the_first_slowly(path: Path) -> RunCurves:
        data = read_curves(path)
        begun.append(data.border)
        if data.border == "features.4":
            assert newer_is_shown.wait(HANGS_S)
        return data

    taken = Calls(monkeypatch, RunScreen, "_take")
    async with open_run(logs_copy) as (pilot, _):
        monkeypatch.setattr("tui.screens.run.read_curves", read_the_first_slowly)
        commit_border(run, "features.4")
        await wait_for(pilot, lambda: "features.4" in begun)
        commit_border(run, "features.8")
        await wait_for(pilot, lambda: "border features.8" in read_static(pilot, "#values"))
        before = taken.n
        newer_is_shown.set()
        await wait_for(pilot, lambda: taken.n == before + 1)
        assert "border features.8" in read_static(pilot, "#values")


async def test_run_screen__stays_when_its_manifest_breaks_and_when_its_folder_goes(logs_copy: Path) -> None:
    run = run_of(logs_copy)
    async with open_run(logs_copy) as (pilot, screen):
        (run.path / "manifest.json").write_text("{")
        await wait_for(pilot, lambda: "is not a manifest" in read_static(pilot, "#notice"))
        await press(pilot, "left", "j", "2", "1")
        shutil.rmtree(run.path)
        await wait_for(pilot, lambda: "the folder of this run is gone" in read_static(pilot, "#notice"))
        await press(pilot, "3")
        spectra = [worker for worker in pilot.app.workers if worker.group == "spectrum"]
        await wait_for(pilot, lambda: all(worker.is_finished for worker in spectra))
        if isinstance(pilot.app.screen, ErrorScreen):
            await press(pilot, "escape")
        assert pilot.app.screen is screen
        await press(pilot, "escape")
        assert isinstance(pilot.app.screen, RunsScreen)


# Several runs


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_compare_screen__overlays_marked_runs(
    logs_copy: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tui.threads.run_command", run_here)
    shutil.copytree(logs_copy / "demo", logs_copy / "other")
    app = make_app(logs_copy)
    async with app.run_test(size=size) as pilot:
        await wait_for_rows(pilot, 2)
        await press(pilot, "c")
        assert isinstance(app.screen, RunsScreen), "one run is no comparison"
        await press(pilot, "space", "space")
        assert "● 2 marked" in read_static(pilot, "#counts")
        await press(pilot, "c")
        await wait_for_screen(pilot, CompareScreen)
        await wait_for(pilot, lambda: "other:" in read_static(pilot, "#legend-text"))
        text = read_static(pilot, "#legend-text")
        assert [line[0] for line in text.splitlines()] == ["■", "▲"]
        assert "features.0: saturation" in text
        await press(pilot, "j", "d")
        assert "layers aligned by depth" in read_static(pilot, "#counts")
        assert "features.4: saturation" in read_static(pilot, "#legend-text")
        before = read_static(pilot, "#legend-text")
        await press(pilot, "left", "left", "left")
        assert read_static(pilot, "#legend-text") != before
        await press(pilot, "a", *["j"] * 50)
        assert "classifier.6: saturation" in read_static(pilot, "#legend-text")
        if size == SIZES[0]:
            await press(pilot, "e", "p")
            await wait_for(pilot, (tmp_path / "satstore-comparison.png").exists, WORKS_S)
        await press(pilot, "escape", "escape")
        assert isinstance(app.screen, RunsScreen)
        assert "marked" not in read_static(pilot, "#counts")


# What is read


def test_read_curves__has_what_the_tables_have(logs: Path) -> None:
    run = run_of(logs)
    data = read_curves(run.path)
    assert not data.problems
    assert data.deltas == DELTAS
    for delta in (0.5, 0.9, 0.99, 0.9999):
        table = run.saturation(delta)
        for split in ("train", "eval"):
            for epoch in range(2):
                rows = table[(table["split"] == split) & (table["epoch"] == epoch)]
                found = data.saturation(split, epoch, DELTAS.index(delta))
                np.testing.assert_array_equal(found, rows["saturation"])
    rows = make_layer_rows(data, View(1, DELTAS.index(0.99), data.shown))
    assert [row.layer for row in rows] == run.layers[:-1]
    assert rows[0].dimension == run.manifest.summary.intrinsic_dimension[rows[0].layer]
    lines = make_reference_lines(data, View(1, 0, data.shown))
    assert {line.label for line in lines} >= {"cursor", "border", "model"}


def test_decimate__keeps_extremes() -> None:
    x, y = list(range(10_000)), [0.0] * 10_000
    y[4321], y[777] = 5.0, -3.0
    kept_x, kept_y = decimate(x, y, 200)
    assert len(kept_x) <= 200
    assert kept_x == sorted(kept_x)
    assert (max(kept_y), min(kept_y)) == (5.0, -3.0)
    assert decimate(x[:5], y[:5], 200) == (x[:5], y[:5])


# The demo, from the first screen on


@pytest.mark.long
async def test_first_run__starts_the_demo(tmp_path: Path) -> None:
    app = make_app(tmp_path / "logs")
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: any("Run the demo" in line for line in read_screen(pilot)))
        await press(pilot, "d")
        await wait_for(pilot, lambda: "▶ 1" in read_static(pilot, "#jobs-line"))
        assert app.jobs[0].words == ("demo", "--logs-dir", str(tmp_path / "logs"))
        await press(pilot, "J")
        await wait_for_screen(pilot, JobsScreen)
        await press(pilot, "x")
        await wait_for_screen(pilot, ConfirmScreen)
        await press(pilot, "y")
        await wait_for(pilot, lambda: app.jobs[0].state == "cancelled")


async def test_first_run__is_watched_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gated.json").write_text(json.dumps({"plugins": [Gate.PLUGIN], "stages": ["gated"]}))
    app = make_app(tmp_path / "logs")
    with Gate(tmp_path, monkeypatch) as gate:
        async with app.run_test(size=(120, 40)) as pilot:
            await wait_for(pilot, lambda: any("Run the demo" in line for line in read_screen(pilot)))
            app.post_message(StartJob(["run", "--config", str(tmp_path / "gated.json"), "--run-id", "mine"]))
            table = await wait_for_rows(pilot, 1)
            await wait_for(pilot, lambda: "gated 50%" in read_static(pilot, "#jobs-line"))
            await press(pilot, "enter")  # while it is being written
            await wait_for_screen(pilot, RunScreen)
            await wait_for(pilot, lambda: "no spectra yet" in read_static(pilot, "#notice"))
            gate.open_once()
            await wait_for(pilot, lambda: "gated 100%" in describe_job(app.jobs[0]))
            assert "left" in describe_job(app.jobs[0])
            gate.open_once()
            await wait_for(pilot, lambda: not app.jobs[0].is_running)
            assert app.jobs[0].state == "done"
            await press(pilot, "escape")
            await wait_for_screen(pilot, RunsScreen)
            await wait_for(pilot, lambda: not table.rows[0].has("running"))
            assert table.rows[0].size_bytes
            await press(pilot, "l")
            await wait_for_screen(pilot, JobsScreen)
            await wait_for(pilot, lambda: any("gated: at the gate" in line for line in read_screen(pilot)))


@pytest.mark.long
async def test_first_run__runs_the_demo_and_watches_it(tmp_path: Path) -> None:
    app = SatstoreApp(tmp_path / "logs", 0.05)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: any("Run the demo" in line for line in read_screen(pilot)))
        await press(pilot, "d")
        table = await wait_for_rows(pilot, 1)
        seen = {read_static(pilot, "#jobs-line")}
        await press(pilot, "enter")  # while its stores are being written
        await wait_for_screen(pilot, RunScreen)

        def is_over() -> bool:
            seen.update(describe_job(job) for job in app.jobs)
            assert not isinstance(app.screen, ErrorScreen), read_screen(pilot)
            return bool(app.jobs) and not app.jobs[0].is_running

        await wait_for(pilot, is_over, WORKS_S)
        assert app.jobs[0].state == "done"
        assert any("train" in text for text in seen), seen
        assert any("%" in text and "left" in text for text in seen), seen
        await wait_for(pilot, lambda: "probe pool4" in read_static(pilot, "#values"))
        assert read_static(pilot, "#notice") == ""
        await press(pilot, "escape")
        await wait_for_screen(pilot, RunsScreen)
        await wait_for(pilot, lambda: table.rows[0].stages["probe"] == "done")
        assert len(table.rows[0].saturation) == 9
        assert table.rows[0].size_bytes
        await press(pilot, "l")
        await wait_for_screen(pilot, JobsScreen)
        await wait_for(pilot, lambda: any("test accuracy" in line for line in read_screen(pilot)))
    content = json.loads((tmp_path / "logs" / ".jobs" / "1" / "job.json").read_text())
    assert content["words"] == ["demo", "--logs-dir", str(tmp_path / "logs")]


async def test_run_screen__says_what_the_curves_mean(logs: Path) -> None:
    run = run_of(logs)
    async with open_run(logs) as (pilot, screen):
        await press(pilot, f"{TABS.index('advice') + 1}")
        text = screen.query_one("#advice-text", Static)
        width, height = text.size
        lines = [strip.text for strip in text.render_lines(Region(0, 0, width, height))]
    assert lines[0].strip() == "found:"
    assert lines[1].startswith(f"   border layer: {run.manifest.summary.border_layer}, layer ")
    said = satstore("show", "demo", "--advice", "--logs-dir", logs).stdout
    assert " ".join(lines).split() == " ".join(said.splitlines()[1:]).split(), "broken, and nothing cut off"
    assert len(lines) > len(said.splitlines()) - 1, "of which the first names the run"
