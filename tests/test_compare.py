"""`satstore compare --cka`, on small runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import call
from matplotlib.figure import Figure
from tiny import run_tiny

from satstore.cli import compare
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError
from satstore.reports import plots
from satstore.runs.run import Run
from satstore.storage.zarr.latent_reader import LatentSplit


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    logs = tmp_path_factory.mktemp("logs")
    return [run_tiny(logs, seed=seed, stages=["train", "extract"]) for seed in (0, 1)]


def test_compare__names_the_seeds_of_the_runs_at_both_axes(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    words = ["compare", *(run.name for run in runs), "--cka", "--out", tmp_path / "a.png"]
    code, _, err = call(*words, "--logs-dir", runs[0].path.parents[1])
    assert code == 0, err
    axes = figures[0].axes[0]
    labels = [label.replace("\n", " ") for label in (axes.get_ylabel(), axes.get_xlabel())]
    assert labels == [f"TinyNet on TinyImages at 8 px, seed {seed}" for seed in (0, 1)]


def test_compare__writes_the_table_and_a_heat_map(runs: list[Run], tmp_path: Path) -> None:
    names = [run.name for run in runs]
    words = ["compare", *names, "--cka", "--out", tmp_path / "a.png", "--logs-dir", runs[0].path.parents[1]]
    code, out, err = call(*words)
    assert code == 0, err
    assert out.splitlines() == [str(tmp_path / "a.png"), str(tmp_path / "a.csv")]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "a.csv", index_col="layer")
    first, second = (run.latents("pool2", "eval") for run in runs)
    assert [str(layer) for layer in table.index] == ["0"], "the last Linear is not drawn"
    x, y = (split["0"].numpy().astype(np.float64).reshape(20, -1) for split in (first, second))
    x, y = x - x.mean(0), y - y.mean(0)
    shared, own = np.sum((x.T @ y) ** 2), [np.sum((part.T @ part) ** 2) for part in (x, y)]
    assert table.to_numpy()[0, 0] == pytest.approx(shared / np.sqrt(own[0] * own[1]), rel=1e-4)


def test_compare__refuses_other_samples_and_missing_latents(runs: list[Run], tmp_path: Path) -> None:
    logs = runs[0].path.parents[1]
    code, _, err = call("compare", *(run.name for run in runs), "--logs-dir", logs)
    assert code == 2
    assert "say what to compare: --cka" in err
    words = ["compare", *(run.name for run in runs), "--cka", "--logs-dir", logs]
    code, _, err = call(*words, "--pooling", "1")
    assert code == 1
    assert (
        f"has no latents 'pool1' (stored: pool2); write them with: satstore extract --run {runs[0].name} -d 1"
        in err
    )


def test_compare__refuses_runs_of_other_images(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter((np.arange(20), np.arange(20)[::-1]))
    monkeypatch.setattr(LatentSplit, "sample_ids", property(lambda _: next(ids)))
    with pytest.raises(ConfigError, match="have other sample ids: CKA compares layers on the same images"):
        compare.check_samples(runs, LatentsKey("2"), "eval")
