"""What all screens share: keys, help, palette, filter, order and themes; and a few pictures."""

import csv
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import CLEAN
from filelock import FileLock
from pilots import make, make_app, read_row, read_screen, read_static, wait_for, wait_for_rows
from textual.widgets import HelpPanel, Input

from satstore.manifest import LayerRecord, Manifest
from satstore.run import Run
from tui.app import SatstoreApp
from tui.screens.jobs import JobsScreen
from tui.screens.runs import RunsScreen

RESERVED = {"ctrl+b", "ctrl+i", "ctrl+m", "ctrl+h", "ctrl+j"}


def make_some(logs_dir: Path) -> None:
    make(logs_dir, "b", 3, 0.5, {"train": "running"}, model="vgg16", resolution=64, age_s=100)
    make(logs_dir, "a", 30, 0.9, {"train": "done", "probe": "done"}, model="resnet18", age_s=10**6)
    make(logs_dir, "c", 0, None, {"train": "failed"}, model="resnet34", resolution=224, age_s=10**4)


async def type_text(pilot: object, text: str) -> None:
    pilot.app.screen.query_one(Input).value = text  # type: ignore[attr-defined]
    await pilot.pause()  # type: ignore[attr-defined]


async def test_filter__narrows_as_one_types(tmp_path: Path) -> None:
    make_some(tmp_path)
    async with make_app(tmp_path).run_test(size=(120, 40)) as pilot:
        table = await wait_for_rows(pilot, 3)
        await pilot.press("slash", *"vgg")
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
        await pilot.press("enter")
        assert table.has_focus
        assert pilot.app.screen.query_one("#filter-bar").display
        make(tmp_path, "d", resolution=224)
        await wait_for_rows(pilot, 2)
        await pilot.press("escape")
        assert table.row_count == 4
        assert not pilot.app.screen.query_one("#filter-bar").display


async def test_order__follows_keys_and_clicks(tmp_path: Path) -> None:
    make_some(tmp_path)
    async with make_app(tmp_path).run_test(size=(200, 40)) as pilot:
        table = await wait_for_rows(pilot, 3)

        def order() -> str:
            return "".join(e.run_id for e in table.rows)

        found = {}
        for _ in table.widths:
            await pilot.press("s")
            found[table.sorted_by[0]] = order()
        assert list(found) == [*list(table.widths)[1:], "run"]
        assert found["model"] == "acb"
        assert found["px"] == "abc"
        assert found["accuracy"] == "abc", "the best first, what has none last"
        assert found["age"] == "bca"
        assert found["run"] == "abc"
        await pilot.press("S")
        assert order() == "cba"
        assert any("run▼" in line for line in read_screen(pilot))
        x = 2 + sum(table.widths[key] + table.gap for key in ("run",))
        await pilot.click(offset=(x, 1))
        assert table.sorted_by == ("model", False)
        assert order() == "acb"
        await pilot.click(offset=(x, 1))
        assert order() == "bca"
        current = table.current
        await pilot.press("s")
        assert table.current is current, "the cursor stays on its run"


async def test_table__follows_the_mouse(tmp_path: Path) -> None:
    make_some(tmp_path)
    async with make_app(tmp_path).run_test(size=(120, 40)) as pilot:
        table = await wait_for_rows(pilot, 3)
        await pilot.click(offset=(5, 4))
        assert table.cursor_row == 2
        await pilot.click(offset=(5, 30))
        assert table.cursor_row == 2
        await pilot.click(offset=(5, 3), times=2)
        await wait_for(pilot, lambda: not isinstance(pilot.app.screen, RunsScreen))


async def test_runs__are_exported_as_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_some(tmp_path / "logs")
    async with make_app(tmp_path / "logs").run_test(size=(80, 24)) as pilot:
        await wait_for_rows(pilot, 3)
        await pilot.press("e")
        await wait_for(pilot, (tmp_path / "satstore-runs.csv").exists)
    rows = list(csv.DictReader((tmp_path / "satstore-runs.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["resnet18", "vgg16", "resnet34"]


async def test_help__is_of_what_has_the_focus(tmp_path: Path) -> None:
    make_some(tmp_path)
    async with make_app(tmp_path).run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 3)
        await pilot.press("question_mark")
        await wait_for(pilot, lambda: bool(pilot.app.screen.query(HelpPanel)))
        await wait_for(pilot, lambda: any("filters as you type" in line for line in read_screen(pilot)))
        await pilot.press("question_mark")
        await wait_for(pilot, lambda: not pilot.app.screen.query(HelpPanel))


async def test_palette__has_every_action(tmp_path: Path) -> None:
    make_some(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 3)
        titles = {command.title for command in app.get_system_commands(app.screen)}
        wanted = {"Filter", "Mark", "Compare", "Sort", "Reverse", "Log", "Cancel", "Export", "Copy command"}
        assert titles >= wanted | {"Demo", "Pause", "New job", "Jobs", "Help", "Quit", "Theme", "Open"}
        await pilot.press("ctrl+p")
        await pilot.press(*"Jobs")
        await wait_for(pilot, lambda: any("What runs and what ran" in line for line in read_screen(pilot)))
        await pilot.press("down", "enter")
        await wait_for(pilot, lambda: isinstance(app.screen, JobsScreen))


async def test_keys__leave_those_that_terminals_need(tmp_path: Path) -> None:
    make_some(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 3)
        for keys in ([], ["n"], ["escape", "J"], ["escape", "enter"]):
            await pilot.press(*keys)
            await pilot.pause(0.2)
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
        await pilot.press("enter")
        await pilot.pause(0.3)


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
def test_picture__of_the_runs(fixed_logs: Path, size: tuple[int, int], snap_compare: object) -> None:
    make_some(fixed_logs)
    give_layers(make(fixed_logs, "deep", 60, 0.77, {"train": "done", "saturation": "done"}, epoch=60))

    async def wait(pilot: object) -> None:
        await wait_for_rows(pilot, 4)  # type: ignore[arg-type]

    assert snap_compare(make_app(fixed_logs), terminal_size=size, run_before=wait)  # type: ignore[operator]


def test_picture__of_the_first_run(fixed_logs: Path, snap_compare: object) -> None:
    async def wait(pilot: object) -> None:
        await wait_for_rows(pilot, 0)  # type: ignore[arg-type]

    assert snap_compare(make_app(fixed_logs), terminal_size=(80, 24), run_before=wait)  # type: ignore[operator]


def test_serve__answers_on_loopback_only(tmp_path: Path) -> None:
    make_some(tmp_path)
    port = 20_000 + os.getpid() % 20_000
    words = [sys.executable, "-m", "satstore", "tui", "--serve", "--port", f"{port}", "--read-only"]
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen([*words, "--logs-dir", str(tmp_path)], stdout=log, stderr=log, env=CLEAN)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    assert b"satstore" in answer.read()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def test_tui__refuses_a_theme_that_is_not_there(tmp_path: Path) -> None:
    import pty

    master, slave = pty.openpty()
    words = [sys.executable, "-m", "satstore", "tui", "--theme", "nrd", "--logs-dir", str(tmp_path)]
    done = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert done.wait(30) == 1
    assert b"no theme 'nrd'; did you mean 'nord'?" in os.read(master, 4096).replace(b"\r\n", b" ")
    os.close(master)


@pytest.mark.parametrize("keys", ["", "enter", "space j space c", "n", "J"])
async def test_footer__is_whole_at_80_columns(fixed_logs: Path, keys: str) -> None:
    make_some(fixed_logs)
    app = make_app(fixed_logs)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for_rows(pilot, 3)
        first = app.screen
        await pilot.press(*keys.split())
        await wait_for(pilot, lambda: (app.screen is not first) == bool(keys))
        await wait_for(pilot, lambda: read_screen(pilot)[-1].rstrip().endswith("^p palette"))
        footer = " ".join(read_screen(pilot)[-1].split())
        shown = [b for _, b, *_ in app.screen.active_bindings.values() if b.show and b.key != "ctrl+p"]
        assert {"quit", "jobs", "new_job"} <= {binding.action for binding in shown}
        for binding in shown:
            assert f"{app.get_key_display(binding)} {binding.description}" in footer
