"""Networks of blocks in tables, figures, reports and advice: grouped by block, over their depth."""

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figure_texts import check_texts
from many_blocks import MODES, PARTS, make_vit
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tiny_transformers import TinyViT
from torch.utils.data import DataLoader, TensorDataset

import satstore
from satstore.analysis.advice import Evidence, advise
from satstore.cli.console import SafeConsole
from satstore.cli.layer_table import print_layers
from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.reports.blocks import (
    WHOLE,
    BlockPlace,
    choose_table,
    group_parts,
    label_layers,
    main_layers,
    name_depths,
    name_once,
    place_layers,
)
from satstore.reports.evidence import advise_on
from satstore.reports.html import tabulate_layers
from satstore.reports.plots import (
    plot_comparison,
    plot_epoch,
    plot_evolution,
    plot_layers,
    plot_spectrum,
)
from satstore.reports.plots.block_curves import BlockCurves, plot_blocks
from satstore.runs.logs_folder import make_run
from satstore.runs.manifest import LayerRecord, Manifest
from satstore.runs.run import Run

N_BLOCKS = 24


def manifest_of(layers: dict[str, str], *, form: str = "tokens", **config: Any) -> Manifest:
    """A manifest with layers, by name with the names of their blocks."""
    records = [
        LayerRecord(layer=name, index=i, kind="K", n_features=4, output_shape=[4], form=form, block=block)
        for i, (name, block) in enumerate(layers.items())
    ]
    names = {"run_id": "res", "experiment": "e", "created": 1.0, "config_sha256": ""}
    return Manifest(**names, config=config, layers=records)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A vision transformer of 24 blocks with 99 layers, and probes on three token modes and a pooling."""
    return make_vit(tmp_path_factory.mktemp("vit"), (*MODES, "4"))


# Layer, its block, its part and its depth, written down by hand.
PLACES = {
    "timm's vision transformer": [
        ("patch_embed.proj", "", "", 0),
        ("blocks.0.attn.qkv", "blocks.0", "attn.qkv", 1),
        ("blocks.0.mlp.fc2", "blocks.0", "mlp.fc2", 1),
        ("blocks.0", "blocks.0", WHOLE, 1),
        ("blocks.1.attn.qkv", "blocks.1", "attn.qkv", 2),
        ("blocks.1", "blocks.1", WHOLE, 2),
        ("norm", "", "", 3),
    ],
    "BERT": [
        ("embeddings.word_embeddings", "", "", 0),
        ("embeddings.LayerNorm", "", "", 1),
        ("encoder.layer.0.attention.self.query", "encoder.layer.0", "attention.self.query", 2),
        ("encoder.layer.0.output", "encoder.layer.0", "output", 2),
        ("encoder.layer.0:hidden_states", "encoder.layer.0", f"{WHOLE}:hidden_states", 2),
        ("encoder.layer.11.output", "encoder.layer.11", "output", 3),
        ("encoder.layer.11@0", "encoder.layer.11", f"{WHOLE}@0", 3),
        ("pooler.dense", "", "", 4),
    ],
    "Swin": [
        ("features.0.0", "features.0", "0", 0),
        ("features.1.0.attn", "features.1.0", "attn", 1),
        ("features.1.0.mlp.0", "features.1.0", "mlp.0", 1),
        ("features.1.1.attn", "features.1.1", "attn", 2),
        ("features.2.reduction", "features.2", "reduction", 3),
        ("features.3.0.attn", "features.3.0", "attn", 4),
        ("features.3.0", "features.3.0", WHOLE, 4),
        ("norm", "", "", 5),
    ],
    "ResNet": [
        ("conv1", "", "", 0),
        ("layer1.0.conv1", "layer1.0", "conv1", 1),
        ("layer1.0.downsample.0", "layer1.0", "downsample.0", 1),
        ("layer1.1.conv1", "layer1.1", "conv1", 2),
        ("layer2.0.conv1", "layer2.0", "conv1", 3),
        ("fc", "", "", 4),
    ],
    "GPT-2": [
        ("transformer.wte", "", "", 0),
        ("transformer.h.0.attn.c_attn", "transformer.h.0", "attn.c_attn", 1),
        ("transformer.h.0.mlp", "transformer.h.0", "mlp", 1),
        ("transformer.h.0", "transformer.h.0", WHOLE, 1),
        ("transformer.h.1.mlp", "transformer.h.1", "mlp", 2),
        ("transformer.ln_f", "", "", 3),
    ],
}

NAMES = {
    "timm's vision transformer": ("blocks.", ["patch_embed.proj", "0", "1", "norm"]),
    "BERT": (
        "encoder.layer.",
        ["embeddings.word_embeddings", "embeddings.LayerNorm", "0", "11", "pooler.dense"],
    ),
    "Swin": ("features.", ["0", "1.0", "1.1", "2", "3.0", "norm"]),
    "ResNet": ("layer", ["conv1", "1.0", "1.1", "2.0", "fc"]),
    "GPT-2": ("transformer.h.", ["transformer.wte", "0", "1", "transformer.ln_f"]),
}


@pytest.mark.parametrize("network", PLACES)
def test_place_layers__has_block_part_and_depth_of_each(network: str) -> None:
    rows = PLACES[network]
    places = place_layers(manifest_of({layer: block for layer, block, *_ in rows}))
    assert places == {layer: BlockPlace(*place) for layer, *place in rows}
    assert name_depths(places) == NAMES[network]


def test_place_layers__leaves_layers_of_cnns_in_a_row_unless_modules_were_named() -> None:
    blocks = {layer: block for layer, block, *_ in PLACES["ResNet"]}
    assert place_layers(manifest_of(blocks, form="map")) is None
    assert place_layers(manifest_of(blocks, form="")) is None, "an old run"
    assert place_layers(manifest_of(blocks, form="map", modules=["conv"])) is not None
    vgg = dict.fromkeys(["features.0", "features.2", "classifier.0"], "")
    assert place_layers(manifest_of(vgg, form="map", modules=["."])) is None, "it has no blocks"


@pytest.mark.parametrize(
    ("blocks", "names"),
    [
        (["a.10", "a.11"], ["10", "11"]),
        (["layer7"], ["7"]),
        (["heads.animal", "heads.ant"], ["animal", "ant"]),
        (["visual.blocks.0", "text.blocks.0"], ["visual.blocks.0", "text.blocks.0"]),
        (["stem"], ["stem"]),
    ],
)
def test_name_depths__leaves_out_whole_parts_of_names(blocks: list[str], names: list[str]) -> None:
    places = {block: BlockPlace(block, WHOLE, depth) for depth, block in enumerate(blocks)}
    assert name_depths(places)[1] == names


def test_group_parts__puts_whole_blocks_first_then_frequent_parts() -> None:
    layers = ["stem", "b.0.norm", "b.0.mlp.fc", "b.0.mlp", "b.0", "b.1.mlp.fc", "b.1.mlp", "b.1", "norm"]
    manifest = manifest_of({layer: layer[:3] if layer.startswith("b.") else "" for layer in layers})
    places = place_layers(manifest)
    assert places is not None
    assert list(group_parts(places, layers).items()) == [
        (WHOLE, ["stem", "b.0", "b.1", "norm"]),
        ("mlp", ["b.0.mlp", "b.1.mlp"]),
        ("mlp.fc", ["b.0.mlp.fc", "b.1.mlp.fc"]),
        ("norm", ["b.0.norm"]),
    ]
    assert main_layers(places, layers) == (WHOLE, ["stem", "b.0", "b.1", "norm"])
    inner = [layer for layer in layers if layer not in ("b.0", "b.1")]
    assert list(group_parts(places, inner)) == ["mlp", "mlp.fc", "norm", "outside of blocks"]
    assert main_layers(places, inner) == ("mlp", ["stem", "b.0.mlp", "b.1.mlp", "norm"])
    assert name_once(places, layers[:4]) == [("stem", ""), ("b.0", "norm"), ("", "mlp.fc"), ("", "mlp")]
    assert label_layers(places, layers) == ["stem", "", "", "b.0", "", "", "b.1", "", "norm"]


def test_choose_table__has_tokens_by_mode_and_all_others_by_pooling() -> None:
    pool4, cls, token5 = (ProbeKey(LatentsKey(pooling)) for pooling in ("4", "cls", "token5"))
    assert choose_table("tokens", [pool4, token5, cls]) == token5
    assert choose_table("map", [cls, pool4]) == pool4
    assert choose_table("", [pool4]) == pool4
    assert choose_table("vector", [cls]) == cls
    assert choose_table("map", []) is None


@pytest.mark.parametrize("depth", [2, pytest.param(N_BLOCKS, marks=pytest.mark.long)])
def test_record__notes_the_blocks_that_figures_group_by(depth: int, tmp_path: Path) -> None:
    images, labels = torch.randn(20, 3, 8, 12), torch.arange(20) % 2
    run = satstore.record(
        TinyViT(num_classes=2, depth=depth),
        DataLoader(TensorDataset(images, labels), 10),
        "vit",
        modules=[r"blocks\.\d+(\.attn|\.mlp)?$", "norm$", "patch_embed"],
        logs_dir=tmp_path,
    )
    places = place_layers(run.manifest)
    assert places is not None
    blocks = [f"blocks.{number}" for number in range(depth)]
    assert group_parts(places, run.layers) == {
        WHOLE: ["patch_embed", *blocks, "norm"],
        **{part: [f"{block}.{part}" for block in blocks] for part in ("attn", "mlp")},
    }
    figure = plot_layers(run)
    check_axis(figure)
    shown = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert shown == ["patch_embed", *map(str, range(depth)), "norm"]


def test_tables_of_probes__come_in_the_order_of_how_many_layers_they_have(tmp_path: Path) -> None:
    run = make_vit(tmp_path, ("4", "cls", "mean"), n_blocks=2)  # of the pooling, there are two layers
    assert [key.latents.group for key in run.manifest.probes] == ["pool4", "cls", "mean"]
    [heads] = Table(tabulate_layers(run).partition("</table>")[0]).bodies[0]
    assert heads[-3:] == ["probe cls", "probe mean", "probe pool4"]
    assert print_at(run, 10_000)[0].split()[-6:] == ["probe", "cls", "probe", "mean", "probe", "pool4"]
    [legend] = plot_layers(run).legends
    shown = [text.get_text() for text in legend.get_texts() if "probes" in text.get_text()]
    assert shown == ["probes cls", "probes mean", "probes pool4"]


# Tables


def print_at(run: Run, width: int) -> list[str]:
    console = SafeConsole(width=width, file=io.StringIO())
    print_layers(console, run)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_show__fits_24_blocks_into_80_columns(run: Run) -> None:
    lines = print_at(run, 80)
    assert max(map(len, lines)) <= 80
    assert lines[0].split("  ")[0] == "block"
    assert len(lines) == 1 + len(run.layers) + 2
    summary = run.manifest.summary
    start = lines[0].index("saturation") + len("saturation")
    for line, layer in zip(lines[1:], run.layers, strict=False):
        assert line[:start].endswith(f"{summary.saturation[layer]:.1%}")
    for number in range(N_BLOCKS):
        assert sum(line.startswith(f"blocks.{number} ") for line in lines) == 1
    texts = [line.split()[:2] for line in lines[2:6]]
    assert texts == [
        ["blocks.0", "attn"],
        *(
            [part, text]
            for part, text in zip(
                ("norm2", "mlp", "whole"), (line.split()[1] for line in lines[3:6]), strict=True
            )
        ),
    ]
    assert all(line.startswith(" ") for line in lines[3:6]), "parts are indented"
    assert lines[-1].startswith("no room for the probes pool4: ")
    assert "…" not in "".join(lines)


def test_show__has_every_column_where_there_is_room(run: Run) -> None:
    lines = print_at(run, 10_000)
    for text in ("kind", "output", "features", "dimension", "saturation", "probe last", "probe pool4"):
        assert text in lines[0]
    assert "tokens 5 × 16" in lines[2]
    assert "█" in lines[2]
    assert "no room" not in lines[-1]


class Table(HTMLParser):
    """The cells of a table, by its bodies and their rows."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.bodies: list[list[list[str]]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("thead", "tbody"):
            self.bodies.append([])
        elif tag == "tr":
            self.bodies[-1].append([])
        elif tag in ("th", "td"):
            self.bodies[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.bodies and self.bodies[-1]:
            self.bodies[-1][-1][-1] += data


def test_report__keeps_the_layers_of_a_block_together(run: Run) -> None:
    [heads], *bodies = Table(tabulate_layers(run).partition("</table>")[0]).bodies
    assert heads[:4] == ["block", "part", "kind", "output"]
    assert heads[-4:] == ["probe mean", "probe cls", "probe last", "probe pool4"]
    assert [body[0][0] for body in bodies] == [
        "patch_embed.proj",
        *(f"blocks.{n}" for n in range(N_BLOCKS)),
        "norm",
        "fc_norm",
    ]
    block = bodies[4]
    assert [row[:2] for row in block] == [["blocks.3", "attn"], ["", "norm2"], ["", "mlp"], ["", WHOLE]]
    assert [row[2] for row in block] == list(PARTS.values())
    accuracy = run.manifest.summary.probe_accuracy[ProbeKey(LatentsKey("cls"))]
    assert block[1][heads.index("probe cls")] == f"{accuracy['blocks.3.norm2']:.1%}"


# Figures


def check_axis(figure: Figure) -> None:
    """Check that all texts below the axis can be read, the name of the axis among them."""
    check_texts(figure)
    axes = figure.axes[-1]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    [label] = (text.get_window_extent(renderer) for text in axes.texts)
    ticks = [text.get_window_extent(renderer) for text in axes.get_xticklabels()]
    assert not any(label.overlaps(tick) for tick in ticks)
    [legend] = (legend.get_window_extent(renderer) for legend in figure.legends)
    assert not any(legend.overlaps(box) for box in (label, *ticks))


def test_plot_layers__has_depth_as_x_colours_for_parts_and_line_styles_for_token_modes(run: Run) -> None:
    figure = plot_layers(run)
    check_axis(figure)
    assert figure.get_size_inches().tolist() == [7, 5]
    upper, lower = figure.axes
    summary = run.manifest.summary
    saturation = {line.get_label(): line for line in upper.get_lines()}
    assert list(saturation) == [WHOLE, "attn", "norm2", "mlp"]
    blocks = np.arange(1, N_BLOCKS + 1)
    for part, line in saturation.items():
        layers = [f"blocks.{n}.{part}".removesuffix(f".{WHOLE}") for n in range(N_BLOCKS)]
        if part == WHOLE:
            layers = ["patch_embed.proj", *layers, "norm", "fc_norm"]
        expected = blocks if part != WHOLE else np.arange(N_BLOCKS + 3)
        np.testing.assert_array_equal(line.get_xdata(), expected)
        np.testing.assert_array_equal(line.get_ydata(), [summary.saturation[layer] for layer in layers])
    drawn = [line for line in lower.get_lines() if len(line.get_xdata()) == N_BLOCKS]
    colors = {part: line.get_color() for part, line in saturation.items()}
    assert len({*colors.values()}) == 4
    assert {line.get_color() for line in drawn} == {colors[part] for part in ("attn", "norm2", "mlp")}
    styles = {(line.get_color(), line.get_linestyle()): np.asarray(line.get_ydata()) for line in drawn}
    assert len(styles) == len(drawn) == 3 * len(MODES)
    for mode, style in zip(MODES, ("-", "--", ":"), strict=True):
        accuracy = summary.probe_accuracy[ProbeKey(LatentsKey(mode))]
        found = styles[colors["mlp"], style]
        np.testing.assert_allclose(found, [accuracy[f"blocks.{n}.mlp"] for n in range(N_BLOCKS)])
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *saturation,
        *(f"probes {mode}" for mode in (*MODES, "pool4")),
        "model accuracy 87.5%",
    ]
    names = [text.get_text().replace("\n", "") for text in lower.get_xticklabels()]
    assert names == ["patch_embed.proj", *map(str, range(N_BLOCKS)), "norm", "fc_norm"]


def curves_of(layers: list[str], blocks: list[str], n_tables: int = 1) -> BlockCurves:
    """Curves of some layers, each named after its block, by which they are grouped."""
    block_of = {layer: next((b for b in blocks if f"{layer}.".startswith(f"{b}.")), "") for layer in layers}
    places = place_layers(manifest_of(block_of))
    assert places is not None
    values = {layer: (0.2 + i / len(layers)) / 2 for i, layer in enumerate(layers)}
    tables = [ProbeKey(LatentsKey(mode)) for mode in ("mean", "token5", "cls", "token9", "all", "last")]
    return BlockCurves(places, layers, values, probes=dict.fromkeys(tables[:n_tables], values))


def test_plot_blocks__draws_the_most_frequent_parts_and_names_what_it_leaves_out() -> None:
    blocks = [f"encoder.layers.encoder_layer_{n}" for n in range(12)]
    parts = [f"part{n}" for n in range(9)]
    layers = ["embeddings.patch_embeddings.projection", "embeddings.dropout"]
    layers += [f"{block}.{part}" for block in blocks for part in parts]
    figure = plot_blocks("A model", curves_of([*layers, "encoder.layernorm"], blocks, 6))
    check_axis(figure)
    [legend] = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[-1] == "not drawn: part6, part7, part8, probes all, …"
    assert texts[:7] == [*parts[:6], "outside of blocks"]
    styles = [line.get_linestyle() for line in legend.get_lines()]
    assert len({*styles[7:11]}) >= 2
    colors = [line.get_color() for line in legend.get_lines()][:7]
    assert len({*colors}) == 7


def test_plot_blocks__of_two_towers_names_the_blocks_in_full() -> None:
    blocks = [f"{tower}_model.encoder.layers.{n}" for tower in ("text", "vision") for n in range(24)]
    figure = plot_blocks("A model", curves_of([f"{block}.mlp" for block in blocks], blocks))
    check_axis(figure)
    [*names] = (text.get_text() for text in figure.axes[-1].get_xticklabels())
    assert names[0] == "text_model.…\nlayers.0"
    assert len(names) >= 12


@pytest.mark.parametrize("is_deep", [False, True])
def test_plot_blocks__numbers_as_many_blocks_as_there_is_room_for(is_deep: bool) -> None:
    blocks = [f"h.{n}" for n in range(150 if is_deep else 2)]
    figure = plot_blocks("A model", curves_of(["wte", *blocks, "ln_f"], blocks))
    check_axis(figure)
    names = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    numbers = [str(10 * n) for n in range(1, 15)] if is_deep else ["0", "1"]
    assert names == ["wte", *numbers, "ln_f"]


def test_plot_layers__of_one_quantity_has_one_panel(run: Run) -> None:
    found = Run(run.path)
    found.manifest.probes = {}
    [axes] = plot_layers(found).axes
    assert axes.get_ylabel() == "saturation"


def test_comparison__aligns_whole_blocks_by_depth_with_the_layers_of_a_cnn(run: Run, tmp_path: Path) -> None:
    cnn = make_run(tmp_path, "cnn", ExperimentConfig(dataset="Digits"))
    layers = ["conv1", "conv2", "conv3"]

    def change(manifest: Manifest) -> None:
        manifest.layers = manifest_of(dict.fromkeys(layers, ""), form="map").layers
        manifest.summary.epochs_done = 1
        manifest.summary.saturation = dict.fromkeys(layers, 0.5)

    cnn.commit(change=change)
    first, second = plot_comparison([run, Run(cnn.path)], by_depth=True).axes[0].get_lines()
    np.testing.assert_allclose(first.get_xdata(), np.arange(N_BLOCKS + 3) / (N_BLOCKS + 2))
    assert str(first.get_label()).endswith(f", {WHOLE}")
    np.testing.assert_allclose(second.get_xdata(), [0, 0.5, 1])
    [_, probes] = plot_comparison([run, Run(cnn.path)]).axes
    [accuracy] = probes.get_lines()
    assert np.isfinite(np.asarray(accuracy.get_ydata())).all(), "a map's of pool4, tokens' of mean"


def test_figures_of_each_layer_by_itself__draw_whole_blocks(tmp_path: Path) -> None:
    run = make_vit(tmp_path, n_blocks=3, has_spectra=True)
    drawn = ["patch_embed.proj", "blocks.0", "blocks.1", "blocks.2", "norm", "fc_norm"]
    for figure, expected in ((plot_spectrum(run), [*drawn, "delta 0.99"]), (plot_evolution(run), drawn[1:])):
        [legend] = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == expected
    [axes] = plot_epoch(run, 0).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == drawn
    assert axes.get_title().replace("\n", " ").endswith(f", {WHOLE}")
    [axes] = plot_spectrum(run, all_layers=True).axes
    assert len(axes.get_lines()) == len(run.layers) + 1


# Advice


def test_advice__names_blocks_of_which_no_layer_adds_anything(run: Run) -> None:
    layers = [f"b.{n}.{part}" for n in range(4) for part in ("attn", "mlp")]
    accuracy = [0.5, 0.6, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7]
    blocks = {layer: layer[:3] for layer in layers}
    known = Evidence(layers, accuracy, [0.5] * 8, blocks=blocks)
    [line] = (line for line in advise(known).findings if "that add" in line)
    assert line.endswith("to the best before: b.1 (2 layers), b.3 (2 layers), b.2.mlp")
    found = advise_on(run)
    assert not any("border" in line for line in found.findings), "tokens may be of texts"
    assert "no number" not in " ".join(found.thin), "a map's accuracy is of pool4, tokens' of mean"
