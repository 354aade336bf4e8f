"""What experiments take on disk (`satstore du`), and freeing it (`satstore clean`)."""

import errno
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import call, satstore

from satstore.config.latent_keys import LatentsKey
from satstore.errors import NotFoundError
from satstore.registry import STAGES
from satstore.runs.disk_usage import measure_disk_usage
from satstore.runs.manifest import Manifest
from satstore.runs.run import Run
from satstore.stages.extract.plan import plan_latents
from satstore.stages.pipeline import make_tasks, run_stages
from satstore.system.text import describe_size


@pytest.fixture
def run(demo_copy: Path) -> Run:
    """A copy of the demo's run, to be cleaned."""
    [manifest] = demo_copy.glob("demo/*/manifest.json")
    return Run(manifest.parent)


def disk_bytes(folder: Path) -> int:
    """What the system's own `du` counts."""
    words = ["find", str(folder), "-type", "f", "-printf", "%s\n"]
    return sum(map(int, subprocess.run(words, capture_output=True, check=True).stdout.split()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# du


def test_measure__counts_every_byte_once(demo_run: Run) -> None:
    usage = measure_disk_usage(demo_run)
    assert usage.total_bytes == disk_bytes(demo_run.path)
    assert sum(usage.latents.values()) == disk_bytes(demo_run.latents_path)
    assert usage.analysis_bytes == disk_bytes(demo_run.analysis_path)
    for split in ("train", "eval"):
        layers = [layer for key, part, layer in usage.latents if (key, part) == (LatentsKey("4"), split)]
        assert layers == ["", *demo_run.layers], "forward order"
        for layer in demo_run.layers:
            stored = disk_bytes(demo_run.latents_path / "pool4" / split / layer)
            assert usage.latents[LatentsKey("4"), split, layer] == stored


def test_measure__knows_layers_of_odd_names(run: Run) -> None:
    group = run.latents_path / "pool4" / "train"
    (group / "features.0").rename(group / "%66eatures%2F0")
    (group / "features.4").rename(group / "cut~0")
    layers = {layer for _, split, layer in measure_disk_usage(run).latents if split == "train"}
    assert {"features/0", "features.4"} <= layers
    assert not {"features.0", "cut~0"} & layers


def test_du__lists_experiments_and_layers(demo_logs: Path, demo_run: Run) -> None:
    code, out, _ = call("du", "--logs-dir", demo_logs)
    assert code == 0
    assert out.splitlines()[0].split() == ["run", "pool4", "analysis", "checkpoint", "other", "total"]
    assert any(line.startswith(demo_run.name) for line in out.splitlines())
    code, out, _ = call("du", demo_run.name, "--logs-dir", demo_logs)
    shown = [line.split()[0] for line in out.splitlines()]
    assert shown[2 : 2 + len(demo_run.layers)] == demo_run.layers
    assert "checkpoint" in shown


def test_du__json_has_bytes(demo_logs: Path, demo_run: Run) -> None:
    _, out, _ = call("du", demo_run.name, "--json", "--logs-dir", demo_logs)
    [record] = json.loads(out)
    assert record["run"] == demo_run.name
    assert record["total_bytes"] == disk_bytes(demo_run.path)
    assert record["checkpoint_bytes"] == (demo_run.path / "checkpoint.pt").stat().st_size
    assert record["latents_bytes"].keys() == {"", "pool4"}
    sizes = [entry["size_bytes"] for entry in record["latents"]]
    assert sum(sizes) == sum(record["latents_bytes"].values()) == disk_bytes(demo_run.latents_path)


def test_du__of_no_runs_says_so(tmp_path: Path) -> None:
    assert call("du", "--logs-dir", tmp_path) == (0, f"no runs in {tmp_path}\n", "")


def test_du__imports_nothing_slow(demo_logs: Path) -> None:
    code = (
        "import sys; from satstore.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "slow = {'torch', 'dask', 'sklearn', 'matplotlib', 'zarr', 'pandas', 'numpy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    words = [sys.executable, "-c", code, "du", "demo", "--logs-dir", str(demo_logs)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# clean


def test_clean__frees_the_disk_and_extract_brings_the_same_bits_back(run: Run) -> None:
    before, record = contents(run.latents_path), run.manifest.latents[LatentsKey("4")]
    logs = run.path.parents[1]
    result = satstore("clean", "demo", "--latents", "--yes", "--logs-dir", logs)
    assert result.returncode == 0, result.stderr
    assert f"freed {sum(map(len, before.values())) / 2**20:.1f} MiB" in result.stdout
    command = f"satstore extract --run {run.name} -d 4"
    assert result.stdout.splitlines()[-1].strip() == command

    cleaned = Run(run.path)
    assert not cleaned.latents_path.exists()
    assert cleaned.manifest.latents == {}
    assert cleaned.manifest.re_extractable == {LatentsKey("4"): record}
    assert cleaned.status("extract") == "missing"
    assert not cleaned.commits.read("latents.zarr").files
    assert cleaned.table("probe-pool4").equals(run.table("probe-pool4"))
    with pytest.raises(NotFoundError, match=f"were removed; write them again with: {command}"):
        cleaned.latents("pool4", "train")
    shown = satstore("show", "demo", "--logs-dir", logs)
    assert f"were removed; write them again with: {command}" in shown.stdout
    verified = satstore("verify", "demo", "--logs-dir", logs)
    assert verified.returncode == 0, verified.stdout

    outcomes = run_stages([cleaned], make_tasks(["extract", "probe"], {"device": "cpu"}), with_needs=False)
    assert [(o.stage, o.result) for o in outcomes] == [("extract", "done"), ("probe", "skipped")]
    again = Run(run.path)
    assert contents(again.latents_path) == before
    assert (again.manifest.latents, again.manifest.re_extractable) == ({LatentsKey("4"): record}, {})


def test_clean__is_undone_with_the_mantissa_bits_that_were_stored(run: Run) -> None:
    record = run.manifest.latents[LatentsKey("4")].model_copy(update={"mantissa_bits": 5})

    def remove(manifest: Manifest) -> None:
        manifest.latents, manifest.re_extractable = {}, {LatentsKey("4"): record}

    with run.lock():
        run.commit(change=remove)
    [plan] = plan_latents(Run(run.path), STAGES["extract"].parameters())
    assert plan.mantissa_bits == 5


def test_clean__stopped_halfway_can_be_done_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from satstore.storage.location import Folder

    words = ("clean", "demo", "--latents", "--yes", "--logs-dir", run.path.parents[1])

    def stop(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", stop)
        assert call(*words)[0] == 130
    assert Run(run.path).manifest.re_extractable.keys() == {LatentsKey("4")}
    assert not run.commits.read("latents.zarr").files
    assert call(*words)[0] == 0
    assert not run.latents_path.exists()
    assert call(*words) == (0, "demo has no latents on disk\n", "")


def test_clean__asks_on_a_terminal_and_refuses_without(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["clean", "demo", "--latents", "--logs-dir", run.path.parents[1]]
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        without = satstore(*words)
    assert without.returncode == 1
    assert without.stderr.startswith("satstore: nothing was removed")
    assert "--yes" in without.stderr

    for answer, is_removed in ((b"\n", False), (b"y\n", True)):
        terminal, end = pty.openpty()
        os.write(terminal, answer)
        with os.fdopen(end) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            asked = satstore(*words)
        os.close(terminal)
        assert asked.returncode == 0, asked.stderr
        assert "? [y/N]" in asked.stdout
        assert run.latents_path.exists() != is_removed


def test_clean__keeps_what_could_not_be_extracted_again(run: Run) -> None:
    words = ("clean", "demo", "--latents", "--yes", "--logs-dir", run.path.parents[1])
    checkpoint = run.path / "checkpoint.pt"
    content = bytearray(checkpoint.read_bytes())
    content[1000] ^= 1
    checkpoint.write_bytes(content)
    code, _, err = call(*words)
    assert (code, "is not what was committed" in err) == (1, True)

    def forget(manifest: Manifest) -> None:
        del manifest.files["checkpoint.pt"]

    run.commit(change=forget)
    code, _, err = call(*words)
    assert (code, "could not be extracted again" in err) == (1, True)
    assert Run(run.path).manifest.latents.keys() == {LatentsKey("4")}
    assert run.latents_path.exists()


def test_clean__of_a_run_that_is_being_written_is_refused(run: Run) -> None:
    with run.lock():
        code, _, err = call("clean", "demo", "--latents", "--yes", "--logs-dir", run.path.parents[1])
    assert (code, "is being written" in err) == (1, True)
    assert run.latents_path.exists()


def test_clean__without_saying_what_is_a_wrong_usage() -> None:
    code, _, err = call("clean", "demo")
    assert code == 2
    assert "--latents" in err


def test_clean__says_what_a_disk_refused_to_free(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("clean", "demo", "--latents", "--yes", "--logs-dir", run.path.parents[1])
    kept = run.path / "latents.zarr/pool4/eval"
    left_bytes, unlink = disk_bytes(kept), os.unlink

    def refuse(path: Any, *, dir_fd: int | None = None) -> None:
        folder = Path("" if dir_fd is None else f"/proc/self/fd/{dir_fd}").resolve()
        if (folder / path).is_relative_to(kept):
            raise OSError(errno.EIO, "Input/output error", str(path))
        unlink(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        code, out, error = call(*words)
    assert (code, len(error.splitlines())) == (1, 1)
    assert "freed" not in out
    assert "can't be removed: Input/output error; " in error
    assert f"{describe_size(left_bytes)} are left" in error
    assert disk_bytes(run.path / "latents.zarr") == left_bytes
    assert call(*words)[0] == 0
    assert not run.latents_path.exists()
