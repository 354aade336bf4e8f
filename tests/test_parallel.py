"""Training on several ranks: gloo processes on the CPU, against one process."""

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from command_line import HANGS_S, satstore

from satstore.config.grid import read_config
from satstore.errors import ConfigError, DeviceError
from satstore.runs.run import Run
from satstore.stages.pipeline import run_experiments
from satstore.storage.zarr import AnalysisStore
from satstore.system.process_group import ProcessGroup
from satstore.training import session_data
from satstore.training.distributed import Worker, _read_error, count_processes

# Without batch norm, of which torch has no synchronised kind for the CPU: what one process computes is then
# what several compute together.
PLUGIN = """
import threading
import torch.distributed as dist
from torch import nn
from satstore.registry import MODELS


@MODELS.register("PlainNet")
class PlainNet(nn.Sequential):
    '''Convs without norms.'''

    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, num_classes),
        )


@MODELS.register("BreaksOnRankOne")
class Broken(PlainNet):
    '''Fails on one of two ranks, in the third step.'''

    calls = 0

    def forward(self, x):
        self.calls += 1
        if dist.is_initialized() and dist.get_rank() == 1 and self.calls > 3:
            raise RuntimeError("the second GPU fell off the bus")
        return super().forward(x)


@MODELS.register("WaitsInTheSecondEpoch")
class Waiting(PlainNet):
    '''Says so and waits on the main rank, in the second epoch.'''

    epochs = 0

    def train(self, mode=True):
        self.epochs += mode
        return super().train(mode)

    def forward(self, x):
        if self.epochs > 1 and dist.get_rank() == 0:
            print("waits", flush=True)
            threading.Event().wait()
        return super().forward(x)
"""

CONFIG: dict[str, Any] = {
    "model": "PlainNet",
    "plugins": ["plain_net"],
    "dataset": "Digits",
    "epoch": 2,
    "batch_size": 100,
    "optimizer": "adam",
    "metrics": ["MCC"],
    "device": "cpu",
    "stages": ["train"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "plain_net.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    n_threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(n_threads)


def run(folder: Path, name: str, **changes: Any) -> Run:
    (folder / f"{name}.json").write_text(json.dumps({**CONFIG, **changes}))
    result = satstore("run", "--config", f"{name}.json", "--run-id", name, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    [manifest] = folder.glob(f"logs/{name}/*/manifest.json")
    return Run(manifest.parent)


@pytest.mark.long
def test_two_ranks__compute_what_one_process_does(folder: Path) -> None:
    one = run(folder, "one", augment=False)
    two = run(folder, "two", augment=False, data_parallel=True, ranks=2)
    assert two.manifest.environment["n_ranks"] == 2
    assert two.layers == one.layers
    metrics = one.table("metrics"), two.table("metrics")
    for column in metrics[0].columns:
        np.testing.assert_allclose(*(table[column] for table in metrics), rtol=1e-4, err_msg=column)
    for split in ("train", "eval"):
        spectra = [AnalysisStore(found.analysis_path).spectra(split) for found in (one, two)]
        for layer in one.layers:
            largest = spectra[0][layer].max()
            np.testing.assert_allclose(spectra[1][layer], spectra[0][layer], rtol=1e-3, atol=1e-5 * largest)
        for layer in one.layers:
            mean, covariance = AnalysisStore(one.analysis_path).moments(split, layer)
            other = AnalysisStore(two.analysis_path).moments(split, layer)
            np.testing.assert_allclose(other[0], mean, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(other[1], covariance, atol=1e-4 * np.trace(covariance))
    weights = [torch.load(f.path / "checkpoint.pt", weights_only=True)["model"] for f in (one, two)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-4)


@pytest.mark.long
def test_two_ranks__resumed_end_with_the_same_bits(folder: Path) -> None:
    config = {**CONFIG, "data_parallel": True, "ranks": 2}
    torch.set_num_threads(2)
    [whole] = run_experiments(config, "whole", logs_dir=folder)

    def interrupt(event: Any) -> None:
        if event.kind == "message" and event.text.startswith("epoch 1/2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiments(config, "parts", logs_dir=folder, listener=interrupt)
    [parts] = run_experiments(config, "parts", logs_dir=folder)
    state, other = (torch.load(r.path / "checkpoint.pt", weights_only=True) for r in (whole, parts))
    assert len(state["rng_of_ranks"]) == 1
    assert not torch.equal(state["rng"]["torch"], state["rng_of_ranks"][0]["torch"])
    for key, value in state["model"].items():
        assert torch.equal(value, other["model"][key])
    assert Run(whole.path).read_file("metrics.csv") == Run(parts.path).read_file("metrics.csv")


@pytest.mark.long
def test_two_ranks__an_error_of_one_is_one_line(folder: Path) -> None:
    (folder / "c.json").write_text(
        json.dumps({**CONFIG, "model": "BreaksOnRankOne", "data_parallel": True, "ranks": 2})
    )
    result = satstore("train", "--config", "c.json", "--run-id", "a", cwd=folder)
    assert result.returncode == 1
    expected = "rank 1 of 2 failed: RuntimeError: the second GPU fell off the bus"
    assert result.stderr.strip().splitlines()[-1] == f"satstore: {expected}"
    assert "Traceback" not in result.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("os._exit(7)", "ended with exit code 7 before training began"),
        ("os.kill(os.getpid(), 9)", "ended with exit code -9 before training began"),
        ("raise ValueError('no such bus')", "no such bus"),
    ],
)
def test_two_ranks__one_that_dies_before_they_meet_ends_training(folder: Path, death: str, said: str) -> None:
    lines = ["import multiprocessing", "import os", "if multiprocessing.parent_process():", f"    {death}"]
    (folder / "plain_net.py").write_text(PLUGIN + "\n".join(lines) + "\n")
    (folder / "c.json").write_text(json.dumps({**CONFIG, "data_parallel": True, "ranks": 2}))
    result = satstore("train", "--config", "c.json", "--run-id", "a", cwd=folder)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("satstore: rank 1 of 2 failed: ")
    assert said in last
    assert "Traceback" not in result.stderr


@pytest.mark.long
def test_two_ranks__leave_no_orphans_when_the_main_one_is_killed(folder: Path) -> None:
    """In its second epoch: the model tells of each step on the main rank, and waits in that one."""
    (folder / "c.json").write_text(
        json.dumps({**CONFIG, "model": "WaitsInTheSecondEpoch", "data_parallel": True, "ranks": 2})
    )
    command = [sys.executable, "-m", "satstore", "train", "--config", "c.json", "--run-id", "a"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"waits\n"
            family = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
    assert family
    _, alive = psutil.wait_procs(family, timeout=HANGS_S)
    assert not alive
    assert len(list(folder.glob("logs/a/*/metrics.csv"))) == 1, "an epoch was committed"


def test_process_group__shares_are_the_whole_in_order() -> None:
    for n_items in range(2, 12):
        for size in (1, 2, 3):
            parts = [ProcessGroup(rank, size).share(range(n_items)) for rank in range(size)]
            assert [item for part in parts for item in part] == list(range(n_items))
            assert [len(part) for part in parts] == ProcessGroup(0, size).counts(n_items)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_check_batches__refuses_one_that_leaves_a_rank_one_image() -> None:
    [config] = read_config({"dataset": "Digits", "batch_size": 717})
    data = session_data.load_data(config)
    session_data.check_batches(config, data, ProcessGroup(0, 1))
    with pytest.raises(
        ConfigError,
        match="batch_size 717 leaves a batch of one of 1437 training images for one of 2 ranks",
    ):
        session_data.check_batches(config, data, ProcessGroup(0, 2))


@pytest.mark.long
def test_ranks__a_batch_that_leaves_one_of_them_one_image_is_refused(folder: Path) -> None:
    # 1,437 images in batches of 717: the last has 3.
    (folder / "c.json").write_text(
        json.dumps({**CONFIG, "batch_size": 717, "data_parallel": True, "ranks": 2})
    )
    result = satstore("train", "--config", "c.json", "--run-id", "a", cwd=folder)
    assert result.returncode == 1
    assert "batch_size 717 leaves a batch of one of 1437 training images for one of 2 ranks" in result.stderr


def test_count_processes__is_one_without_data_parallel_or_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    plain, together, three = (
        read_config(content)[0]
        for content in ({"ranks": 3}, {"data_parallel": True}, {"data_parallel": True, "ranks": 3})
    )
    assert [count_processes(c, cpu) for c in (plain, together, three)] == [1, 1, 3]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [count_processes(c, gpu) for c in (plain, together)] == [1, 2]
    with pytest.raises(DeviceError, match="ranks 3 need as many GPUs, 2 are visible here"):
        count_processes(three, gpu)
    with pytest.raises(ConfigError, match="'ranks': input should be greater than or equal to 1"):
        read_config({"ranks": 0})


def ended_worker(name: str, exitcode: int, message: str | None = None) -> Worker:
    """Return a worker that has ended, its end of the pipe closed."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    if message is not None:
        sender.send(message)
    sender.close()
    process: Any = SimpleNamespace(exitcode=exitcode, join=lambda _timeout_s: None)
    return Worker(name, process, receiver)


def test_read_error__of_a_worker_that_was_killed_is_its_exit_code() -> None:
    workers = [ended_worker("rank 1 of 3", 0), ended_worker("rank 2 of 3", -9)]
    assert _read_error(workers) == "rank 2 of 3 ended with exit code -9"
    assert _read_error(workers[:1]) is None


def test_read_error__is_the_cause_rather_than_a_connection_that_was_lost() -> None:
    workers = [
        ended_worker("rank 1 of 3", 1, "RuntimeError: Connection closed by peer"),
        ended_worker("rank 2 of 3", 1, "ValueError: no such bus"),
    ]
    assert _read_error(workers) == "rank 2 of 3 failed: ValueError: no such bus"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus__train_with_synchronised_batch_norm(folder: Path) -> None:
    config = {"model": "vgg7_S", "batch_size": 128, "device": "cuda:0", "augment": False, "amp": False}
    one = run(folder, "one", **config)
    two = run(folder, "two", **config, data_parallel=True)
    assert two.manifest.environment["n_ranks"] == torch.cuda.device_count()
    losses = [found.table("metrics")["train_loss"] for found in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
