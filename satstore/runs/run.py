"""Runs: one experiment's folder, for reading and writing.

Files are replaced together with the manifest, all or nothing, under a lock. The manifest also has the state
of each stage.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from satstore.runs.events import Event
from satstore.runs.manifest import LATENTS, FileRecord, Manifest, StageRecord, StageStatus
from satstore.runs.manifest_file import describe_manifest
from satstore.runs.results import RunResults
from satstore.storage.files import Digest, refusals, remove_partials, sync_folder, write_file
from satstore.storage.safe_files import check_folders, is_file
from satstore.system.signals import stop_requested

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from satstore.runs.targets import NewTarget


class Run(RunResults):
    """One experiment's folder, for reading and writing; see :class:`.folder.RunFolder`."""

    def plot(self) -> "Figure":
        """Draw saturation and probe accuracy over the layers; see :func:`satstore.plot_layers`."""
        import satstore

        return satstore.plot_layers(self)

    # Writing

    def set_labels(
        self, train: Any, eval: Any = None, *, name: str = "labels", classes: Sequence[str] | None = None
    ) -> None:
        """Add labels to the run, for probes on other tasks: ``satstore probe --run RES --target NAME``.

        Labels that the run has under that name are replaced, and the probes that were fitted to them dropped.

        Parameters
        ----------
        train, eval
            A label for each sample of the split, in the order of its latents: a class index, counted from 0,
            or a text; an array, a tensor, a list or a Series. Where one loader was recorded for both splits,
            leave the second out.
        name
            What the target is called; tables of its probes begin with it, as in ``probe-animal-pool4.csv``.
        classes
            Their names, by index; by default the texts in their order, or the numbers.

        Raises
        ------
        ConfigError
            If there is not one label for each sample, or it is no class index or text.

        Examples
        --------
        >>> run.set_labels(train_breeds, eval_breeds, name="breed")  # doctest: +SKIP
        """
        from satstore.runs.targets import make_target
        from satstore.storage.label_files import as_labels

        given = as_labels(train, f"{name} (train)")
        evaluated = None if eval is None else as_labels(eval, f"{name} (eval)")
        with self.lock():
            self.write_target(make_target(self, name, given, evaluated, classes))

    def write_target(self, target: "NewTarget") -> None:
        """Commit labels, and drop the probes that were fitted to others of their name.

        The lock must be held.
        """
        from satstore.storage.zarr import AnalysisStore

        outdated = target.outdated_probes(self.manifest)

        def change(manifest: Manifest) -> None:
            for key in outdated:
                manifest.drop_probes(key)
            manifest.drop_warnings(f"probe: target {target.name}: ")
            manifest.targets[target.name] = target.record

        self.commit({target.file: target.content}, change)
        if outdated:
            store = AnalysisStore(self.analysis_path, self.commits)
            for key in outdated:
                store.drop_probes(str(key))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the experiment for writing; first repair what a crash left incomplete.

        Raises LockedError at once, naming it, if another process holds it, and CorruptError if the run's
        folder is a link: write to the folder that it points to.
        """
        check_folders(self.path.parent.parent, self.path / "manifest.json")
        with self._lock.hold(self.name) as dead:
            self._recover(dead)
            yield

    def commit(
        self, files: Mapping[str, bytes] | None = None, change: Callable[[Manifest], None] | None = None
    ) -> None:
        """Replace files (name to content) and change a copy of the manifest in place, all or nothing.

        1. The files are written beside their old versions. 2. The manifest is written, which is the commit.
        3. The files are renamed. A crash before 2 leaves the old state; after it, the next lock completes 3.
        """
        try:
            self._commit(files or {}, change)
        except KeyboardInterrupt:  # unlike after a crash, there is time to finish
            self._finish_commit()
            raise

    def _commit(self, files: Mapping[str, bytes], change: Callable[[Manifest], None] | None) -> None:
        manifest = self.manifest.model_copy(deep=True)
        for name, content in files.items():
            write_file(self.path_of(f"{name}.new"), content)
            manifest.files[name] = FileRecord.of(Digest.of(content))
        if change is not None:
            change(manifest)
        write_file(self.path / "manifest.json", describe_manifest(manifest))
        self.manifest = manifest
        for name in files:
            with refusals(self.path / name, 0):
                self.path_of(f"{name}.new").replace(self.path_of(name))
        sync_folder(self.path)

    def _finish_commit(self) -> None:
        """Finish or undo an interrupted commit: rename committed files, remove the others."""
        self.reload()
        for staged in filter(is_file, self.path.glob("*.new")):
            name = staged.name.removesuffix(".new")
            record = self.manifest.files.get(name)
            with refusals(self.path / name, 0):
                if record and Digest.of_file(staged) == record.digest:
                    staged.replace(self.path / name)
                else:
                    staged.unlink()

    def _recover(self, dead: Collection[str]) -> None:
        """Repair what a crash left: an incomplete commit, running stages, temporary files of dead writers."""
        self._finish_commit()
        if any(record.status == "running" for record in self.manifest.stages.values()):
            self.commit(change=_end_stages)
        if dead:
            remove_partials(self.path, dead)
        if dead and self.manifest.latents_path != LATENTS and self.has_named_place():
            self.latents_location.remove_partials(dead)

    def emit(self, stage: str, kind: Any, text: str = "", **fields: Any) -> None:
        """Write an event and pass it to the listener; see :class:`satstore.runs.events.Event`.

        Raises KeyboardInterrupt with progress, if this process was asked to stop and an import swallowed the
        interrupt.
        """
        if kind == "progress" and stop_requested.is_set():
            raise KeyboardInterrupt
        self.events.emit(Event(stage, kind, text, **fields))

    @contextmanager
    def stage(self, stage: str, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Mark a stage as running, then done, failed or cancelled, in manifest and events.

        The lock must be held. A stage that was done stays done if this run of it fails before any commit.
        """
        started = time.time()
        before, content = self.manifest.stages.get(stage), self._content()

        def mark(status: StageStatus, error: str | None = None) -> None:
            record = StageRecord(
                status=status,
                started=started,
                ended=None if status == "running" else time.time(),
                error=error,
                parameters=dict(parameters),
            )
            self.commit(change=lambda manifest: manifest.stages.__setitem__(stage, record))

        mark("running")
        self.emit(stage, "started")
        try:
            yield
        except BaseException as error:
            is_stopped = isinstance(error, KeyboardInterrupt) or stop_requested.is_set()
            text = "stopped" if is_stopped else str(error) or type(error).__name__
            end: Literal["failed", "cancelled"] = "cancelled" if is_stopped else "failed"
            if before is not None and before.status == "done" and self._content() == content:
                self.commit(change=lambda manifest: manifest.stages.__setitem__(stage, before))
            else:
                mark(end, text)
            self.emit(stage, end, text)
            raise
        mark("done")
        self.emit(stage, "done")

    def mark_cancelled(self) -> None:
        """Mark running stages as cancelled whose process was killed before it could do so itself.

        Raises LockedError if another process is writing the experiment.
        """
        self.reload()
        ran = [stage for stage, record in self.manifest.stages.items() if record.status == "running"]

        def change(manifest: Manifest) -> None:
            for record in map(manifest.stages.__getitem__, ran):
                record.status, record.error, record.ended = "cancelled", "stopped", time.time()

        with self.lock():
            if ran and all(self.manifest.stages[stage].status == "failed" for stage in ran):
                self.commit(change=change)

    def _content(self) -> tuple[Any, int]:
        """Return the committed state, without stages and warnings, to compare before and after."""
        return self.manifest.model_dump(exclude={"stages", "warnings"}), self.commits.size_bytes

    def settle(self, stage: str) -> None:
        """Mark a stage as done that was killed after its last commit, with nothing left to do."""

        def change(manifest: Manifest) -> None:
            record = manifest.stages[stage]
            record.status, record.error, record.ended = "done", None, time.time()

        if self.was_cut_off(stage):
            self.commit(change=change)

    def was_cut_off(self, stage: str) -> bool:
        """Return whether the last run of a stage that isn't running now did not complete."""
        record = self.manifest.stages.get(stage)
        return record is not None and record.status != "done"

    def warn(self, stage: str, text: str) -> None:
        """Add a warning to the manifest, and emit it."""
        line = f"{stage}: {text}"
        if line not in self.manifest.warnings:  # a repeated stage may warn again
            self.commit(change=lambda manifest: manifest.warnings.append(line))
        self.emit(stage, "warning", text)


def _end_stages(manifest: Manifest) -> None:
    """Mark running stages as failed: while this process has the lock, theirs can't be alive."""
    for record in manifest.stages.values():
        if record.status == "running":
            record.status = "failed"
