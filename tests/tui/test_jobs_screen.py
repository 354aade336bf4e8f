"""The jobs screen, with real jobs in real processes."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pilots import (
    ONE_SIZE,
    Calls,
    make,
    make_app,
    press,
    read_screen,
    read_static,
    send,
    wait_for,
    wait_for_screen,
)
from textual.pilot import Pilot

from satstore.jobs.job import Job, find_job, jobs_dir
from satstore.reports.listing.reader import LogsReader
from satstore.runs.manifest import Manifest, StageRecord
from tui.app import SatstoreApp
from tui.screens.jobs import JobsScreen, JobsTable
from tui.screens.modals import ConfirmScreen, ErrorScreen
from tui.screens.runs import RunsScreen
from tui.threads import run_in_thread
from tui.widgets.log_view import LogView


def make_job(logs_dir: Path, number: int, code: int | None = 0, log: str = "", **content: object) -> Path:
    path = jobs_dir(logs_dir) / f"{number}"
    path.mkdir(parents=True)
    about = {"words": ["train", "--run", "r"], "started": 1.0, "host": os.uname().nodename, "detached": True}
    (path / "job.json").write_text(json.dumps(about | content))
    (path / "log.txt").write_text(log)
    if code is not None:
        (path / "exit.json").write_text(json.dumps({"code": code, "ended": 2.5}))
    return path


async def open_jobs(pilot: Pilot[None], n_jobs: int) -> JobsTable:
    await press(pilot, "J")
    await wait_for_screen(pilot, JobsScreen)
    table = pilot.app.screen.query_one(JobsTable)
    await wait_for(pilot, lambda: table.row_count == n_jobs)
    return table


def job_of(table: JobsTable, number: int) -> Job:
    return next(job for job, _ in table.rows if job.number == number)


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_jobs_screen__says_how_to_start_one_where_there_are_none(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with make_app(tmp_path / "logs").run_test(size=size) as pilot:
        await open_jobs(pilot, 0)
        assert any("Press n to start one" in line for line in read_screen(pilot))
        await press(pilot, "escape")
        assert isinstance(pilot.app.screen, RunsScreen)


@pytest.mark.parametrize("size", ONE_SIZE)
async def test_jobs_screen__shows_every_state_with_code_and_last_line(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    make_job(tmp_path, 1, 0, "first line\nprobe: done\n")
    make_job(tmp_path, 2, 1, "some\nsatstore: out of \x1b[31mmemory\n")
    make_job(tmp_path, 3, -9)
    (make_job(tmp_path, 4, 143) / "cancel").touch()
    make_job(tmp_path, 5, None)
    make_job(tmp_path, 6, None, host="elsewhere")
    async with make_app(tmp_path).run_test(size=size) as pilot:
        table = await open_jobs(pilot, 6)
        text = "\n".join(read_screen(pilot))
        for state in ("✓ done", "✗ failed", "■ cancelled", "? lost", "▶ running"):
            assert state in text
        assert [job.number for job, _ in table.rows] == [6, 5, 4, 3, 2, 1]
        await press(pilot, "end", "k")
        assert "exit 1: satstore: out of �[31mmemory" in read_static(pilot, "#detail")
        await wait_for(pilot, lambda: "memory" in "\n".join(pilot.app.screen.query_one(LogView).lines))
        assert "\x1b" not in "\n".join(pilot.app.screen.query_one(LogView).lines)
        await press(pilot, "k")
        assert "exit -9: its process ended without a word" in read_static(pilot, "#detail")
        await press(pilot, "home")
        assert "on elsewhere" in read_static(pilot, "#detail")


async def test_jobs_screen__follows_a_job_and_cancels_it(
    start_sleeper: Callable[[str], Job], tmp_path: Path
) -> None:
    async with make_app(tmp_path / "logs").run_test(size=(120, 40)) as pilot:
        start_sleeper("long")
        table = await open_jobs(pilot, 1)
        await wait_for(pilot, lambda: (p := job_of(table, 1).progress) is not None and (p.done or 0) > 5)
        before = job_of(table, 1).progress
        await wait_for(pilot, lambda: job_of(table, 1).progress != before)
        await wait_for(pilot, lambda: table.rows[0][1] is not None)
        usage = table.rows[0][1]
        assert usage is not None
        assert usage.memory_bytes > 2**20
        line = read_screen(pilot)[2]
        assert "▶ running" in line
        assert "sleepy" in line
        assert "MiB" in line
        assert "1 running" in read_static(pilot, "#counts")
        await press(pilot, "x")
        await wait_for_screen(pilot, ConfirmScreen)
        assert any("End job 1?" in line for line in read_screen(pilot))
        await press(pilot, "n")
        await wait_for_screen(pilot, JobsScreen)
        assert find_job(1, tmp_path / "logs").is_running
        await press(pilot, "x")
        await wait_for_screen(pilot, ConfirmScreen)
        await press(pilot, "y")
        await wait_for(pilot, lambda: job_of(table, 1).state == "cancelled")
        assert find_job(1, tmp_path / "logs").exit_code == 143
        await press(pilot, "x")  # there is nothing more to end
        assert isinstance(pilot.app.screen, JobsScreen)


async def test_jobs_screen__sees_one_that_is_killed(
    start_sleeper: Callable[[str], Job], tmp_path: Path
) -> None:
    async with make_app(tmp_path / "logs").run_test(size=(120, 40)) as pilot:
        job = start_sleeper("long")
        table = await open_jobs(pilot, 1)
        await wait_for(pilot, lambda: job_of(table, 1).progress is not None)
        os.kill(job.pid or 0, signal.SIGKILL)
        await wait_for(pilot, lambda: job_of(table, 1).state == "failed")
        assert "exit -9" in read_static(pilot, "#detail")


async def test_app__quits_while_jobs_run_and_the_next_one_finds_them(
    start_sleeper: Callable[[str], Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_app(tmp_path / "logs")
    async with first.run_test() as pilot:
        start_sleeper("long")
        start_sleeper("deaf")
        await wait_for(pilot, lambda: sum(job.is_running for job in first.jobs) == 2)
        await press(pilot, "q")
    assert capsys.readouterr().err.strip() == "2 jobs keep running (1, 2); see: satstore jobs"
    assert all(find_job(number, tmp_path / "logs").is_running for number in (1, 2))
    second = make_app(tmp_path / "logs")
    async with second.run_test() as pilot:
        await wait_for(pilot, lambda: sum(job.is_running for job in second.jobs) == 2)
        await wait_for(pilot, lambda: "▶ 2" in read_static(pilot, "#jobs-line"))


async def test_jobs_screen__shows_what_works_in_a_terminal_too(tmp_path: Path) -> None:
    make_job(tmp_path, 1, 0, "extract: done\n", detached=False)
    async with make_app(tmp_path).run_test() as pilot:
        table = await open_jobs(pilot, 1)
        assert not job_of(table, 1).detached
        await wait_for(pilot, lambda: "extract: done" in "\n".join(pilot.app.screen.query_one(LogView).lines))


async def test_jobs_screen__follows_a_log_that_grows_and_holds_it_while_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Calls(monkeypatch, LogView, "_poll")
    path = make_job(tmp_path, 1, 0, "one\n")
    async with make_app(tmp_path).run_test() as pilot:
        await open_jobs(pilot, 1)
        log = pilot.app.screen.query_one(LogView)
        await wait_for(pilot, lambda: "one" in log.lines)
        with (path / "log.txt").open("a") as file:
            file.write("two\nthr")
        await wait_for(pilot, lambda: "two" in log.lines)
        assert "thr" not in log.lines, "a line that is being written is not shown in halves"
        await press(pilot, "full_stop")
        with (path / "log.txt").open("a") as file:
            file.write("ee\n")
        await looks.wait_for_more(pilot)
        assert "three" not in log.lines
        await press(pilot, "full_stop")
        await wait_for(pilot, lambda: "three" in log.lines)
        await press(pilot, "l")
        assert log.has_focus
        (path / "log.txt").write_text("anew\n")
        await wait_for(pilot, lambda: list(log.lines)[:1] == ["anew"])


async def test_runs_screen__ends_the_job_of_a_run(
    start_sleeper: Callable[[str], Job], tmp_path: Path
) -> None:
    app = make_app(tmp_path / "logs")
    async with app.run_test(size=(120, 40)) as pilot:
        start_sleeper("long")
        await wait_for(pilot, lambda: any(job.progress is not None for job in app.jobs))
        await wait_for(pilot, lambda: "…" in read_screen(pilot)[2])
        await wait_for(pilot, lambda: "%" in read_screen(pilot)[2])
        await press(pilot, "l")
        await wait_for_screen(pilot, JobsScreen)
        await press(pilot, "escape", "x")
        await wait_for_screen(pilot, ConfirmScreen)
        await press(pilot, "y")
        await wait_for(pilot, lambda: app.jobs[0].state == "cancelled")
        await wait_for(pilot, lambda: "■sleepy" in read_static(pilot, "#detail"))


@pytest.mark.parametrize("keys", ["x n", "x escape", "l escape"])
async def test_keys__typed_ahead_are_for_the_screen_that_the_first_opens(tmp_path: Path, keys: str) -> None:
    make(tmp_path, "a")
    make_job(tmp_path, 1, None, host="elsewhere", words=["train", "--run", "a"])
    app = make_app(tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: "▶ 1" in read_static(pilot, "#jobs-line"))
        await send(pilot, *keys.split())
        assert [type(screen) for screen in app.screen_stack] == [RunsScreen]


async def test_app__says_in_one_modal_what_fails_in_threads(tmp_path: Path) -> None:
    make(tmp_path, "a")
    app = make_app(tmp_path)

    def fail(text: str) -> None:
        raise OSError(text)

    async with app.run_test() as pilot:
        await wait_for(pilot, lambda: app.snapshot is not None)
        run_in_thread(app, lambda: fail("the disk is gone"), "a")
        run_in_thread(app, lambda: fail("\x1b[2Jthe other too"), "b")
        await wait_for_screen(pilot, ErrorScreen)
        for reason in ("OSError: the disk is gone", "the other too"):
            await wait_for(pilot, lambda reason=reason: reason in "\n".join(read_screen(pilot)))
        assert len(app.screen_stack) == 2
        await press(pilot, "escape")
        assert isinstance(app.screen, RunsScreen)
    assert app.return_code in (0, None)


async def test_app__says_why_a_job_could_not_be_started(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / ".jobs").write_text("")
    app = make_app(tmp_path / "logs")
    async with app.run_test() as pilot:
        await wait_for(pilot, lambda: app.snapshot is not None)
        await press(pilot, "d")
        await wait_for_screen(pilot, ErrorScreen)
        assert "can't be written" in read_static(pilot, ".text")


async def test_read_only__starts_ends_and_writes_nothing(
    start_sleeper: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start_sleeper("long")
    polls = Calls(monkeypatch, LogsReader, "poll")
    app = SatstoreApp(tmp_path / "logs", 0.02, read_only=True)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: bool(app.jobs))
        for keys in ("n", "d", "e", "x"):
            await press(pilot, keys)
        await press(pilot, "J", "x", "n")
        assert isinstance(app.screen, JobsScreen)
        await press(pilot, "escape")
        await app.workers.wait_for_complete()
        await polls.wait_for_more(pilot)
        assert len(app.jobs) == 1
        assert app.jobs[0].is_running
        assert not list(tmp_path.glob("*.csv"))
    async with SatstoreApp(tmp_path / "none", 0.02, read_only=True).run_test() as pilot:
        await wait_for(pilot, lambda: any("No runs yet" in line for line in read_screen(pilot)))
        assert not any("Run the demo" in line for line in read_screen(pilot))


ESCAPE = "\x1b]0;owned\x07\x9b2J"


async def test_app__obeys_no_escapes_of_somebody_elses_on_any_screen(tmp_path: Path) -> None:
    run = make(tmp_path, "res", stages={"train": "failed"}, model="vgg5")

    def change(manifest: Manifest) -> None:
        manifest.stages[f"mine{ESCAPE}"] = StageRecord(status="failed", started=1.0, error=f"bad{ESCAPE}")
        manifest.warnings.append(ESCAPE)
        manifest.environment = {f"host{ESCAPE}": ESCAPE}

    with run.lock():
        run.commit(change=change)
    event = {"stage": f"train{ESCAPE}", "kind": "message", "text": ESCAPE, "time": 1.0}
    (run.path / "events.jsonl").write_text(f"{json.dumps(event)}\n")
    path = make_job(
        tmp_path, 1, None, f"one{ESCAPE}\ntwo\n", words=["train", f"res{ESCAPE}"], started=time.time()
    )
    progress = {"run": run.name, "stage": f"train{ESCAPE}", "done": 1, "total": 2, "text": ESCAPE}
    (path / "progress.json").write_text(json.dumps(progress))
    make_job(tmp_path, 2, None, host=f"elsewhere{ESCAPE}", words=[ESCAPE])
    bad = tmp_path / f"bad{ESCAPE}" / "x"
    shutil.copytree(run.path, bad)
    async with make_app(tmp_path).run_test(size=(160, 50)) as pilot:
        seen: list[str] = []
        table = await open_jobs(pilot, 2)
        for keys in (
            ("up", "up", "x"),
            ("escape", "down"),
            ("escape",),
            ("enter",),
            *((f"{n}",) for n in range(1, 10)),
        ):
            await press(pilot, *keys)
            seen += read_screen(pilot)
        assert table is not None
    text = "".join(seen)
    assert "owned" in text, "it is shown"
    assert not {c for c in text if not c.isprintable()}
