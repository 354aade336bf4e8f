"""The plot widget: what its axes say."""

import pytest
from pilots import read_screen, settle
from textual.app import App, ComposeResult

from tui.widgets.curve_plot import Curve, CurvePlot


class PlotApp(App[None]):
    CSS = "CurvePlot { width: 1fr; height: 1fr; }"

    def compose(self) -> ComposeResult:
        yield CurvePlot()


@pytest.mark.parametrize("width", [60, 79, 80, 81, 120])
@pytest.mark.parametrize("n_layers", [5, 9, 18])
async def test_curve_plot__names_end_within_the_screen(width: int, n_layers: int) -> None:
    names = [f"classifier.{chr(ord('a') + i)}" for i in range(n_layers)]
    app = PlotApp()
    async with app.run_test(size=(width, 12)) as pilot:
        plot = app.query_one(CurvePlot)
        curve = Curve("saturation", range(n_layers), [0.5] * n_layers, "red")
        plot.draw([curve], x_limits=(-0.5, n_layers - 0.5), y_limits=(0.0, 1.0), names=names)
        await settle(pilot)
        shown = read_screen(pilot)[-1].split()
    assert len(shown) > 1
    for name in shown:
        # One that is cut, is cut in front: the ends of layers' names tell them apart.
        assert any(whole.endswith(name.removeprefix("…")) for whole in names), name
