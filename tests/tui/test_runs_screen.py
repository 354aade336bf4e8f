"""The runs screen, through Textual's pilot on real logs folders."""

import json
import os
import platform
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import HANGS_S, fail
from pilots import (
    ONE_SIZE,
    make,
    make_app,
    press,
    read_row,
    read_screen,
    read_static,
    wait_for,
    wait_for_rows,
)

from satstore.reports.listing.reader import LogsReader
from satstore.reports.listing.table_layout import shorten
from satstore.runs.manifest import STAGE_KEYS, Manifest
from satstore.runs.run import Run
from satstore.storage.files import write_file
from tui.screens.runs import RunsScreen, RunsTable


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("size", ONE_SIZE)
async def test_runs_screen__names_the_folder_and_the_demo_when_empty(
    tmp_path: Path, size: tuple[int, int], exists: bool
) -> None:
    logs_dir = tmp_path / "logs"
    if exists:
        logs_dir.mkdir()
    async with make_app(logs_dir).run_test(size=size) as pilot:
        await wait_for_rows(pilot, 0)
        text = read_static(pilot, "#empty-text")
        assert str(logs_dir) in text
        assert f"satstore demo --logs-dir {logs_dir}" in text
        assert any("No runs yet" in line for line in read_screen(pilot))
        assert not pilot.app.screen.query_one(RunsTable).display


async def test_runs_screen__names_the_plain_demo_for_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SATSTORE_LOGS_DIR", str(tmp_path))
    async with make_app(tmp_path).run_test() as pilot:
        await wait_for_rows(pilot, 0)
        assert "--logs-dir" not in read_static(pilot, "#empty-text")


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_runs_screen__lists_experiments_by_run_id(tmp_path: Path, size: tuple[int, int]) -> None:
    make(tmp_path, "b", 12, None, {"train": "failed"}, model="vgg16", epoch=60)
    run = make(tmp_path, "a", 30, 0.9321, {"train": "done", "probe": "done"}, age_s=2 * 86400, resolution=224)
    make(tmp_path, "c")
    async with make_app(tmp_path).run_test(size=size) as pilot:
        table = await wait_for_rows(pilot, 3)
        row = read_row(table, 0)
        assert row.pop("disk").endswith(" B")
        assert row == {
            "run": "a",
            "model": "resnet18",
            "dataset": "Cifar10",
            "px": "224",
            "epoch": "30/30",
            "accuracy": "93.21%",
            "stages": "✓··✓···",
            "age": "2 d",
            "saturation": "",
            "experiment": run.experiment,
            "problem": "",
        }
        line = next(line for line in read_screen(pilot) if "93.21%" in line)
        assert all(text in line for text in ("a ", "resnet18", "Cifar10", "224", "30/30", "✓··✓···"))
        assert [read_row(table, i)["run"] for i in range(3)] == ["a", "b", "c"]
        assert read_static(pilot, "#detail").splitlines()[0] == str(run.path)
        assert "3 experiments · 1 failed" in read_static(pilot, "#counts")
        await press(pilot, "j")
        assert read_static(pilot, "#detail").splitlines()[2] == "train: out of memory"


@pytest.mark.parametrize("size", [(80, 24), (99, 24), (100, 24), (101, 24), (120, 40), (200, 60)])
async def test_runs_screen__fits_long_names_in_the_width(tmp_path: Path, size: tuple[int, int]) -> None:
    make(tmp_path, "a-rather-long-run-id-of-someone-careful", 7, 0.5, model="resnet34_noskip", epoch=100)
    make(tmp_path, "b", dataset="TinyImageNet", model="m" * 60)
    async with make_app(tmp_path).run_test(size=size) as pilot:
        table = await wait_for_rows(pilot, 2)
        assert table.virtual_size.width <= table.scrollable_content_region.width
        assert not table.show_horizontal_scrollbar
        header = next(line for line in read_screen(pilot) if " acc " in line).split()
        wanted = ["run▲", "model", "dataset", "px", "epoch", "acc", "stages"]
        assert header[: len(wanted)] == wanted
        assert ("experiment" in header) == (size[0] >= 200), "it gives way to what the others need"


async def test_runs_screen__fits_anew_when_resized(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    async with make_app(tmp_path).run_test(size=(200, 40)) as pilot:
        table = await wait_for_rows(pilot, 1)
        assert run.experiment in read_screen(pilot)[2]
        await pilot.resize_terminal(120, 24)
        await wait_for(pilot, lambda: run.experiment not in read_screen(pilot)[2])
        assert re.search(f"….*{run.experiment[-7:]} ", read_screen(pilot)[2])
        assert table.virtual_size.width <= table.scrollable_content_region.width


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_runs_screen__shows_a_run_that_appears(tmp_path: Path, size: tuple[int, int]) -> None:
    async with make_app(tmp_path).run_test(size=size) as pilot:
        await wait_for_rows(pilot, 0)
        make(tmp_path, "m")
        table = await wait_for_rows(pilot, 1)
        assert table.display
        assert table.has_focus
        make(tmp_path, "a")
        await wait_for_rows(pilot, 2)
        assert [read_row(table, i)["run"] for i in range(2)] == ["a", "m"]
        assert table.cursor_row == 1, "the cursor stays on its experiment"
        assert "/m/" in read_static(pilot, "#detail")


async def test_runs_screen__updates_only_the_row_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make(tmp_path, run_id) for run_id in "abc"]
    async with make_app(tmp_path).run_test() as pilot:
        table = await wait_for_rows(pilot, 3)
        touched: list[Any] = []
        draw = table._draw
        await wait_for(pilot, lambda: len(table._drawn) == 3)
        monkeypatch.setattr(table, "_draw", lambda index: (touched.append(index), draw(index))[1])
        monkeypatch.setattr(table, "refresh_stale", lambda: None)
        monkeypatch.setattr(table, "_draw_anew", lambda: pytest.fail("all rows were drawn anew"))

        def change(manifest: Manifest) -> None:
            manifest.summary.epochs_done = 7
            manifest.summary.test_accuracy = 1.0

        runs[1].commit(change=change)
        await wait_for(pilot, lambda: read_row(table, 1)["epoch"] == "7/30")
        assert read_row(table, 1)["accuracy"] == "100.00%"
        await wait_for(pilot, lambda: any("100.00%" in line for line in read_screen(pilot)))
        assert set(touched) == {1}


async def test_runs_screen__lets_experiments_grow_older(tmp_path: Path) -> None:
    make(tmp_path, "a", age_s=-60)
    async with make_app(tmp_path).run_test() as pilot:
        await wait_for_rows(pilot, 1)
        first = read_screen(pilot)[2]
        await wait_for(pilot, lambda: read_screen(pilot)[2] != first)


@pytest.mark.parametrize("size", ONE_SIZE)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"format_version": 1, "run_id": "b', "is not a manifest: EOF while parsing a string at line 1"),
        ("", "manifest.json is not a manifest"),
        ("[]", "manifest.json is not a manifest"),
        ('{"format_version": 99}', "manifest.json has format version 99"),
        ('{"format_version": 1}', "manifest.json is not a manifest: 'run_id'"),
        (
            '{"format_version": 1, "run_id": "b", "experiment": "x", "created": 0, "config_sha256": "",'
            ' "config": {"epoch": 0}}',
            "manifest.json has a config with 'epoch'",
        ),
        ("[" * 100_000, "recursion"),
        (b"\xff\x00", "manifest.json is not a manifest"),
    ],
    ids=["torn", "empty", "list", "newer", "fields", "config", "deep", "bytes"],
)
async def test_runs_screen__warns_of_a_corrupt_manifest(
    tmp_path: Path, size: tuple[int, int], content: str | bytes, reason: str
) -> None:
    make(tmp_path, "a")
    broken = make(tmp_path, "b")
    async with make_app(tmp_path).run_test(size=size) as pilot:
        table = await wait_for_rows(pilot, 2)
        # At once, or the app may read one that is still being written.
        write_file(broken.path / "manifest.json", content.encode() if isinstance(content, str) else content)
        await wait_for(pilot, lambda: read_row(table, 1)["problem"].startswith("⚠"))
        assert any("b" in line and "⚠" in line for line in read_screen(pilot))
        assert read_row(table, 0)["model"] == "resnet18"
        await press(pilot, "j")
        assert reason in read_static(pilot, "#detail")
        assert "1 unreadable" in read_static(pilot, "#counts")
        broken.commit()
        await wait_for(pilot, lambda: read_row(table, 1)["model"] == "resnet18")


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_runs_screen__forgets_a_run_that_is_deleted(tmp_path: Path, size: tuple[int, int]) -> None:
    runs = [make(tmp_path, run_id) for run_id in "abc"]
    async with make_app(tmp_path).run_test(size=size) as pilot:
        table = await wait_for_rows(pilot, 3)
        await press(pilot, "end", "down", "down")
        shutil.rmtree(runs[2].path.parent)
        await wait_for_rows(pilot, 2)
        assert str(runs[1].path) in read_static(pilot, "#detail")
        shutil.rmtree(tmp_path)
        await wait_for_rows(pilot, 0)
        assert not table.display
        assert "satstore demo" in read_static(pilot, "#empty-text")
        make(tmp_path, "d")
        await wait_for_rows(pilot, 1)
        assert table.display
        assert table.has_focus


async def test_runs_screen__keeps_its_place_when_others_come_and_go(tmp_path: Path) -> None:
    for i in range(60):
        make(tmp_path, f"r{i:02}")
    async with make_app(tmp_path).run_test(size=(80, 24)) as pilot:
        table = await wait_for_rows(pilot, 60)
        await press(pilot, *["pagedown"] * 2, *["k"] * 3)
        place, cursor = table.scroll_offset.y, table.cursor_row
        assert place > 0
        make(tmp_path, "r99")
        await wait_for_rows(pilot, 61)
        assert (table.scroll_offset.y, table.cursor_row) == (place, cursor)
        shutil.rmtree(tmp_path / "r00")
        await wait_for_rows(pilot, 60)
        assert table.cursor_row == cursor - 1


async def test_runs_screen__holds_still_while_paused(tmp_path: Path) -> None:
    make(tmp_path, "a")
    app = make_app(tmp_path)
    async with app.run_test() as pilot:
        table = await wait_for_rows(pilot, 1)
        await press(pilot, "full_stop")
        assert "paused" in read_static(pilot, "#counts")
        make(tmp_path, "b")
        await wait_for(pilot, lambda: app.snapshot is not None and len(app.snapshot.experiments) == 2)
        assert table.row_count == 1
        assert "1 experiment " in read_static(pilot, "#counts")
        await press(pilot, "full_stop")
        await wait_for_rows(pilot, 2)
        assert "paused" not in read_static(pilot, "#counts")


async def test_runs_screen__sees_a_stage_whose_process_died(tmp_path: Path) -> None:
    run = make(tmp_path, "a", 3, None, {"train": "running"})
    (run.path / ".lock").touch()
    script = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, run.path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()  # it holds the lock
    holder = {"pid": process.pid, "host": platform.node(), "since": 1.0}
    (run.path / ".holder.json").write_text(json.dumps(holder))
    async with make_app(tmp_path).run_test() as pilot:
        table = await wait_for_rows(pilot, 1)
        assert read_row(table, 0)["stages"][0] == "…"
        assert "1 running" in read_static(pilot, "#counts")
        process.communicate()
        await wait_for(pilot, lambda: read_row(table, 0)["stages"][0] == "✗")
        assert "without a word" in read_static(pilot, "#detail")


async def test_runs_screen__shows_names_that_no_terminal_could(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    shutil.move(run.path.parent, os.fsencode(tmp_path) + b"/\x1b[31m\xff [red]\n")
    async with make_app(tmp_path).run_test() as pilot:
        table = await wait_for_rows(pilot, 1)
        assert read_row(table, 0)["run"] == "�[31m� [red]"
        assert "\n".join(read_screen(pilot)).encode()


async def test_runs_screen__says_when_the_logs_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    async with make_app(tmp_path / "logs").run_test() as pilot:
        await wait_for_rows(pilot, 0)
        assert "Not a directory" in read_static(pilot, "#empty-text")


async def test_app__quits_and_stops_to_read(tmp_path: Path) -> None:
    make(tmp_path, "a")
    app = make_app(tmp_path)
    async with app.run_test() as pilot:
        await wait_for_rows(pilot, 1)
        assert isinstance(app.screen, RunsScreen)
        footer = read_screen(pilot)[-1]
        assert all(word in footer for word in ("/ Filter", "q Quit", "^p palette"))
        await press(pilot, "ctrl+p")
        await wait_for(pilot, lambda: not isinstance(app.screen, RunsScreen))
        await press(pilot, "escape", "q")
    assert app.return_code == 0
    assert not app._reader.is_alive()


def test_reader__reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make(tmp_path, run_id) for run_id in "abc"]
    (tmp_path / "notes.txt").write_text("no run")
    (tmp_path / "a" / "empty").mkdir()
    reader = LogsReader(tmp_path)
    first = reader.poll()
    assert [experiment.path for experiment in first.experiments] == [run.path for run in runs]
    opened: list[Path] = []
    monkeypatch.setattr(
        "satstore.reports.listing.reader.Run", lambda path: (opened.append(path), Run(path))[1]
    )
    assert reader.poll() is first
    assert not opened
    runs[1].commit(change=lambda manifest: setattr(manifest.summary, "epochs_done", 5))
    second = reader.poll()
    assert opened == [runs[1].path]
    assert [a is b for a, b in zip(first.experiments, second.experiments, strict=True)] == [True, False, True]
    assert second.experiments[1].epochs_done == 5
    assert list(second.experiments[1].stages) == list(STAGE_KEYS)


def test_reader__goes_on_after_what_nobody_foresaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a")
    reader = LogsReader(tmp_path)
    first = reader.poll()

    def fail(*_: object) -> None:
        raise RecursionError("too deep")

    with monkeypatch.context() as patch:
        patch.setattr("satstore.reports.listing.reader.list_jobs", fail)
        found = reader.poll()
        assert found.problem == "can't be read: RecursionError: too deep"
        assert found.experiments == first.experiments
    assert reader.poll().problem == ""


@pytest.mark.parametrize(
    ("width", "n_last", "expected"), [(8, 3, "abcdefgh"), (7, 3, "abc…fgh"), (4, 9, "…fgh"), (4, 0, "abc…")]
)
def test_shorten__cuts_out_of_the_middle(width: int, n_last: int, expected: str) -> None:
    assert shorten("abcdefgh", width, n_last) == expected


LOADING = """
import asyncio, pathlib, sys
from pilots import make_app, press, wait_for

async def main():
    async with make_app(pathlib.Path(sys.argv[1])).run_test() as pilot:
        await wait_for(pilot, lambda: pilot.app.snapshot)
        await press(pilot, "j", "full_stop")
        print(sorted({"zarr", "numpy"} & set(sys.modules)))
        await press(pilot, "enter", "escape", "space", "c", "n", "escape", "J")
        await pilot.app.workers.wait_for_complete()

asyncio.run(main())
heavy = {"torch", "torchvision", "dask", "sklearn", "scipy", "matplotlib", "pandas", "xarray"}
print(sorted(heavy & set(sys.modules)))
"""


def test_tui__loads_nothing_heavy(tmp_path: Path) -> None:
    make(tmp_path, "a")
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "[]"], "zarr and NumPy only for a run's spectra, the others never"


def test_tui__needs_a_terminal(tmp_path: Path) -> None:
    assert fail("tui", "--logs-dir", tmp_path) == (
        1,
        "the terminal app needs a terminal; without one, see: satstore status",
    )


def read_until(terminal: int, text: bytes) -> bytes:
    """Return what a process writes to a terminal, until a text is there or it writes no more."""
    seen = b""
    while text not in seen and select.select([terminal], [], [], HANGS_S)[0]:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # its last end was closed
            break
    return seen


def test_tui__runs_in_a_terminal(tmp_path: Path) -> None:
    make(tmp_path, "some-run", model="resnet101")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "satstore", "tui", "--logs-dir", str(tmp_path)]
    environment = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    # What is to be seen, and the key that is pressed then: into the run, back, to the jobs, and out.
    steps = [(b"resnet101", b"\r"), (b"Spectrum", b"\x1b"), (b"Compare", b"J"), (b"No jobs yet", b"q")]
    seen = []
    try:
        for text, key in steps:
            seen.append(read_until(master, text))
            assert text in seen[-1]
            os.write(master, key)
        seen.append(read_until(master, b"Traceback"))
        assert process.wait(HANGS_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"Traceback" not in b"".join(seen)
