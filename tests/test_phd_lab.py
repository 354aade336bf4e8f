"""Imports of phd-lab's logs: trees written by hand in its own layout, quirks included."""

import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import call
from phd_lab_logs import LAYERS, STEM, write_tree

from satstore.compat.phd_lab import import_logs
from satstore.compat.phd_lab.tables import name_table
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import ConfigError, CorruptError, NotFoundError
from satstore.models.build import build_model
from satstore.reports.plots import plot_evolution, plot_layers
from satstore.runs.logs_folder import list_runs
from satstore.runs.verify import Verification
from satstore.stages.pipeline import make_tasks, run_stages
from satstore.storage.zarr import AnalysisStore
from satstore.training.run_model import load_model


def test_import__reads_a_tree_into_a_run_like_any_other(tmp_path: Path) -> None:
    write_tree(tmp_path / "theirs")
    logs = tmp_path / "ours"
    code, out, err = call("import", tmp_path / "theirs", "--logs-dir", logs)
    assert code == 0, err
    [run] = list_runs(logs)
    assert out.split() == [run.name]
    assert run.run_id == "MyRun"
    config = run.config
    assert (config.model, config.dataset, config.resolution, config.optimizer) == (
        "vgg5",
        "Digits",
        32,
        "lrs",
    )
    assert run.manifest.environment["imported_from"] == "phd-lab"
    assert "delve's definition" in run.manifest.warnings[0]
    assert run.layers == ["features.0", "classifier.2", "classifier.6"]
    assert [r.kind for r in run.manifest.layers] == ["Conv2d", "Linear", "Linear"]
    assert [r.n_features for r in run.manifest.layers] == list(LAYERS.values())
    assert run.manifest.summary.test_accuracy == 0.775
    assert run.manifest.summary.saturation["features.0"] == 4 / 64
    assert run.manifest.summary.intrinsic_dimension["classifier.6"] == 6
    metrics = run.table("metrics")
    assert list(metrics["eval_accuracy"]) == [0.555, 0.775]
    assert list(metrics["train_top5_accuracy"]) == [0.9, 0.95]
    assert list(metrics["eval_loss"]) == [1.3, 0.7]
    table = run.table("saturation")
    assert set(table["definition"]) == {"delve"}
    assert len(table) == 2 * 2 * 3
    assert list(run.probe_tables()) == ["pool2", "pool4"]
    probes = run.table("probe-pool4")
    assert list(probes["layer"]) == run.layers, "in forward order"
    assert list(probes["eval_accuracy"]) == [0.7, 0.85, 0.97], "fractions, as they were"
    projection = run.table("projection")
    assert list(projection["mode"]) == ["pca", "none"]
    assert list(projection["eval_accuracy"]) == [0.2, 0.775]
    assert list(run.table("receptive_field")["receptive_field_max"]) == [3.0]
    for stage in ("train", "saturation", "probe", "receptive_field", "project"):
        assert run.status(stage) == "done"
    assert [f for f in Verification(run).findings() if f.is_wrong] == []
    lines = {str(line.get_label()) for line in plot_layers(run).axes[0].get_lines()}
    assert {"saturation", "probe accuracy (pool4)", "model accuracy 77.5%"} <= lines
    assert len(plot_evolution(run).axes) == 2
    for words in (["ls"], ["show", "MyRun"], ["show", "MyRun", "--advice"], ["status"]):
        code, out, err = call(*words, "--logs-dir", logs)
        assert code == 0, err
        assert "MyRun" in out or "VGG5" in out
    model = load_model(run, 10, torch.device("cpu"))
    assert set(model.state_dict()) == set(build_model("vgg5", 10, 32).state_dict())


def test_import__without_weights_config_and_probes_takes_what_there_is(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "theirs")
    for path in folder.iterdir():
        if path.name != f"{STEM}.csv":
            path.unlink()
    [run] = import_logs(tmp_path / "theirs", tmp_path / "ours", "other")
    assert run.name.startswith("other/VGG5-Digits-r32-bs128-e2")
    assert [r.kind for r in run.manifest.layers] == ["Conv2d", "Linear", "Linear"]
    assert [r.n_features for r in run.manifest.layers] == list(LAYERS.values()), (
        "from dimension and saturation"
    )
    assert any("the config is what the file's name says" in line for line in run.manifest.warnings)
    assert run.status("probe") == "missing"


def test_import__marks_a_layer_of_nan(tmp_path: Path) -> None:
    nan = {f"train-{what}_features-0": [0.1, math.nan] for what in ("saturation", "intrinsic-dimensionality")}
    write_tree(tmp_path / "theirs", columns=nan)
    [run] = import_logs(tmp_path / "theirs", tmp_path / "ours")
    assert run.manifest.summary.saturation["features.0"] is None
    assert run.manifest.summary.saturation["classifier.2"] is not None


def test_import__reads_pixelwise_probes_by_position(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "theirs")
    names = [f"train-features-0_({y}, {x})" for y in range(2) for x in range(2)]
    table = {"name": names, "train_acc": [0.5] * 4, "eval_acc": [0.1, 0.2, 0.3, 0.4]}
    pd.DataFrame(table).to_csv(folder / "perpixel_probe_performance.csv", sep=";")
    [run] = import_logs(tmp_path / "theirs", tmp_path / "ours")
    found = run.table("probe-pixelwise")
    assert found[["layer", "y", "x"]].to_numpy().tolist() == [
        ["features.0", y, x] for y in (0, 1) for x in (0, 1)
    ]
    assert run.manifest.summary.probe_accuracy[ProbeKey(LatentsKey("pixelwise"))][
        "features.0"
    ] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("prefix", "key"),
    [(None, "pool4"), ("4x4", "pool4"), ("2x2", "pool2"), ("pixelwise", "pixelwise"), ("foo", "foo-pool4")],
)
def test_name_table__is_by_the_prefix(prefix: str | None, key: str) -> None:
    assert str(name_table(prefix)) == key


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("owned"),)


def test_import__refuses_what_is_not_whole_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "theirs"
    folder = write_tree(theirs)
    cases: dict[str, tuple[str, bytes]] = {
        "holds more than tensors and numbers": (f"{STEM}.pt", pickle.dumps({"model_state_dict": Evil()})),
        "_config.json can't be read": (f"{STEM}_config.json", b"{"),
        "has no column 'eval_acc'": ("probe_performance.csv", b";name;train_acc\n0;a;1\n"),
        "'resolution'": (f"{STEM}_config.json", b'{"resolution": "big"}'),
    }
    for message, (name, content) in cases.items():
        copy = tmp_path / "copy"
        shutil.copytree(theirs, copy)
        (copy / folder.relative_to(theirs) / name).write_bytes(content)
        with pytest.raises(CorruptError, match=message):
            import_logs(copy, tmp_path / "ours")
        assert list_runs(tmp_path / "ours") == []
        shutil.rmtree(copy)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(NotFoundError, match="no experiments of phd-lab under"):
        import_logs(tmp_path / "ours", tmp_path / "ours")
    import_logs(theirs, tmp_path / "ours")
    with pytest.raises(ConfigError, match="is there already; give it another name with --run-id"):
        import_logs(theirs, tmp_path / "ours")
    assert len(import_logs(theirs, tmp_path / "ours", "again")) == 1


def test_import__weights_can_be_extracted_from_and_probed(tmp_path: Path) -> None:
    write_tree(tmp_path / "theirs")
    [run] = import_logs(tmp_path / "theirs", tmp_path / "ours")
    plan = make_tasks(["extract", "probe"], {"pooling": ["1"], "device": "cpu"}, strict=False)
    outcomes = run_stages([run], plan, with_needs=False)
    assert [outcome.error for outcome in outcomes] == [None, None]
    run.reload()
    assert set(map(str, run.manifest.summary.probe_accuracy)) == {"pool1", "pool2", "pool4"}
    assert run.manifest.layers[0].output_shape == [64, 32, 32]
    assert any("is taken to be of the Digits that is here" in line for line in run.manifest.warnings)
    assert [f for f in Verification(run).findings() if f.is_wrong] == []


def test_import__has_no_other_saturation_and_says_so(tmp_path: Path) -> None:
    write_tree(tmp_path / "theirs")
    [run] = import_logs(tmp_path / "theirs", tmp_path / "ours")
    [outcome] = run_stages([run], make_tasks(["saturation"], {"delta": (0.9,)}), with_needs=False)
    assert "has no spectra of its epochs, only delve's saturation at delta" in str(outcome.error)
    run.reload()
    assert run.status("saturation") == "done"


def test_import__that_is_trained_anew_here_has_spectra(tmp_path: Path) -> None:
    write_tree(tmp_path / "theirs")
    [run] = import_logs(tmp_path / "theirs", tmp_path / "ours")
    assert not run.has_spectra
    spectra = {layer: np.arange(4.0)[::-1] for layer in run.layers}
    AnalysisStore(run.analysis_path, run.commits).write_spectra("train", 0, 1, spectra)
    assert run.has_spectra
    wrong = [str(finding) for finding in Verification(run).findings() if finding.is_wrong]
    assert len(wrong) == len(run.layers), "those of the eval split are missing"
