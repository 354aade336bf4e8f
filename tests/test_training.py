"""Training: what an epoch records, exact resuming, and what is refused."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import satstore
from held import CONFIG as HELD
from held import Held
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.utils.data import DataLoader

from satstore.analysis.spectrum import eigenvalues
from satstore.capture.recorders import MomentRecorder
from satstore.config.grid import read_config
from satstore.datasets.worker_failures import explaining_lost_workers
from satstore.errors import ConfigError, CorruptError, DeviceError, MemoryLimitError, NumericsError
from satstore.registry import MODELS
from satstore.reports.run_curves import read_curves
from satstore.runs.events import Event
from satstore.runs.logs_folder import make_run, open_run
from satstore.runs.run import Run
from satstore.stages.extract import write
from satstore.stages.pipeline import run_experiments
from satstore.storage.zarr import AnalysisStore
from satstore.training import devices, loop, run_model, session, session_data
from tui.layers import View, describe_values, make_columns, make_curves, make_layer_rows

# Small, with dropout, batch normalisation and augmentation: everything that draws random numbers.
CONFIG: dict[str, Any] = {
    "model": "vgg5",
    "dataset": "Digits",
    "epoch": 4,
    "batch_size": 128,
    "optimizer": "lrs",
    "device": "cpu",
    "metrics": ["Accuracy", "Top5Accuracy", "MCC"],
}


FEW: dict[str, Any] = {**CONFIG, "dataset": "FewDigits", "plugins": ["few_digits"], "resolution": 16}
"""The same of fewer images, for what needs no augmentation."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    logs = tmp_path_factory.mktemp("trained")
    [run] = run_experiments({**FEW, "epoch": 2}, "res", ["train"], logs_dir=logs)
    run.reload()
    return run


def test_train__metrics_are_those_of_the_whole_split(trained: Run) -> None:
    config = trained.config
    data = session_data.load_data(config)
    model = run_model.load_model(trained, 10, torch.device("cpu")).eval()
    with torch.no_grad():
        logits = model(data.eval.__getitems__(range(len(data.eval)))[0])
    row = trained.table("metrics").iloc[-1]

    assert len(data.eval) % config.batch_size, "the last batch has to be smaller for this to show anything"
    assert row["eval_accuracy"] == accuracy_score(data.eval.labels, logits.argmax(1))
    expected = log_loss(data.eval.labels, logits.double().softmax(1))
    np.testing.assert_allclose(row["eval_loss"], expected, rtol=1e-5)
    assert trained.manifest.summary.test_accuracy == row["eval_accuracy"]


def test_train__eval_spectra_are_numpys_on_the_concatenated_activations(trained: Run) -> None:
    data = session_data.load_data(trained.config)
    model = run_model.load_model(trained, 10, torch.device("cpu")).eval()
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda _m, _i, output, name=name: seen.update({name: output.double()})
            )
    with torch.no_grad():
        model(data.eval.__getitems__(range(len(data.eval)))[0])
    table = trained.saturation(delta=0.99, split="eval")
    found = table[table["epoch"] == 1].set_index("layer")["intrinsic_dimension"]

    assert list(found.index) == [record.layer for record in trained.manifest.layers] == list(seen)
    for name, output in seen.items():
        features = output.movedim(1, -1).reshape(-1, output.shape[1]).numpy()
        spectrum = np.sort(np.linalg.eigvalsh(np.cov(features.T, bias=True)))[::-1]
        stored = AnalysisStore(trained.analysis_path).spectra("eval")[name][1]
        np.testing.assert_allclose(stored, spectrum, rtol=1e-4, atol=1e-6 * spectrum.sum())
        smallest = next(k for k in range(1, len(spectrum) + 1) if spectrum[:k].sum() >= 0.99 * spectrum.sum())
        assert found[name] == smallest, name


def test_train__checkpoint_holds_plain_types_only(trained: Run) -> None:
    state = torch.load(io.BytesIO(trained.read_file("checkpoint.pt")), weights_only=True)

    assert {"model", "optimizer", "scheduler", "epoch", "history", "loader", "rng"} == set(state)
    assert state["epoch"] == 2


def test_train__last_moments_belong_to_the_last_spectra(trained: Run) -> None:
    analysis = AnalysisStore(trained.analysis_path)
    for layer, spectra in analysis.spectra("train").items():
        _, covariance = analysis.moments("train", layer)
        np.testing.assert_allclose(np.trace(covariance), spectra[-1].sum(), rtol=1e-6)


def check_same(one: Run, other: Run, *checkpoints: str) -> None:
    """Check that two runs have the same bits."""
    assert one.read_file("metrics.csv") == other.read_file("metrics.csv")
    for name in ("checkpoint.pt", *checkpoints):
        states = [torch.load(io.BytesIO(run.read_file(name)), weights_only=True) for run in (one, other)]
        assert_equal(*states)
    for split in ("train", "eval"):
        spectra = [AnalysisStore(run.analysis_path).spectra(split) for run in (one, other)]
        assert spectra[0].keys() == spectra[1].keys()
        for layer in spectra[0]:
            np.testing.assert_array_equal(spectra[0][layer], spectra[1][layer])


def test_train__interrupted_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = {**FEW, "epoch": 3, "latent_epochs": [0]}

    def interrupt(event: Event) -> None:
        if event.kind == "message" and event.text.startswith("epoch 2/3"):
            raise KeyboardInterrupt

    words: dict[str, Any] = {"logs_dir": tmp_path, "latents": False}
    with pytest.raises(KeyboardInterrupt):
        run_experiments(config, "parts", ["train"], listener=interrupt, **words)
    stopped = open_run("parts", tmp_path)
    assert (stopped.manifest.summary.epochs_done, stopped.status("train")) == (2, "cancelled")
    for run_id in ("parts", "whole"):
        run_experiments(config, run_id, ["train"], **words)
    parts, whole = (open_run(run_id, tmp_path) for run_id in ("parts", "whole"))
    check_same(parts, whole, "checkpoint-epoch0.pt")


@pytest.mark.long
def test_train__killed_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    """In the midst of its third epoch; each has twelve batches of training and three of evaluation."""
    config = tmp_path / "config.json"
    content = {**CONFIG, "plugins": ["held"], "model": "HeldVgg", "workers": 2, "latent_epochs": [1, 2]}
    config.write_text(json.dumps(content))
    at = f"batch {2 * (12 + 3) + 3}"
    words = ["train", "--config", config, "--logs-dir", tmp_path, "--no-latents"]
    with Held(tmp_path / "held", at, *words, "--run-id", "killed") as held:
        held.wait_for(at)
        held.process.kill()
        held.end()  # workers have to end with the process that was killed
    killed = open_run("killed", tmp_path)
    assert killed.manifest.summary.epochs_done == 2
    assert killed.status("train") == "failed"

    for run_id in ("killed", "whole"):
        result = satstore(*words, "--run-id", run_id)
        assert result.returncode == 0, result.stderr
    killed, whole = (open_run(run_id, tmp_path) for run_id in ("killed", "whole"))
    check_same(killed, whole, "checkpoint-epoch1.pt", "checkpoint-epoch2.pt")


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


@pytest.mark.long
def test_train__second_start_of_a_running_run_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(HELD))
    words = ["train", "--config", config, "--run-id", "res", "--logs-dir", tmp_path, "--no-latents"]
    with Held(tmp_path / "held", "batch 3", *words) as first:
        first.wait_for("batch 3")
        second = satstore(*words)

    assert second.returncode == 1
    [line] = [line for line in second.stderr.splitlines() if "importing the plugin" not in line]
    assert f"is being written by process {first.process.pid}" in line


class OneBadLayer(nn.Module):
    """A net with a side branch whose output is NaN and goes nowhere."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.bad = nn.Conv2d(4, 2, 1)
        self.fc = nn.Linear(4, num_classes)
        nn.init.constant_(self.bad.weight, float("nan"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x)
        self.bad(maps.detach())
        return self.fc(maps.mean((2, 3)))


@pytest.fixture
def _bad_models() -> Any:
    if "OneBadLayer" not in MODELS:
        MODELS.register("OneBadLayer")(OneBadLayer)


@pytest.mark.usefixtures("_bad_models")
def test_train__a_layer_with_nan_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    config = {**CONFIG, "model": "OneBadLayer", "epoch": 1, "optimizer": "sgd"}
    [run] = run_experiments(config, "res", ["train", "saturation", "extract", "probe"], logs_dir=tmp_path)
    run.reload()

    values = 128 * 2 * 8 * 8
    assert (
        f"train: layer bad: {values} values are NaN or infinite in batch 0 of the train pass of epoch 1; "
        "it has no spectrum there" in run.manifest.warnings
    )
    table = run.table("saturation").set_index(["split", "layer"])["saturation"]
    assert np.isnan(table["train", "bad"])
    assert table["train", "conv"] > 0
    assert run.manifest.summary.saturation["bad"] is None
    probes = run.table("probe-pool4").set_index("layer")
    assert list(probes.index) == ["conv", "bad", "fc"]
    assert "NaN" in probes.loc["bad", "error"] or "finite" in probes.loc["bad", "error"]
    assert probes.loc["conv", "eval_accuracy"] > 0.3

    # In the terminal app, too, it is told from a layer that nothing was measured of.
    data = read_curves(run.path)
    view = View(0, data.deltas.index(0.99), (0, 1, 2), cursor=1)
    columns = make_columns(["pool4"])
    cells = {column.key: [column.cell(row) for row in make_layer_rows(data, view)] for column in columns}
    assert cells["saturation"][1] == cells["saturation_eval"][1] == cells["pool4"][1] == "✗"
    assert all(text.endswith("%") for text in cells["saturation"][::2] + cells["pool4"][::2])
    assert describe_values(data, view, 200).plain.count("✗") == 3
    crosses = [curve for curve in make_curves(data, view) if not curve.is_line]
    assert [list(curve.x) for curve in crosses] == [[1]] * 3


def test_train__a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    class Diverging(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.fc = nn.Linear(3, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.mean((2, 3))) * float("inf")

    if "Diverging" not in MODELS:
        MODELS.register("Diverging")(Diverging)
    config = {**CONFIG, "model": "Diverging", "epoch": 1}
    with pytest.raises(NumericsError, match="the train loss is nan in batch 0 of epoch 1"):
        run_experiments(config, "res", ["train"], logs_dir=tmp_path)
    [run] = [open_run("res", tmp_path)]
    assert run.status("train") == "failed"


def test_train__stops_at_the_accuracy_asked_for(tmp_path: Path) -> None:
    config = {**FEW, "stop_at_accuracy": 0.05}
    [run] = run_experiments(config, "res", ["train"], logs_dir=tmp_path, latents=False)
    run.reload()

    assert run.manifest.summary.epochs_done == 1
    assert (run.manifest.summary.test_accuracy or 0) >= 0.05
    assert run.status("train") == "done"
    spectra = AnalysisStore(run.analysis_path).spectra("eval")["features.0"]
    assert len(spectra) == 1
    assert np.isfinite(spectra).all()


def test_train__checkpoint_of_another_model_is_refused(trained: Run, tmp_path: Path) -> None:
    run = make_run(tmp_path, "res", trained.config.model_copy(update={"model": "vgg6"}))
    run.commit({"checkpoint.pt": trained.read_file("checkpoint.pt")})
    with pytest.raises(CorruptError, match=r"checkpoint\.pt is of another model than vgg6: size mismatch"):
        loop.train(run, torch.device("cpu"))

    (run.path / "checkpoint.pt").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(CorruptError, match=r"checkpoint\.pt is not what was committed"):
        loop.train(run, torch.device("cpu"))


def test_train__a_checkpoint_that_would_run_code_is_refused(trained: Run, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    content = io.BytesIO()
    torch.save({"model": Payload()}, content)
    run = make_run(tmp_path, "res", trained.config)
    run.commit({"checkpoint.pt": content.getvalue()})
    with pytest.raises(CorruptError, match="holds more than tensors"):
        run_model.load_model(run, 10, torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_train__other_data_under_the_same_name_is_refused(trained: Run, tmp_path: Path) -> None:
    run = make_run(tmp_path, "res", trained.config)
    assert trained.manifest.dataset is not None
    other = trained.manifest.dataset.model_copy(update={"fingerprint": "0" * 64})
    run.commit(change=lambda manifest: setattr(manifest, "dataset", other))
    with pytest.raises(CorruptError, match="was trained on other data than FewDigits"):
        loop.train(run, torch.device("cpu"))


def test_train__batch_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 1436 leaves a batch of one of 1437 training images"):
        run_experiments({**CONFIG, "batch_size": 1436}, "res", ["train"], logs_dir=tmp_path)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", "cuda:x"])
def test_choose_device__refuses_what_is_not_there(name: str) -> None:
    with pytest.raises(DeviceError, match=name):
        devices.choose_device(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train__works_on_a_gpu(tmp_path: Path) -> None:
    [run] = run_experiments({**CONFIG, "device": None}, "gpu", ["train", "probe"], logs_dir=tmp_path)
    run.reload()
    assert run.manifest.environment["device"] == "cuda:0"
    assert run.manifest.summary.epochs_done == 4
    assert all(run.table("probe-pool4")["converged"])


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        pytest.param(
            "cuda:0",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_spectra__of_the_same_weights_are_those_that_were_stored(trained: Run, name: str) -> None:
    device = torch.device(name)
    data = session_data.load_data(trained.config)
    model = run_model.load_model(trained, 10, device).eval()
    layers = run_model.recorded_layers(trained, model)
    with MomentRecorder(layers) as recorder, torch.no_grad():
        recorder.begin("eval")
        recorder.next_batch()
        images = data.eval.__getitems__(range(len(data.eval)))[0]
        model(images.to(device, memory_format=torch.channels_last))
    stored = AnalysisStore(trained.analysis_path).spectra("eval")
    for layer, moments in recorder.results().items():
        spectrum = eigenvalues(moments.covariance().cpu().numpy())
        np.testing.assert_allclose(spectrum, stored[layer][-1], rtol=1e-3, atol=1e-4 * spectrum.sum())


@pytest.mark.parametrize(
    ("method", "features"),
    [
        ("channelwise", 32),
        ("mean", 32),
        pytest.param("max", 32, marks=pytest.mark.long),
        pytest.param("median", 32, marks=pytest.mark.long),
        ("flatten", 32 * 2 * 2),
    ],
)
def test_train__records_convs_as_the_config_says(method: str, features: int, tmp_path: Path) -> None:
    config = {
        **FEW,
        "epoch": 1,
        "conv_method": method,
        "downsampling": 2,
        "downsampling_method": "average",
    }
    [run] = run_experiments({**config, "model": "vgg7_S"}, "res", ["train"], logs_dir=tmp_path, latents=False)
    spectra = AnalysisStore(run.analysis_path).spectra("eval")
    assert spectra["features.0"].shape == (1, features)
    data = session_data.load_data(run.config)
    model = run_model.load_model(run, 10, torch.device("cpu")).eval()
    with torch.no_grad():
        maps = model.features[0](data.eval.__getitems__(range(len(data.eval)))[0])
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 2).flatten(2).double()
    samples = {
        "channelwise": pooled.transpose(1, 2).flatten(0, 1),
        "mean": pooled.mean(2),
        "max": pooled.amax(2),
        "median": pooled.sort(2).values[:, :, 1],  # of four the lower of the middle ones
        "flatten": pooled.flatten(1),
    }[method]
    expected = np.linalg.eigvalsh(np.cov(samples.T.numpy(), bias=True))[::-1]
    np.testing.assert_allclose(spectra["features.0"][0], expected, rtol=2e-3, atol=1e-5 * expected.sum())


def test_train__refuses_covariances_that_memory_does_not_suffice_for(tmp_path: Path) -> None:
    config = {**CONFIG, "model": "vgg5", "epoch": 1, "conv_method": "flatten"}
    expected = r"memory are needed for covariances, most of it for layer features.0 of 65,536 features"
    with pytest.raises(MemoryLimitError, match=expected):
        run_experiments(config, "res", ["train"], logs_dir=tmp_path, latents=False)
    assert not list(tmp_path.glob("res/*/checkpoint.pt"))


def test_train__spectra_of_some_batches_are_delves_keys(tmp_path: Path) -> None:
    """delve's names for its methods mean the same experiment as ours."""
    one, two = (
        read_config({**CONFIG, "timeseries_method": method})[0] for method in ("every", "timestepwise")
    )
    assert one.digest == two.digest


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (2 * 2**30, 2), (2**20, 1), (16 * 2**30, 8)])
def test_choose_workers__leaves_half_of_a_memory_limit(
    limit: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_data, "count_cores", lambda: 16)
    [config] = read_config({"dataset": "Digits"})
    assert session_data.choose_workers(config, False, limit) == expected
    assert session_data.choose_workers(config, True, limit) == 0
    assert session_data.choose_workers(config.model_copy(update={"workers": 5}), False, limit) == 5


class Dying(DataLoader[Any]):
    """A loader whose process is killed, in torch's words: a real one takes seconds to start."""

    words = ""

    def __iter__(self) -> Any:
        raise RuntimeError(self.words)


@pytest.mark.parametrize(
    "words",
    [
        "DataLoader worker (pid 7) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
        "are out of shared memory. Please try to raise your shared memory limit.",
    ],
)
@pytest.mark.parametrize("stage", ["train", "extract"])
def test_stage__says_what_to_lower_where_a_loader_process_was_killed(
    trained: Run, stage: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_dying(split: Any, batch_size: int, **_: object) -> Dying:
        return Dying(split, batch_size)

    shutil.copytree(trained.path, tmp_path / "res" / trained.experiment)
    monkeypatch.setattr(Dying, "words", words)
    monkeypatch.setattr(session, "make_loader", make_dying)
    monkeypatch.setattr(write, "make_loader", make_dying)
    with pytest.raises(MemoryLimitError, match="a process that reads batches died") as raised:
        run_experiments({**FEW, "epoch": 2}, "res", [stage], logs_dir=tmp_path, overwrite=True)
    assert str(raised.value).endswith(
        "lower the config's workers, or its batch_size, and give the same command again"
    )
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("is_cause", [True, False])
def test_explaining_lost_workers__finds_them_behind_what_came_of_them(is_cause: bool) -> None:
    @explaining_lost_workers("lower it")
    def read() -> None:
        try:  # the handler of a signal raises it, in the midst of an import
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        except RuntimeError as error:
            raise ConfigError("metric 'Accuracy' can't be loaded") from (error if is_cause else None)

    with pytest.raises(MemoryLimitError, match=r"a process that reads batches died \(DataLoader worker"):
        read()


def test_explaining_lost_workers__leaves_other_errors_as_they_are() -> None:
    with pytest.raises(ConfigError, match="unknown"), explaining_lost_workers("lower it"):
        raise ConfigError("unknown") from ValueError("number")
