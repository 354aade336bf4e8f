"""Estimates beside what is then measured, and the refusal of what can't suffice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, WORKS_S, fail, satstore
from small_data import write_folder
from tiny import CONFIG, run_tiny

from satstore.analysis.logistic.memory import fit_bytes
from satstore.analysis.logistic.problem import LogisticProblem
from satstore.config.grid import read_config
from satstore.config.latent_keys import LatentsKey, LatentsRequest
from satstore.errors import ConfigError, DiskSpaceError, MemoryLimitError, NotFoundError
from satstore.models.plan import plan_model
from satstore.planning.estimate import Counts, probe_memory, store_bytes
from satstore.runs.logs_folder import open_run
from satstore.runs.run import Run
from satstore.stages.pipeline import run_experiments
from satstore.system.limits import check_disk, check_memory, free_disk
from satstore.system.memory import resident_bytes
from satstore.system.text import describe_duration, describe_durations, describe_size

PRIVATE = """
import sys
import threading
import satstore.system.memory
from satstore.cli import main

def private_bytes():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return sum(int(lines[name].split()[0]) for name in ("RssAnon", "VmSwap")) * 1024

def watch():
    while not ended.wait(0.001):
        peaks.append(max(peaks.pop(), private_bytes()))

satstore.system.memory.resident_bytes = private_bytes
peaks, ended = [0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
try: main(sys.argv[1:])
except SystemExit as stop: assert not stop.code, stop.code
finally: ended.set()
watcher.join()
print()
print(peaks[0])
"""


def run_measured(*words: object) -> tuple[str, int]:
    """Run a command; return its output and the most memory, in bytes, that was its process's own.

    Pages of libraries' files are left out, of what is measured and of what an estimate begins with, and
    those that were swapped out are counted: how many of either are resident is the system's choice. So a
    thread of the process looks again and again, as the system keeps no peak of it.
    """
    command = [sys.executable, "-c", PRIVATE, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WORKS_S)
    assert result.returncode == 0, result.stderr
    output, _, last = result.stdout.rstrip().rpartition("\n")
    return output, int(last)


def ask(*words: object) -> list[dict[str, Any]]:
    result = satstore("estimate", "--json", *words)
    assert result.returncode == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run without latents."""
    logs = tmp_path_factory.mktemp("logs")
    run_experiments(SMALL, "res", ["train"], logs_dir=logs, latents=False)
    return logs


@pytest.fixture
def run(logs: Path, tmp_path: Path) -> Run:
    """A copy of it."""
    shutil.copytree(logs / "res", tmp_path / "logs" / "res")
    return open_run("res", tmp_path / "logs")


@pytest.mark.long
def test_estimate__of_the_disk_is_within_20_percent_of_what_is_stored(
    config: Path, run: Run, tmp_path: Path
) -> None:
    [before] = ask("--config", config, "--no-calibrate", "--logs-dir", tmp_path / "empty")
    assert before["times_s"] is None
    logs = run.path.parents[1]
    extracted = satstore("extract", "--run", "res", "--logs-dir", logs)
    assert extracted.returncode == 0, extracted.stderr
    run.reload()
    assert before["disk_bytes"] == pytest.approx(run.manifest.latents[LatentsKey("4")].size_bytes, rel=0.2)

    shapes = {layer["layer"]: tuple(layer["latents"]["pool4"]["shape"]) for layer in before["layers"]}
    assert shapes == {name: array.shape[1:] for name, array in run.latents("pool4", "eval").items()}

    # What was stored is the better measure from now on, and names its run.
    [after] = ask("--config", config, "--no-calibrate", "--logs-dir", logs)
    assert after["compression"] == run.name
    assert after["disk_bytes"] == pytest.approx(run.manifest.latents[LatentsKey("4")].size_bytes, rel=0.1)


@pytest.mark.long
def test_estimate__of_memory_is_within_20_percent_of_what_is_measured(config: Path, run: Run) -> None:
    """In processes of their own: an estimate begins with what its process holds."""
    logs = run.path.parents[1]
    estimate = run_measured("estimate", "--json", "--config", config, "--no-calibrate", "--logs-dir", logs)
    [found] = json.loads(estimate[0])
    for stage in ("extract", "probe"):
        words = (stage, "--run", "res", "--logs-dir", logs, "--overwrite")
        # The largest of several: how much two threads hold at once differs.
        peak = max(run_measured(*words)[1] for _ in range(3))
        assert found["memory_bytes"][stage] == pytest.approx(peak, rel=0.2)


def test_estimate__times_images_that_are_fewer_than_a_batch(tmp_path: Path) -> None:
    write_folder(tmp_path / "insects")
    content = {"model": "vgg5_S", "dataset": "ImageFolder:insects", "resolution": 8, "batch_size": 64}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**content, "cache_dir": str(tmp_path), "device": "cpu"}))
    [found] = ask("--config", config, "-d", 1, "--logs-dir", tmp_path)
    assert found["times_s"]["train"] > 0
    low, high = found["times_range_s"]["train"]
    assert low < found["times_s"]["train"] < high


def test_estimate__times_this_machine(config: Path, tmp_path: Path) -> None:
    result = satstore("estimate", "--config", config, "-d", 1, "-d", 2, "--logs-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("vgg7_S on Digits at 32 px: 1,437 + 360 images, 10 classes")
    assert "pool1 features" in lines[1]
    assert "pool2 features" in lines[1]
    for stage in ("train", "extract", "probe"):
        assert any(line.startswith(stage) and " to " in line for line in lines), result.stdout


def test_estimate__plans_a_dataset_that_is_not_here(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model": "resnet50", "dataset": "ImageNet", "resolution": 224}')
    counts = ("--samples", 1281167, "--eval-samples", 50000, "--classes", 1000)
    [found] = ask("--config", config, "-d", 4, *counts, "--no-calibrate", "--logs-dir", tmp_path)
    assert len(found["layers"]) == 54  # 53 convolutions and a Linear
    # Channels of the convolutions: stem, then per stage (2·width + 4·width) a block and a shortcut.
    channels = 64 + sum(w * (6 * blocks + 4) for w, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)))
    n_features = sum(layer["latents"]["pool4"]["n_features"] for layer in found["layers"])
    assert n_features == channels * 16 + 1000
    raw = sum(layer["latents"]["pool4"]["float16_bytes"] for layer in found["layers"])
    assert raw == 2 * n_features * (1281167 + 50000)
    assert found["compression"] == "typical"
    assert 0.8 * raw < found["disk_bytes"] <= raw
    # The last stage's 2,048 channels: 32,768 features × 1,000 classes × 20 vectors of float64.
    assert found["memory_bytes"]["probe"] > 32768 * 1000 * 20 * 8
    assert any("--memory-limit 2 GiB does not suffice to probe" in lack for lack in found["lacks"])


def test_estimate__of_a_run_is_that_of_its_config(config: Path, logs: Path) -> None:
    words = ("--no-calibrate", "--logs-dir", logs)
    found = [ask("--run", "res", *words), ask("--config", config, *words)]
    of_run, of_config = ({key: x[key] for key in ("disk_bytes", "layers", "config")} for [x] in found)
    assert of_run == of_config
    [other] = ask("--run", "res", "--resolution", 64, *words)
    assert other["config"]["resolution"] == 64
    code, error = fail("estimate", "--run", "res", "--config", config, *words)
    assert (code, error) == (1, "--config and --run exclude each other: a run has its own config")


def test_estimate__says_what_is_missing(tmp_path: Path) -> None:
    from satstore.cli.estimate import load_counted, read_configs

    [config] = read_config({"dataset": f"ImageFolder:{tmp_path}/none"})
    with pytest.raises(NotFoundError, match="--samples N --classes K"):
        load_counted(config)
    with pytest.raises(ConfigError, match="give --config or --run, or --model"):
        read_configs(None, {}, on_paper=False)
    with pytest.raises(ConfigError, match="no dataset named 'NoSuchImages'"):
        read_configs(None, {"model": "vgg5", "dataset": "NoSuchImages"}, on_paper=False)


def test_plan__counts_every_pooling_and_lists_multiply() -> None:
    small, large = read_config({"model": "vgg5", "resolution": [32, 64]})
    for config, side in ((small, 32), (large, 64)):
        plan = plan_model(config, 10, LatentsRequest.of(("2", "full"), None))
        assert plan.shapes[LatentsKey("full")]["features.0"] == (64, side, side)
        assert plan.shapes[LatentsKey("2")]["features.0"] == (64, 2, 2)
    counts = Counts(100, 20, 2)
    assert counts.n_outputs == 1
    ratios = {(key, layer): 0.5 for key, part in plan.shapes.items() for layer in part}
    assert store_bytes(plan, counts.n_samples, ratios) == sum(plan.n_features) * 120


def test_plan__has_pixelwise_latents_of_convs_alone_and_a_probe_of_each_position() -> None:
    [config] = read_config({"model": "vgg5", "resolution": 32})
    plan = plan_model(config, 10, LatentsRequest.of(("pixelwise",), None))
    shapes = plan.shapes[LatentsKey("pixelwise")]
    assert shapes["features.0"] == (32, 32, 64), "height, width, channels, as they are stored"
    assert all(name.startswith("features") for name in shapes), "a Linear layer has no positions"

    counts, weights_bytes = Counts(100, 20, 10), 8 * 32 * 32 * 10 * (64 + 1)
    assert probe_memory(plan, counts, n_threads=1, base_bytes=0) > weights_bytes, "of all positions at once"
    widest = {"n_features": 32 * 32 * 64, "n_positions": 32 * 32}
    problem = LogisticProblem(n_rows=100, n_classes=10, C=1.0, tol=1e-4, max_iter=1, **widest)
    assert probe_memory(plan, counts, n_threads=1, base_bytes=7) == 7 + fit_bytes(problem, n_threads=1)


def test_check_disk__names_both_quantities(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there"
    free = free_disk(path)
    check_disk(path, free // 2, "the latents")
    with pytest.raises(DiskSpaceError, match=r"the latents: about 8 PiB|about 8192 TiB") as caught:
        check_disk(path, 2**53, "the latents")
    assert "are free" in str(caught.value)
    assert "--force" in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_check_memory__names_both_quantities() -> None:
    check_memory(2**20, 2**30, "it")
    with pytest.raises(MemoryLimitError, match="it: about 2 GiB of memory are needed, the limit is 512 MiB"):
        check_memory(2**31, 2**29, "it")
    with pytest.raises(MemoryLimitError, match="available here") as caught:
        check_memory(2**53, None, "it")
    assert "8192 TiB" in str(caught.value)
    assert isinstance(caught.value, MemoryError)
    assert 2**23 < resident_bytes() < 2**36


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with next to no disk left; a real one can't be had in a test."""
    monkeypatch.setattr("satstore.system.limits.free_disk", lambda path: 1000)


@pytest.mark.usefixtures("crowded")
def test_extract__refuses_a_full_disk_unless_forced(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, stages=["train"])
    with pytest.raises(DiskSpaceError, match=r"are to be written to .*, where 1 KiB are free"):
        run_tiny(tmp_path, stages=["train", "extract"])
    assert not run.latents_path.exists()
    run_experiments(CONFIG, "res", ["extract"], logs_dir=tmp_path, force=True)
    assert Run(run.path).manifest.latents.keys() == {LatentsKey("2")}


def test_words__take_a_unit_that_fits() -> None:
    assert [describe_size(n) for n in (12, 2**30, 1.06e12)] == ["12 B", "1 GiB", "1 TiB"]
    assert [describe_duration(s) for s in (0.5, 80, 5400, 36000, 864000)] == [
        "0.5 s",
        "80 s",
        "1.5 h",
        "10 h",
        "10 d",
    ]
    ranges = [describe_durations(low, high) for low, high in ((120, 360), (50, 180), (0.5, 2))]
    assert ranges == ["2 to 6 min", "50 s to 3 min", "0.5 to 2 s"]
