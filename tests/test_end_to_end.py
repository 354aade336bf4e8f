"""The demo's run, read back with plain zarr, xarray, NumPy and scikit-learn."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import zarr
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import satstore
from satstore.errors import CorruptError, NotFoundError
from satstore.runs.run import Run
from satstore.training import run_model, session_data


def test_latents__are_a_forward_pass_in_eval_mode_and_dataset_order(demo_run: Run) -> None:
    data = session_data.load_data(demo_run.config)
    model = run_model.load_model(demo_run, 10, torch.device("cpu")).eval()
    outputs: dict[str, torch.Tensor] = {}
    for name in demo_run.layers:
        hook = lambda _m, _i, output, name=name: outputs.update({name: output.detach().clone()})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    root = zarr.open_group(demo_run.latents_path, mode="r")
    for split, images in (("train", data.train_plain), ("eval", data.eval)):
        with torch.no_grad():
            model(images.__getitems__(range(100))[0])
        np.testing.assert_array_equal(root[f"pool4/{split}/label"][...], images.labels)
        np.testing.assert_array_equal(root[f"pool4/{split}/sample_id"][...], images.sample_ids)
        for name, output in outputs.items():
            size = min(4, output.shape[-1]) if output.ndim == 4 else None
            pooled = torch.nn.functional.adaptive_avg_pool2d(output, size) if size else output
            stored = root[f"pool4/{split}/{name}/latent"][:100].astype(np.float32)
            np.testing.assert_allclose(stored, pooled.numpy(), rtol=2e-3, atol=2e-4, err_msg=name)


def test_latents__open_as_a_tree_of_xarray(demo_run: Run) -> None:
    tree = xarray.open_datatree(demo_run.latents_path, engine="zarr", consolidated=False, chunks={})
    layer = tree["pool4/eval/features.0"]
    assert layer["latent"].dims == ("sample", "channel", "y", "x")
    assert layer["latent"].shape == (360, 16, 4, 4)
    np.testing.assert_array_equal(tree["pool4/eval"]["label"], demo_run.latents("pool4", "eval").labels)
    expected = demo_run.latents("pool4", "eval")["features.0"].numpy()
    np.testing.assert_array_equal(layer["latent"], expected)
    assert tree.attrs["run_id"] == "demo"
    assert tree.attrs["layers"] == demo_run.layers
    assert tree.attrs["classes"] == list("0123456789")


def test_analysis__opens_as_a_tree_of_xarray(demo_run: Run) -> None:
    tree = xarray.open_datatree(demo_run.analysis_path, engine="zarr", consolidated=False, chunks={})
    spectra = tree["spectra/train/features.0"]
    assert spectra["eigenvalues"].dims == ("epoch", "eigenvalue")
    assert spectra["covariance"].shape == (16, 16)
    assert tree["probes/pool4/features.0"]["confusion"].values.sum() == 360


def test_latents__dask_reads_what_numpy_does(demo_run: Run) -> None:
    latents = satstore.open_latents(demo_run.latents_path).split("pool4", "train")["features.8"]
    lazy = latents.dask()
    assert lazy.chunks[0][0] % latents.array.chunks[0] == 0 or lazy.numblocks[0] == 1
    np.testing.assert_array_equal(lazy.compute(), latents.numpy())
    np.testing.assert_allclose(latents.mean, latents.numpy().astype(np.float64).mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(latents.std, latents.numpy().astype(np.float64).std(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layer", ["features.22", "classifier.2"])
def test_probe__is_a_minimum_to_its_tolerance_and_its_table_is_of_its_coefficients(
    demo_run: Run, layer: str
) -> None:
    """Computed anew with NumPy from what is stored: objective, gradient, accuracy."""
    train, held_out = (demo_run.latents("pool4", split) for split in ("train", "eval"))
    x, y = train[layer].numpy().reshape(1437, -1).astype(np.float64), train.labels
    row = demo_run.table("probe-pool4").set_index("layer").loc[layer]
    stored = zarr.open_group(demo_run.path / "analysis.zarr" / "probes" / "pool4" / layer, mode="r")
    coef, intercept = stored["coef"][...], stored["intercept"][...]
    logits = x @ coef.T + intercept
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    objective = 0.5 * np.square(coef).sum() - np.log(shares[np.arange(len(y)), y]).sum()
    assert row["objective"] == pytest.approx(objective, rel=1e-5)
    residuals = shares - np.eye(10)[y]
    gradient = np.concatenate([(residuals.T @ x + coef).ravel(), residuals.sum(0)]) / len(y)
    assert row["converged"]
    assert np.abs(gradient).max() <= 1e-4 * 1.01
    x_held_out = held_out[layer].numpy().reshape(360, -1).astype(np.float64)
    guesses = (x_held_out @ coef.T + intercept).argmax(1)
    assert row["eval_accuracy"] == (guesses == held_out.labels).mean()


@pytest.mark.parametrize("layer", ["features.22", "classifier.2"])
def test_probe__is_scikit_learns(demo_run: Run, layer: str) -> None:
    """Both close to the one minimum: at the tolerance of the tables, a few test digits are between them."""
    train, held_out = (demo_run.latents("pool4", split) for split in ("train", "eval"))
    x, y = train[layer].numpy().reshape(1437, -1).astype(np.float64), train.labels
    with (
        warnings.catch_warnings(),
        threadpool_limits(1),
    ):  # on a busy machine, its threads wait for each other
        warnings.simplefilter("ignore")
        peer = LogisticRegression(C=1.0, tol=1e-7, max_iter=10_000).fit(x, y)
    found = satstore.LogisticProbe(tol=1e-7, max_iter=10_000).fit(train[layer].rows(), y)
    x_held_out = held_out[layer].numpy().reshape(360, -1).astype(np.float64)
    expected = peer.predict_proba(x_held_out)
    np.testing.assert_allclose(found.predict_proba(x_held_out), expected, atol=1e-2)
    np.testing.assert_allclose(found.coef_, peer.coef_, atol=1e-2)


def test_run__opens_by_its_id(demo_logs: Path, demo_run: Run) -> None:
    run = satstore.open_run("demo", demo_logs)
    assert run.path == demo_run.path
    assert [found.name for found in satstore.list_runs(demo_logs) if found.run_id == "demo"] == [run.name]
    assert list(run.table("probe-pool4")["layer"]) == run.layers
    assert len(run.plot().axes) == 1


def test_latents__that_are_not_there_name_the_command(demo_run: Run) -> None:
    with pytest.raises(NotFoundError, match=rf"satstore extract --run {demo_run.name} -d 7"):
        demo_run.latents("pool7", "train")


def test_latents__a_lost_shard_is_an_error(demo_copy: Path) -> None:
    [run] = satstore.list_runs(demo_copy)
    shards = (run.latents_path / "pool4/eval/features.0/latent/c").rglob("*")
    next(path for path in shards if path.is_file()).unlink()
    with pytest.raises(
        CorruptError, match=r"is committed but not there; write it again with: satstore extract"
    ):
        run.latents("pool4", "eval")
