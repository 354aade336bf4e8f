"""Run folders: commits, locks, tables, and how runs are found."""

import fcntl
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from satstore.config.experiment import ExperimentConfig
from satstore.errors import ConfigError, CorruptError, LockedError, NotFoundError, UnknownNameError
from satstore.runs.logs_folder import check_run_id, find_logs_dir, find_runs, list_runs, make_run, open_run
from satstore.runs.manifest import Manifest, StageRecord
from satstore.runs.run import Run
from satstore.storage.files import WRITER

CONFIG = ExperimentConfig(model="vgg5", dataset="Digits")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path, "res", CONFIG)


def test_make_run__writes_a_manifest_and_a_config_that_repeats_it(run: Run) -> None:
    from satstore.config.grid import read_config

    assert run.path.name == CONFIG.experiment
    assert read_config(run.path / "config.json") == [CONFIG]
    assert run.config == CONFIG
    assert set(run.statuses().values()) == {"missing"}


def test_make_run__opens_the_experiment_that_is_there(run: Run, tmp_path: Path) -> None:
    run.commit({"metrics.csv": b"epoch\n0\n"})

    assert make_run(tmp_path, "res", CONFIG.model_copy(update={"delta": 0.9})).has_file("metrics.csv")


def test_commit__replaces_files_and_their_digests(run: Run) -> None:
    run.commit({"metrics.csv": b"epoch\n0\n"})
    run.commit({"metrics.csv": b"epoch\n0\n1\n"})

    assert list(Run(run.path).table("metrics")["epoch"]) == [0, 1]
    assert not list(run.path.glob("*.new"))


class Killed(BaseException):
    """The end of a process, which nothing in it can hear."""


STEPS = ["first file", "second file", "manifest", "first rename", "second rename"]
OLD = {"a.csv": b"a\n1\n", "b.csv": b"b\n1\n"}
NEW = {"a.csv": b"a\n2\n", "b.csv": b"b\n2\n"}


def cut_off(run: Run, step: str, kind: type[BaseException], n_times: int, patch: pytest.MonkeyPatch) -> None:
    """Commit twice, the second time until some step, at which something is raised so many times."""
    import satstore.runs.run as module

    run.commit(OLD)
    done: list[str] = []
    write_file, replace = module.write_file, Path.replace

    def do(kind_of_step: str) -> None:
        numbers = {"file": ["first file", "second file", "manifest"], "rename": STEPS[3:]}[kind_of_step]
        n_done = sum(name in numbers for name in done)
        if n_done < len(numbers) and numbers[n_done] == step and done.count("raised") < n_times:
            done.append("raised")
            raise kind
        done.append(numbers[min(n_done, len(numbers) - 1)])

    def write(path: Path, content: bytes) -> None:
        do("file")
        write_file(path, content)

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            do("rename")
        return replace(self, target)

    with patch.context() as patched:
        patched.setattr(module, "write_file", write)
        patched.setattr(Path, "replace", rename)
        with pytest.raises(kind):
            run.commit(NEW)
    assert "raised" in done


@pytest.mark.parametrize("step", STEPS)
def test_commit__killed_at_any_step_leaves_the_old_state_or_the_new(
    run: Run, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(run, step, Killed, 99, monkeypatch)
    expected = NEW if step.endswith("rename") else OLD
    reader = Run(run.path)
    assert {name: reader.read_file(name) for name in OLD} == expected, "before the next lock"
    with reader.lock():
        pass
    assert {name: (run.path / name).read_bytes() for name in OLD} == expected
    assert not list(run.path.glob("*.new"))


@pytest.mark.parametrize("step", STEPS)
def test_commit__stopped_by_ctrl_c_at_any_step_leaves_nothing_to_be_mended(
    run: Run, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(run, step, KeyboardInterrupt, 1, monkeypatch)
    expected = NEW if step.endswith("rename") else OLD
    assert {name: (run.path / name).read_bytes() for name in OLD} == expected
    assert {name: run.read_file(name) for name in OLD} == expected, "the run goes on with what is there"
    assert not list(run.path.glob("*.new"))


def test_read_file__refuses_what_was_not_committed(run: Run) -> None:
    run.commit({"metrics.csv": b"epoch\n0\n"})
    (run.path / "metrics.csv").write_bytes(b"epoch\n9\n")
    with pytest.raises(CorruptError, match=r"metrics\.csv is not what was committed"):
        run.table("metrics")

    (run.path / "metrics.csv").unlink()
    with pytest.raises(CorruptError, match="is not there"):
        run.table("metrics")
    with pytest.raises(NotFoundError, match=r"did you mean 'metrics\.csv'"):
        run.table("metric")


HOLD = """
import sys
from pathlib import Path
from satstore.runs.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock__a_note_of_another_process_or_host_holds_nothing_that_is_free(run: Run) -> None:
    """The pid of a process that died is this one's by now, or it ran on another host."""
    with run.lock():
        note = json.loads((run.path / ".holder.json").read_text())
    for stale in (note, note | {"host": "elsewhere"}):
        (run.path / ".holder.json").write_text(json.dumps(stale))
        assert not run.is_being_written
    with run.lock():
        for held in (note, note | {"host": "elsewhere"}):
            (run.path / ".holder.json").write_text(json.dumps(held))
            assert run.is_being_written


def test_status__a_stage_that_was_killed_is_not_running_while_another_one_is(run: Run) -> None:
    def kill(manifest: Manifest) -> None:
        manifest.stages["extract"] = StageRecord(status="running", started=1.0)

    run.commit(change=kill)
    assert run.status("extract") == "failed"
    with run.lock(), run.stage("probe", {}):
        seen = Run(run.path)
        assert seen.statuses() == run.statuses()
        assert (seen.status("probe"), seen.status("extract")) == ("running", "failed")
        assert seen.failures(seen.statuses()) == {"extract": "its process ended without a word"}


def test_lock__is_taken_while_others_only_look(run: Run) -> None:
    """Who looks holds it for a moment: here until the writer has found it held and asked whose it is."""
    with (run.path / ".lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        asked = run._lock.holder

        def holder() -> Any:
            found = asked()
            fcntl.flock(looking, fcntl.LOCK_UN)
            return found

        run._lock.holder = holder  # type: ignore[method-assign]
        with run.lock():
            assert json.loads((run.path / ".holder.json").read_text())["pid"] == os.getpid()


def test_lock__names_the_holder_and_dies_with_it(run: Run) -> None:
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        held = rf"is being written by process {holder.pid} on \S+ since 20"
        with pytest.raises(LockedError, match=held), run.lock():
            pass
        holder.kill()
        holder.wait()

    with run.lock():
        assert json.loads((run.path / ".holder.json").read_text())["pid"] == os.getpid()
    assert not (run.path / ".holder.json").exists()


def test_status__of_a_dead_process_is_failed(run: Run) -> None:
    with run.lock():
        with run.stage("train", {}):
            assert Run(run.path).status("train") == "running"
            manifest = (run.path / "manifest.json").read_bytes()
        assert Run(run.path).status("train") == "done"
    (run.path / "manifest.json").write_bytes(manifest)

    assert Run(run.path).status("train") == "failed"


def test_stage__that_raises_is_failed_and_says_why(run: Run) -> None:
    with run.lock(), pytest.raises(ZeroDivisionError), run.stage("probe", {"C": 1.0}):
        1 / 0  # noqa: B018

    record = Run(run.path).manifest.stages["probe"]
    assert (record.status, record.error, record.parameters) == ("failed", "division by zero", {"C": 1.0})


@pytest.mark.parametrize(
    "run_id",
    [
        "",
        "..",
        "a/b",
        "/abs",
        "a..b",
        "a\nb",
        "a\x00b",
        "a\x1b[31m",
        "-x",
        ".hidden",
        "a‮b",
        "x" * 101,
        "層" * 100,
        "CON",
        "nul.txt",
        "a.",
    ],
)
def test_check_run_id__refuses_what_names_no_folder(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run id"):
        check_run_id(run_id)
    with pytest.raises(ConfigError, match="run id"):
        make_run(tmp_path, run_id, CONFIG)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run_id", ["RES", "2026-11-23_a", "a.b", "größe"])
def test_check_run_id__takes_plain_names(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


def test_find_logs_dir__has_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.model_copy(update={"logs_dir": "/c"})
    assert find_logs_dir() == Path("logs")
    assert find_logs_dir(None, config) == Path("/c")
    monkeypatch.setenv("SATSTORE_LOGS_DIR", "/e")
    assert find_logs_dir(None, config) == Path("/e")
    assert find_logs_dir("/x", config) == Path("/x")


def test_find_runs__says_where_it_looked(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path, "res", CONFIG.model_copy(update={"seed": 1}))

    assert len(find_runs("res", tmp_path)) == 2
    assert [found.name for found in find_runs(run.name, tmp_path)] == [run.name]
    with pytest.raises(NotFoundError, match=rf"no run 'rse' in {tmp_path}; did you mean 'res'\?"):
        find_runs("rse", tmp_path)
    with pytest.raises(UnknownNameError, match=f"has 2 experiments; name one: .*{run.experiment}"):
        open_run("res", tmp_path)
    assert open_run(run.name, tmp_path).path == run.path


def test_list_runs__passes_over_folders_without_a_manifest(run: Run, tmp_path: Path) -> None:
    (tmp_path / "res" / "notes").mkdir()
    (tmp_path / "empty").mkdir()

    assert [found.name for found in list_runs(tmp_path)] == [run.name]
    assert list_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not a manifest"),
        (b"[]", "is not a manifest"),
        (b'{"format_version": 99}', "has format version 99; this satstore reads 1"),
        (b'{"format_version": 1}', "'run_id': field required"),
        (b"\xff\xfe", "is not a manifest"),
    ],
)
def test_read_manifest__refuses_what_is_none(run: Run, content: bytes, reason: str) -> None:
    (run.path / "manifest.json").write_bytes(content)

    with pytest.raises(CorruptError, match=reason):
        Run(run.path)


def test_lock__removes_what_its_dead_holder_was_writing_and_nothing_else(run: Run) -> None:
    dead, other = "0123abcd", "89abcdef"
    (run.path / "analysis.zarr").mkdir()
    places = (".curves.svg", "analysis.zarr/.0")
    dead_ones, others = (
        [run.path / f"{place}.{writer}.00000000.partial" for place in places] for writer in (dead, other)
    )
    unsaid = run.path / f"..holder.json.{other}.00000000.partial"
    for path in (*dead_ones, *others, unsaid):
        path.write_text("half")
    note = {"pid": 2**22 + 1, "host": platform.node(), "since": 1.0, "writers": [dead]}
    (run.path / ".holder.json").write_text(json.dumps(note))
    with run.lock():
        assert not any(path.exists() for path in (*dead_ones, unsaid))
        assert json.loads((run.path / ".holder.json").read_text())["writers"] == [dead, WRITER]
    assert all(path.read_text() == "half" for path in others)


@pytest.mark.parametrize("kind", ["link", "hard link", "named pipe", "folder"])
def test_lock__that_is_no_file_of_its_own_is_refused_in_a_line(run: Run, tmp_path: Path, kind: str) -> None:
    precious, lock = tmp_path / "precious", run.path / ".lock"
    precious.write_text("the user's")
    lock.unlink(missing_ok=True)
    make = {"link": lock.symlink_to, "hard link": lock.hardlink_to, "folder": lambda _: lock.mkdir()}
    make.get(kind, lambda _: os.mkfifo(lock))(precious)
    with pytest.raises(CorruptError, match=f"{lock} can't be locked: (it is|Is) ") as raised, run.lock():
        pass
    assert "\n" not in str(raised.value)
    assert precious.read_text() == "the user's"
