"""The screens of networks of blocks: a curve for each part over the depth, and tables by block."""

import itertools

import numpy as np
import pytest
from many_blocks import PARTS, make_vit
from pilots import SIZES, make_app, press, read_screen, read_static, wait_for, wait_for_rows, wait_for_screen
from textual.pilot import Pilot

from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.reports.blocks import WHOLE
from satstore.reports.run_curves import DELTAS, RunCurves, read_curves
from satstore.runs.run import Run
from tui.blocks import view_blocks
from tui.layers import View
from tui.screens.compare import CompareScreen
from tui.screens.run import RunScreen
from tui.screens.run_panes import LayerPlot, LayersTable
from tui.widgets.curve_plot import DepthLabels

SHOWN = [WHOLE, "attn", "norm2", "mlp"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A vision transformer of six blocks."""
    return make_vit(
        tmp_path_factory.mktemp("few") / "logs", ("mean", "cls", "4"), n_blocks=6, has_spectra=True
    )


@pytest.fixture(scope="module")
def data(run: Run) -> RunCurves:
    return read_curves(run.path)


def view_of(data: RunCurves, **choices: int) -> View:
    return View(0, DELTAS.index(0.99), data.shown, **choices)


def test_view_blocks__has_a_curve_of_each_part_over_the_depth(run: Run, data: RunCurves) -> None:
    above, below = view_blocks(data, view_of(data), has_room=True)
    curves = {curve.label: curve for curve in above.curves()}
    assert list(curves) == SHOWN[::-1], "whole blocks over all others"
    saturation = run.manifest.summary.saturation
    assert curves["attn"].x == list(range(1, 7))
    assert list(curves["attn"].y) == [saturation[f"blocks.{n}.attn"] for n in range(6)]
    path = ["patch_embed.proj", *(f"blocks.{n}" for n in range(6)), "norm", "fc_norm"]
    assert curves[WHOLE].x == list(range(9))
    assert list(curves[WHOLE].y) == [saturation[layer] for layer in path]
    assert len({curve.color for curve in curves.values()}) == len({c.marker for c in curves.values()}) == 4
    accuracy = run.manifest.summary.probe_accuracy[ProbeKey(LatentsKey("mean"))]
    curves = {curve.label: curve for curve in below.curves()}
    np.testing.assert_allclose(curves["mlp"].y, [accuracy[f"blocks.{n}.mlp"] for n in range(6)])
    assert [line.label for line in above.reference_lines()] == ["cursor"]
    assert {line.label for line in below.reference_lines()} == {"cursor", "model"}


def test_view_blocks__goes_through_the_tables_of_probes(data: RunCurves) -> None:
    small = [view_blocks(data, view_of(data, n_turns=n), has_room=False)[0].table for n in range(5)]
    assert small == [None, "mean", "cls", "pool4", None]
    large = [
        [view.table for view in view_blocks(data, view_of(data, n_turns=n), has_room=True)] for n in range(4)
    ]
    assert large == [[None, "mean"], [None, "cls"], [None, "pool4"], [None, "mean"]]
    assert view_blocks(data, view_of(data, by_block=False), has_room=True) == []


def test_view_blocks__marks_layers_that_gave_no_number(data: RunCurves) -> None:
    place = [record.layer for record in data.layers].index("blocks.2.mlp")
    values = {0: np.where(np.arange(len(data.layers)) == place, np.nan, 0.5)}
    broken = RunCurves(
        **{**data.__dict__, "probes": {"mean": values}, "failed": {"mean": frozenset({(0, place)})}}
    )
    [view] = view_blocks(broken, view_of(data, n_turns=1, cursor=place), has_room=False)
    [cross] = (curve for curve in view.curves() if not curve.is_line)
    assert (cross.label, cross.x, cross.marker) == ("mlp: no number", [3], "✗")
    assert "mlp ✗" in view.describe(100).plain


def test_curves__of_maps_and_tokens_are_each_of_the_table_that_fits(data: RunCurves) -> None:
    assert np.isfinite(data.accuracy(0)).all(), "a map's of pool4, tokens' of mean"
    part, layers = data.main_layers(data.shown)
    assert part == WHOLE
    assert len(layers) == 9


def test_depth_labels__show_names_before_numbers() -> None:
    names = ["proj", *map(str, range(24)), "norm"]
    labels = DepthLabels(names, 74, range(1, 25))
    shown = labels.get_labels_for_ticks(labels.get_ticks(-0.5, 25.5))
    assert shown == ["proj", *map(str, range(2, 23, 2)), "norm"]
    assert labels.get_labels_for_ticks(labels.get_ticks(2.5, 8.5)) == [str(n) for n in range(2, 8)]


@pytest.mark.parametrize("size", SIZES[:2])
async def test_run_screen__draws_parts_of_blocks(run: Run, size: tuple[int, int]) -> None:
    app = make_app(run.path.parents[1])
    saturation = run.manifest.summary.saturation
    found = run.manifest.summary.probe_accuracy
    accuracy = {mode: found[ProbeKey(LatentsKey(mode))] for mode in ("mean", "cls")}
    async with app.run_test(size=size) as pilot:
        screen = await open_first(pilot)
        await press(pilot, *["j"] * 7)
        assert "blocks.1.mlp" in read_static(pilot, "#layer")
        text = read_static(pilot, "#values")
        for part in PARTS:
            layer = f"blocks.1.{part}".rstrip(".")
            assert f"{part or WHOLE} {saturation[layer]:.1%}" in text
        has_two = size == SIZES[1]
        assert [plot.display for plot in screen.query(LayerPlot)] == [True, has_two]
        assert (f"mlp {accuracy['mean']['blocks.1.mlp']:.1%}" in text) == has_two
        assert f"probes mean {accuracy['mean']['blocks.1.mlp']:.1%}" in text
        lines = read_screen(pilot)
        assert any(line.split()[:3] == ["proj", "0", "1"] for line in lines), "names of depths"
        assert all(any(mark in line for line in lines[7:]) for mark in "■▲◆▼")
        await press(pilot, "t", *([] if has_two else ["t"]))
        text = read_static(pilot, "#values")
        assert "probe cls (t)" in text
        assert f"attn {accuracy['cls']['blocks.1.attn']:.1%}" in text
        await press(pilot, "b")
        assert "saturation, eval" in read_static(pilot, "#values")
        await press(pilot, "b", "4")
        await wait_for(pilot, lambda: screen.query_one(LayersTable).row_count == len(run.layers))
        [heading, *rows] = [
            line.split() for line in read_screen(pilot) if "blocks." in line or " part " in line
        ]
        assert heading[:3] == ["#", "block", "part"]
        assert [row[1:3] for row in rows if row[1] == "blocks.2"] == [
            ["blocks.2", part or "whole"] for part in PARTS
        ]


async def test_compare_screen__overlays_whole_blocks(run: Run) -> None:
    app = make_app(run.path.parents[1])
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for_rows(pilot, 1)
        app.push_screen(CompareScreen(app, [run.path, run.path]))
        await wait_for_screen(pilot, CompareScreen)
        await wait_for(pilot, lambda: "saturation" in read_static(pilot, "#legend-text"))
        await press(pilot, "j", "j")
        assert "blocks.1: saturation" in read_static(pilot, "#legend-text")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A vision transformer of 24 blocks."""
    return make_vit(tmp_path_factory.mktemp("many") / "logs", has_spectra=True)


async def open_first(pilot: Pilot[None]) -> RunScreen:
    await wait_for_rows(pilot, 1)
    await press(pilot, "enter")
    screen = await wait_for_screen(pilot, RunScreen)
    await wait_for(pilot, lambda: screen._data is not None)
    return screen


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
async def test_run_screen__has_room_for_24_blocks(deep: Run, size: tuple[int, int]) -> None:
    app = make_app(deep.path.parents[1])
    async with app.run_test(size=size) as pilot:
        await open_first(pilot)
        axes = [line.split() for line in read_screen(pilot) if line.split()[:1] == ["proj"]]
        assert axes
        for shown in axes:
            assert shown[-1].endswith("norm")
            numbers = [int(name) for name in shown if name.isdecimal()]
            assert len({after - before for before, after in itertools.pairwise(numbers)}) == 1
        await press(pilot, *["j"] * (len(deep.layers) - 2))
        assert " norm" in read_static(pilot, "#layer")


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES[:2])
def test_picture__of_24_blocks(deep: Run, size: tuple[int, int], snap_compare: object) -> None:
    async def open_at_a_block(pilot: Pilot[None]) -> None:
        await open_first(pilot)
        await press(pilot, *["j"] * 42)

    app = make_app(deep.path.parents[1])
    assert snap_compare(app, terminal_size=size, run_before=open_at_a_block)  # type: ignore[operator]
