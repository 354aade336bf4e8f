"""What all screens share: keys, help, palette, filter, order and themes; and a few pictures."""

import csv
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from command_line import HANGS_S
from filelock import FileLock
from pilots import (
    DAY_S,
    click,
    make,
    make_app,
    press,
    read_row,
    read_screen,
    read_static,
    send,
    settle,
    wait_for,
    wait_for_rows,
    wait_for_screen,
    wait_until,
)
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import HelpPanel, Input

from satstore.runs.manifest import LayerRecord, Manifest, StageStatus
from satstore.runs.run import Run
from tui.app import SatstoreApp
from tui.screens.jobs import JobsScreen
from tui.screens.new_job import NewJobScreen
from tui.screens.run import RunScreen
from tui.screens.runs import RunsScreen

RESERVED = {"ctrl+b", "ctrl+i", "ctrl+m", "ctrl+h", "ctrl+j"}


def make_some(logs_dir: Path) -> Run:
    """Make three runs, and return the first, which is 160 seconds old."""
    run = make(logs_dir, "b", 3, 0.5, {"train": "running"}, model="vgg16", resolution=64, age_s=100)
    make(logs_dir, "a", 30, 0.9, {"train": "done", "probe": "done"}, model="resnet18", age_s=10**6)
    make(logs_dir, "c", 0, None, {"train": "failed"}, model="resnet34", resolution=224, age_s=10**4)
    return run


async def type_text(pilot: Pilot[None], text: str) -> None:
    pilot.app.screen.query_one(Input).value = text
    await settle(pilot)


async def test_filter__narrows_as_one_types(tmp_path: Path) -> None:
    make_some(tmp_path)
    async with make_app(tmp_path).run_test(size=(120, 40)) as pilot:
        table = await wait_for_rows(pilot, 3)
        await press(pilot, "slash", *"vgg")
        assert [e.run_id for e in table.rows] == ["b"]
        assert "1 of 3 experiments" in read_static(pilot, "#counts")
        await type_text(pilot, "model:resnet*")
        assert [e.run_id for e in table.rows] == ["a", "c"]
        await type_text(pilot, "model:resnet* acc>80 probe:done")
        assert [e.run_id for e in table.rows] == ["a"]
        await type_text(pilot, "modl:x")
        assert "no field 'modl'; did you mean 'model'?" in read_static(pilot, "#filter-error")
        assert [e.run_id for e in table.rows] == ["a"], "the last filter that could be read holds"
        await type_text(pilot, "nothing")
        assert table.row_count == 0
        assert read_static(pilot, "#filter-error") == ""
        await type_text(pilot, "px=224")
        await press(pilot, "enter")
        assert table.has_focus
        assert pilot.app.screen.query_one("#filter-bar").display
        make(tmp_path, "d", resolution=224)
        await wait_for_rows(pilot, 2)
        await press(pilot, "escape")
        assert table.row_count == 4
        assert not pilot.app.screen.query_one("#filter-bar").display


async def test_filter__takes_what_is_typed_without_a_pause(tmp_path: Path) -> None:
    for run_id in ("anna", "nora", "quinn"):
        make(tmp_path, run_id)
    async with make_app(tmp_path).run_test() as pilot:
        table = await wait_for_rows(pilot, 3)
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await send(pilot, "/", *"runx", "backspace", *":n", "enter", "j", "space")
        assert screen.query_one("#filter", Input).value == "run:n"
        assert screen.marked == {table.rows[1].name}
        assert screen.query_one("#filter-bar").display, "a filter that holds is in sight"
        await send(pilot, "/", *"ora", "home", "n")
        assert screen.query_one("#filter", Input).value == "nora", "in place of all that was selected"
        assert [e.run_id for e in table.rows] == ["nora"]
        await send(pilot, "escape")
        assert table.row_count == 3
        await send(pilot, "J", "escape", "n", "tab", "shift+tab", "escape", "J")
        await wait_for_screen(pilot, JobsScreen)


async def test_order__follows_keys_and_clicks(tmp_path: Path) -> None:
    make_some(tmp_path)
    async with make_app(tmp_path).run_test(size=(200, 40)) as pilot:
        table = await wait_for_rows(pilot, 3)

        def order() -> str:
            return "".join(e.run_id for e in table.rows)

        found = {}
        for _ in table.widths:
            await press(pilot, "s")
            found[table.sorted_by[0]] = order()
        assert list(found) == [*list(table.widths)[1:], "run"]
        assert found["model"] == "acb"
        assert found["px"] == "abc"
        assert found["accuracy"] == "abc", "the best first, what has none last"
        assert found["age"] == "bca"
        assert found["run"] == "abc"
        await press(pilot, "S")
        assert order() == "cba"
        assert any("run▼" in line for line in read_screen(pilot))
        x = 2 + sum(table.widths[key] + table.gap for key in ("run",))
        await click(pilot, offset=(x, 1))
        assert table.sorted_by == ("model", False)
        assert order() == "acb"
        await click(pilot, offset=(x, 1))
        assert order() == "bca"
        current = table.current
        await press(pilot, "s")
        assert table.current is current, "the cursor stays on its run"


async def test_table__follows_the_mouse(tmp_path: Path) -> None:
    make_some(tmp_path)
    async with make_app(tmp_path).run_test(size=(120, 40)) as pilot:
        table = await wait_for_rows(pilot, 3)
        await click(pilot, offset=(5, 4))
        assert table.cursor_row == 2
        await click(pilot, offset=(5, 30))
        assert table.cursor_row == 2
        await click(pilot, offset=(5, 3), times=2)
        await wait_for(pilot, lambda: not isinstance(pilot.app.screen, RunsScreen))


async def test_runs__are_exported_as_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_some(tmp_path / "logs")
    async with make_app(tmp_path / "logs").run_test(size=(80, 24)) as pilot:
        await wait_for_rows(pilot, 3)
        await press(pilot, "e")
        await wait_for(pilot, (tmp_path / "satstore-runs.csv").exists)
    rows = list(csv.DictReader((tmp_path / "satstore-runs.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["resnet18", "vgg16", "resnet34"]


async def test_help__is_of_what_has_the_focus(tmp_path: Path) -> None:
    make_some(tmp_path)
    async with make_app(tmp_path).run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 3)
        await press(pilot, "question_mark")
        await wait_for(pilot, lambda: bool(pilot.app.screen.query(HelpPanel)))
        await wait_for(pilot, lambda: any("filters as you type" in line for line in read_screen(pilot)))
        await press(pilot, "question_mark")
        await wait_for(pilot, lambda: not pilot.app.screen.query(HelpPanel))


async def test_palette__has_every_action(tmp_path: Path) -> None:
    make_some(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 3)
        titles = {command.title for command in app.get_system_commands(app.screen)}
        wanted = {"Filter", "Mark", "Compare", "Sort", "Reverse", "Log", "Cancel", "Export", "Copy command"}
        assert titles >= wanted | {"Demo", "Pause", "New job", "Jobs", "Help", "Quit", "Theme", "Open"}
        await press(pilot, "ctrl+p")
        await press(pilot, *"Jobs")
        await wait_for(pilot, lambda: any("What runs and what ran" in line for line in read_screen(pilot)))
        await press(pilot, "down", "enter")
        await wait_for_screen(pilot, JobsScreen)


async def test_keys__leave_those_that_terminals_need(tmp_path: Path) -> None:
    make_some(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 3)
        ways: list[tuple[list[str], type[Screen[Any]]]] = [
            ([], RunsScreen),
            (["n"], NewJobScreen),
            (["escape", "J"], JobsScreen),
            (["escape", "enter"], RunScreen),
        ]
        for keys, kind in ways:
            await press(pilot, *keys)
            await wait_for_screen(pilot, kind)
            active = app.screen.active_bindings
            ours = {key for key in active if type(active[key].node).__module__.startswith("tui.")}
            assert ours
            assert not ours & RESERVED


@pytest.mark.parametrize("theme", ["textual-light", "nord", "gruvbox"])
async def test_theme__is_taken(tmp_path: Path, theme: str) -> None:
    make_some(tmp_path)
    app = SatstoreApp(tmp_path, 0.02, theme=theme)
    async with app.run_test(size=(120, 40)) as pilot:
        table = await wait_for_rows(pilot, 3)
        assert app.theme == theme
        assert read_row(table, 0)["model"] == "resnet18"
        await press(pilot, "enter")
        await wait_for_screen(pilot, RunScreen)
        await wait_for(pilot, lambda: "no spectra yet" in read_static(pilot, "#notice"))


@pytest.fixture
def fixed_logs() -> Iterator[Path]:
    """A logs folder of a name that pictures can show."""
    logs = Path("/tmp/satstore-pictures/logs")
    with FileLock("/tmp/satstore-pictures.lock"):
        shutil.rmtree(logs, ignore_errors=True)
        yield logs
        shutil.rmtree(logs.parent, ignore_errors=True)


def give_layers(run: Run) -> None:
    def change(manifest: Manifest) -> None:
        for index in range(12):
            layer = f"layer{index}"
            manifest.layers.append(
                LayerRecord(layer=layer, index=index, kind="Conv2d", n_features=64, output_shape=[64, 8, 8])
            )
            manifest.summary.saturation[layer] = abs(6 - index) / 8

    run.commit(change=change)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_picture__of_the_runs(
    fixed_logs: Path, size: tuple[int, int], snap_compare: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = make_some(fixed_logs).manifest.created + 160
    stages: dict[str, StageStatus] = {"train": "done", "saturation": "done"}
    give_layers(make(fixed_logs, "deep", 60, 0.77, stages, age_s=3.5 * DAY_S, epoch=60))
    # Ages are in the picture.
    monkeypatch.setattr("satstore.reports.listing.columns.time", SimpleNamespace(time=lambda: now))

    async def wait(pilot: object) -> None:
        await wait_for_rows(pilot, 4)  # type: ignore[arg-type]

    assert snap_compare(make_app(fixed_logs), terminal_size=size, run_before=wait)  # type: ignore[operator]


def test_picture__of_the_first_run(fixed_logs: Path, snap_compare: object) -> None:
    async def wait(pilot: object) -> None:
        await wait_for_rows(pilot, 0)  # type: ignore[arg-type]

    assert snap_compare(make_app(fixed_logs), terminal_size=(80, 24), run_before=wait)  # type: ignore[operator]


def free_port() -> int:
    """Return a port that the system says is free; another process may be quicker to take it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(logs: Path, log_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Serve the app on a port that is free."""
    words = [sys.executable, "-m", "satstore", "tui", "--serve", "--read-only", "--logs-dir", str(logs)]
    port = free_port()
    with log_path.open("wb") as log:
        server = subprocess.Popen([*words, "--port", f"{port}"], stdout=log, stderr=log)
    try:
        yield server, port
    finally:
        server.terminate()
        server.wait(HANGS_S)


def listening(server: subprocess.Popen[bytes]) -> list[tuple[str, int]]:
    """Return the addresses that a process waits for connections at."""
    found = psutil.Process(server.pid).net_connections()
    return [(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN]


def test_serve__answers_on_loopback_only(tmp_path: Path) -> None:
    make_some(tmp_path / "logs")
    for _ in range(3):
        with serve(tmp_path / "logs", tmp_path / "log") as (server, port):
            wait_until(lambda server=server: server.poll() is not None or listening(server))
            said = (tmp_path / "log").read_text()
            if server.poll() is not None:  # the port was taken meanwhile
                assert "address already in use" in said, said
                continue
            assert listening(server) == [("127.0.0.1", port)]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=HANGS_S) as answer:
                assert b"satstore" in answer.read()
            return
    pytest.fail("no port stayed free")


def test_tui__refuses_a_theme_that_is_not_there(tmp_path: Path) -> None:
    import pty

    master, slave = pty.openpty()
    words = [sys.executable, "-m", "satstore", "tui", "--theme", "nrd", "--logs-dir", str(tmp_path)]
    done = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert done.wait(HANGS_S) == 1
    assert b"no theme 'nrd'; did you mean 'nord'?" in os.read(master, 4096).replace(b"\r\n", b" ")
    os.close(master)


@pytest.mark.parametrize("keys", ["", "enter", "space j space c", "n", "J"])
async def test_footer__is_whole_at_80_columns(fixed_logs: Path, keys: str) -> None:
    make_some(fixed_logs)
    app = make_app(fixed_logs)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for_rows(pilot, 3)
        first = app.screen
        await press(pilot, *keys.split())
        await wait_for(pilot, lambda: (app.screen is not first) == bool(keys))
        await wait_for(pilot, lambda: read_screen(pilot)[-1].rstrip().endswith("^p palette"))
        footer = " ".join(read_screen(pilot)[-1].split())
        shown = [b for _, b, *_ in app.screen.active_bindings.values() if b.show and b.key != "ctrl+p"]
        assert {"quit", "jobs", "new_job"} <= {binding.action for binding in shown}
        for binding in shown:
            assert f"{app.get_key_display(binding)} {binding.description}" in footer
