"""The run folder, read: manifest, places, states of stages, and committed files.

The run folder is the only channel between processes. A file of it counts when the manifest, written last,
holds its digest.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError

from satstore.config.experiment import ExperimentConfig
from satstore.config.validation import describe_invalid
from satstore.errors import ConfigError, CorruptError, NotFoundError, reason_of
from satstore.registry import load_plugins, suggest
from satstore.runs.consent import check_plugins, is_named
from satstore.runs.events import EventLog, Listener
from satstore.runs.lock import WriteLock
from satstore.runs.manifest import (
    LATENTS,
    RECORDED,
    STAGE_KEYS,
    StageStatus,
    read_manifest,
)
from satstore.runs.repair import damage_remedy
from satstore.storage.commit_log import CommitLog, Damage
from satstore.storage.files import Digest
from satstore.storage.location import Location, is_url, locate
from satstore.storage.safe_files import check_folders, is_file, read_content
from satstore.storage.safe_names import as_key

if TYPE_CHECKING:
    pass


Parameters = ParamSpec("Parameters")
Found = TypeVar("Found")
FolderT = TypeVar("FolderT", bound="RunFolder")

N_TRIES = 5
"""How often a reader begins anew, at most, where a run is committed to meanwhile again and again."""


def reading_anew(
    read: "Callable[Concatenate[FolderT, Parameters], Found]",
) -> "Callable[Concatenate[FolderT, Parameters], Found]":
    """Read anew what seems damaged, where something was committed since the run was opened, or meanwhile."""

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
    """What is known of one experiment from its folder.

    Parameters
    ----------
    path
        The folder.
    listener
        Called with every event that the run emits.
    config
        The config that the run is opened with, where it is not the manifest's: they agree in what training
        depends on, not in device, delta, pooling and the like.

    Attributes
    ----------
    manifest
        Its manifest, as it was when the run was opened or last committed to; :meth:`reload` reads it anew.
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
        self.damage_seen: dict[Any, list[Damage]] | None = None
        """What was found damaged of latents, by key and state, while this process holds the lock."""

    def __repr__(self) -> str:
        return f"<Run {self.name}>"

    @property
    def run_id(self) -> str:
        """The run id that the experiment is under."""
        return self.path.parent.name

    @property
    def experiment(self) -> str:
        """The experiment's name, which is its folder's."""
        return self.path.name

    @property
    def name(self) -> str:
        """Run id and experiment, as commands take them."""
        return f"{self.run_id}/{self.experiment}"

    @property
    def config(self) -> ExperimentConfig:
        """The config that the run was opened with, else the one that the experiment was made with.

        Raises
        ------
        CorruptError
            If the manifest's is none.
        """
        return self.made_with if self._config is None else self._config

    def load_plugins(self) -> None:
        """Import the plugins of the config.

        Raises
        ------
        ConfigError
            If the manifest alone names one, and not the user, or one can't be imported.
        """
        if self._config is None:
            check_plugins(self.path, self.config.plugins)
        load_plugins(self.config.plugins)

    @property
    def made_with(self) -> ExperimentConfig:
        """The config that the experiment was made with; raises what :attr:`config` does."""
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
    def has_spectra(self) -> bool:
        """Whether spectra of its epochs were stored; a run that was trained elsewhere has tables alone."""
        if "imported_from" in self.manifest.environment:  # which stays if it is trained anew here
            return bool(self.commits.read(self.analysis_path.name).under("spectra"))
        return self.manifest.summary.epochs_done > 0

    @property
    def is_recorded(self) -> bool:
        """Whether ``satstore.record`` made it: its model and data are not satstore's to build."""
        return bool(self.manifest.config.get("dataset") == RECORDED)

    @property
    def latents_path(self) -> Path | str:
        """The folder of the store of latents, or its URL where it lies on object storage."""
        place = self.manifest.latents_path
        return place if is_url(place) else self.path / place

    @property
    def latents_location(self) -> Location:
        """Where the store of latents lies."""
        return locate(self.latents_path)

    def writable_latents(self) -> Location:
        """Return where the store of latents lies, to write or remove something there.

        Raises
        ------
        ConfigError
            If that is elsewhere than in the run folder, as the manifest alone says.
        """
        if not self.has_named_place():
            raise ConfigError(
                f"{self.name}: its manifest says that its latents lie at {self.latents_path}; nothing is "
                f"written or removed there until you name that place: {self.naming_place()}"
            )
        return self.latents_location

    def has_named_place(self) -> bool:
        """Tell whether the latents lie in the run folder, or at a place that the user named too."""
        place = self.manifest.latents_path
        return place == LATENTS or is_named(self.path, place)

    def naming_place(self) -> str:
        """Return the command with which the user names the place that the manifest says."""
        folder = str(self.latents_path).removesuffix(f"/{self.name}/{LATENTS}")
        return f"satstore extract --run {self.name} --latents-dir {shlex.quote(folder)}"

    @property
    def analysis_path(self) -> Path:
        """The folder of the store of spectra and probes."""
        return self.path / "analysis.zarr"

    # Reading

    def reload(self) -> None:
        """Read the manifest anew."""
        self.manifest = read_manifest(self.path)

    def status(self, stage: str) -> StageStatus:
        """Return a stage's state; one whose process died without a word has failed."""
        record = self.manifest.stages.get(stage)
        if record is None:
            return "missing"
        if record.status == "running" and self._lock.holder() is None:
            return "failed"
        return record.status

    @property
    def is_being_written(self) -> bool:
        """Whether a process holds the experiment for writing, as far as can be told."""
        return self._lock.holder() is not None

    def statuses(self) -> dict[str, StageStatus]:
        """Return every stage's state, by its key in the manifest, those of plugins last."""
        return {stage: self.status(stage) for stage in dict.fromkeys((*STAGE_KEYS, *self.manifest.stages))}

    def failures(self, statuses: Mapping[str, StageStatus]) -> dict[str, str]:
        """Return the errors of the stages that failed, of the states that :meth:`statuses` gave."""
        silent = "its process ended without a word"
        failed = (stage for stage, status in statuses.items() if status == "failed")
        return {stage: self.manifest.stages[stage].error or silent for stage in failed}

    def path_of(self, name: str) -> Path:
        """Return the path of a file of the run folder.

        Raises
        ------
        CorruptError
            If the name leads out of the folder, or a folder that it is in is a link.
        """
        try:
            path = self.path / as_key(name)
        except ValueError as error:
            raise CorruptError(f"{self.path} can have no file {name!r}: {error}") from None
        check_folders(self.path, path)
        return path

    def has_file(self, name: str) -> bool:
        """Tell whether a file of that name was committed."""
        return name in self.manifest.files

    @reading_anew
    def read_file(self, name: str) -> bytes:
        """Return the content of a committed file, checked against its digest.

        Raises
        ------
        NotFoundError
            If no such file was committed.
        CorruptError
            If the file isn't what was committed.
        """
        record = self.manifest.files.get(name)
        if record is None:
            known = sorted(self.manifest.files)
            raise NotFoundError(f"{self.name} has no {name!r}{suggest(name, known)}")
        with self._reading(name):
            for path in map(self.path_of, (name, f"{name}.new")):  # the rename may be still to come
                with suppress(FileNotFoundError):
                    content = read_content(path)
                    if Digest.of(content) == record.digest:
                        return content
            raise ValueError("is not what was committed" if (self.path / name).exists() else "is not there")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Say of a file that can't be read, or is not what it should be, what to do about it.

        Raises
        ------
        CorruptError
            For a disk that refuses, and for a ValueError, whose text tells of the file.
        """
        try:
            yield
        except OSError as error:
            found = f"can't be read: {error.strerror or error}"
            raise CorruptError(f"{self.path / name} {found}; {damage_remedy(self, name)}") from error
        except ValueError as error:
            found = reason_of(error)
            raise CorruptError(f"{self.path / name} {found}; {damage_remedy(self, name)}") from error

    @reading_anew
    def check_file(self, name: str) -> None:
        """Check that a committed file is there and of its size, without reading it.

        Raises
        ------
        CorruptError
            If it isn't.
        """
        path, size_bytes = self.path_of(name), self.manifest.files[name].size_bytes
        staged = self.path_of(f"{name}.new")  # the rename may be still to come
        if not any(is_file(p) and p.stat().st_size == size_bytes for p in (path, staged)):
            raise CorruptError(f"{path} is not there, or not what was committed; {damage_remedy(self, name)}")
