"""The terminal app: it reads the logs folder for its screens, and does what they ask for."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.keys import key_to_character
from textual.reactive import reactive
from textual.screen import Screen
from textual.widgets import Input
from textual.worker import Worker, WorkerState

from satstore.errors import SatstoreError
from satstore.jobs.job import Job
from satstore.jobs.start import cancel_job, start_job
from satstore.reports.listing.reader import Experiment, ReaderThread, Snapshot
from satstore.system.text import clean
from satstore.system.usage import Usage
from tui.messages import (
    CancelJob,
    CompareRuns,
    MeasureUsage,
    OpenJobs,
    OpenRun,
    SnapshotTaken,
    StartJob,
    UsageMeasured,
)
from tui.screens.base import WRITING_ACTIONS, AppScreen
from tui.screens.jobs import JobsScreen
from tui.screens.modals import ConfirmScreen, ErrorScreen
from tui.screens.runs import RunsScreen
from tui.threads import run_in_thread

POLL_INTERVAL_S = 1.0


class SatstoreApp(App[None]):
    """Shows a logs folder, and starts commands on it.

    Its screens read its :class:`~tui.screens.base.AppState`, and send it the messages of ``tui/messages.py``.
    No screen knows another one, or how jobs are started and ended.
    """

    TITLE = "satstore"
    CSS_PATH = "app.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - as Textual types it
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new_job", "New job", tooltip="Start a stage"),
        Binding("J", "jobs", "Jobs", key_display="J", tooltip="What runs and what ran"),
        Binding(
            "question_mark", "help", "Help", key_display="?", tooltip="Keys and help for what has the focus"
        ),
        Binding("q", "quit", "Quit", tooltip="Leave; what runs goes on"),
        # At once: the next key goes to what has the focus when it comes.
        Binding("tab", "app.focus_next", show=False, priority=True),
        Binding("shift+tab", "app.focus_previous", show=False, priority=True),
    ]

    snapshot: reactive[Snapshot | None] = reactive(None)
    usages: reactive[dict[int, Usage]] = reactive({})

    def __init__(
        self,
        logs_dir: Path,
        poll_interval_s: float = POLL_INTERVAL_S,
        *,
        read_only: bool = False,
        theme: str | None = None,
    ) -> None:
        super().__init__()
        self.logs_dir = logs_dir.absolute()
        self.read_only = read_only
        self._reader = ReaderThread(
            self.logs_dir,
            lambda snapshot: self.post_message(SnapshotTaken(snapshot)),
            lambda usages: self.post_message(UsageMeasured(usages)),
            poll_interval_s,
        )
        self.theme = theme or self.theme

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The experiments of the last snapshot."""
        return () if self.snapshot is None else self.snapshot.experiments

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of the last snapshot, the newest first."""
        return () if self.snapshot is None else self.snapshot.jobs

    def get_default_screen(self) -> Screen[None]:
        """Return the screen that the app starts with."""
        return RunsScreen(self)

    def on_mount(self) -> None:
        """Start the reader."""
        self._reader.start()

    def on_unmount(self) -> None:
        """Stop the reader."""
        self._reader.stop()

    async def _check_bindings(self, key: str, priority: bool = False) -> bool:
        """Run what a key is bound to before the next key is handled, which may be for what is shown then.

        Textual runs it once the focused widget has let the key pass, and sends that widget the next keys
        meanwhile. Fields that are typed into still get their keys first.
        """
        if await super()._check_bindings(key, priority):
            return True
        focused = self.focused
        is_typed_into = isinstance(focused, Input) or (
            focused is not None and focused.check_consume_key(key, key_to_character(key))
        )
        return priority and not is_typed_into and await super()._check_bindings(key)

    # From threads

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        """Hand a snapshot to the screens."""
        self.snapshot = message.snapshot

    def on_usage_measured(self, message: UsageMeasured) -> None:
        """Hand what jobs use to the screens."""
        self.usages = message.usages

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Show what went wrong in a thread."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            self.show_error(event.worker.error)

    def notify(self, message: str, **options: Any) -> None:
        """Show a message in a corner of the screen, as text: it may name paths, commands and runs."""
        super().notify(clean(message), **options | {"markup": False})

    def show_error(self, error: BaseException | str) -> None:
        """Show what went wrong; one modal takes all errors."""
        foreseen = isinstance(error, SatstoreError | str)
        text = clean(f"{error}" if foreseen else f"{type(error).__name__}: {error}")
        if isinstance(self.screen, ErrorScreen):
            self.screen.add(text)
        else:
            self.push_screen(ErrorScreen(text))

    # From screens

    def on_open_run(self, message: OpenRun) -> None:
        """Show an experiment."""
        from tui.screens.run import RunScreen

        self.push_screen(RunScreen(self, message.path))

    def on_compare_runs(self, message: CompareRuns) -> None:
        """Show several experiments on one axis."""
        from tui.screens.compare import CompareScreen

        self.push_screen(CompareScreen(self, message.paths))

    def on_open_jobs(self, message: OpenJobs) -> None:
        """Show the jobs."""
        self.push_screen(JobsScreen(self, message.number))

    def on_start_job(self, message: StartJob) -> None:
        """Start a command as a job, and show it among the jobs where it is to be followed."""
        arguments = [*message.arguments, "--logs-dir", str(self.logs_dir)]

        def work() -> None:
            job = start_job(arguments, self.logs_dir)
            self._reader.poll_now()
            self.call_from_thread(self.notify, f"job {job.number} started")
            if message.follow:
                self.post_message(OpenJobs(job.number))

        run_in_thread(self, work, "start", exclusive=False)

    def on_cancel_job(self, message: CancelJob) -> None:
        """Ask whether to end a job, and end it."""
        job = message.job

        def work() -> None:
            ended = cancel_job(job)
            self.call_from_thread(self.notify, f"job {ended.number} is {ended.state}")
            self._reader.poll_now()

        def answer(yes: bool | None) -> None:
            if yes:
                self.notify(f"stopping job {job.number} …")
                run_in_thread(self, work, "cancel", exclusive=False)

        question = (
            f"End job {job.number}?\n\n{clean(job.command)}\n\n"
            "It is asked to stop, and killed after 10 s. The same command goes on where it was."
        )
        self.push_screen(ConfirmScreen(question, "End it"), answer)

    def on_measure_usage(self, message: MeasureUsage) -> None:
        """Measure what the running jobs use, or stop measuring it."""
        self._reader.measures = message.wanted

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey out what ``--read-only`` forbids."""
        return None if self.read_only and action in WRITING_ACTIONS else True

    def action_help(self) -> None:
        """Show or hide keys and help for what has the focus."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def action_jobs(self) -> None:
        """Show the jobs."""
        if not isinstance(self.screen, JobsScreen):
            self.push_screen(JobsScreen(self))

    async def action_new_job(self) -> None:
        """Open the form of a new job."""
        from tui.screens.new_job import NewJobScreen

        screen = self.screen
        if not isinstance(screen, NewJobScreen):
            run = screen.likely_run() if isinstance(screen, AppScreen) else None
            await self.push_screen(NewJobScreen(self, run))

    async def action_quit(self) -> None:
        """Leave, and name the jobs that go on."""
        running = [job for job in self.jobs if job.is_running]
        if not running:
            self.exit()
            return
        many = f"{len(running)} jobs keep" if len(running) > 1 else "1 job keeps"
        numbers = ", ".join(f"{job.number}" for job in reversed(running))
        self.exit(message=f"{many} running ({numbers}); see: satstore jobs")

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Yield every action that has a key here, and Textual's own."""
        seen = set()
        for active in screen.active_bindings.values():
            binding = active.binding
            if active.enabled and binding.description and binding.action not in seen:
                seen.add(binding.action)
                key = self.get_key_display(binding)
                text = f"{binding.tooltip or binding.description} ({key})"
                act = partial(self.run_action, binding.action, active.node)
                yield SystemCommand(binding.description, text, act)
        for command in super().get_system_commands(screen):
            if command.title not in ("Quit", "Keys"):  # which are among the above
                yield command
