"""Figures, from a small hand-made result."""

import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import call
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import read_config
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import ConfigError, NotFoundError
from satstore.reports.plots import (
    plot_comparison,
    plot_epoch,
    plot_evolution,
    plot_layers,
    plot_pixelwise,
    plot_projection,
    plot_spectrum,
    plot_training,
    save_figure,
)
from satstore.reports.plots.style import break_name
from satstore.runs.logs_folder import make_run
from satstore.runs.manifest import LayerRecord, Manifest, ProbesRecord, drawn_layers
from satstore.runs.run import Run
from satstore.stages.pipeline import make_tasks, run_stages

LAYERS = ["conv1", "layer1.0.conv1", "layer1.0.downsample.0", "fc1", "fc2"]
KINDS = ["Conv2d", "Conv2d", "Conv2d", "Linear", "Linear"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path, "res", ExperimentConfig(dataset="Digits"))

    def change(manifest: Manifest) -> None:
        manifest.summary.test_accuracy = 0.875
        manifest.probes = {
            ProbeKey(LatentsKey(pooling)): ProbesRecord(C=1, tol=1e-4, max_iter=9) for pooling in "42"
        }
        manifest.summary.saturation = {layer: (index + 1) / 8 for index, layer in enumerate(LAYERS)}
        manifest.layers = [
            LayerRecord(layer=layer, index=index, kind=kind, n_features=8, output_shape=[8])
            for index, (layer, kind) in enumerate(zip(LAYERS, KINDS, strict=True))
        ]

    run.commit(change=change)
    return run


def fill(run: Run) -> None:
    probes = [f"{layer},{index},{index / 10},True" for index, layer in enumerate(LAYERS)]
    table = "\n".join(["layer,index,eval_accuracy,converged", *probes]).encode()
    run.commit({"probe-pool4.csv": table, "probe-pool2.csv": table})


def test_drawn_layers__are_those_of_the_main_path(run: Run) -> None:
    assert drawn_layers(run.manifest) == ["conv1", "layer1.0.conv1", "fc1"]


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

    fill(run)
    save_figure(plot_layers(run), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(ConfigError, match=r"ends in \.png, \.svg or \.pdf"):
        save_figure(plot_layers(run), tmp_path / "a.docx")


@pytest.fixture(scope="module")
def projected(demo_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's logs with pixelwise probes of one layer, and projections."""
    logs = tmp_path_factory.mktemp("kinds") / "logs"
    shutil.copytree(demo_logs, logs)
    [manifest] = logs.glob("demo/*/manifest.json")
    one = {"pooling": ["pixelwise"], "layers": "features.18"}
    for stage, parameters in (
        ("extract", one),
        ("probe", one),
        ("project", {"delta": (0.9, 0.99)}),
        ("project", {"delta": (0.9, 0.99), "mode": "random"}),
    ):
        plan = make_tasks([stage], {**parameters, "device": "cpu"}, strict=False)
        [outcome] = run_stages([Run(manifest.parent)], plan, with_needs=False)
        assert outcome.error is None
    return logs


def plot(logs: Path, *words: str) -> tuple[int, str, str]:
    code, out, err = call("plot", "demo", *words, "--logs-dir", logs)
    return code, out.strip(), err.strip()


@pytest.mark.parametrize("kind", ["layers", "training", "spectrum", "pixelwise", "projection", "evolution"])
def test_plot__draws_every_kind(projected: Path, kind: str, tmp_path: Path) -> None:
    code, path, said = plot(projected, "--kind", kind)
    assert code == 0, said
    assert Path(path).name == f"{kind}.png"
    assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_plot_kinds__hold_what_the_tables_do(projected: Path) -> None:
    [manifest] = projected.glob("demo/*/manifest.json")
    run = Run(manifest.parent)
    accuracy, loss = plot_training(run).axes
    metrics = run.table("metrics")
    for axes, measure in ((accuracy, "accuracy"), (loss, "loss")):
        for line in axes.get_lines():
            np.testing.assert_array_equal(line.get_ydata(), metrics[f"{line.get_label()}_{measure}"])

    lines = {str(line.get_label()): line for line in plot_spectrum(run).axes[0].get_lines()}
    eigenvalues = run.spectra("train")["features.0"][-1]
    shares = np.asarray(lines["features.0"].get_ydata(), dtype=float)
    np.testing.assert_allclose(shares, np.cumsum(eigenvalues) / eigenvalues.sum())
    reached = np.searchsorted(shares, run.config.delta) + 1
    assert reached / len(shares) == run.manifest.summary.saturation["features.0"]

    [image] = [axes.get_images()[0] for axes in plot_pixelwise(run).axes[:1]]
    table = run.table("probe-pixelwise").query("y == 0 and x == 1")
    relative = float(table["eval_accuracy"].iloc[0]) / run.manifest.summary.test_accuracy
    assert np.asarray(image.get_array())[0, 1] == pytest.approx(relative)

    lines = {str(line.get_label()): line for line in plot_projection(run).axes[0].get_lines()}
    table = run.table("projection").set_index("mode")["eval_accuracy"]
    for mode in ("pca", "random"):
        assert list(lines[mode].get_ydata()) == list(table[mode])


@pytest.mark.parametrize("quantity", ["saturation", "intrinsic_dimension"])
def test_plot_epoch__has_a_bar_per_layer_and_split(projected: Path, quantity: str, tmp_path: Path) -> None:
    [manifest] = projected.glob("demo/*/manifest.json")
    run = Run(manifest.parent)
    bars = [patch.get_height() for patch in plot_epoch(run, 0, quantity).axes[0].patches]
    expected = []
    for split in ("train", "eval"):
        table = run.saturation(split=split).query("epoch == 0").set_index("layer")[quantity]
        expected += list(table.reindex(drawn_layers(run.manifest)))
    assert bars == expected
    code, path, said = plot(
        projected, "--quantity", quantity, "--epoch", "all", "--out", str(tmp_path / "all")
    )
    assert code == 0, said
    names = [f"{quantity}-epoch{n:03d}.png" for n in range(1, run.manifest.summary.epochs_done + 1)]
    assert sorted(file.name for file in Path(path).iterdir()) == names


def test_plots__count_epochs_from_1(projected: Path, tmp_path: Path) -> None:
    [manifest] = projected.glob("demo/*/manifest.json")
    run = Run(manifest.parent)
    numbers = list(range(1, run.manifest.summary.epochs_done + 1))
    assert len(numbers) == len((run.path / "metrics.csv").read_text().splitlines()) - 1 > 1
    for axes in plot_training(run).axes:
        assert all(list(line.get_xdata()) == numbers for line in axes.get_lines())
    probes, saturation = plot_evolution(run).axes
    assert all(list(line.get_xdata()) == numbers for line in saturation.get_lines())
    fitted = probes.get_lines()[:-1]
    assert all(list(line.get_xdata()) == numbers[-1:] for line in fitted), "after the last epoch only"
    assert list(probes.get_lines()[-1].get_xdata()) == numbers, "the model's accuracy"
    for figure in (plot_layers(run, epoch=0), plot_spectrum(run, epoch=0), plot_epoch(run, 0)):
        assert "epoch 1" in figure.axes[0].get_title()
    for words, figure in (
        (["--epoch", "1"], plot_layers(run, epoch=0)),
        (["--epoch", "1", "--kind", "spectrum"], plot_spectrum(run, epoch=0)),
        (["--epoch", f"{numbers[-1]}", "--quantity", "saturation"], plot_epoch(run, run.last_epoch)),
    ):
        code, path, said = plot(projected, *words, "--out", str(tmp_path / "by-flag.png"))
        assert code == 0, said
        save_figure(figure, tmp_path / "by-place.png")
        assert Path(path).read_bytes() == (tmp_path / "by-place.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "0"], "there is no epoch 0 of demo/"),
        (["--epoch", "7"], "there is no epoch 7 of demo/"),
        (["--epoch", "all"], "--epoch all draws a picture per epoch; say of what"),
        (["--epoch", "1", "--kind", "training"], "of no one epoch"),
        (["--quantity", "saturation", "--kind", "layers"], "leave --kind out"),
        (["--by-depth"], "name two at least"),
        (["--delta", "2"], "--delta 2: expected a number above 0"),
        (["demo", "--kind", "spectrum"], "--kind: for one experiment, 2 are named"),
        (["--quantity", "saturation", "--epoch", "all", "--out", "a.png"], "--out a.png: expected a folder"),
    ],
)
def test_plot__refuses_options_that_exclude_each_other(
    demo_logs: Path, words: list[str], message: str
) -> None:
    code, _, err = plot(demo_logs, *words)
    assert code == 1
    assert message in err


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("conv1", ["conv1"]),
        ("layer1.0.conv1", ["layer1.0.", "conv1"]),
        ("features.denseblock1.denselayer2.conv1", ["features.", "denseblock1.", "denselayer2.", "conv1"]),
    ],
)
def test_break_name__breaks_after_dots(name: str, lines: list[str]) -> None:
    assert break_name(name, 11).splitlines() == lines


def give_curves(run: Run, layers: list[str]) -> Run:
    """Give a run saturation and probes of some layers."""

    def change(manifest: Manifest) -> None:
        manifest.probes = {ProbeKey(LatentsKey("4")): ProbesRecord(C=1, tol=1e-4, max_iter=9)}
        manifest.summary.saturation = dict.fromkeys(layers, 0.5)
        manifest.layers = [
            LayerRecord(layer=layer, index=index, kind="Conv2d", n_features=8, output_shape=[8])
            for index, layer in enumerate(layers)
        ]

    run.commit(change=change)
    rows = ["layer,eval_accuracy,converged", *(f"{layer},0.5,True" for layer in layers)]
    run.commit({"probe-pool4.csv": "\n".join(rows).encode()})
    return run


def legend_of(figure: Figure) -> list[str]:
    [legend] = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_plot_comparison__names_each_of_the_curves(tmp_path: Path) -> None:
    grid = {"dataset": "Digits", "optimizer": ["adam", "sgd"], "seed": [0, 1]}
    runs = [give_curves(make_run(tmp_path, "res", config), ["a", "b"]) for config in read_config(grid)]
    runs.append(give_curves(make_run(tmp_path, "other", runs[0].config), ["a", "b"]))
    figure = plot_comparison(runs)
    assert legend_of(figure) == [
        "res: resnet18 on Digits at 32 px, adam, seed 0",
        "resnet18 on Digits at 32 px, adam, seed 1",
        "resnet18 on Digits at 32 px, sgd, seed 0",
        "resnet18 on Digits at 32 px, sgd, seed 1",
        "other: resnet18 on Digits at 32 px, adam, seed 0",
    ]
    for axes in figure.axes:
        assert [line.get_label() for line in axes.get_lines()] == legend_of(figure)
        assert len({(line.get_color(), line.get_marker()) for line in axes.get_lines()}) == len(runs)


def test_plot_comparison__says_each_delta_unless_one_is_given(tmp_path: Path) -> None:
    configs = [ExperimentConfig(dataset="Digits", delta=delta) for delta in (0.9, 0.99)]
    runs = [give_curves(make_run(tmp_path, f"r{i}", config), ["a"]) for i, config in enumerate(configs)]
    title = "resnet18 on Digits at 32 px"
    assert legend_of(plot_comparison(runs)) == [f"{title}, delta 0.9", f"{title}, delta 0.99"]


def test_plot_layers__draws_more_poolings_than_there_are_colours_each_in_a_look_of_its_own(run: Run) -> None:
    fill(run)
    keys = [ProbeKey(LatentsKey(f"{n}")) for n in range(1, 9)]
    table = run.read_file("probe-pool4.csv")
    record = ProbesRecord(C=1, tol=1e-4, max_iter=9)
    run.commit(
        {key.file: table for key in keys},
        lambda manifest: setattr(manifest, "probes", dict.fromkeys(keys, record)),
    )
    [axes] = plot_layers(run).axes
    looks = {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.get_lines()}
    assert {f"probe accuracy ({key})" for key in keys} <= looks.keys()
    assert len(set(looks.values())) == len(looks)


def test_plot_evolution__names_layers_that_begin_with_an_underscore(tmp_path: Path) -> None:
    layers = ["_conv_stem", "_blocks.0", "head"]
    run = give_curves(make_run(tmp_path, "res", ExperimentConfig(dataset="Digits")), layers)
    assert legend_of(plot_evolution(run)) == layers


def test_legend__of_long_names_stays_within_the_figure(tmp_path: Path) -> None:
    data = f"ImageFolder:{'long folder/' * 30}"
    configs = [ExperimentConfig(dataset=data, seed=seed) for seed in (0, 1)]
    runs = [give_curves(make_run(tmp_path, "res", config), ["a"]) for config in configs]
    for figure in (plot_comparison(runs), plot_layers(runs[0])):
        FigureCanvasAgg(figure).draw()
        texts = [*figure.legends[0].get_texts(), *(axes.title for axes in figure.axes)]
        boxes = [text.get_window_extent() for text in texts]
        assert min(box.x0 for box in boxes) >= 0
        assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_save_figure__shows_names_as_they_are_in_figures_of_any_source(tmp_path: Path) -> None:
    with rc_context({"text.usetex": True, "text.parse_math": True}):
        figure = Figure()
        axes = figure.add_subplot()
        axes.set_title(r"$\frac{ $\x" + "\x1b")
        axes.set_xticks([0, 1], [r"a$\frac{$", "b"])
        save_figure(figure, tmp_path / "a.svg")
    letters = [node.text for node in ElementTree.parse(tmp_path / "a.svg").iter()]
    assert r"$\frac{ $\x�" in letters
    assert r"a$\frac{$" in letters
