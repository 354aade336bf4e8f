"""The tracker for loops of one's own, beside delve's on the same batches."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from satstore import SaturationTracker
from satstore.errors import ConfigError

STATS = ["lsat", "idim", "det", "trc", "dtrc"]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)
    )


def run_epoch(model: nn.Module, seed: int, n_batches: tuple[int, int] = (4, 2)) -> None:
    generator = torch.Generator().manual_seed(seed)
    for training, n in zip((True, False), n_batches, strict=True):
        model.train(training)
        with torch.no_grad():
            for _ in range(n):
                model(torch.randn(16, 3, 8, 8, generator=generator))


def test_tracker__writes_delves_columns_and_values(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from delve import SaturationTracker as Delve

        model = make_model()
        delve = Delve(str(tmp_path / "delve"), "csv", model, stats=STATS, device="cpu")
        ours = SaturationTracker(str(tmp_path / "ours"), "csv", model, stats=STATS, device="cpu")
        for epoch in range(2):
            run_epoch(model, epoch, (1, 1))  # delve 0.1.50 begins anew with every batch
            for tracker in (delve, ours):
                tracker.add_scalar("accuracy", 0.5 + epoch / 10)
                tracker.add_saturations()
        delve.close()
    ours.close()
    expected = pd.read_csv(tmp_path / "delve.csv", sep=";", index_col=0)
    found = pd.read_csv(tmp_path / "ours.csv", sep=";", index_col=0)
    assert set(found.columns) == set(expected.columns)
    for name in expected:
        rtol = 1e-2 if "determinant" in name else 1e-4  # delve's covariances are float32's
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, err_msg=name)


def test_tracker__exact_definition_is_satstores(tmp_path: Path) -> None:
    model = make_model()
    trackers = [
        SaturationTracker(tmp_path / name, "csv", model, stats=["idim"], definition=name)
        for name in ("delve", "exact")
    ]
    run_epoch(model, 0)
    delve, exact = (tracker.add_saturations() for tracker in trackers)
    assert all(exact[name] >= delve[name] for name in exact)
    assert any(exact[name] == delve[name] + 1 for name in exact)


def test_tracker__stops_resumes_and_lets_go(tmp_path: Path) -> None:
    model = make_model()
    tracker = SaturationTracker(tmp_path / "a", "csv", model)
    tracker.stop()
    run_epoch(model, 0)
    assert tracker.add_saturations() == {}
    tracker.resume()
    run_epoch(model, 0)
    assert set(tracker.add_saturations()) == {
        f"{mode}-saturation_{layer}" for mode in ("train", "eval") for layer in ("0", "4")
    }
    tracker.close()
    run_epoch(model, 0)
    assert tracker.add_saturations() == {}
    assert not any(module._forward_hooks for module in model.modules())


def test_tracker__goes_on_where_it_was(tmp_path: Path) -> None:
    model = make_model()
    for initial_epoch in (0, 1):
        tracker = SaturationTracker(
            tmp_path / "a", ["csv", "npy"], model, stats=["lsat", "cov"], initial_epoch=initial_epoch
        )
        run_epoch(model, initial_epoch)
        tracker.add_saturations()
        tracker.close()
    table = pd.read_csv(tmp_path / "a.csv", sep=";", index_col=0)
    assert len(table) == 2
    assert not [name for name in table if "covariance" in name]
    name = "train-covariance-matrix_0"
    files = sorted((tmp_path / "a" / f"_{name}").iterdir())
    assert [file.name for file in files] == [f"_{name}_epoch0.npy", f"_{name}_epoch1.npy"]
    assert np.load(files[0], allow_pickle=False).shape == (8, 8)


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep=";", index_col=0)


def test_tracker__a_row_is_an_epoch_and_what_is_missing_is_empty(tmp_path: Path) -> None:
    """Evaluated in epochs 1 and 3, stopped in 2, with a scalar that begins in 3."""
    model = make_model()
    tracker = SaturationTracker(tmp_path / "a", ["csv", "npy", "plot"], model)
    returned = []
    for epoch in range(5):
        if epoch == 2:
            tracker.stop()
        if epoch >= 3:
            tracker.add_scalar("accuracy", epoch / 10)
        run_epoch(model, epoch, (2, 1 if epoch in (1, 3) else 0))
        returned.append(tracker.add_saturations())
        tracker.resume()
    table = read_table(tmp_path / "a.csv")
    assert list(table.index) == list(range(5))
    assert [sorted(row) for row in returned] == [
        sorted(name for name in table if name != "accuracy" and np.isfinite(table[name][epoch]))
        for epoch in range(5)
    ]
    for epoch, row in enumerate(returned):
        for name, value in row.items():
            assert table[name][epoch] == pytest.approx(value)
            file = tmp_path / "a" / f"_{name}" / f"_{name}_epoch{epoch}.npy"
            assert np.load(file) == pytest.approx(value)
    assert [sorted(row) for row in returned][2] == []
    assert table["accuracy"].tolist() == pytest.approx([np.nan] * 3 + [0.3, 0.4], nan_ok=True)
    drawn = {path.name for path in tmp_path.glob("a_lsat_*.png")}
    expected = {f"a_lsat_train_epoch_{epoch}.png" for epoch in (0, 1, 3, 4)}
    assert drawn == expected | {f"a_lsat_eval_epoch_{epoch}.png" for epoch in (1, 3)}


def test_tracker__a_row_ends_with_a_save_or_where_it_would_have_a_value_twice(tmp_path: Path) -> None:
    model = make_model()
    tracker = SaturationTracker(tmp_path / "a", "csv", model)
    for epoch in range(3):  # the order of phd-lab's training
        run_epoch(model, epoch, (1, 1))
        tracker.add_saturations(save=False)
        tracker.add_scalar("loss", epoch)
        tracker.save()
        tracker.save()
    assert read_table(tmp_path / "a.csv").notna().all().all()
    assert read_table(tmp_path / "a.csv")["loss"].tolist() == [0, 1, 2]
    for epoch in range(3, 6):  # saved at the end
        tracker.add_scalar("loss", epoch)
        run_epoch(model, epoch, (1, 1))
        tracker.add_saturations(save=False)
    tracker.save()
    assert read_table(tmp_path / "a.csv").notna().all().all()
    assert read_table(tmp_path / "a.csv")["loss"].tolist() == [0, 1, 2, 3, 4, 5]
    again = SaturationTracker(tmp_path / "a", "csv", model, initial_epoch=4)  # the last two are done again
    run_epoch(model, 9)
    again.add_saturations()
    assert read_table(tmp_path / "a.csv")["loss"].tolist() == pytest.approx([0, 1, 2, 3, np.nan], nan_ok=True)


def test_tracker__plots_layers_whose_names_are_no_formulas(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module(r"a$\frac{$", nn.Linear(4, 3))
    tracker = SaturationTracker(tmp_path / "a", "plot", model)
    model(torch.arange(32.0).reshape(8, 4).sin())
    tracker.add_saturations()
    assert (tmp_path / "a_lsat_train_epoch_0.png").read_bytes().startswith(b"\x89PNG")


def test_tracker__plots_prints_and_keeps_to_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    tracker = SaturationTracker(
        tmp_path / "a",
        ["plot", "print"],
        model,
        layer_filter=lambda layers: {name: layer for name, layer in layers.items() if name == "4"},
        max_samples=16,
        log_interval=2,
    )
    run_epoch(model, 0)
    tracker.add_saturations()
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.csv",
        "a_lsat_train_epoch_0.png",
        "a_lsat_eval_epoch_0.png",
    }
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" : ")[0] for line in said] == ["train-saturation_4", "eval-saturation_4"]
    nothing = SaturationTracker(tmp_path / "b", "csv", model, nosave=True, include_conv=False)
    run_epoch(model, 0)
    assert {name.partition("_")[2] for name in nothing.add_saturations()} == {"4"}
    assert not (tmp_path / "b.csv").exists()


def test_tracker__says_of_nan_what_it_is(tmp_path: Path) -> None:
    model = make_model()
    tracker = SaturationTracker(tmp_path / "a", "csv", model)
    model.train()
    model(torch.full((2, 3, 8, 8), float("nan")))
    found = tracker.add_saturations()
    assert all(np.isnan(value) for value in found.values())
    run_epoch(model, 0)
    assert not any(np.isnan(value) for value in tracker.add_saturations().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stats": ["saturation"]}, "no statistic 'saturation'"),
        ({"stats": ["lsat_eval"]}, "no statistic 'lsat_eval'"),
        ({"save_to": "excel"}, "can't save to 'excel'"),
        ({"save_to": [object()]}, "expected a name such as 'csv', or a writer object"),
        ({"conv_method": "median_of_means"}, "conv_method is 'median_of_means'"),
        ({"timeseries_method": "every"}, "timeseries_method is 'every'"),
        ({"interpolation_strategy": "lanczos"}, "interpolation_strategy is 'lanczos'"),
        ({"sat_threshold": 1.5}, "sat_threshold is 1.5"),
        ({"log_interval": 0}, "log_interval is 0"),
        ({"modules": [torch.ones(2)]}, "expected modules to be a torch module"),
        ({"modules": nn.ReLU()}, "no Conv, ConvTranspose, Linear or LSTM layer"),
        ({"ignore_layer_names": ["0", "4"]}, "no layer is left .* called 0, 4"),
    ],
)
def test_tracker__refuses_what_it_does_not_know(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        SaturationTracker(
            **({"savefile": tmp_path / "a", "save_to": "csv", "modules": make_model()} | change)
        )


def test_tracker__covers_all_batches_since_the_last_call(tmp_path: Path) -> None:
    model = make_model()
    tracker = SaturationTracker(tmp_path / "a", "csv", model, stats=["cov"])
    outputs: list[Any] = []
    model[0].register_forward_hook(lambda _module, _input, output: outputs.append(output.detach().double()))
    for seed in (0, 1):
        outputs.clear()
        run_epoch(model, seed)
        samples = torch.cat(outputs[:4]).permute(0, 2, 3, 1).reshape(-1, 8).numpy()
        found = tracker.add_saturations()["train-covariance-matrix_0"]
        np.testing.assert_allclose(found, np.cov(samples.T, bias=True), atol=1e-12)
