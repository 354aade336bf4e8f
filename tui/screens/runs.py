"""The screen of all runs, with which the app starts."""

import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.reactive import reactive
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from satstore.logs import find_logs_dir
from satstore.manifest import STAGE_KEYS, StageStatus
from satstore.words import MARKS, describe_age
from tui.reader import Experiment, Snapshot

STYLES: dict[StageStatus, str] = {
    "done": "green",
    "running": "bold cyan",
    "failed": "red",
    "missing": "dim",
}

NAMES = ("run", "model", "dataset")
NUMBERS = frozenset({"px", "epoch", "accuracy", "age"})
COLUMNS = ("run", "model", "dataset", "px", "epoch", "accuracy", "stages", "age", "experiment")
LAST = COLUMNS[-1]
LEAST_WIDTHS = {"stages": len(STAGE_KEYS), "age": len("59 min"), LAST: len(LAST)}


class RunsTable(DataTable[Text]):
    """The table of experiments: one that changed is updated in place, the last column takes the room left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Cursor down", show=False),
        Binding("k", "cursor_up", "Cursor up", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(cursor_type="row")
        self._shown: dict[str, Experiment] = {}
        self._widths: dict[str, int] = {}

    @property
    def highlighted(self) -> Experiment | None:
        """The experiment under the cursor."""
        return next(iter(list(self._shown.values())[self.cursor_row :]), None)

    @property
    def _gap(self) -> int:
        return 1 if self.screen.has_class("-narrow") else 2

    def show(self, experiments: Iterable[Experiment]) -> None:
        """Show these experiments, in their order; the cursor stays on its experiment."""
        wanted = {experiment.name: experiment for experiment in experiments}
        widths = fit_columns(list(wanted.values()), self.scrollable_content_region.width, self._gap)
        if widths == self._widths and list(wanted) == list(self._shown):
            changed = [e for name, e in wanted.items() if e is not self._shown[name]]
            self._shown = wanted
            for experiment in changed:
                for column, cell in zip(COLUMNS, make_cells(experiment, widths), strict=True):
                    self.update_cell(experiment.name, column, cell)
        else:
            self._fill(wanted, widths)

    def _fill(self, wanted: dict[str, Experiment], widths: dict[str, int]) -> None:
        under_cursor, row, top = self.highlighted, self.cursor_row, self.scroll_offset.y
        self._shown, self._widths = wanted, widths
        with self.app.batch_update():
            self.clear(columns=True)
            self.cell_padding = self._gap - 1
            for column in COLUMNS:
                label = align(column, column, widths[column])
                self.add_column(label, key=column, width=widths[column] + 1 - self.cell_padding)
            for name, experiment in wanted.items():
                self.add_row(*make_cells(experiment, widths), key=name)
            names = list(wanted)
            if under_cursor is not None and under_cursor.name in wanted:
                row = names.index(under_cursor.name)
            self.scroll_to(y=top, animate=False, immediate=True)
            self.move_cursor(row=min(row, len(names) - 1))

    def update_ages(self) -> None:
        """Let the experiments grow older: only those whose age reads differently now."""
        now = time.time()
        for name, experiment in self._shown.items():
            age = experiment_age(experiment, now)
            if self.get_cell(name, "age").plain.lstrip() != age:
                self.update_cell(name, "age", Text(align("age", age, self._widths["age"])))

    def on_resize(self) -> None:
        """Fit the columns to the new width."""
        self.show(self._shown.values())


class RunsScreen(Screen[None]):
    """All experiments of a logs folder, and what became of the one under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("full_stop", "pause", "Pause", key_display=".", tooltip="Hold what is shown, or go on"),
    ]

    paused: reactive[bool] = reactive(False, init=False)

    def __init__(self, logs_dir: Path) -> None:
        super().__init__()
        self._logs_dir = logs_dir

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        with Horizontal(id="top"):
            yield Static(Text(clean(f"satstore  {self._logs_dir}")), id="logs-dir")
            yield Static("reading …", id="counts")
        yield RunsTable()
        yield Static(id="empty")
        yield Static(id="detail")
        yield Footer()

    def on_mount(self) -> None:
        """Follow the reader, and the clock."""
        self.watch(self.app, "snapshot", self._show)
        self.set_interval(1, self._tick)

    def _show(self, snapshot: Snapshot | None) -> None:
        if snapshot is None or self.paused:
            return
        table = self.query_one(RunsTable)
        was_empty = self.has_class("-empty")
        self.set_class(not snapshot.experiments, "-empty")
        self.query_one("#empty", Static).update(describe_empty(self._logs_dir, snapshot.problem))
        table.show(snapshot.experiments)
        if was_empty and snapshot.experiments:
            table.focus()
        self.query_one("#counts", Static).update(describe_counts(snapshot, self.paused))
        self._show_detail()

    def _tick(self) -> None:
        if not self.paused:
            self.query_one(RunsTable).update_ages()

    @on(DataTable.RowHighlighted)
    def _show_detail(self) -> None:
        experiment = self.query_one(RunsTable).highlighted
        self.query_one("#detail", Static).update(
            "" if experiment is None else describe_experiment(experiment)
        )

    def action_pause(self) -> None:
        """Hold what is shown, or go on."""
        self.paused = not self.paused

    def watch_paused(self) -> None:
        """Say so, and catch up where it ends."""
        snapshot: Snapshot | None = getattr(self.app, "snapshot", None)
        if snapshot is not None:
            self.query_one("#counts", Static).update(describe_counts(snapshot, self.paused))
        self._show(snapshot)


def make_cells(experiment: Experiment, widths: dict[str, int]) -> list[Text]:
    """Return an experiment's row."""
    cells = []
    for column, text in describe_row(experiment).items():
        if column == "stages":
            cells.append(Text.assemble(*((MARKS[s], STYLES[s]) for s in experiment.stages.values())))
            continue
        style = "yellow" if experiment.problem and column == LAST else ""
        width = widths[column]
        n_last = width // 2
        if column == LAST:  # a name begins with what other columns show, and ends with a digest
            n_last = 0 if experiment.problem else width - 1
        cells.append(Text(align(column, shorten(text, width, n_last), width), style, no_wrap=True))
    return cells


def describe_row(experiment: Experiment) -> dict[str, str]:
    """Return the texts of an experiment's row, by column, at full length."""
    accuracy, epochs = experiment.test_accuracy, experiment.epochs
    return {
        "run": clean(experiment.run_id),
        "model": clean(experiment.model),
        "dataset": clean(experiment.dataset),
        "px": "" if experiment.resolution is None else f"{experiment.resolution}",
        "epoch": "" if epochs is None else f"{experiment.epochs_done}/{epochs}",
        "accuracy": "" if accuracy is None else f"{accuracy:.2%}",
        "stages": "".join(MARKS[status] for status in experiment.stages.values()),
        "age": experiment_age(experiment, time.time()),
        "experiment": clean(
            f"⚠ {experiment.problem.removeprefix('manifest.json ')}"
            if experiment.problem
            else experiment.path.name
        ),
    }


def fit_columns(experiments: Sequence[Experiment], room: int, gap: int) -> dict[str, int]:
    """Return the columns' widths: what their texts need, and for the last column what is left.

    The longest names give way where that would be less than a sixth. No width depends on what a stage
    changes, so that its progress moves no column.
    """
    rows = [describe_row(experiment) for experiment in experiments]
    widths = {}
    for column in COLUMNS[:-1]:
        least = max(len(column), LEAST_WIDTHS.get(column, 0))
        widths[column] = max([least, *(len(row[column]) for row in rows)])
    widths["epoch"] = max([widths["epoch"], *(2 * len(str(e.epochs)) + 1 for e in experiments if e.epochs)])
    for column in ("accuracy", "age"):  # longer ones than foreseen would be nonsense
        widths[column] = max(len(column), LEAST_WIDTHS.get(column, 0))
    room -= gap * len(COLUMNS)
    least = max(LEAST_WIDTHS[LAST], room // 6)
    while sum(widths.values()) + least > room:
        widest = max(NAMES, key=widths.__getitem__)
        if widths[widest] <= len(widest) + 1:
            break
        widths[widest] -= 1
    widths[LAST] = max(least, room - sum(widths.values()))
    return widths


def align(column: str, text: str, width: int) -> str:
    """Return a text as wide as its column: numbers to the right, all else to the left."""
    return text.rjust(width) if column in NUMBERS else text.ljust(width)


def shorten(text: str, width: int, n_last: int) -> str:
    """Cut a text to a width, out of its middle: the last characters, such as a digest, are kept."""
    if len(text) <= width:
        return text
    n_last = min(n_last, width - 1)
    return text[: width - 1 - n_last] + "…" + text[len(text) - n_last :]


def clean(text: str) -> str:
    """Return a text that a terminal can show: names on disk may hold control characters and broken UTF-8."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))


def experiment_age(experiment: Experiment, now: float) -> str:
    """Return an experiment's age; nothing where it isn't known."""
    return "" if experiment.created is None else describe_age(now - experiment.created)


def describe_counts(snapshot: Snapshot, paused: bool) -> Text:
    """Return how many experiments there are, and of those how many need a look."""
    if snapshot.problem:
        return Text(clean(snapshot.problem), "bold red")
    experiments = snapshot.experiments
    text = Text(f"{len(experiments)} experiment" + "s" * (len(experiments) != 1))
    for n, what, style in (
        (sum(e.has("running") for e in experiments), "running", STYLES["running"]),
        (sum(e.has("failed") for e in experiments), "failed", STYLES["failed"]),
        (sum(bool(e.problem) for e in experiments), "unreadable", "yellow"),
    ):
        if n:
            text.append(" · ", "dim").append(f"{n} {what}", style)
    return text.append("  ").append(" paused ", "reverse") if paused else text


def describe_experiment(experiment: Experiment) -> Text:
    """Return three lines on an experiment: its folder, its stages by name, and what failed."""
    text = Text(clean(str(experiment.path)) + "\n", "bold")
    if experiment.problem:
        return text.append(clean(f"⚠ {experiment.problem}"), "not bold yellow")
    for stage, status in experiment.stages.items():
        text.append(f"{MARKS[status]}{stage}  ", f"not bold {STYLES[status]}")
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
