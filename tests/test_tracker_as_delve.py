"""The tracker in the place of delve's: its arguments, names, files and writers, beside delve's own."""

import inspect
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from satstore.compat.delve import (
    AbstractWriter,
    CheckLayerSat,
    CSVandPlottingWriter,
    CSVWriter,
    NPYWriter,
    PrintWriter,
    SaturationTracker,
    TensorBoardWriter,
)
from satstore.compat.delve.writers import WRITERS
from satstore.errors import NotFoundError

STATS = ["lsat", "idim", "det", "trc", "dtrc"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # delve's own
        yield


class Net(nn.Module):
    """Layers in submodules, a map of 12 x 12, and three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


class Sequence(nn.Module):
    """An LSTM, and a Linear layer on each of its steps."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=batch_first)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.lstm(x)[0])
        return out


def make(model: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model()


def images(seed: int) -> torch.Tensor:
    return torch.randn(16, 3, 14, 14, generator=torch.Generator().manual_seed(seed))


def sequences(seed: int) -> torch.Tensor:
    return torch.randn(7, 6, 4, generator=torch.Generator().manual_seed(seed))


def run_both(
    folder: Path,
    model: nn.Module,
    batch: Callable[[int], torch.Tensor],
    save_to: str = "csv",
    modules: Any = None,
    **arguments: Any,
) -> tuple[Any, Any]:
    """Record two epochs of a batch per split with delve's tracker and satstore's, and close both."""
    from delve import SaturationTracker as Delve

    modules = model if modules is None else modules
    trackers = [
        tracker(str(folder / name), save_to, modules, **arguments)
        for name, tracker in (
            ("ours", SaturationTracker),
            ("delve", lambda *of, **more: Delve(*of, device="cpu", **more)),
        )
    ]
    for epoch in range(2):
        for training in (True, False):  # delve 0.1.50 begins anew with every batch
            model.train(training)
            with torch.no_grad():
                model(batch(2 * epoch + training))
        for tracker in trackers:
            tracker.add_scalar("accuracy", epoch / 4)
            tracker.add_saturations()
    for tracker in trackers:
        tracker.close()
    return trackers[0], trackers[1]


def assert_same_tables(folder: Path, rtol: float = 1e-4) -> pd.DataFrame:
    ours, delve = (pd.read_csv(folder / f"{name}.csv", sep=";", index_col=0) for name in ("ours", "delve"))
    assert set(ours.columns) == set(delve.columns)
    for name in delve:
        np.testing.assert_allclose(ours[name], delve[name], rtol=rtol, atol=1e-12, err_msg=name)
    return ours


def test_as_delve__takes_its_arguments_in_their_order() -> None:
    from delve import SaturationTracker as Delve

    theirs, ours = (list(inspect.signature(tracker).parameters) for tracker in (Delve, SaturationTracker))
    assert ours[: len(theirs)] == theirs
    assert ours[len(theirs) :] == ["definition"]
    assert CheckLayerSat is SaturationTracker


@pytest.mark.parametrize(
    "arguments",
    [
        {"stats": STATS},
        {"stats": ["lsat", "lsat_eval"], "writer_args": {"figsize": [4, 3]}, "verbose": False},
        {"conv_method": "median", "sat_threshold": 0.9},
        {"interpolation_strategy": "bilinear", "interpolation_downsampling": 5, "stats": ["trc"]},
        {"max_samples": 9, "stats": ["trc"]},
        {"ignore_layer_names": ["classifier-0"]},
        {"layer_filter": lambda layers: {"features-0": layers["features-0"]}},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_as_delve__table_of_a_model_is_delves(arguments: dict[str, Any], tmp_path: Path) -> None:
    run_both(tmp_path, make(Net), images, **arguments)
    assert "train-saturation_features-0" in assert_same_tables(tmp_path, 1e-2) or "trc" in arguments["stats"]


def test_as_delve__layers_in_a_list_have_delves_names(tmp_path: Path) -> None:
    model: Any = make(Net)
    ours, delve = run_both(tmp_path, model, images, modules=[model.features[0], model.classifier[2]])
    assert_same_tables(tmp_path)
    assert list(ours.layers) == list(delve.layers) == ["Module-0-Conv2d", "Module-1-Linear"]


def test_as_delve__models_in_a_list_lose_no_layer(tmp_path: Path) -> None:
    """Both parts have a layer "0", of which delve keeps the second alone."""
    model: Any = make(Net)
    tracker = SaturationTracker(tmp_path / "a", "csv", [model.features, model.classifier], nosave=True)
    assert list(tracker.layers) == ["Module-0-0", "Module-1-0", "2"]
    assert list(tracker.layers.values()) == [model.features[0], model.classifier[0], model.classifier[2]]


def test_as_delve__layers_own_name_is_the_columns(tmp_path: Path) -> None:
    model: Any = make(Net)
    model.features[0].name = "stem"
    run_both(tmp_path, model, images)
    assert "eval-saturation_stem" in assert_same_tables(tmp_path)


@pytest.mark.parametrize("method", ["last_timestep", "timestepwise"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_as_delve__sequences_are_sampled_as_delve_does(
    method: str, batch_first: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(lambda: Sequence(batch_first=batch_first))
    run_both(tmp_path, model, sequences, stats=["trc", "idim"], timeseries_method=method)
    assert_same_tables(tmp_path)
    assert ("the first axis of the outputs of lstm is time" in caplog.text) is not batch_first


@pytest.mark.parametrize("batch_first", [True, False])
def test_tracker__exact_definition_takes_steps_and_tokens_for_what_they_are(
    batch_first: bool, tmp_path: Path
) -> None:
    model: Any = make(lambda: Sequence(batch_first=batch_first))
    tracker = SaturationTracker(tmp_path / "a", "csv", model, stats="cov", nosave=True, definition="exact")
    with torch.no_grad():
        steps = model.lstm(sequences(0))[0]
        tokens = model(sequences(0)).reshape(-1, 3).numpy()
    last = (steps[:, -1] if batch_first else steps[-1]).numpy()
    found = tracker.logs["train-covariance-matrix"]
    # The LSTM ran twice, on the same steps: the same covariance.
    np.testing.assert_allclose(found["lstm"].fix(), np.cov(last.T, bias=True), atol=1e-7)
    np.testing.assert_allclose(found["head"].fix(), np.cov(tokens.T, bias=True), atol=1e-7)


def test_as_delve__arrays_have_delves_files(tmp_path: Path) -> None:
    run_both(tmp_path, make(Net), images, "npy", stats=["cov", "lsat"], writer_args={"zip": False})
    ours, delve = (
        {path.relative_to(tmp_path / name): np.load(path) for path in (tmp_path / name).rglob("*.npy")}
        for name in ("ours", "delve")
    )
    assert ours.keys() == delve.keys()
    for path, value in delve.items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-4, atol=1e-6, err_msg=f"{path}")


def test_as_delve__save_to_has_delves_names() -> None:
    from delve.writers import WRITERS as THEIRS

    assert THEIRS.keys() <= WRITERS.keys()
    assert all(WRITERS[name].__name__ == writer.__name__ for name, writer in THEIRS.items())


def test_as_delve__pictures_have_delves_names(tmp_path: Path) -> None:
    run_both(tmp_path, make(Net), images, "plotcsv", stats=["lsat", "trc"])
    ours, delve = (
        {path.name.removeprefix(name) for path in tmp_path.glob(f"{name}*.png")} for name in ("ours", "delve")
    )
    assert ours == delve
    assert len(ours) == 8


def test_as_delve__delves_own_writers_are_written_to(tmp_path: Path) -> None:
    from delve.writers import CSVWriter as Theirs

    model = make(Net)
    ours = CSVWriter(tmp_path / "ours")
    with SaturationTracker(tmp_path / "a", [Theirs(str(tmp_path / "delve")), ours], model) as tracker:
        for epoch in range(2):
            for training in (True, False):
                model.train(training)(images(epoch))
            tracker.add_scalar("accuracy", epoch)
            tracker.add_scalars("", {"loss": 1 / (1 + epoch)})
            tracker.add_saturations()
    assert len(assert_same_tables(tmp_path)) == 2


def test_writers__stand_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writers: list[AbstractWriter] = [
        CSVandPlottingWriter(tmp_path / "a", primary_metric="accuracy", fontsize=14, figsize=(3, 2)),
        NPYWriter(tmp_path / "a", zip=True),
        PrintWriter(),
    ]
    for writer in writers:
        for epoch in range(2):
            writer.add_scalar("accuracy", torch.tensor([epoch / 2]))
            writer.add_scalars("", {"train-saturation_x": 0.25, "train-saturation_y": epoch})
            writer.save()
        writer.close()
    table = pd.read_csv(tmp_path / "a.csv", sep=";", index_col=0)
    assert table.to_dict("list") == {
        "accuracy": [0, 0.5],
        "train-saturation_x": [0.25, 0.25],
        "train-saturation_y": [0, 1],
    }
    assert (tmp_path / "a_lsat_train_epoch_1.png").exists()
    assert np.load(tmp_path / "a/accuracy/accuracy_epoch1.npy") == 0.5
    assert (tmp_path / "a.zip").exists()
    assert "train-saturation_y : 1" in capsys.readouterr().out


def test_tracker__average_is_of_all_layers_of_a_split(tmp_path: Path) -> None:
    model = make(Net)
    tracker = SaturationTracker(tmp_path / "a", "csv", model, average_sat=True)
    alone = SaturationTracker(
        tmp_path / "b", "csv", model, stats=["trc"], average_sat=True, layerwise_sat=False
    )
    model.train()(images(0))
    found = tracker.add_saturations()
    layers = [value for name, value in found.items() if name.startswith("train-saturation_")]
    assert len(layers) == 3
    assert found["average-train-sat"] == pytest.approx(np.mean(layers))
    assert alone.add_saturations() == {"average-train-sat": pytest.approx(np.mean(layers))}


def test_tracker__embeds_the_last_batch_in_the_plane_of_most_variance(tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    model: Any = make(Net)
    trackers = {
        name: SaturationTracker(tmp_path / name, ["npy", "plot"], model, stats=["embed"], definition=name)
        for name in ("delve", "exact")
    }
    hidden = []
    model.classifier[0].register_forward_hook(lambda _m, _i, output: hidden.append(output.detach().numpy()))
    with torch.no_grad():
        for seed in (0, 1):
            model.train()(images(seed))
    saved = trackers["exact"].logs["train-covariance-matrix"]["classifier-0"].saved_samples
    assert saved is not None
    np.testing.assert_array_equal(saved, hidden[1])
    found = {name: tracker.add_saturations() for name, tracker in trackers.items()}
    everything = np.concatenate(hidden).astype(float)
    expected = PCA(2).fit(everything).transform(hidden[1])
    ours = found["exact"]["train-embedded-sample_classifier-0"]
    np.testing.assert_allclose(np.abs(ours), np.abs(expected), atol=1e-6)
    first = np.cov(everything.T, bias=True)[:2]
    np.testing.assert_allclose(
        found["delve"]["train-embedded-sample_classifier-0"],
        [(first.T @ first @ sample)[:2] for sample in hidden[1]],
        atol=1e-6,
    )
    name = "_train-embedded-sample_classifier-0"
    np.testing.assert_array_equal(np.load(tmp_path / "exact" / name / f"{name}_epoch0.npy"), ours)
    assert (tmp_path / "exact_embed_train_classifier-0_epoch_0.png").exists()


def test_tensorboard__gets_a_step_per_epoch_and_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            calls.append(folder)

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *arguments: calls.append((name, *arguments))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    writer = TensorBoardWriter(tmp_path / "a")
    for value in (0.5, 0.75):
        writer.add_scalars("", {"accuracy": value, "train-covariance-matrix_x": np.eye(2)})
        writer.save()
    writer.close()
    logged = [("add_scalar", "accuracy", 0.5, 0), ("flush",), ("add_scalar", "accuracy", 0.75, 1), ("flush",)]
    assert calls == [str(tmp_path / "a"), *logged, ("close",)]

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(NotFoundError, match="TensorBoard, which isn't installed; install it with"):
        SaturationTracker(tmp_path / "a", "tensorboard", make(Net))


def test_tracker__says_that_it_saw_nothing_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "satstore")
    model = make(Net)

    def says(tracker: SaturationTracker, act: Callable[[], object]) -> str:
        caplog.clear()
        act()
        assert len(caplog.messages) <= 1
        return caplog.text

    tracker = SaturationTracker(tmp_path / "a", "csv", model, log_interval=4)
    assert "none of its 3 layers (features-0, …) was called" in says(tracker, tracker.save)
    assert "none of its 3 layers" in says(tracker, tracker.add_saturations)
    model(images(0))
    assert "log_interval is 4, but its 3 layers were called 3 times" in says(tracker, tracker.add_saturations)
    for seed in range(4):
        model(images(seed))
    assert says(tracker, tracker.add_saturations) == ""
    tracker.stop()
    assert says(tracker, tracker.add_saturations) == ""
    tracker.close()
    assert "the tracker is closed" in says(tracker, tracker.add_saturations)
    assert not tracker.is_recording()


@pytest.mark.parametrize(
    ("how", "first"),
    [
        ("wrapped", "compiled and run"),
        ("in place", "compiled and run"),
        ("in a function", "compiled and run"),
        ("wrapped", "tracked"),
    ],
)
def test_tracker__records_a_compiled_model_whenever_it_was_compiled(
    how: str, first: str, tmp_path: Path
) -> None:
    """Code that was compiled before a hook was added does not call it."""
    torch.compiler.reset()
    model: Any = make(Net)

    def compile_it() -> Any:
        if how == "in place":
            model.compile(backend="eager")
            return model
        return torch.compile(model if how == "wrapped" else lambda x: model(x) + 1, backend="eager")

    if first == "compiled and run":
        run = compile_it()
        run(images(0))
    tracked = run if first == "compiled and run" and how == "wrapped" else model
    tracker = SaturationTracker(tmp_path / "a", "csv", tracked, stats=["cov"], nosave=True)
    if first == "tracked":
        run = compile_it()
    for seed in (0, 1):
        run(images(seed))
    with torch.no_grad():
        maps = model.features[0](torch.cat([images(0), images(1)]))
    tracker.stop()
    samples = maps.movedim(1, -1).reshape(-1, 6).numpy()
    record = tracker.logs["train-covariance-matrix"]["features-0"]
    assert record.moments.count == 2 * len(samples)  # those of this very call, too
    np.testing.assert_allclose(record.fix(), np.cov(samples.T, bias=True), atol=1e-6)
    tracker.close()
    run(images(2))
    assert record.moments.count == 2 * len(samples)
    torch.compiler.reset()
