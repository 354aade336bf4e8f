"""Figures, from a small hand-made result."""

from pathlib import Path

import pytest

from satstore.config import ExperimentConfig
from satstore.errors import NotFoundError
from satstore.logs import make_run
from satstore.manifest import LayerRecord, Manifest, ProbesRecord, drawn_layers
from satstore.plots import plot_layers
from satstore.run import Run

LAYERS = ["conv1", "layer1.0.conv1", "layer1.0.downsample.0", "fc1", "fc2"]
KINDS = ["Conv2d", "Conv2d", "Conv2d", "Linear", "Linear"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path, "res", ExperimentConfig(dataset="Digits"))

    def change(manifest: Manifest) -> None:
        manifest.summary.test_accuracy = 0.875
        manifest.probes = {key: ProbesRecord(C=1, tol=1e-4, max_iter=9) for key in ("pool4", "pool2")}
        manifest.summary.saturation = {layer: (index + 1) / 8 for index, layer in enumerate(LAYERS)}
        manifest.layers = [
            LayerRecord(layer=layer, index=index, kind=kind, n_features=8, output_shape=[8])
            for index, (layer, kind) in enumerate(zip(LAYERS, KINDS, strict=True))
        ]

    run.commit(change=change)
    return run


def fill(run: Run) -> None:
    probes = [f"{layer},{index},{index / 10}" for index, layer in enumerate(LAYERS)]
    table = "\n".join(["layer,index,eval_accuracy", *probes]).encode()
    run.commit({"probe-pool4.csv": table, "probe-pool2.csv": table})


def test_drawn_layers__are_those_of_the_main_path(run: Run) -> None:
    assert drawn_layers(run.manifest.layers) == ["conv1", "layer1.0.conv1", "fc1"]


def test_plot_layers__draws_the_last_epochs_curves_and_the_models_accuracy(run: Run) -> None:
    fill(run)
    [axes] = plot_layers(run).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines == {
        "saturation": [1 / 8, 2 / 8, 4 / 8],
        "probe accuracy (pool4)": [0.0, 0.1, 0.3],
        "probe accuracy (pool2)": [0.0, 0.1, 0.3],
        "model accuracy 87.5%": [0.875, 0.875],
    }
    assert [text.get_text() for text in axes.get_xticklabels()] == ["conv1", "layer1.0.conv1", "fc1"]
    colors = [line.get_color() for line in axes.get_lines()]
    assert len(set(colors)) == len(colors)


def test_plot_layers__without_results_names_the_command(run: Run) -> None:
    run.commit(change=lambda manifest: (manifest.probes.clear(), manifest.summary.saturation.clear()))
    with pytest.raises(NotFoundError, match=f"satstore saturation --run {run.name}"):
        plot_layers(run)


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_save_figure__writes_the_kind_that_the_name_says(
    run: Run, tmp_path: Path, name: str, magic: bytes
) -> None:
    from satstore.cli.look import save_figure
    from satstore.errors import ConfigError

    fill(run)
    save_figure(plot_layers(run), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(ConfigError, match=r"ends in \.png, \.svg or \.pdf"):
        save_figure(plot_layers(run), tmp_path / "a.docx")
