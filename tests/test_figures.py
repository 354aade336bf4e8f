"""The paper's figures and its table, each drawn filled, from small hand-made results."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import call, fail
from figure_texts import check_texts

from satstore.analysis.modules import LAYER_TYPES
from satstore.config.grid import list_configs, read_config
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.models.build import build_model
from satstore.reports.figures import find_figure
from satstore.reports.plots import Panel, plot_paper_figure, plot_relative, tabulate_relative
from satstore.reports.plots.paper_figures import drop_repeated
from satstore.reports.published import ACCURACY, CURVES
from satstore.runs.logs_folder import make_run
from satstore.runs.manifest import LayerRecord, Manifest, ProbesRecord, StageRecord, drawn_layers
from satstore.runs.run import Run

FIGURES = sorted(name for name in list_configs() if "/" in name)


@functools.cache
def layers_of(model: str) -> tuple[LayerRecord, ...]:
    """The recorded layers of a model, in the order of its definition, without its weights."""
    with torch.device("meta"):
        modules = build_model(model, 10, 32).named_modules()
    found = [(name, module) for name, module in modules if isinstance(module, LAYER_TYPES)]
    return tuple(
        LayerRecord(
            layer=name,
            index=index,
            kind=type(module).__name__,
            n_features=getattr(module, "out_channels", 0) or module.out_features,
            output_shape=[8, 4, 4] if hasattr(module, "out_channels") else [8],
        )
        for index, (name, module) in enumerate(found)
    )


def fill(run: Run, accuracy: float = 0.85) -> Run:
    """Give an experiment what its config's stages would: curves that rise and fall as the paper's do."""
    config, records = run.config, list(layers_of(run.config.model))
    depth = np.linspace(0, 1, len(records))
    probe = accuracy * (1 - 0.6 * np.exp(-5 * depth))
    saturation = 0.05 + 0.55 * np.exp(-((depth - 0.3) ** 2) / 0.05)
    files = {}
    if "probe" in config.stages:
        for pooling in config.pooling:
            table = pd.DataFrame({"layer": [r.layer for r in records], "eval_accuracy": probe})
            if pooling == "pixelwise":
                y, x = np.mgrid[:4, :4]
                centre = 1 - 0.1 * np.hypot(y - 1.5, x - 1.5).ravel()
                place = {"y": y.ravel(), "x": x.ravel()}
                maps = [
                    pd.DataFrame({"layer": r.layer, **place, "eval_accuracy": p * centre})
                    for r, p in zip(records, probe, strict=True)
                    if r.kind == "Conv2d"
                ]
                table = pd.concat(maps)
            content = table.assign(converged=True).to_csv(index=False)
            files[ProbeKey(LatentsKey(pooling)).file] = content.encode()
    has_fields = "receptive-field" in config.stages
    if has_fields:
        files["receptive_field.csv"] = b"layer,receptive_field_min,receptive_field_max\n"

    def change(manifest: Manifest) -> None:
        manifest.layers = records
        manifest.stages["train"] = StageRecord(status="done", started=1.0)
        manifest.summary.epochs_done = config.epoch
        manifest.summary.test_accuracy = accuracy
        manifest.summary.saturation = {r.layer: float(s) for r, s in zip(records, saturation, strict=True)}
        if has_fields:
            manifest.summary.border_layer = drawn_layers(manifest)[len(records) // 2]
        if "probe" in config.stages:
            for pooling in config.pooling:
                manifest.probes[ProbeKey(LatentsKey(pooling))] = ProbesRecord(C=1, tol=1e-4, max_iter=9)

    run.commit(files, change)
    return Run(run.path, config=config)


def make_panels(name: str, logs: Path) -> list[Panel]:
    configs = [config for source in find_figure(name) for config in read_config(source)]
    runs = [fill(make_run(logs, "res", config), 0.5 + 0.01 * i) for i, config in enumerate(configs)]
    return [Panel(config, run, "a command") for config, run in zip(configs, runs, strict=True)]


QUICK = {f"section{n}" for n in ("2/figure1", "3.2/figure2", "3.3/figure3", "3.4/figure5", "3.4/figure6")}
QUICK |= {"appendix/figure19"}
"""One figure of each kind: with and without probes by place, borders, several models, sizes and datasets."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in FIGURES if "figure" in n],
)
def test_figure__draws_a_panel_per_experiment_with_all_that_its_config_has(name: str, tmp_path: Path) -> None:
    panels = make_panels(name, tmp_path)
    assert [panel.lacks for panel in panels] == [[]] * len(panels)
    figure = plot_paper_figure(panels, published=True)
    check_texts(figure)
    drawn = [axes for axes in figure.axes if axes.get_visible() and axes.get_lines()]
    shown = drop_repeated(panels)
    assert len(drawn) == len(shown)
    for axes, panel in zip(drawn, shown, strict=True):
        run, config = panel.run, panel.config
        assert run is not None
        layers = drawn_layers(run.manifest)
        lines = {str(line.get_label()): line for line in axes.get_lines()}
        assert axes.get_title() == f"{config.model} on {config.dataset} at {config.resolution} px"
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] == pytest.approx(1, abs=0.05)
        named = [text.get_text() for text in axes.get_xticklabels()]
        assert named == layers[:: -(-len(layers) // len(named))], "all, or every second where there are many"
        saturation = [run.manifest.summary.saturation[layer] for layer in layers]
        assert list(lines["saturation"].get_ydata()) == saturation
        for pooling in config.pooling if "probe" in config.stages else ():
            key = ProbeKey(LatentsKey(pooling))
            accuracy = run.table(key.table).groupby("layer")["eval_accuracy"].mean()
            y = np.asarray(lines[f"probe accuracy ({key})"].get_ydata(), dtype=float)
            np.testing.assert_allclose(y, accuracy.reindex(layers))
        reached = run.manifest.summary.test_accuracy
        [legend] = axes.get_legend().get_texts()
        assert legend.get_text() == f"model accuracy {reached:.1%}"
        assert ("border layer" in lines) == ("receptive-field" in config.stages)
        setting = (config.model, config.dataset, config.resolution)
        assert ("published model accuracy" in lines) == (setting in ACCURACY)
        assert ("published saturation" in lines) == (setting in CURVES)
    n_maps = sum(len(axes.get_images()) for axes in figure.axes)
    with_maps = [panel for panel in shown if "pixelwise" in panel.config.pooling]
    convs = [
        [r for r in panel.run.manifest.layers if r.layer in drawn_layers(panel.run.manifest)]
        for panel in with_maps
        if panel.run is not None
    ]
    assert n_maps == sum(record.kind == "Conv2d" for records in convs for record in records)


def test_figure3__has_the_small_object_the_same_on_a_canvas_and_the_large_one(tmp_path: Path) -> None:
    found = [(p.config.dataset, p.config.resolution) for p in drop_repeated(make_panels("figure3", tmp_path))]
    assert found == [("Cifar10", 32), ("Cifar10SmallRandomPositioning", 160), ("Cifar10", 160)]


def test_table1__has_accuracies_relative_to_the_large_images_that_were_not_scaled(tmp_path: Path) -> None:
    panels = make_panels("table1", tmp_path)
    assert len(panels) == 4 * 4 * 2, "of both configs"
    table = tabulate_relative(panels).set_index(["model", "dataset"])
    accuracy = {
        (p.config.model, p.config.dataset, p.config.resolution): p.run.manifest.summary.test_accuracy
        for p in panels
        if p.run is not None
    }
    row = table.loc["resnet50", "ImageNet"]
    large = accuracy["resnet50", "ImageNet", 224]
    assert row["224 px"] == 1
    assert row["32 px"] == pytest.approx(accuracy["resnet50", "ImageNet", 32] / large)
    scaled = accuracy["resnet50", "ResizedImageNet", 224] / large
    assert row["224 px, scaled up from 32 px"] == pytest.approx(scaled)
    figure = plot_relative(tabulate_relative(panels), [])
    assert len(figure.axes[0].tables[0].get_celld()) == 9 * 6
    check_texts(figure)


TWO_SEEDS = {"model": "vgg11", "dataset": "Cifar10", "seed": [0, 1], "epoch": [1, 2]}


def test_figure__titles_name_what_differs_between_panels(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text(json.dumps(TWO_SEEDS))
    figure = plot_paper_figure(make_panels(str(tmp_path / "seeds.json"), tmp_path / "logs"))
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    pairs = [(seed, epochs) for seed in (0, 1) for epochs in ("1 epoch", "2 epochs")]
    assert titles == [f"vgg11 on Cifar10 at 32 px, {epochs}, seed {seed}" for seed, epochs in pairs]
    check_texts(figure)


def test_table1__has_a_row_per_seed(tmp_path: Path) -> None:
    content = {"model": ["vgg11", "vgg13"], "resolution": [32, 224], "seed": [0, 1]}
    (tmp_path / "table.json").write_text(json.dumps(content))
    panels = make_panels(str(tmp_path / "table.json"), tmp_path / "logs")
    table = tabulate_relative(panels).set_index("model")
    assert list(table.index) == ["vgg11, seed 0", "vgg11, seed 1", "vgg13, seed 0", "vgg13, seed 1"]
    for panel in panels:
        config, run = panel.config, panel.run
        assert run is not None
        row = table.loc[f"{config.model}, seed {config.seed}"]
        share = row["accuracy at 224 px"] * row[f"{config.resolution} px"]
        assert share == pytest.approx(run.manifest.summary.test_accuracy)


def test_figure__missing_panels_say_which_command_fills_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *_ = read_config("section3.3/figure3")
    fill(make_run(Path("logs"), "res", first))
    code, out, err = call("figure", "figure3", "--run", "res", "--format", "svg")
    assert code == 0, err
    path, said, command = out.splitlines()
    assert Path(path) == tmp_path / "logs/res/figure3.svg"
    assert said == "3 of 4 experiments are not complete; go on with:"
    assert command == "  satstore run --config section3.3/figure3 --run-id res"
    text = Path(path).read_text()
    letters = re.sub(r"\s+", " ", " ".join(re.findall(r">([^<>]+)<", text)))
    assert letters.count("satstore run --config section3.3/figure3 --run-id res") == 2, (
        "as text, in two frames"
    )
    assert "vgg16 on Cifar10SmallRandomPositioning at 160 px" in letters


@pytest.mark.parametrize("words", [["figure99"], ["no/such.json"]])
def test_figure__that_is_none_is_an_error(words: list[str]) -> None:
    code, error = fail("figure", *words, "--run", "res")
    assert code == 1
    assert "no config file" in error
