"""Ctrl-C, once and twice, in every phase: it ends, says so, leaves nothing half done, and goes on."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import HANGS_S, satstore
from held import CONFIG, Held
from tiny import results

from satstore.cli.interrupts import stop_on_signals
from satstore.runs.logs_folder import open_run
from satstore.runs.run import Run
from satstore.stages.pipeline import run_experiments
from satstore.stages.probe import dask_backend

SPREAD = ("--workers", "2")
STAGES = ("train", "extract", "probe")


def case(stage: str, at: str, n_times: int, *flags: str, loaders: int = 0, is_long: bool = True) -> Any:
    """A stage, what it is in the midst of, and how often Ctrl-C is pressed."""
    name = "-".join((stage, at.replace(" ", "-"), f"{n_times}x", *flags[1:], f"{loaders}-loaders"))
    return pytest.param(
        stage, at, n_times, flags, loaders, marks=[pytest.mark.long] if is_long else [], id=name
    )


CASES = [
    case("train", "batch 3", 1),
    case("train", "batch 11", 2, loaders=2),
    case("extract", "batch 3", 1, loaders=2),
    case("extract", "batch 3", 2),
    case("extract", "shard train/2/0", 2),
    case("probe", "layer 2", 1, is_long=False),
    case("probe", "layer 2", 2),
    case("probe", "layer 6", 1, *SPREAD),
    case("probe", "layer 6", 2, *SPREAD),
]


def do(logs: Path, *stages: str) -> Run:
    """Do some stages, undisturbed."""
    for stage in stages:
        parameters: dict[str, Any] = {"latents": False} if stage == "train" else {}
        run_experiments(CONFIG, "res", [stage], logs_dir=logs, **parameters)
    return open_run("res", logs)


@pytest.fixture(scope="module")
def stages_done(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Logs folders of the undisturbed experiment: after none of its stages, after the first, and so on."""
    folder = tmp_path_factory.mktemp("stages")
    folders = [folder / f"{n_stages}" for n_stages in range(len(STAGES) + 1)]
    folders[0].mkdir()
    for before, after, stage in zip(folders, folders[1:], STAGES, strict=False):
        shutil.copytree(before, after)
        do(after, stage)
    return folders


def check_begun(after: list[str], at: str, flags: tuple[str, ...]) -> None:
    """After the signal, nothing more was begun but what was in hand with what was held."""
    if at.startswith("shard"):  # those of all layers are handed on, and read again, together
        after = [what for what in after if what.startswith(("batch", "shard eval/"))]
    if flags == SPREAD:  # two layers are fitted side by side
        after = after[1:]
    assert after == []


def check_kept(run: Run, stage: str, at: str) -> None:
    """What was whole before the signal is kept, and nothing else."""
    if stage == "train":
        assert run.manifest.summary.epochs_done == {"batch 3": 0, "batch 11": 1}[at], "each has eight batches"
    elif stage == "extract":
        n_rows = run.commits.read("latents.zarr").n_rows
        assert set(n_rows.values()) <= ({40} if at.startswith("shard") else {0})
        assert not any(run.manifest.latents)
    elif at == "layer 2":
        assert list(run.table("probe-pool2")["layer"]) == ["0"]
    elif run.has_file("probe-pool2.csv"):
        assert at.removeprefix("layer ") not in list(run.table("probe-pool2")["layer"])


@pytest.mark.parametrize(("stage", "at", "n_times", "flags", "loaders"), CASES)
def test_ctrl_c__ends_a_command_leaves_nothing_half_done_and_it_goes_on(
    stage: str,
    at: str,
    n_times: int,
    flags: tuple[str, ...],
    loaders: int,
    stages_done: list[Path],
    tmp_path: Path,
) -> None:
    logs, n_before = tmp_path / "logs", STAGES.index(stage)
    shutil.copytree(stages_done[n_before], logs)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**CONFIG, "workers": loaders}))
    words = [stage, "--config", config, "--run-id", "res", "--logs-dir", logs, *flags]
    words += ["--no-latents"] if stage == "train" else []
    with Held(tmp_path / "held", at, *words) as held:
        held.wait_for(at)
        held.send(signal.SIGINT)
        after = held.wait_for("told to stop")
        if n_times == 2:
            held.send(signal.SIGINT)
        held.go_on()
        said, rest = held.end()

    check_begun([*after, *rest], at, flags)
    assert held.process.returncode == 130, said
    assert [line for line in said.splitlines() if not line.startswith("epoch ")] == [
        "satstore: importing the plugin 'held', which the config names",
        "satstore: stopped; the same command goes on where this one was",
    ]
    run = open_run("res", logs)
    assert run.status(stage) == "cancelled"
    assert run.manifest.stages[stage].error == "stopped"
    assert [p for p in logs.rglob("*") if "partial" in p.name or p.suffix == ".new"] == []
    check_kept(run, stage, at)

    # This process may hold more than the command's own would; its loaders come on top of that.
    limit = ["--memory-limit", "16GiB"] if stage == "extract" else []
    again = satstore(*words, *limit)
    assert again.returncode == 0, again.stderr
    assert open_run("res", logs).status(stage) == "done"
    found, expected = results(do(logs, *STAGES[n_before + 1 :])), results(open_run("res", stages_done[-1]))
    # The store's attributes hold the config of the command that made it: how many loaders it had.
    names = expected.keys() - {"attributes"}
    assert [name for name in names if found.get(name) != expected[name]] == []


def run_python(code: str, folder: Path, **options: Any) -> str:
    """Return what a process prints that runs some code in a folder."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, timeout=HANGS_S, **options
    )
    assert done.stderr == ""
    return done.stdout


def test_ctrl_c__another_ends_at_once_what_takes_too_long_to_end(tmp_path: Path) -> None:
    code = """
import signal
from satstore.cli import interrupts
interrupts.PATIENCE_S = -1
with interrupts.stop_on_signals():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("ends", flush=True)
        signal.raise_signal(signal.SIGINT)
        print("goes on", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=HANGS_S
    )
    assert (done.stdout, done.returncode) == ("ends\n", 130), done.stderr


def test_ctrl_c__while_a_cluster_starts_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts is deaf; once it has started and the key is heard, nothing of it may stay."""
    import distributed

    started = []

    class PressedMeanwhile(distributed.LocalCluster):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, processes=False, protocol="tcp://")
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(distributed, "LocalCluster", PressedMeanwhile)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt), stop_on_signals(), dask_backend.start_cluster(1):
            pytest.fail("it was not heard")
    finally:
        for number, handler in before.items():  # a process that was told to stop is deaf from then on
            signal.signal(number, handler)
    assert [each.status.name for each in started] == ["closed"]


def test_ctrl_c__while_children_start_is_heard_when_they_have(tmp_path: Path) -> None:
    code = """
import os, signal, subprocess, sys
from satstore.system.signals import children_ignoring_sigint
try:
    with children_ignoring_sigint():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        os.killpg(0, signal.SIGINT)
    print("not heard")
except KeyboardInterrupt:
    os.killpg(0, signal.SIGCONT)
    child.communicate(b"\\n")
    print("heard; the child ended with", child.returncode)
"""
    assert run_python(code, tmp_path, start_new_session=True) == "heard; the child ended with 0\n"


def test_ctrl_c__that_a_library_turns_into_an_error_is_one_all_the_same(tmp_path: Path) -> None:
    """As NumPy does, in the midst of whose import it comes: what is half loaded can't be loaded again."""
    pressed = ["import signal", "import __main__", "try:", "    signal.raise_signal(__main__.number)"]
    pressed += ["except BaseException as error:", "    raise ImportError('half') from error"]
    (tmp_path / "pressed.py").write_text("\n".join(pressed))
    code = """
import signal
from satstore.system import signals
from satstore.cli.interrupts import Terminated, stop_on_signals
for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
    try:
        with stop_on_signals():
            import pressed
    except KeyboardInterrupt as error:
        print(type(error) is kind, type(error.__cause__).__name__, signals.stop_requested.is_set())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
"""
    assert run_python(code, tmp_path) == "True ImportError False\n" * 2


def test_ctrl_c__that_a_library_swallows_is_heard_with_the_next_progress(tmp_path: Path) -> None:
    code = """
import signal
from pathlib import Path
from satstore.cli.interrupts import stop_on_signals
from satstore.config.experiment import ExperimentConfig
from satstore.runs.logs_folder import make_run
run = make_run(Path("logs"), "res", ExperimentConfig())
try:
    with stop_on_signals(), run.stage("train", {}):
        run.emit("train", "progress", done=1)
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            pass
        run.emit("train", "progress", done=2)
except KeyboardInterrupt:
    print(run.manifest.stages["train"].error)
"""
    assert run_python(code, tmp_path) == "stopped\n"
