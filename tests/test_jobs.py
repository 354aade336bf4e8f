"""Jobs: real processes in the background, started, followed, cancelled and killed."""

import csv
import errno
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from command_line import HANGS_S, satstore, satstore_until_ctrl_c
from sleeper import wait_until

from satstore.config.experiment import ExperimentConfig
from satstore.errors import LockedError, NotFoundError, SatstoreError
from satstore.jobs import record as record_module
from satstore.jobs import start as start_module
from satstore.jobs.job import Job, find_job, jobs_dir, list_jobs, read_job
from satstore.jobs.record import JobRecord
from satstore.jobs.start import cancel_job, claim_job, start_job
from satstore.reports.listing.reader import LogsReader
from satstore.runs.events import Event, EventKind, read_events
from satstore.runs.logs_folder import list_runs, make_run
from satstore.storage.files import WriteError
from satstore.system.usage import UsageMeter, has_gpu


def is_asleep(job: Job) -> bool:
    return job.progress is not None and job.progress.stage == "sleepy" and job.progress.done is not None


def test_job__runs_to_its_end(start_sleeper: Callable[[str], Job], tmp_path: Path) -> None:
    job = start_sleeper("short")
    assert (job.state, job.number, job.detached) == ("running", 1, True)
    assert job.command.startswith("satstore run --config ")
    assert os.getsid(job.pid or 0) != os.getsid(0), "it outlives the terminal"
    job = wait_until(job, lambda job: not job.is_running)
    assert (job.state, job.exit_code, job.error) == ("done", 0, "")
    assert job.progress is not None
    assert job.progress.run.startswith("short/")
    assert (job.progress.stage, job.progress.done, job.progress.share, job.progress.left_s) == (
        "sleepy",
        4,
        1.0,
        0.0,
    )
    assert job.progress.rate is not None
    assert job.progress.rate > 0
    assert job.ended is not None
    assert job.duration_s == job.ended - job.started > 0
    assert "sleepy: done" in job.log_path.read_text()
    assert [run.run_id for run in list_runs(tmp_path / "logs")] == ["short"], "jobs are no runs"
    assert LogsReader(tmp_path / "logs").poll().jobs == (job,)


def test_job_record__tells_rate_and_what_is_left_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(record_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    record = JobRecord(tmp_path, owns_log=False)
    record.run = "res/e"

    def hear(at_s: float, stage: str, kind: EventKind, **counts: int) -> dict[str, Any]:
        nonlocal now_s
        now_s = at_s
        record.listen(Event(stage, kind, **counts))
        written: dict[str, Any] = json.loads((tmp_path / "progress.json").read_text())
        return written

    assert hear(100, "train", "started") == {"run": "res/e", "stage": "train"}
    first = hear(101, "train", "progress", done=10, total=100)
    assert (first["done"], first["rate"], first["left_s"]) == (10, None, None), "nothing was seen to be done"
    assert hear(101.125, "train", "progress", done=12, total=100) == first, "it is not due"
    later = hear(103, "train", "progress", done=50, total=100)
    assert (later["done"], later["total"], later["rate"], later["left_s"]) == (50, 100, 20.0, 2.5)
    last = hear(103.125, "train", "progress", done=100, total=100)
    assert (last["rate"], last["left_s"]) == (90 / 2.125, 0.0), "the last is told at once"
    other = hear(110, "probe", "progress", done=1, total=4)
    assert (other["stage"], other["rate"]) == ("probe", None), "each stage has a rate of its own"
    assert hear(112, "probe", "progress", done=2, total=4)["left_s"] == 4.0


@pytest.mark.long
def test_job__that_fails_keeps_code_and_last_line(start_sleeper: Callable[[str], Job]) -> None:
    job = wait_until(start_sleeper("fail"), lambda job: not job.is_running)
    assert (job.state, job.exit_code) == ("failed", 1)
    assert job.error.startswith("satstore: fail/")
    assert job.error.endswith("ValueError: the bed broke (see --debug)")


def test_cancel__stops_in_good_order(start_sleeper: Callable[[str], Job], tmp_path: Path) -> None:
    job = wait_until(start_sleeper("long"), is_asleep)
    assert cancel_job(job, grace_s=HANGS_S).state == "cancelled"
    ended = wait_until(job, lambda job: job.exit_code is not None)
    assert ended.exit_code == 143, "it was not killed, or it would be -9"
    [run] = list_runs(tmp_path / "logs")
    assert run.manifest.stages["sleepy"].error == "stopped"
    assert run.status("sleepy") == "cancelled", "in lists as among the jobs"
    assert run.failures(run.statuses()) == {}
    assert read_events(run.events.path)[0][-1].kind == "cancelled"
    listed = satstore("status", "--filter", "is:cancelled", "--logs-dir", tmp_path / "logs").stdout
    assert "1 experiment · 1 cancelled" in listed
    assert "■" in listed
    assert "■sleepy" in satstore("ls", "--logs-dir", tmp_path / "logs").stdout
    with pytest.raises(SatstoreError, match="job 1 is not running: it is cancelled"):
        cancel_job(find_job(1, tmp_path / "logs"))


@pytest.mark.long
def test_cancel__kills_what_does_not_stop(start_sleeper: Callable[[str], Job], tmp_path: Path) -> None:
    job = wait_until(start_sleeper("deaf"), is_asleep)
    family = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    assert cancel_job(job, grace_s=0.2).state == "cancelled"
    assert not any(process.is_running() and process.status() != "zombie" for process in family)
    assert wait_until(job, lambda job: job.exit_code is not None).exit_code == -signal.SIGKILL
    [run] = list_runs(tmp_path / "logs")
    assert run.status("sleepy") == "cancelled", "though it could not say so"


@pytest.mark.long
def test_job__whose_command_is_killed_has_failed(start_sleeper: Callable[[str], Job]) -> None:
    job = wait_until(start_sleeper("long"), is_asleep)
    os.kill(job.pid or 0, signal.SIGKILL)
    job = wait_until(job, lambda job: not job.is_running)
    assert (job.state, job.exit_code) == ("failed", -9)


@pytest.mark.long
def test_job__hears_ctrl_c_though_its_supervisor_does_not(start_sleeper: Callable[[str], Job]) -> None:
    job = wait_until(start_sleeper("long"), is_asleep)
    os.kill(psutil.Process(job.pid).ppid(), signal.SIGINT)
    os.kill(job.pid or 0, signal.SIGINT)
    job = wait_until(job, lambda job: not job.is_running)
    assert (job.state, job.exit_code) == ("cancelled", 130)


@pytest.mark.long
def test_job__that_nobody_saw_end_is_lost(start_sleeper: Callable[[str], Job]) -> None:
    job = wait_until(start_sleeper("long"), is_asleep)
    supervisor = psutil.Process(job.pid).ppid()
    os.kill(supervisor, signal.SIGKILL)
    assert wait_until(job, lambda _: True).state == "running", "the command goes on"
    os.kill(job.pid or 0, signal.SIGKILL)
    job = wait_until(job, lambda job: not job.is_running)
    assert (job.state, job.exit_code) == ("lost", None)
    assert job.error


def make_folder(logs_dir: Path, number: int, **content: object) -> Path:
    path = jobs_dir(logs_dir) / f"{number}"
    path.mkdir(parents=True)
    about = {"words": ["train"], "started": 1.0, "host": os.uname().nodename, "detached": True}
    (path / "job.json").write_text(json.dumps(about | content))
    return path


def test_job__of_a_number_that_is_another_process_now_is_lost(tmp_path: Path) -> None:
    path = make_folder(tmp_path, 1)
    (path / "process.json").write_text(json.dumps({"pid": os.getpid(), "created": 1.0}))
    assert find_job(1, tmp_path).state == "lost"


def test_job__that_was_killed_has_failed_by_what_its_supervisor_wrote_down(tmp_path: Path) -> None:
    path = make_folder(tmp_path, 1)
    (path / "log.txt").write_text("at work\nsatstore: the disk\n")
    (path / "exit.json").write_text(json.dumps({"code": -signal.SIGKILL, "ended": 3.5}))
    job = find_job(1, tmp_path)
    assert (job.state, job.exit_code, job.error, job.duration_s) == ("failed", -9, "satstore: the disk", 2.5)
    (path / "cancel").touch()
    assert find_job(1, tmp_path).state == "cancelled"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_job__that_a_user_ended_in_a_terminal_is_cancelled(tmp_path: Path, number: signal.Signals) -> None:
    path = make_folder(tmp_path, 1)
    (path / "exit.json").write_text(json.dumps({"code": 128 + number, "ended": 3.5}))
    assert find_job(1, tmp_path).state == "cancelled"


DEAF = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
signal.pause()
"""


def test_cancel__kills_a_deaf_process_and_its_children(tmp_path: Path) -> None:
    path = make_folder(tmp_path, 1)
    with subprocess.Popen([sys.executable, "-S", "-c", DEAF], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        created = psutil.Process(process.pid).create_time()
        (path / "process.json").write_text(json.dumps({"pid": process.pid, "created": created}))
        assert cancel_job(find_job(1, tmp_path), grace_s=0.01).state == "cancelled"
        assert process.wait() == -signal.SIGKILL
        gone, _ = psutil.wait_procs([child], timeout=HANGS_S)
    assert gone == [child]


def test_job__on_another_host_is_left_to_it(tmp_path: Path) -> None:
    make_folder(tmp_path, 1, host="elsewhere")
    job = find_job(1, tmp_path)
    assert job.is_running
    with pytest.raises(LockedError, match="job 1 runs on elsewhere; cancel it there"):
        cancel_job(job)


def test_cancel__leaves_one_alone_that_has_no_process_yet(tmp_path: Path) -> None:
    make_folder(tmp_path, 1, started=time.time())
    job = find_job(1, tmp_path)
    assert job.is_running
    with pytest.raises(SatstoreError, match="job 1 is just starting; cancel it in a moment"):
        cancel_job(job)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"words": 3}', "\0", pytest.param("[" * 100_000, id="deep")]
)
def test_list_jobs__passes_over_what_is_no_job(tmp_path: Path, content: str) -> None:
    (make_folder(tmp_path, 1) / "job.json").write_text(content)
    path = make_folder(tmp_path, 2)
    for name in ("process.json", "progress.json", "exit.json"):
        (path / name).write_text(content)
    (jobs_dir(tmp_path) / "notes").mkdir()
    assert [job.number for job in list_jobs(tmp_path)] == [2]


def test_find_job__says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no job '\.\./1' in .*; see: satstore jobs"):
        find_job("../1", tmp_path)


def test_claim__gives_each_its_own_number(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: claim_job(["train"], tmp_path, tmp_path, detached=True), range(24)))
    assert sorted(int(path.name) for path in paths) == list(range(1, 25))


def test_claim__removes_the_oldest_that_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_module, "N_KEPT", 3)
    for number in range(1, 7):
        path = make_folder(tmp_path, number)
        if number != 2:  # which still runs
            (path / "exit.json").write_text('{"code": 0, "ended": 2.0}')
    created = psutil.Process().create_time()
    (jobs_dir(tmp_path) / "2" / "process.json").write_text(
        json.dumps({"pid": os.getpid(), "created": created})
    )
    claim_job(["train"], tmp_path, tmp_path, detached=True)
    assert [job.number for job in list_jobs(tmp_path)] == [7, 6, 5, 4, 2]


def test_start__ends_a_supervisor_that_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def popen(*words: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(*words, **options))
        return started[-1]

    monkeypatch.setattr(start_module, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": popen}))
    monkeypatch.setattr(start_module, "START_S", 0.0)
    with pytest.raises(SatstoreError, match=r"could not be started: its process did not begin within 0 s"):
        start_job(["ls"], tmp_path / "logs")
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert list_jobs(tmp_path / "logs") == []


def test_start__refuses_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    with pytest.raises(WriteError, match=r"logs/\.jobs can't be written: Not a directory"):
        start_job(["train"], tmp_path / "logs")


BUSY_CHILD = """
import time
print("ready", flush=True)
input()
since = time.process_time()
while time.process_time() < since + 0.5:
    pass
print("busy", flush=True)
input()
"""


def test_usage__measures_all_descendants(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a second by the clock that the percentage is of, the child of the process takes half a second."""
    now_s = 0.0
    monkeypatch.setattr(psutil, "_timer", lambda: now_s)
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY_CHILD!r}])"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        meter = UsageMeter()
        assert process.stdout.readline() == "ready\n"
        idle = meter.measure(process.pid)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "busy\n"
        now_s = 1.0
        usage = meter.measure(process.pid)
        process.communicate("\n")
    assert idle is not None
    assert usage is not None
    assert idle.cpu_percent == 0
    assert 30 < usage.cpu_percent < 100
    assert 2**20 < usage.memory_bytes < 2**28
    assert UsageMeter().measure(process.pid) is None


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs a GPU")
def test_usage__measures_what_is_held_on_gpus() -> None:
    code = "import torch; x = torch.ones(2**28, device='cuda'); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        usage = UsageMeter().measure(process.pid)
        process.communicate("\n")
    assert usage is not None
    if usage.gpu_bytes == 0:
        pytest.skip("this container does not tell which process holds memory of the GPU")
    assert (usage.gpu_bytes or 0) >= 2**30
    assert usage.gpu_percent is not None


# The commands


@pytest.mark.parametrize("flag", ["--detach", "--detach=true"])
def test_cli__detaches_follows_and_lists(flag: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    make_run(logs, "r", ExperimentConfig(model="vgg11_XS", dataset="Digits"))
    done = satstore("probe", "--run", "r", flag, "--logs-dir", logs)
    line = f"job 1 started; follow it with: satstore log 1 --follow --logs-dir {logs}\n"
    assert (done.returncode, done.stdout) == (0, line), done.stderr
    done = satstore("log", 1, "--follow", "--logs-dir", logs)
    assert done.returncode == 0
    assert "probe needs" in done.stdout
    assert done.stderr == "job 1: failed\n"
    [record] = json.loads(satstore("jobs", "--json", "--logs-dir", logs).stdout)
    assert record["words"] == ["probe", "--run", "r", "--logs-dir", str(logs)]
    assert (record["state"], record["exit_code"], record["detached"]) == ("failed", 1, True)
    listed = satstore("jobs", "--logs-dir", logs).stdout
    assert "failed" in listed
    assert "probe needs" in listed
    done = satstore("cancel", 1, "--logs-dir", logs)
    assert (done.returncode, done.stderr) == (1, "satstore: job 1 is not running: it is failed\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["probe", "--run", "nothing"], 1, "no run 'nothing'"),
        (["probe", "--run", "r", "--tol", "x"], 2, "--tol: "),
        (["train", "--config", "demo"], 1, "--config needs --run-id"),
        (["train", "--config", "demo", "--run-id", "../x"], 1, "run id '../x' can't be used"),
        (["run", "--config", "demo", "--run-id", "a", "--stages", "sleep"], 1, "no stage named 'sleep'"),
        (["demo", "--run-id", "a/b"], 1, "run id 'a/b' can't be used"),
    ],
)
def test_cli__detaches_nothing_that_is_wrong(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    make_run(tmp_path, "r", ExperimentConfig())
    done = satstore(*words, "--detach", "--logs-dir", tmp_path)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not jobs_dir(tmp_path).exists()


def test_cli__records_what_works_in_a_terminal(tmp_path: Path) -> None:
    make_run(tmp_path, "r", ExperimentConfig(model="vgg11_XS", dataset="Digits"))
    done = satstore("probe", "--run", "r", "--logs-dir", tmp_path)
    assert done.returncode == 1
    [job] = list_jobs(tmp_path)
    assert (job.state, job.exit_code, job.detached) == ("failed", 1, False)
    assert "probe needs" in job.error
    assert job.error in job.log_path.read_text()


@pytest.mark.long
def test_cli__log_stops_to_follow_on_ctrl_c_and_the_job_goes_on(
    start_sleeper: Callable[[str], Job], tmp_path: Path
) -> None:
    job = wait_until(start_sleeper("long"), is_asleep)
    done = satstore_until_ctrl_c("log", 1, "--follow", "--logs-dir", tmp_path / "logs")
    assert (done.returncode, done.stderr) == (0, "")
    assert "job 1 goes on; end it with: satstore cancel 1" in done.stdout
    assert find_job(1, tmp_path / "logs").is_running
    cancel_job(job)


def without_age(text: str) -> list[dict[str, str]]:
    """Return the experiments of a CSV, without their age, which grows between two commands."""
    return [{**experiment, "age": ""} for experiment in csv.DictReader(io.StringIO(text))]


def test_status__prints_experiments_and_jobs(start_sleeper: Callable[[str], Job], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    make_run(logs, "other", ExperimentConfig(model="vgg16"))
    job = wait_until(start_sleeper("long"), is_asleep)
    done = satstore("status", "--logs-dir", logs)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["run", "long", "other"]
    assert "2 experiments · 1 running" in lines[3]
    assert lines[4].startswith("job 1: satstore run --config ")
    done = satstore(
        "status", "--filter", "model:vgg*", "--sort", "epoch", "--reverse", "--csv", "--logs-dir", logs
    )
    assert [line.split(",")[:2] for line in done.stdout.splitlines()] == [
        ["run", "model"],
        ["other", "vgg16"],
    ]
    done = satstore("status", "--sort", "modl", "--logs-dir", logs)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "no column 'modl'; did you mean 'model'?" in done.stderr
    done = satstore("status", "--sort", "zzz", "--logs-dir", logs)
    assert done.stderr.count("experiment") == 1, "each column is named once"
    by_label, by_name = (
        satstore("status", "--sort", name, "--csv", "--logs-dir", logs) for name in ("acc", "accuracy")
    )
    assert (by_label.returncode, by_name.returncode) == (0, 0)
    assert without_age(by_label.stdout) == without_age(by_name.stdout)
    cancel_job(job)


def test_read_job__is_not_over_before_its_supervisor_has_written_down_how(tmp_path: Path) -> None:
    """Between the end of the process and its exit code on disk, a job was taken for lost."""
    folder = tmp_path / ".jobs" / "1"
    folder.mkdir(parents=True)
    content = {"words": ["ls"], "started": 1.0, "host": platform.node(), "detached": True}
    (folder / "job.json").write_text(json.dumps(content))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(gone.pid).create_time()
    gone.wait()
    this = psutil.Process()
    known = {"pid": gone.pid, "created": created}
    supervisor = {"pid": this.pid, "created": this.create_time()}
    (folder / "process.json").write_text(json.dumps({**known, "supervisor": supervisor}))
    assert read_job(folder).state == "running"
    (folder / "process.json").write_text(json.dumps({**known, "supervisor": known}))
    assert read_job(folder).state == "lost"


def test_job__whose_end_could_not_be_written_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "logs"
    path = claim_job(["train"], logs, tmp_path, detached=False)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        JobRecord(path, owns_log=True).end(1, "it failed")
    assert {file.name for file in path.iterdir()} == {"job.json", "log.txt"}
    (path / "exit.json").write_text(json.dumps({"code": 1, "ended": time.time()}))
    left = path / ".exit.json.0123abcd.89abcdef.partial"  # where the disk refused to remove it too
    left.write_text("half")
    claim_job(["train"], logs, tmp_path, detached=False)
    assert not left.exists()
