"""Projections: their mathematics, their hooks, and the stage on a trained run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import satstore
from tiny import CONFIG as TINY
from torch import nn

from satstore.analysis.projection import DELTAS, decompose, random_basis
from satstore.capture.layers import select_layers
from satstore.capture.projection_hook import projected
from satstore.errors import ConfigError, NumericsError
from satstore.runs.run import Run
from satstore.stages.pipeline import make_tasks, run_experiments, run_stages
from satstore.storage.zarr import AnalysisStore
from satstore.training.evaluation import ModelEvaluation
from satstore.training.run_model import load_model
from satstore.training.session_data import load_data


def test_deltas__are_those_of_the_experiments() -> None:
    assert len(DELTAS) == 24
    assert DELTAS[:10] == (0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
    assert DELTAS[10:15] == (0.992, 0.994, 0.996, 0.998, 0.999)
    assert DELTAS[15:] == (0.9991, 0.9992, 0.9993, 0.9994, 0.9995, 0.9996, 0.9997, 0.9998, 0.9999)


def test_decompose__axes_explain_what_they_should() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((500, 8)) * np.array([5, 3, 1, 0.5, 0.1, 0.1, 0.1, 0.1])
    samples @= np.linalg.qr(rng.standard_normal((8, 8)))[0]
    axes = decompose(np.cov(samples.T, bias=True))
    centred = samples - samples.mean(0)
    for delta in (0.5, 0.9, 0.99, 1.0):
        basis = axes.basis(delta)
        assert basis.shape == (8, axes.dimension(delta))
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
        kept = np.square(centred @ basis).sum() / np.square(centred).sum()
        fewer = np.square(centred @ basis[:, :-1]).sum() / np.square(centred).sum()
        assert fewer < delta <= kept + 1e-12
    with pytest.raises(NumericsError, match="no principal axes"):
        decompose(np.full((2, 2), np.nan))


def test_random_basis__is_orthonormal_and_its_seeds_own() -> None:
    basis = random_basis(20, 7, (3, 1))
    np.testing.assert_allclose(basis.T @ basis, np.eye(7), atol=1e-12)
    assert np.array_equal(basis, random_basis(20, 7, (3, 1)))
    assert not np.array_equal(basis, random_basis(20, 7, (3, 2)))
    # Of a uniformly distributed subspace, the expected projection is k/n of the identity.
    mean = np.mean([b @ b.T for b in (random_basis(5, 2, (0, n)) for n in range(3000))], axis=0)
    np.testing.assert_allclose(mean, 0.4 * np.eye(5), atol=0.03)


@pytest.mark.parametrize(
    ("module", "shape", "n_features"),
    [
        (nn.Conv2d(3, 6, 3), (2, 3, 8, 8), 6),
        (nn.Conv2d(3, 6, 3), (2, 3, 8, 8), 6 * 6 * 6),  # the flattened map
        (nn.Linear(5, 6), (4, 5), 6),
        (nn.Linear(5, 6), (4, 7, 5), 6),  # tokens
        (nn.Linear(5, 6), (4, 2, 3, 5), 6),
    ],
)
def test_projected__outputs_are_numpys(module: nn.Module, shape: tuple[int, ...], n_features: int) -> None:
    x = torch.randn(shape)
    output = module(x).detach()
    basis, mean = random_basis(n_features, 3, (0,)), np.linspace(-1, 1, n_features)
    tensors = (torch.from_numpy(basis @ basis.T).float(), torch.from_numpy(mean).float())
    with projected({"layer": module}, {"layer": tensors}):
        found = module(x).detach()
    assert torch.equal(module(x).detach(), output), "hooks are gone"
    if n_features > 6:
        flat, back = output.flatten(1).numpy(), found.flatten(1).numpy()
    elif isinstance(module, nn.Conv2d):
        flat, back = (t.movedim(1, -1).reshape(-1, 6).numpy() for t in (output, found))
    else:
        flat, back = (t.reshape(-1, 6).numpy() for t in (output, found))
    np.testing.assert_allclose(back, mean + (flat - mean) @ basis @ basis.T, rtol=1e-4, atol=1e-5)


@pytest.fixture
def run(demo_copy: Path) -> Run:
    """A copy of the demo's run, trained to 95 %."""
    [manifest] = demo_copy.glob("demo/*/manifest.json")
    return Run(manifest.parent)


def start(run: Run, *words: object) -> pd.DataFrame:
    result = satstore(
        "project", "--run", "demo", "--device", "cpu", "--logs-dir", run.path.parents[1], *words
    )
    assert result.returncode == 0, result.stderr
    return Run(run.path).table("projection")


def test_project__without_projection_is_the_models_own_and_little_variance_is_little_accuracy(
    run: Run,
) -> None:
    table = start(run, "--delta", "0.3", "--delta", "0.999", "--delta", "1.0")
    own = run.table("metrics").iloc[-1]
    none = table[table["mode"] == "none"].iloc[0]
    assert none["eval_accuracy"] == own["eval_accuracy"] == run.manifest.summary.test_accuracy
    assert none["eval_loss"] == own["eval_loss"]
    pca = table[table["mode"] == "pca"].set_index("delta")
    assert pca.loc[1.0, "eval_accuracy"] == none["eval_accuracy"]
    assert pca.loc[0.3, "eval_accuracy"] < 0.5 < 0.9 < pca.loc[0.999, "eval_accuracy"]
    # Intrinsic dimensions are those of the spectra.
    expected = run.saturation(delta=0.999, split="train")
    expected = expected[expected["epoch"] == expected["epoch"].max()].set_index("layer")
    for layer in run.layers:
        assert pca.loc[0.999, layer] == expected.loc[layer, "intrinsic_dimension"]

    # More rows are added to the same table, and what is there stays.
    more = start(run, "--delta", "0.999", "--mode", "random", "--seed", "7")
    assert len(more) == len(table) + 1
    random = more[more["mode"] == "random"].iloc[0]
    assert (random["seed"], random["delta"]) == (7, 0.999)
    assert random["eval_accuracy"] < pca.loc[0.999, "eval_accuracy"]
    assert (random[run.layers] == pca.loc[0.999, run.layers]).all()
    pd.testing.assert_frame_equal(
        more[more["mode"] != "random"].reset_index(drop=True), table, check_dtype=False
    )


def test_project__of_one_layer_is_what_a_hook_gives(run: Run) -> None:
    table = start(run, "--delta", "0.8", "--layers", "features.8")
    data = load_data(run.config)
    model = load_model(run, 10, torch.device("cpu")).eval()
    mean, covariance = AnalysisStore(run.analysis_path).moments("train", "features.8")
    values, vectors = np.linalg.eigh(covariance)
    k = int((np.cumsum(values[::-1]) / values.sum() < 0.8).sum()) + 1
    basis = torch.from_numpy(vectors[:, ::-1][:, :k].copy()).float()
    point = torch.from_numpy(mean).float()[None, :, None, None]

    def hook(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        return point + torch.einsum("bchw,cd,ed->behw", output - point, basis, basis)

    select_layers(model)["features.8"].module.register_forward_hook(hook)
    images, labels = data.eval.__getitems__(range(len(data.eval)))
    with torch.no_grad():
        logits = model(images)
    row = table[table["mode"] == "pca"].iloc[0]
    assert row["features.8"] == k
    assert row[[layer for layer in run.layers if layer != "features.8"]].isna().all()
    assert row["eval_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()), abs=1e-6)
    assert row["eval_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-3)


def test_project__goes_on_where_it_was_and_is_found_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = ModelEvaluation.measure, []

    def interrupt(evaluation: ModelEvaluation) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(evaluation)

    monkeypatch.setattr(ModelEvaluation, "measure", interrupt)
    plan = make_tasks(["project"], {"delta": (0.9, 0.99, 0.999), "device": "cpu"})
    with pytest.raises(KeyboardInterrupt):
        run_stages([Run(run.path)], plan, with_needs=False)
    assert len(Run(run.path).table("projection")) == 2
    [outcome] = run_stages([Run(run.path)], plan, with_needs=False)
    assert outcome.result == "done", outcome.error
    assert list(Run(run.path).table("projection")["delta"].fillna(0)) == [0, 0.9, 0.99, 0.999]
    [outcome] = run_stages([Run(run.path)], plan, with_needs=False)
    assert outcome.result == "skipped"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--delta", "0"], "--delta: input should be greater than 0, found '0'"),
        (["--delta", "1.1"], "--delta: input should be less than or equal to 1"),
        (["--layers", "nothing"], "has no layer left by --layers 'nothing'"),
        (["--mode", "other"], "--mode: input should be 'pca' or 'random', found 'other'"),
    ],
)
def test_project__refuses_in_one_line(words: list[str], expected: str, demo_copy: Path) -> None:
    result = satstore("project", "--run", "demo", "--logs-dir", demo_copy, *words)
    assert result.returncode in (1, 2)
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_project__of_maps_that_were_flattened_at_some_positions_is_refused(tmp_path: Path) -> None:
    config = {**TINY, "conv_method": "flatten", "downsampling": 2}
    with pytest.raises(
        ConfigError, match=re.escape("has covariances of flattened maps at 2 positions per axis")
    ):
        run_experiments(config, "res", ["train", "project"], logs_dir=tmp_path, latents=False)


def test_project__flattened_maps_as_a_whole(tmp_path: Path) -> None:
    config = {**TINY, "conv_method": "flatten"}
    [run] = run_experiments(
        config, "res", ["train", "project"], logs_dir=tmp_path, latents=False, delta=(0.9,), layers="0"
    )
    row = Run(run.path).table("projection").iloc[-1]
    assert 0 < row["0"] < 4 * 8 * 8
