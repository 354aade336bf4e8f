"""`satstore.record(resume=True)`: killed anywhere, it ends as if it had not been.

The long tier takes a sample of the operations before which it is killed.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import WORKS_S, call
from crashes import Recording, spread
from interrupted_recordings import (
    check_resumed,
    found_by,
    make_loader,
    make_model,
    record_net,
    record_states,
    set_pace,
)
from torch import Tensor

import satstore
from satstore.analysis.moments import Moments
from satstore.errors import ConfigError, MemoryLimitError
from satstore.runs.run import Run
from satstore.storage.zarr import choose_shard_rows


@pytest.fixture(scope="module", autouse=True)
def pace() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        set_pace(patch)
        yield


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    root = tmp_path_factory.mktemp("recorded") / "logs"
    root.mkdir()
    return record_states(root)


@pytest.mark.long
def test_kill__before_any_operation_ends_with_the_same_bits(recording: Recording, tmp_path: Path) -> None:
    assert len(recording.killed) > 500
    for n in spread(list(recording.killed), 40):
        check_resumed(recording, recording.killed[n], tmp_path / str(n))


@pytest.mark.long
def test_kill__of_a_recording_without_an_eval_loader_ends_with_the_same_bits(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    root.mkdir()
    recording = record_states(root, eval_loader=None)
    for n in spread(list(recording.killed), 20):
        check_resumed(recording, recording.killed[n], tmp_path / str(n), eval_loader=None)


class Stopped(Exception):
    """What a loader raises that is interrupted."""


def stopping(batches: list[Any], n: int) -> Iterator[Any]:
    """Yield some batches, then stop."""
    yield from batches[:n]
    raise Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return record_net(tmp_path_factory.mktemp("whole"))


def test_resume__computes_what_is_not_recorded_and_nothing_twice(whole: Run, tmp_path: Path) -> None:
    model, n_passed = make_model(), list[int]()
    with pytest.raises(Stopped):
        record_net(tmp_path, loader=stopping(make_loader(45, 0), 6))
    [left] = tmp_path.glob("res/*")
    assert (left / "recording.pt").exists()
    model.register_forward_pre_hook(
        lambda _module, _inputs, given: n_passed.append(len(given["images"])), with_kwargs=True
    )
    run = record_net(tmp_path, model=model)
    assert found_by(run) == found_by(whole)
    # Of 36 samples, 32 are in whole shards. The layers are described with samples of the first batch.
    n_describing = n_passed.index(6) + 1
    assert n_passed[n_describing:] == [6, 6, 3, 6, 6, 6, 2], "from batch 5 on; then the eval split"
    assert not (left / "recording.pt").exists()


def test_resume__says_the_same_of_values_that_no_probe_takes(tmp_path: Path) -> None:
    batches = [{name: batch[name].clone() for name in ("images", "shift")} for batch in make_loader(45, 0)]
    batches[1]["shift"][2] = torch.nan
    whole = record_net(tmp_path / "whole", loader=batches, eval_loader=None)
    assert sum("values are NaN or infinite" in line for line in whole.manifest.warnings) == 6
    with pytest.raises(Stopped):
        record_net(tmp_path, loader=stopping(batches, 5), eval_loader=None)
    run = record_net(tmp_path, loader=batches, eval_loader=None)
    assert run.manifest.warnings == whole.manifest.warnings
    for layer in run.layers:
        np.testing.assert_array_equal(run.spectra("train")[layer], whole.spectra("train")[layer])
        found, expected = (one.latents("pool2", "train")[layer].numpy() for one in (run, whole))
        assert found.tobytes() == expected.tobytes()


def test_resume__goes_on_in_the_eval_split(whole: Run, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        record_net(tmp_path, eval_loader=stopping(make_loader(20, 1), 2))
    model, n_passed = make_model(), list[int]()
    model.conv.register_forward_hook(lambda _module, _inputs, output: n_passed.append(len(output)))
    assert found_by(record_net(tmp_path, model=model)) == found_by(whole)
    assert n_passed[-3:] == [6, 6, 2], "8 of 12 samples are in a whole shard"
    assert len(n_passed) < 8, "the train split is read alone"


def test_resume__of_a_finished_run_returns_it(whole: Run) -> None:
    before = (whole.path / "manifest.json").read_bytes()
    again = record_net(whole.path.parents[1], loader=make_loader(45, 5))
    assert again.path == whole.path
    assert (whole.path / "manifest.json").read_bytes() == before


def test_record__without_resume_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        record_net(tmp_path, loader=stopping(make_loader(45, 0), 6))
    with pytest.raises(ConfigError, match=r"is there already; go on with resume=True \(--resume\), or under"):
        record_net(tmp_path, resume=False)
    code, out, _ = call("verify", "res", "--logs-dir", tmp_path)
    assert code == 1
    said = " ".join(out.split())
    assert "pool2 is not finished (32 rows of train, 0 rows of eval)" in said
    assert "satstore.record(…, 'res', resume=True)" in said
    assert "label" not in said
    with pytest.raises(ConfigError, match="resume and overwrite exclude each other"):
        record_net(tmp_path, overwrite=True)
    with pytest.raises(Stopped):
        record_net(tmp_path, loader=stopping(make_loader(45, 0), 6), resume=False, overwrite=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_batches", [4, 7])
def test_resume__refuses_a_loader_of_another_order(tmp_path: Path, n_batches: int) -> None:
    batches = make_loader(45, 0)
    with pytest.raises(Stopped):
        record_net(tmp_path, loader=stopping(batches, n_batches))
    others = [batches[0], batches[2], batches[1], *batches[3:]]
    expected = rf"the first {n_batches} batches of loader are not those .* fixed order \(shuffle=False\)"
    for loader in (others, batches[: n_batches - 1]):
        with pytest.raises(ConfigError, match=expected):
            record_net(tmp_path, loader=loader)
    assert record_net(tmp_path).manifest.latents, "what is there is as good as before"


def test_resume__refuses_another_train_loader_once_that_split_is_whole(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        record_net(tmp_path, eval_loader=stopping(make_loader(20, 1), 2))
    longer = [*make_loader(45, 0), make_loader(6, 3)[0]]
    with pytest.raises(ConfigError, match="the first 8 batches of loader are not those recorded so far"):
        record_net(tmp_path, loader=longer)


def test_resume__refuses_other_weights_layers_and_poolings(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        record_net(tmp_path, loader=stopping(make_loader(45, 0), 6))
    model = make_model()
    with torch.no_grad():
        model.conv.bias[0] += 1
    with pytest.raises(ConfigError, match="the model's weights are not those recorded so far"):
        record_net(tmp_path, model=model)
    with pytest.raises(ConfigError, match=r"was begun with pooling \('2',\), not \('1',\)"):
        record_net(tmp_path, pooling=["1"])


class Remembering:
    """A metric whose state is more than numbers."""

    column = "remembered"

    def __init__(self) -> None:
        self.seen: dict[str, int] = {"n": 0}

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.seen["n"] += len(labels)

    def compute(self) -> float:
        return self.seen["n"]


def test_resume__leaves_out_a_metric_that_can_not_be_gone_on_with(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from satstore.training.metrics import start_metrics

    monkeypatch.setattr(
        "satstore.stages.record.passes.start_metrics", lambda names: [*start_metrics(names), Remembering()]
    )
    with pytest.raises(Stopped):
        record_net(tmp_path, loader=stopping(make_loader(45, 0), 6))
    run = record_net(tmp_path)
    row, expected = run.table("metrics").iloc[0], whole.table("metrics").iloc[0]
    assert "train_remembered" not in row
    assert row["eval_remembered"] == 20
    assert row.drop("eval_remembered").to_dict() == expected.to_dict()
    assert any("train_remembered has no value: its state was lost" in line for line in run.manifest.warnings)


def test_resume__counts_its_memory_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satstore.stages.record.passes.choose_shard_rows", choose_shard_rows)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2048), torch.nn.Linear(2048, 2))
    loader = [(torch.rand(8, 4), torch.arange(8) % 2)]
    limit = 150 * 2**20  # of which the state takes twice 32 MiB for products, and as much for waiting rows
    with pytest.raises(MemoryLimitError, match="raise memory_limit"):
        satstore.record(model, loader, "a", memory_limit=limit, resume=True, logs_dir=tmp_path)
    run = satstore.record(model, loader, "a", memory_limit=limit, logs_dir=tmp_path / "without")
    assert run.manifest.latents


def test_moments__go_on_from_their_state_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 24, generator=generator) + 3 for n in (5, 70, 40, 3, 200, 9)]
    whole = Moments()
    for batch in batches:
        whole.update(batch)
    for n_before in range(len(batches)):
        first = Moments()
        for batch in batches[:n_before]:
            first.update(batch)
        resumed = Moments.from_state(first.state(), torch.device("cpu"))
        for batch in batches[n_before:]:
            resumed.update(batch)
        assert torch.equal(resumed.scatter, whole.scatter), n_before
        assert torch.equal(resumed.mean, whole.mean)
    everything = torch.cat(batches).double().numpy()
    np.testing.assert_allclose(whole.covariance().numpy(), np.cov(everything.T, bias=True), atol=1e-5)


KILLED = """
import os, pathlib, signal, sys
import pytest
sys.path.insert(0, sys.argv[2])
from interrupted_recordings import make_loader, record_net, set_pace

def batches():
    for n, batch in enumerate(make_loader(45, 0)):
        if n == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

with pytest.MonkeyPatch.context() as patch:
    set_pace(patch)
    record_net(pathlib.Path(sys.argv[1]), loader=batches())
"""


@pytest.mark.long
def test_resume__in_another_process_after_a_kill(whole: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    killed = subprocess.run(command, capture_output=True, check=False, timeout=WORKS_S)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    [left] = tmp_path.glob("res/*")
    assert (left / "recording.pt").exists()
    assert found_by(record_net(tmp_path)) == found_by(whole)
