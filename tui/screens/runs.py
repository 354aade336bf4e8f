"""The screen of all runs, with which the app starts."""

import shlex
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Footer, Input

from satstore.errors import ConfigError
from satstore.jobs.job import Job
from satstore.reports.listing.columns import (
    COLUMNS,
    SORT_KEYS,
    STYLES,
    describe_counts,
    describe_experiment_age,
    describe_problem,
    describe_row,
    sort_experiments,
)
from satstore.reports.listing.filters import Filter, parse_filter
from satstore.reports.listing.job_text import describe_job, find_job_of
from satstore.reports.listing.reader import Experiment, Snapshot
from satstore.reports.spreadsheets import format_csv
from satstore.runs.logs_folder import find_logs_dir
from satstore.storage.files import write_file
from satstore.system.text import MARKS, clean, stage_name
from tui.messages import CompareRuns, OpenJobs, OpenRun, StartJob
from tui.screens.base import AppState, TableScreen
from tui.threads import run_in_thread
from tui.widgets.plain import Static
from tui.widgets.table import Table
from tui.widgets.text_input import TextInput


class RunsTable(Table[Experiment]):
    """The table of experiments."""

    HELP = """\
## Runs

Every experiment of the logs folder, live. `enter` opens one, `space` marks it, `c` compares the marked ones.

- `/` filters as you type: `model:resnet* acc>90 probe:done text`. Also `run:`, `experiment:`, `dataset:`,
  `epoch>5`, `px=32`, `age<2h`, `disk>1GiB`, any stage (`train:failed`), `is:running`; `-` negates a term.
- `s` sorts by the next column, `S` the other way round; so does a click on a heading.
- `n` starts a stage, `x` ends the job of this run, `l` shows its log.
- `e` writes the table as CSV, `y` copies the command that shows this run.
"""


class RunsScreen(TableScreen):
    """All experiments of a logs folder, and details of the one under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", tooltip="Show only what matches"),
        Binding("space", "mark", "Mark", tooltip="Mark this run for comparison"),
        Binding("c", "compare", "Compare", tooltip="Overlay the marked runs"),
        Binding("s", "sort(1)", "Sort", show=False, tooltip="Sort by the next column"),
        Binding("S", "reverse", "Reverse", show=False, tooltip="Sort the other way round"),
        Binding("l", "log", "Log", show=False, tooltip="The log of this run's job"),
        Binding("x", "cancel", "Cancel", show=False, tooltip="End this run's job"),
        Binding("e", "export", "Export", show=False, tooltip="Write the table as CSV"),
        Binding("y", "copy", "Copy command", show=False, tooltip="Copy the command that shows this run"),
        Binding("d", "demo", "Demo", show=False, tooltip="Run the demo"),
        Binding("escape", "back", show=False),
    ]

    def __init__(self, app_state: AppState) -> None:
        super().__init__(app_state)
        self._filter = Filter()
        self._order = ("run", False)
        self.marked: frozenset[str] = frozenset()

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        with Horizontal(id="top"):
            yield Static(Text(clean(f"satstore  {self.app_state.logs_dir}")), id="logs-dir")
            yield Static("reading …", id="counts")
        with Horizontal(id="filter-bar"):
            yield Static("/", id="slash")
            yield TextInput(placeholder="model:resnet* acc>90 probe:done text", id="filter", compact=True)
            yield Static(id="filter-error")
        yield RunsTable(COLUMNS, key=lambda e: e.name, note=describe_problem, clock=describe_experiment_age)
        with Vertical(id="empty"):
            yield Static(id="empty-text")
            yield Button("Run the demo (d)", id="demo", variant="primary")
        yield Static(id="detail")
        yield Static(id="jobs-line")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Watch the app's snapshots."""
        self.query_one("#filter-bar").display = False
        self.query_one("#demo").display = not self.app_state.read_only
        self.watch(self.app, "snapshot", self._show)
        self.table.set_sorted_by(*self._order)
        self.table.focus()

    # What is shown

    def _show(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and not self.paused:
            self._draw(snapshot)

    def _draw(self, snapshot: Snapshot) -> None:
        was_empty = self.has_class("-empty")
        self.set_class(not snapshot.experiments, "-empty")
        empty = describe_empty(self.app_state.logs_dir, snapshot.problem)
        if not snapshot.experiments:
            self.query_one("#empty-text", Static).update(empty)
            self.query_one("#demo").display = not (self.app_state.read_only or snapshot.problem)
        found = [e for e in snapshot.experiments if self._filter.matches(e)]
        self.table.show(sort_experiments(found, *self._order))
        if was_empty and snapshot.experiments:
            self.table.focus()
        self._show_counts(snapshot)
        self._show_detail()
        self._show_jobs(snapshot.jobs)

    def _show_counts(self, snapshot: Snapshot) -> None:
        if snapshot.problem:
            text = Text(clean(snapshot.problem), "bold red")
        else:
            text = describe_counts(self.table.rows, len(snapshot.experiments))
        if self.marked:
            text.append(" · ", "dim").append(f"● {len(self.marked)} marked", "bold")
        if self.paused:
            text.append("  ").append(" paused ", "reverse")
        self.query_one("#counts", Static).update(text)

    def _show_jobs(self, jobs: tuple[Job, ...]) -> None:
        line = self.query_one("#jobs-line", Static)
        running = [job for job in jobs if job.is_running]
        line.display = bool(running)
        text = Text(no_wrap=True, overflow="ellipsis")
        for job in running:
            text.append(f" ▶ {job.number} ", STYLES["running"]).append(clean(describe_job(job)) + "  ")
        line.update(text)

    @on(Table.Moved)
    def _show_detail(self) -> None:
        experiment = self.table.current
        detail = "" if experiment is None else describe_selected(experiment)
        self.query_one("#detail", Static).update(detail)

    def _show_again(self) -> None:
        if self.app_state.snapshot is not None:
            self._draw(self.app_state.snapshot)

    def watch_paused(self) -> None:
        """Show whether it is paused, and show what changed meanwhile once it goes on."""
        snapshot = self.app_state.snapshot
        if snapshot is not None:
            self._show_counts(snapshot)
        self._show(snapshot)

    # The filter

    def action_filter(self) -> None:
        """Type a filter."""
        self.query_one("#filter-bar").display = True
        self.set_focus(self.query_one("#filter"))

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self.query_one("#filter-bar").display = bool(event.value) or self.focused is event.input
        error = self.query_one("#filter-error", Static)
        try:
            self._filter = parse_filter(event.value)
        except ConfigError as problem:  # the rows stay as they were for the last one that could be read
            error.update(Text(clean(str(problem)), no_wrap=True, overflow="ellipsis"))
            return
        error.update("")
        self._show_again()

    def action_leave_field(self) -> None:
        """Go from the filter, which stays, to the table."""
        self.set_focus(self.table)
        self.query_one("#filter-bar").display = bool(self.query_one("#filter", Input).value)

    def action_back(self) -> None:
        """Clear the filter; without one, clear the marks."""
        text = self.query_one("#filter", Input)
        if text.value:
            text.value = ""
        elif self.marked and self.focused is not text:
            self.marked = frozenset()
            self.table.set_marked(self.marked)
            self._show_again()
        self.query_one("#filter-bar").display = False
        self.set_focus(self.table)

    # The order

    def action_sort(self, step: int) -> None:
        """Sort by the next of the columns in sight."""
        keys = [key for key in self.table.widths if key in SORT_KEYS]
        place = keys.index(self._order[0]) if self._order[0] in keys else -1
        self._sort_by(keys[(place + step) % len(keys)])

    @on(Table.HeadingClicked)
    def _heading_clicked(self, event: Table.HeadingClicked) -> None:
        if event.key == self._order[0]:
            self.action_reverse()
        else:
            self._sort_by(event.key)

    def _sort_by(self, column: str) -> None:
        # Of these, the largest are looked for.
        self._order = (column, column in ("accuracy", "saturation", "disk"))
        self.table.set_sorted_by(*self._order)
        self._show_again()

    def action_reverse(self) -> None:
        """Sort the other way round."""
        self._order = (self._order[0], not self._order[1])
        self.table.set_sorted_by(*self._order)
        self._show_again()

    # The run under the cursor

    @on(Table.Opened)
    def _open(self) -> None:
        experiment = self.table.current
        if experiment is not None and not experiment.problem:
            self.request(OpenRun(experiment.path))

    def action_mark(self) -> None:
        """Mark the run under the cursor, or unmark it."""
        experiment = self.table.current
        if experiment is not None:
            self.marked ^= {experiment.name}
            self.table.set_marked(self.marked)
            self.table.action_move(1)
            if self.app_state.snapshot is not None:
                self._show_counts(self.app_state.snapshot)

    def action_compare(self) -> None:
        """Overlay the marked runs, and that under the cursor where only one is marked."""
        names = set(self.marked)
        if len(names) < 2 and self.table.current is not None:
            names.add(self.table.current.name)
        paths = [e.path for e in self.app_state.experiments if e.name in names and not e.problem]
        if len(paths) < 2:
            self.notify("mark two runs or more with space, then compare them", severity="warning")
            return
        self.request(CompareRuns(paths))

    def likely_run(self) -> str | None:
        """Return the name of the run under the cursor."""
        experiment = self.table.current
        return None if experiment is None or experiment.problem else experiment.name

    def _job(self) -> Job | None:
        experiment = self.table.current
        job = None if experiment is None else find_job_of(experiment.name, self.app_state.jobs)
        if job is None:
            self.notify("no job of this run is known", severity="warning")
        return job

    def action_log(self) -> None:
        """Show the log of the run's job."""
        job = self._job()
        if job is not None:
            self.request(OpenJobs(job.number))

    def action_cancel(self) -> None:
        """End the run's job."""
        job = self._job()
        if job is not None:
            self.cancel(job)

    def action_copy(self) -> None:
        """Copy the command that shows the run."""
        experiment = self.table.current
        if experiment is not None:
            self.copy_command(["show", experiment.name])

    def action_export(self) -> None:
        """Write the table as CSV into the current folder."""
        heads = [*(column.key for column in COLUMNS), "problem"]
        rows = [[*describe_row(e).values(), clean(e.problem)] for e in self.table.rows]
        path = Path("satstore-runs.csv").absolute()

        def work() -> None:
            write_file(path, format_csv([heads, *rows]).encode())
            self.app.call_from_thread(self.notify, f"wrote {path}")

        run_in_thread(self.app, work, "export")

    @on(Button.Pressed, "#demo")
    def action_demo(self) -> None:
        """Run the demo."""
        self.request(StartJob(["demo"]))  # it shows up here


def describe_selected(experiment: Experiment) -> Text:
    """Return three lines on an experiment: its folder, its stages by name, and what failed."""
    text = Text(clean(str(experiment.path)) + "\n", "bold")
    if experiment.problem:
        return text.append(clean(f"⚠ {experiment.problem}"), "not bold yellow")
    for key, status in experiment.stages.items():
        text.append(f"{MARKS[status]}{clean(stage_name(key))}  ", f"not bold {STYLES[status]}")
    return text.append("\n" + clean(experiment.failure), "not bold red")


def describe_empty(logs_dir: Path, problem: str = "") -> Text:
    """Return what to do where there are no runs."""
    if problem:
        return Text.assemble((clean(str(logs_dir)), "bold"), "\n", (clean(problem), "red"))
    command = "satstore demo"
    if find_logs_dir().absolute() != logs_dir:
        command += f" --logs-dir {shlex.quote(str(logs_dir))}"
    return Text.assemble(
        "No runs yet in\n",
        (clean(str(logs_dir)), "bold"),
        "\n\nA first one takes a minute or two, a small VGG on handwritten digits:\n\n",
        (clean(command), "bold green"),
        "\n\nLeave this open: runs show up here by themselves.",
    )
