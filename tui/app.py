"""The terminal app: what all its screens share."""

from collections.abc import Callable, Iterable, Sequence
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
from satstore.reports.listing.reader import ReaderThread, Snapshot
from satstore.system.text import clean
from satstore.system.usage import Usage
from tui.messages import SnapshotTaken, UsageMeasured
from tui.screens.base import STARTS, AppScreen
from tui.screens.jobs import JobsScreen
from tui.screens.modals import ConfirmScreen, ErrorScreen
from tui.screens.runs import RunsScreen

POLL_INTERVAL_S = 1.0


class SatstoreApp(App[None]):
    """Shows a logs folder, and starts commands on it.

    Attributes
    ----------
    snapshot
        What the reader saw last; None until it has read once. Screens watch it.
    usages
        What the running jobs use, by number, while somebody looks.
    read_only
        Whether nothing may be started, ended or written.
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
        self._reader = ReaderThread(self.logs_dir, self.post_snapshot, self.post_usages, poll_interval_s)
        self.theme = theme or self.theme

    def get_default_screen(self) -> Screen[None]:
        """Return the screen that the app starts with."""
        return RunsScreen(self.logs_dir)

    def on_mount(self) -> None:
        """Start to read."""
        self._reader.start()

    def on_unmount(self) -> None:
        """Stop to read."""
        self._reader.stop()

    async def _check_bindings(self, key: str, priority: bool = False) -> bool:
        """Do what a key is bound to before the next one is looked at, which may be for what is shown then.

        Textual does it once the key came up from what has the focus, and sends the next ones there meanwhile.
        Fields that are typed into get their keys first all the same.
        """
        if await super()._check_bindings(key, priority):
            return True
        focused = self.focused
        is_typed_into = isinstance(focused, Input) or (
            focused is not None and focused.check_consume_key(key, key_to_character(key))
        )
        return priority and not is_typed_into and await super()._check_bindings(key)

    # What threads tell

    def post_snapshot(self, snapshot: Snapshot) -> None:
        """Take a snapshot from the reader's thread."""
        self.post_message(SnapshotTaken(snapshot))

    def post_usages(self, usages: dict[int, Usage]) -> None:
        """Take what jobs use from the reader's thread."""
        self.post_message(UsageMeasured(usages))

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        """Hand a snapshot to the screens."""
        self.snapshot = message.snapshot

    def on_usage_measured(self, message: UsageMeasured) -> None:
        """Hand what jobs use to the screens."""
        self.usages = message.usages

    def measure_usage(self, wanted: bool) -> None:
        """Measure what jobs use, while somebody looks."""
        self._reader.measures = wanted

    def look_now(self) -> None:
        """Let the reader look at once."""
        self._reader.look_now()

    def in_thread(self, work: Callable[[], Any], group: str, *, exclusive: bool = True) -> Worker[Any]:
        """Do slow work in a thread; where it fails, the error modal says why."""
        return self.run_worker(work, group=group, thread=True, exclusive=exclusive, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Say what went wrong in a thread."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            self.show_error(event.worker.error)

    def notify(self, message: str, **options: Any) -> None:
        """Tell something in a corner of the screen, as text: it may name paths, commands and runs."""
        super().notify(clean(message), **options | {"markup": False})

    def show_error(self, error: BaseException | str) -> None:
        """Say what went wrong, in one modal however much that is."""
        foreseen = isinstance(error, SatstoreError | str)
        text = clean(f"{error}" if foreseen else f"{type(error).__name__}: {error}")
        if isinstance(self.screen, ErrorScreen):
            self.screen.add(text)
        else:
            self.push_screen(ErrorScreen(text))

    # Jobs

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs as the reader saw them last, the newest first."""
        return self.snapshot.jobs if self.snapshot is not None else ()

    def start(self, words: Sequence[str], *, follow: bool) -> None:
        """Start a command as a job, and show it among the jobs where it is to be followed."""
        words = [*words, "--logs-dir", str(self.logs_dir)]

        def work() -> None:
            job = start_job(words, self.logs_dir)
            self.look_now()
            self.call_from_thread(self.notify, f"job {job.number} started")
            if follow:
                self.call_from_thread(self.push_screen, JobsScreen(job.number))

        self.in_thread(work, "start", exclusive=False)

    def cancel(self, job: Job) -> None:
        """Ask whether to end a job, and end it."""

        def work() -> None:
            ended = cancel_job(job)
            self.call_from_thread(self.notify, f"job {ended.number} is {ended.state}")
            self.look_now()

        def answer(yes: bool | None) -> None:
            if yes:
                self.notify(f"stopping job {job.number} …")
                self.in_thread(work, "cancel", exclusive=False)

        question = (
            f"End job {job.number}?\n\n{clean(job.command)}\n\n"
            "It is asked to stop, and killed after 10 s. The same command goes on where it was."
        )
        self.push_screen(ConfirmScreen(question, "End it"), answer)

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey out what ``--read-only`` forbids."""
        return None if self.read_only and action in STARTS else True

    def action_help(self) -> None:
        """Show or hide keys and help for what has the focus."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def action_jobs(self) -> None:
        """Show the jobs."""
        if not isinstance(self.screen, JobsScreen):
            self.push_screen(JobsScreen())

    async def action_new_job(self) -> None:
        """Open the form of a new job."""
        from tui.screens.new_job import NewJobScreen

        screen = self.screen
        if not isinstance(screen, NewJobScreen):
            target = screen.job_target() if isinstance(screen, AppScreen) else None
            await self.push_screen(NewJobScreen(target))

    async def action_quit(self) -> None:
        """Leave, and say what goes on."""
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
                yield SystemCommand(binding.description, text, self._doer(binding.action, active.node))
        for command in super().get_system_commands(screen):
            if command.title not in ("Quit", "Keys"):  # which are among the above
                yield command

    def _doer(self, action: str, node: Any) -> Callable[[], Any]:
        async def act() -> None:
            await self.run_action(action, node)

        return act
