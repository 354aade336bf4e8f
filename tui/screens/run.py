"""The screen of one run: its curves over the layers, at any epoch and delta, its files and its log."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer, TabbedContent

from satstore.errors import SatstoreError
from satstore.reports.evidence import advise_on
from satstore.reports.listing.columns import STYLES
from satstore.reports.listing.job_text import find_job_of
from satstore.reports.listing.reader import Experiment, Snapshot
from satstore.reports.run_curves import RunCurves, read_curves
from satstore.reports.spreadsheets import format_csv
from satstore.runs.run import Run
from satstore.storage.files import write_file
from satstore.system.text import MARKS, clean
from tui.layers import View, make_layer_rows
from tui.messages import CancelJob
from tui.screens.base import AppScreen, AppState
from tui.screens.modals import ExportScreen
from tui.screens.run_panes import (
    RUN_HELP,
    LayersPane,
    PixelwisePane,
    RunPane,
    SpectrumPane,
    TablePane,
    TrainingPane,
)
from tui.screens.run_texts import AdvicePane, ConfigPane, EventsPane, EventsView, LogPane, ManifestPane
from tui.threads import export_plot, run_in_thread
from tui.widgets.plain import Static
from tui.widgets.slider import Slider

PANES: tuple[type[RunPane], ...] = (
    LayersPane,
    TrainingPane,
    SpectrumPane,
    TablePane,
    PixelwisePane,
    AdvicePane,
    ConfigPane,
    ManifestPane,
    EventsPane,
    LogPane,
)
"""The tabs, in their order."""

N_RETRIES = 3

TABS = tuple(pane.TITLE.lower() for pane in PANES)


class RunScreen(AppScreen):
    """One run."""

    HELP = RUN_HELP

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "delta(-1)", "Delta −", show=False, tooltip="A smaller delta"),
        Binding("right", "delta(1)", "Delta +", show=False, tooltip="A larger delta"),
        Binding("left_square_bracket", "epoch(-1)", "Epoch −", show=False, tooltip="An epoch back"),
        Binding("right_square_bracket", "epoch(1)", "Epoch +", show=False, tooltip="An epoch on"),
        Binding("up,k", "layer(-1)", "Layer −", show=False, tooltip="The layer before"),
        Binding("down,j", "layer(1)", "Layer +", show=False, tooltip="The next layer"),
        Binding("a", "all_layers", "Layers", tooltip="Shortcuts and the last Linear too, or not"),
        Binding("b", "by_block", "Blocks", show=False, tooltip="Layers by block, or in a row"),
        Binding("t", "turn", "Quantity", show=False, tooltip="The next quantity of the blocks"),
        Binding("e", "export", "Export", tooltip="Write the plot as PNG or SVG, or the table as CSV"),
        Binding("y", "copy", "Copy", show=False, tooltip="Copy the command that shows this run"),
        Binding("l", "log", "Log", show=False, tooltip="The log of this run's job"),
        Binding("x", "cancel", "Cancel", show=False, tooltip="End this run's job"),
        Binding("escape", "dismiss", "Back", tooltip="Back to the runs"),
        *(
            Binding(f"{i + 1}", f"tab({tab!r})", f"Tab {tab}", show=False, tooltip=f"Show {tab}")
            for i, tab in enumerate(TABS[:9])  # the last, the log, has a key of its own
        ),
    ]

    def __init__(self, app_state: AppState, path: Path) -> None:
        super().__init__(app_state)
        self._path = path
        self._data: RunCurves | None = None
        self._experiment: Experiment | None = None
        self._view = View(-1, 0, ())
        self._shows_all = False
        self._n_reads = self._n_taken = self._n_retries = 0

    @property
    def name_of_run(self) -> str:
        """Run id and experiment."""
        return f"{self._path.parent.name}/{self._path.name}"

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        with Horizontal(id="top"):
            yield Static(Text(clean(self.name_of_run)), id="title")
            yield Static("reading …", id="counts")
        yield Static(id="notice")
        with TabbedContent(id="tabs"):
            for pane in PANES:
                yield pane()
        with Vertical(id="sliders"):
            yield Slider("delta", ["–"], keys="← →", id="delta")
            yield Slider("epoch", ["–"], keys="[ ]", id="epoch")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Watch the app's snapshots and the run's events."""
        self.query_one("#notice").display = False
        self.query_one("#layer-plot").focus()
        self.query_one(EventsView).follow(self._path / "events.jsonl")
        self.watch(self.app, "snapshot", self._follow)

    def on_resize(self) -> None:
        """Break lines at the new width."""
        self.call_after_refresh(self._draw)

    # What is read

    def _follow(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        found = next((e for e in snapshot.experiments if e.path == self._path), None)
        if found is None:
            self._say("the folder of this run is gone", "bold red")
            return
        self.query_one(LogPane).show(find_job_of(self.name_of_run, snapshot.jobs))
        before, self._experiment = self._experiment, found
        self._show_state()
        if found.problem:
            self._say(f"⚠ {clean(found.problem)}", "yellow")
        elif before is None or replace(before, progress=None) != replace(found, progress=None):
            self._n_retries = 0
            self._read_again()

    def _read_again(self) -> None:
        self._n_reads += 1
        number = self._n_reads
        run_in_thread(self.app, lambda: self._read(number), f"run {self._path}")

    def _read(self, number: int) -> None:
        data = read_curves(self._path)
        run = Run(self._path)
        config = json.dumps(run.manifest.config, indent=2, ensure_ascii=False)
        texts = {"config": config, "manifest": run.manifest.model_dump_json(indent=2)}
        try:
            texts["advice"] = "\n".join(advise_on(run).lines())
        except SatstoreError as error:
            texts["advice"] = str(error)
        self.app.call_from_thread(self._take, number, data, texts)

    def _take(self, number: int, data: RunCurves, texts: dict[str, str]) -> None:
        """Show what was read; the epoch stays, or goes on with training where it was the last."""
        if not self.is_attached or number < self._n_taken:  # one that began earlier may end later
            return
        self._n_taken = number
        if data.problems and self._n_retries < N_RETRIES:  # it may have been read while it was written
            self._n_retries += 1
            self.set_timer(1, self._read_again)
        before, view = self._data, self._view
        self._data = data
        at_end = before is None or view.epoch == before.n_epochs - 1
        epoch = data.n_epochs - 1 if at_end else min(view.epoch, data.n_epochs - 1)
        place = data.deltas.index(data.delta) if before is None else view.place
        layers = tuple(range(len(data.layers))) if self._shows_all else data.shown
        cursor = min(view.cursor, max(0, len(layers) - 1))
        self._view = replace(view, epoch=max(0, epoch), place=place, layers=layers, cursor=cursor)
        self.query_one("#delta", Slider).set_texts([f"{delta:g}" for delta in data.deltas], place)
        texts_of_epochs = [f"{n + 1}/{data.n_epochs}" for n in range(data.n_epochs)] or ["none yet"]
        self.query_one("#epoch", Slider).set_texts(texts_of_epochs, max(0, epoch))
        self.query_one(ConfigPane).show(texts["config"])
        self.query_one(AdvicePane).show(texts["advice"])
        self.query_one(ManifestPane).show(texts["manifest"])
        self._say_what_is_missing(data)
        self._draw()

    # What is shown

    def _say(self, text: str | Text, style: str = "") -> None:
        notice = self.query_one("#notice", Static)
        notice.display = bool(text)
        notice.update(Text(text, style) if isinstance(text, str) else text)

    def _say_what_is_missing(self, data: RunCurves) -> None:
        lines = [Text(clean(problem), "red") for problem in data.problems]
        failure = self._experiment.failure if self._experiment is not None else ""
        if failure:
            lines.append(Text(clean(failure), "red"))
        running = self._experiment is not None and self._experiment.has("running")
        if not data.dimensions and not data.problems:
            again = "training has just begun" if running else "press n to start train"
            lines.append(Text(f"no spectra yet: {again}", "yellow"))
        elif not data.probes and not running:
            lines.append(Text("no probes yet: press n to start probe", "yellow"))
        self._say(Text("\n").join(lines))

    def _show_state(self) -> None:
        experiment = self._experiment
        if experiment is None:
            return
        text = Text.assemble(*((MARKS[s], STYLES[s]) for s in experiment.stages.values()))
        if experiment.progress is not None:
            text.append(f" {experiment.progress:.0%}", STYLES["running"])
        text.append(f"  epoch {experiment.epochs_done}/{experiment.epochs}")
        if experiment.test_accuracy is not None:
            text.append(f"  {experiment.test_accuracy:.2%}", "bold")
        self.query_one("#counts", Static).update(text)

    def _draw(self) -> None:
        """Draw the tab in sight."""
        pane = self.query_one(TabbedContent).active_pane
        if self._data is not None and self._view.layers and isinstance(pane, RunPane):
            pane.draw(self._data, self._view)

    @on(TabbedContent.TabActivated)
    def _tab_shown(self) -> None:
        self._draw()

    # What moves

    @on(Slider.Changed)
    def _slider_moved(self, event: Slider.Changed) -> None:
        self._look_at(event.slider)

    def _look_at(self, slider: Slider) -> None:
        if self._data is None:
            return
        before, place = self._view, slider.place
        is_delta = slider.id == "delta"
        self._view = replace(before, place=place) if is_delta else replace(before, epoch=place)
        if self._view != before:
            self._draw()

    def action_delta(self, steps: int) -> None:
        """Move delta."""
        self._move("#delta", steps)

    def action_epoch(self, steps: int) -> None:
        """Go to another epoch."""
        self._move("#epoch", steps)

    def _move(self, selector: str, steps: int) -> None:
        slider = self.query_one(selector, Slider)
        slider.action_step(steps)
        self._look_at(slider)  # not when its message comes: plot and slider are drawn in one frame

    def action_layer(self, steps: int) -> None:
        """Move the cursor over the layers."""
        last = len(self._view.layers) - 1
        self._view = replace(self._view, cursor=max(0, min(self._view.cursor + steps, last)))
        self._draw()

    @on(TablePane.CursorMoved)
    def _row_moved(self, event: TablePane.CursorMoved) -> None:
        if self.query_one(TabbedContent).active == "table":
            self._view = replace(self._view, cursor=event.place)

    def action_all_layers(self) -> None:
        """Show all layers, or those of the main path."""
        if self._data is not None:
            self._shows_all = not self._shows_all
            layers = tuple(range(len(self._data.layers))) if self._shows_all else self._data.shown
            self._view = replace(self._view, layers=layers, cursor=min(self._view.cursor, len(layers) - 1))
            self._draw()

    def action_by_block(self) -> None:
        """Group layers by block, or show them in a row."""
        self._view = replace(self._view, by_block=not self._view.by_block)
        self._draw()

    def action_turn(self) -> None:
        """Draw the next quantity of the blocks."""
        self._view = replace(self._view, n_turns=self._view.n_turns + 1)
        self._draw()

    def action_tab(self, tab: str) -> None:
        """Show a tab, and focus its content."""
        self.query_one(TabbedContent).active = tab
        pane = self.query_one(f"#{tab}", RunPane)
        focusable = [widget for widget in pane.query("*") if widget.focusable]
        (focusable[0] if focusable else self.query_one("#delta")).focus()

    # What is done

    def likely_run(self) -> str:
        """Return the name of this run."""
        return self.name_of_run

    def action_log(self) -> None:
        """Show the log of the run's job."""
        self.action_tab("log")

    def action_cancel(self) -> None:
        """End the run's job."""
        job = find_job_of(self.name_of_run, self.app_state.jobs)
        if job is not None and job.is_running:
            self.request(CancelJob(job))
        else:
            self.notify("no job of this run is running", severity="warning")

    def action_copy(self) -> None:
        """Copy the command that shows the run."""
        self.copy_command(["show", self.name_of_run])

    def action_export(self) -> None:
        """Write the plot or the table."""
        if self._data is not None:
            self.app.push_screen(ExportScreen(), self._export)

    def _export(self, kind: str | None) -> None:
        data, view = self._data, self._view
        if kind is None or data is None:
            return
        path = Path(f"{self._path.parent.name}-{self._path.name}-layers.{kind}").absolute()
        if kind == "csv":
            run_in_thread(self.app, lambda: self._write_csv(path, data, view), "export")
            return
        arguments = ["plot", self.name_of_run, "--logs-dir", str(self.app_state.logs_dir), "--out", str(path)]
        arguments += ["--delta", f"{data.deltas[view.place]:g}", "--epoch", f"{view.epoch + 1}"]
        arguments += ["--all-layers"] if self._shows_all else []
        run_in_thread(self.app, lambda: export_plot(self.app, arguments, path), "export")

    def _write_csv(self, path: Path, data: RunCurves, view: View) -> None:
        tables = list(data.probes)
        heads = ["layer", "kind", "n_features", "epoch", "delta", "intrinsic_dimension", "saturation"]
        rows: list[list[object]] = [[*heads, "saturation_eval", *(f"probe_{table}" for table in tables)]]
        for row in make_layer_rows(data, view):
            values = [row.dimension, row.saturation, row.saturation_eval, *(row.probes[t] for t in tables)]
            known = ["" if math.isnan(value) else value for value in values]
            rows.append([row.layer, row.kind, row.n_features, view.epoch, data.deltas[view.place], *known])
        write_file(path, format_csv(rows).encode())
        self.app.call_from_thread(self.notify, f"wrote {path}")
