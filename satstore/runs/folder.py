"""Reading a run folder: its manifest, paths, states of stages, and committed files.

Processes communicate through the run folder alone. A file counts as written once the manifest, which is
written last, holds its digest.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError

from satstore.config.experiment import RECORDED, ExperimentConfig
from satstore.config.validation import describe_invalid
from satstore.errors import ConfigError, CorruptError, NotFoundError, reason_of
from satstore.registry import load_plugins, suggest
from satstore.runs.events import EventLog, Listener
from satstore.runs.lock import WriteLock
from satstore.runs.manifest import LATENTS, STAGE_KEYS, StageStatus
from satstore.runs.manifest_file import read_manifest
from satstore.runs.permissions import check_plugins, is_place_named
from satstore.runs.repair import damage_remedy
from satstore.storage.commit_log import CommitLog
from satstore.storage.files import Digest
from satstore.storage.location import Location, is_url, locate
from satstore.storage.safe_files import check_folders, is_file, read_content
from satstore.storage.safe_names import as_key

Parameters = ParamSpec("Parameters")
Found = TypeVar("Found")
FolderT = TypeVar("FolderT", bound="RunFolder")

N_TRIES = 5
"""How often a read is repeated at most, while another process commits again and again."""


def reread_after_commit(
    read: "Callable[Concatenate[FolderT, Parameters], Found]",
) -> "Callable[Concatenate[FolderT, Parameters], Found]":
    """Decorate a method to read again on damage, if another process committed since the run was opened."""

    @wraps(read)
    def read_again(run: FolderT, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Found:
        for _ in range(N_TRIES):
            before = run.commits.size_bytes
            try:
                return read(run, *args, **kwargs)
            except CorruptError:
                known = run.manifest
                run.reload()
                if run.manifest == known and run.commits.size_bytes == before:
                    raise
        return read(run, *args, **kwargs)

    return read_again


class RunFolder:
    """One experiment's folder, open for reading.

    Parameters
    ----------
    listener
        Called with every event that the run emits.
    config
        The config that the run is opened with, if not the manifest's: both agree in the settings that
        training depends on; device, delta, pooling and the like may differ.

    Attributes
    ----------
    manifest
        The manifest as of opening the run or its last commit; :meth:`reload` reads it again.
    """

    def __init__(
        self, path: Path, listener: Listener | None = None, config: ExperimentConfig | None = None
    ) -> None:
        if not f"{path.parent.name}{path.name}".isprintable():
            raise CorruptError(f"{path} can be no run: its name has control characters; rename the folder")
        self.path = path
        self.manifest = read_manifest(path)
        self._config = config
        self.events = EventLog(path / "events.jsonl", listener)
        self.commits = CommitLog(path / "commits.jsonl")
        self._lock = WriteLock(path)

    def __repr__(self) -> str:
        return f"<Run {self.name}>"

    @property
    def run_id(self) -> str:
        """The run id, which is the name of the folder around the experiment's."""
        return self.path.parent.name

    @property
    def experiment(self) -> str:
        """The experiment's name, which is the name of its folder."""
        return self.path.name

    @property
    def name(self) -> str:
        """``RES/<experiment>``, as commands take it."""
        return f"{self.run_id}/{self.experiment}"

    @property
    def config(self) -> ExperimentConfig:
        """The config that the run was opened with, else the one that the experiment was created with.

        Raises CorruptError if the manifest's config is invalid.
        """
        return self.made_with if self._config is None else self._config

    def load_plugins(self) -> None:
        """Import the plugins of the config.

        Raises ConfigError if the user did not permit one that the manifest names, or one can't be imported.
        """
        if self._config is None:
            check_plugins(self.path, self.config.plugins)
        load_plugins(self.config.plugins)

    @property
    def made_with(self) -> ExperimentConfig:
        """The config that the experiment was created with; raises as :attr:`config` does."""
        try:
            return ExperimentConfig.model_validate(self.manifest.config)
        except ValidationError as error:
            place = self.path / "manifest.json"
            raise CorruptError(f"{place} has a config with {describe_invalid(error)}") from error

    @property
    def layers(self) -> list[str]:
        """Names of the recorded layers, in forward order."""
        return [record.layer for record in self.manifest.layers]

    @property
    def last_epoch(self) -> int:
        """The last epoch that was trained, counted from 0; -1 before the first."""
        return self.manifest.summary.epochs_done - 1

    @property
    def is_trained(self) -> bool:
        """Whether the last epoch is committed, or one that is good enough to stop."""
        summary = self.manifest.summary
        return self.config.is_finished(summary.epochs_done, summary.test_accuracy)

    @property
    def has_spectra(self) -> bool:
        """Whether spectra of its epochs were stored; a run that was trained elsewhere has tables alone."""
        if "imported_from" in self.manifest.environment:  # which stays if it is trained anew here
            return bool(self.commits.read(self.analysis_path.name).under("spectra"))
        return self.manifest.summary.epochs_done > 0

    @property
    def progress_text(self) -> str:
        """How far it is, and how good, for people: ``adam, epochs 3/30, test accuracy 97.50%``."""
        summary, dataset = self.manifest.summary, self.manifest.dataset
        trained = f"{self.config.optimizer}, epochs {summary.epochs_done}/{self.config.epoch}"
        parts = ["recorded" if self.is_recorded else trained]
        if summary.test_accuracy is not None:
            parts.append(f"test accuracy {summary.test_accuracy:.2%}")
        elif dataset is not None and not dataset.has_labels:
            parts.append("no labels")
        return ", ".join(parts)

    @property
    def is_recorded(self) -> bool:
        """Whether ``satstore.record`` wrote it: satstore can build neither its model nor its data."""
        return bool(self.manifest.config.get("dataset") == RECORDED)

    @property
    def latents_path(self) -> Path | str:
        """The path of the store of latents, or its URL on object storage."""
        place = self.manifest.latents_path
        return place if is_url(place) else self.path / place

    @property
    def latents_location(self) -> Location:
        """The place of the store of latents."""
        return locate(self.latents_path)

    def writable_latents(self) -> Location:
        """Return the place of the store of latents, for writing or removing.

        Raises ConfigError if it lies outside the run folder, and the user did not name that place.
        """
        if not self.has_named_place():
            raise ConfigError(
                f"{self.name}: its manifest says that its latents lie at {self.latents_path}; nothing is "
                f"written or removed there until you name that place: {self.naming_command()}"
            )
        return self.latents_location

    def has_named_place(self) -> bool:
        """Return whether the latents lie in the run folder, or at a place that the user named."""
        place = self.manifest.latents_path
        return place == LATENTS or is_place_named(self.path, place)

    def naming_command(self) -> str:
        """Return the command with which the user names the place that is in the manifest."""
        folder = str(self.latents_path).removesuffix(f"/{self.name}/{LATENTS}")
        return f"satstore extract --run {self.name} --latents-dir {shlex.quote(folder)}"

    @property
    def analysis_path(self) -> Path:
        """The path of the store of spectra and probes."""
        return self.path / "analysis.zarr"

    # Reading

    def reload(self) -> None:
        """Read the manifest again."""
        self.manifest = read_manifest(self.path)

    def status(self, stage: str) -> StageStatus:
        """Return a stage's state; a running stage whose process has died counts as failed."""
        record = self.manifest.stages.get(stage)
        if record is None:
            return "missing"
        if record.status == "running" and self._lock.holder() is None:
            return "failed"
        return record.status

    @property
    def is_being_written(self) -> bool:
        """Whether a process is known to hold the experiment for writing."""
        return self._lock.holder() is not None

    def statuses(self) -> dict[str, StageStatus]:
        """Return every stage's state by its key in the manifest; stages of plugins come last."""
        return {stage: self.status(stage) for stage in dict.fromkeys((*STAGE_KEYS, *self.manifest.stages))}

    def failures(self, statuses: Mapping[str, StageStatus]) -> dict[str, str]:
        """Return the failed stages' errors, by the states that :meth:`statuses` returned."""
        silent = "its process ended without a word"
        failed = (stage for stage, status in statuses.items() if status == "failed")
        return {stage: self.manifest.stages[stage].error or silent for stage in failed}

    def path_of(self, name: str) -> Path:
        """Return the path of a file of the run folder.

        Raises CorruptError if the name leads out of the folder, or through a link.
        """
        try:
            path = self.path / as_key(name)
        except ValueError as error:
            raise CorruptError(f"{self.path} can have no file {name!r}: {error}") from None
        check_folders(self.path, path)
        return path

    def has_file(self, name: str) -> bool:
        """Return whether a file of that name was committed."""
        return name in self.manifest.files

    @reread_after_commit
    def read_file(self, name: str) -> bytes:
        """Read a committed file and check it against its digest.

        Raises NotFoundError if no such file was committed, CorruptError if it isn't what was committed.
        """
        record = self.manifest.files.get(name)
        if record is None:
            known = sorted(self.manifest.files)
            raise NotFoundError(f"{self.name} has no {name!r}{suggest(name, known)}")
        with self._reading(name):
            for path in map(self.path_of, (name, f"{name}.new")):  # it may not be renamed yet
                with suppress(FileNotFoundError):
                    content = read_content(path)
                    if Digest.of(content) == record.digest:
                        return content
            raise ValueError("is not what was committed" if (self.path / name).exists() else "is not there")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turn read errors, and ValueErrors about the content, into a CorruptError with file and remedy."""
        try:
            yield
        except (OSError, ValueError) as error:
            found = reason_of(error)
            if isinstance(error, OSError):
                found = f"can't be read: {error.strerror or error}"
            raise CorruptError(f"{self.path / name} {found}; {damage_remedy(self, name)}") from error

    @reread_after_commit
    def check_file(self, name: str) -> None:
        """Check that a committed file exists with its size, without reading it; raise CorruptError if not."""
        path, size_bytes = self.path_of(name), self.manifest.files[name].size_bytes
        staged = self.path_of(f"{name}.new")  # it may not be renamed yet
        if not any(is_file(p) and p.stat().st_size == size_bytes for p in (path, staged)):
            raise CorruptError(f"{path} is not there, or not what was committed; {damage_remedy(self, name)}")
