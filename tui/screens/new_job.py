"""The form of a new job, made from a stage's own parameters."""

import re
import shlex
from functools import partial
from typing import ClassVar

from pydantic import BaseModel
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.suggester import SuggestFromList
from textual.widgets import Button, Checkbox, Footer, Input, Select

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import list_configs, read_config
from satstore.config.naming import name_experiments
from satstore.errors import SatstoreError
from satstore.registry import STAGES
from satstore.runs.logs_folder import check_run_id, find_runs
from satstore.stages.forms import (
    FormEntry,
    check_texts,
    describe_entries,
    find_usable_stages,
    flag_words,
    stage_model,
)
from satstore.stages.parameters import StageParameters
from satstore.system.text import clean, counted
from tui.messages import StartJob
from tui.screens.base import AppScreen, AppState
from tui.threads import run_command, run_in_thread
from tui.widgets.plain import Static, as_text
from tui.widgets.text_input import TextInput

RUN_ENTRIES = (
    FormEntry("run", "--run", "a run that is there: RES, or RES/<experiment>", ""),
    FormEntry(
        "config",
        "--config",
        "or a config: a shipped one's name, or a JSON file; missing stages run first",
        "",
    ),
    FormEntry("run_id", "--run-id", "with a config: the name that the run gets", ""),
)
N_SHOWN = 6


FormWidget = Input | Select[str] | Checkbox


class NewJobScreen(AppScreen):
    """Starts a stage, likely on the run that is named."""

    HELP = """\
## A new job

The fields are the stage's own parameters; what is left empty has its default. What is wrong is said under its
field, as the command would say it. The command line below does the same in a shell.

- `tab` and `enter` go to the next field, `ctrl+s` starts the job, `ctrl+y` copies the command line.
- `ctrl+g` shows what a config takes before it starts: disk, memory and time.
- The job is a process of its own: closing this app does not end it.
"""

    BINDINGS: ClassVar[list[BindingType]] = [
        # Without priority: after the keys before them, which their field has to take first.
        Binding("ctrl+s", "start", "Start", tooltip="Start the job"),
        Binding("ctrl+g", "estimate", "Estimate", tooltip="What the config takes"),
        Binding("ctrl+y", "copy", "Copy", tooltip="Copy the command line"),
        Binding("escape", "dismiss", "Back", tooltip="Back, and start nothing"),
    ]

    def __init__(self, app_state: AppState, run: str | None = None) -> None:
        super().__init__(app_state)
        self._run_name, self._stage = run, "run"
        self._model: type[BaseModel] = StageParameters
        self._fields: dict[str, FormWidget] = {}
        self._notes: dict[str, Static] = {}
        self._errors: dict[str, str] = {}
        self._stages: list[str] = []
        self._arguments: list[str] = []

    # Its layout

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        self._stages = offered_stages()
        self._stage = self._likely_stage(self._stages)
        with Horizontal(id="top"):
            yield Static("new job", id="title")
            yield Static(id="counts")
        with VerticalScroll(id="form", can_focus=False):
            with Horizontal(classes="field"):
                yield Static("stage", classes="label")
                yield Select(
                    [(Text(name), name) for name in self._stages],
                    value=self._stage,
                    allow_blank=False,
                    id="stage",
                    compact=True,
                )
            yield Static(id="about", classes="about")
            for entry in RUN_ENTRIES:
                yield self._make_field(entry)
            yield Vertical(*self._make_parameters(self._stage), id="parameters")
        yield Static(id="preview")
        with Horizontal(id="command-bar"):
            yield Static(id="command")
            yield Button("Estimate", id="estimate", compact=True)
            yield Button("Start", id="start", variant="primary", compact=True)
        yield Footer(compact=True)

    def _likely_stage(self, stages: list[str]) -> str:
        """Return the first stage that the run lacks."""
        found = next((e for e in self.app_state.experiments if e.name == self._run_name), None)
        missing = [
            stage for stage in stages[1:] if found and found.stages.get(stage.replace("-", "_")) != "done"
        ]
        return missing[0] if missing else self._stage

    def _make_parameters(self, stage: str) -> list[Vertical]:
        """Return the fields of a stage's parameters, in place of those of another one."""
        self._stage, self._model = stage, stage_model(stage)
        run_names = {entry.name for entry in RUN_ENTRIES}
        for kept in (self._fields, self._notes):
            for name in kept.keys() - run_names:
                del kept[name]
        return [self._make_field(entry) for entry in describe_entries(self._model)]

    def _make_field(self, entry: FormEntry) -> Vertical:
        error = Static(id=f"error-{entry.name}", classes="error")
        error.display = False
        widget = self._make_widget(entry)
        self._fields[entry.name], self._notes[entry.name] = widget, error
        label = Static(entry.name.replace("_", " "), classes="label")
        return Vertical(Horizontal(label, widget, classes="field"), error, classes="entry")

    def _make_widget(self, entry: FormEntry) -> FormWidget:
        name = f"field-{entry.name}"
        if entry.is_switch:
            is_on = bool(self._model.model_fields[entry.name].default)
            label, tooltip = as_text(entry.description), as_text(entry.flag)
            return Checkbox(label, is_on, id=name, compact=True, tooltip=tooltip)
        if entry.choices:
            options = [(Text(choice), choice) for choice in entry.choices]
            if not entry.default:
                options.insert(0, (Text(clean(entry.description), "dim"), ""))
            return Select(options, value=entry.default, allow_blank=False, id=name, compact=True)
        suggestions = self._suggest(entry.name)
        return TextInput(
            value=(self._run_name or "") if entry.name == "run" else "",
            placeholder=f"{entry.default}  {entry.description}".strip(),
            suggester=SuggestFromList(suggestions, case_sensitive=False) if suggestions else None,
            id=name,
            compact=True,
            tooltip=as_text(f"{entry.flag}: {entry.description}"),
        )

    def _suggest(self, name: str) -> list[str]:
        if name == "config":
            return list(list_configs())
        if name == "run":
            return [experiment.name for experiment in self.app_state.experiments]
        return []

    def on_mount(self) -> None:
        """Show what the stage does, and errors."""
        self.query_one("#preview").display = False
        self.set_focus(self.query_one("#field-config" if self._run_name is None else "#stage"))
        self._describe_stage()
        self._check()

    def _describe_stage(self) -> None:
        is_run = self._stage == "run"
        about = "all stages that the config names" if is_run else STAGES[self._stage].description
        self.query_one("#about", Static).update(Text(about))

    @on(Select.Changed, "#stage")
    async def _stage_chosen(self, event: Select.Changed) -> None:
        stage = str(event.value)
        if stage == self._stage:
            return
        fields = self._make_parameters(stage)
        parameters = self.query_one("#parameters", Vertical)
        await parameters.remove_children()
        await parameters.mount_all(fields)
        self._describe_stage()
        self._check()

    # What is typed

    @on(Input.Changed)
    @on(Checkbox.Changed)
    @on(Select.Changed)
    def _changed(self) -> None:
        self._check()

    def action_leave_field(self) -> None:
        """Go to the next field."""
        self.focus_next()

    def _read(self, name: str) -> str | bool:
        widget = self._fields.get(name)
        if widget is None:
            return ""
        if isinstance(widget, Checkbox):
            return widget.value
        if isinstance(widget, Select):
            return "" if widget.is_blank() else str(widget.value)
        return widget.value

    def _check(self) -> None:
        """Show errors and the command line."""
        names = [entry.name for entry in describe_entries(self._model)]
        values, errors = check_texts(self._model, {name: self._read(name) for name in names})
        given = {entry.name: str(self._read(entry.name)).strip() for entry in RUN_ENTRIES}
        self._arguments = [self._stage]
        for entry in RUN_ENTRIES:
            if given[entry.name]:
                self._arguments += [entry.flag, given[entry.name]]
        self._arguments += flag_words(self._model, values)
        self._errors = self._check_run_entries(given) | errors
        for name, note in self._notes.items():
            error = clean(self._errors.get(name, ""))
            if note.display != bool(error) or str(note.content) != error:  # a change lays the form out anew
                note.display = bool(error)
                note.update(Text(error))
        self._offer_stages()
        self._show_grid(given["config"])
        command = shlex.join(["satstore", *self._arguments])
        self.query_one("#command", Static).update(Text(clean(command), "bold"))
        self.query_one("#start").disabled = bool(self._errors) or self.app_state.read_only
        self.query_one("#estimate").disabled = not (given["config"] or given["run"])

    def _check_run_entries(self, given: dict[str, str]) -> dict[str, str]:
        """Return errors of run, config and run id; an empty one for what is still to be typed."""
        errors = {}
        if given["run"]:
            try:
                find_runs(given["run"], self.app_state.logs_dir, unreadable=[])
            except SatstoreError as error:
                errors["run"] = str(error)
            if given["config"]:
                errors["config"] = "--config and --run exclude each other: a run has its own config"
        elif not given["config"]:
            errors["config"] = ""
        elif not given["run_id"]:
            errors["run_id"] = "--config needs --run-id, the name that the run's folder gets"
        for name, check in (("config", read_config), ("run_id", check_run_id)):
            if given[name] and name not in errors:
                try:
                    check(given[name])
                except (SatstoreError, ImportError) as error:
                    errors[name] = str(error)
        if given["run_id"] and given["run"] and "run_id" not in errors:
            errors["run_id"] = "--run-id goes with a config; a run has its name"
        return errors

    def _offer_stages(self) -> None:
        """Offer the stages that the plugins of a config have brought, too."""
        if self._stages == (stages := offered_stages()):
            return
        self._stages = stages
        choice = self.query_one("#stage", Select)
        with choice.prevent(Select.Changed):  # the stage that is chosen stays
            choice.set_options([(Text(name), name) for name in stages])
            choice.value = self._stage

    def _show_grid(self, config: str) -> None:
        """Show the experiments that a config stands for."""
        counts = self.query_one("#counts", Static)
        try:
            grid = read_config(config) if config else []
        except (SatstoreError, ImportError):
            grid = []
        counts.update(counted(len(grid), "experiment") if grid else "")
        preview = self.query_one("#preview", Static)
        preview.display = bool(grid)
        preview.update(describe_grid(grid))

    # What is done

    @on(Button.Pressed, "#start")
    def action_start(self) -> None:
        """Start the job, unless something is wrong."""
        self._check()  # what was typed last may not have been told yet
        if self._errors:
            name = next(iter(self._errors))
            self.notify(
                self._errors[name] or "name a run that is there, or a config and a run id", severity="error"
            )
            self.set_focus(self._fields[name])
            return
        arguments = self._arguments
        self.dismiss()
        self.request(StartJob(arguments, follow=True))

    @on(Button.Pressed, "#estimate")
    def action_estimate(self) -> None:
        """Estimate disk, memory and time in another process."""
        named = [(name, str(self._read(name)).strip()) for name in ("config", "run")]
        about = [word for name, text in named if text for word in (f"--{name}", text)]
        error = self._errors.get("config") or self._errors.get("run")
        if error or not about:
            self.notify(error or "name a config first", severity="warning")
            return
        items = str(self._read("pooling")).replace(",", " ").split()
        poolings = [word for item in items for word in ("-d", item)]
        arguments = ["estimate", *about, *poolings, "--logs-dir", str(self.app_state.logs_dir)]
        self.query_one("#counts", Static).update("estimating …")
        run_in_thread(self.app, partial(self._show_estimate, arguments), "estimate")

    def _show_estimate(self, arguments: list[str]) -> None:
        def say(text: str) -> None:
            if self.is_attached:
                self.query_one("#counts", Static).update("")
                preview = self.query_one("#preview", Static)
                preview.display = bool(text)
                preview.update(Text(text.rstrip()))

        try:
            text = run_command(arguments)
        except SatstoreError:
            self.app.call_from_thread(say, "")
            raise
        self.app.call_from_thread(say, shorten_estimate(text))

    def action_copy(self) -> None:
        """Copy the command line."""
        self._check()
        self.copy_command(self._arguments)


def offered_stages() -> list[str]:
    """Return what a job can run: all stages of a config, or one of those that load."""
    return ["run", *find_usable_stages()[0]]


def describe_grid(grid: list[ExperimentConfig]) -> Text:
    """Return the first experiments of a grid, and their stages."""
    text = Text(no_wrap=True, overflow="ellipsis")
    if grid:
        text.append(f"stages: {', '.join(grid[0].stages)}\n", "dim")
    for name in name_experiments(grid, also=("epoch", "optimizer"))[:N_SHOWN]:
        title, _, values = name.partition(", ")
        text.append(title, "bold").append(f", {values}\n")
    if len(grid) > N_SHOWN:
        text.append(f"and {len(grid) - N_SHOWN} more\n", "dim")
    text.rstrip()
    return text


LAYER_ROW = re.compile(r"\s(Conv|Linear|LSTM)|^layer\s")


def shorten_estimate(text: str, n_lines: int = 12) -> str:
    """Return what ``satstore estimate`` prints, less the layers' rows."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not LAYER_ROW.search(line)]
    return "\n".join(lines[-n_lines:])
