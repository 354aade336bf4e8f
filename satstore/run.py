"""Runs: an experiment's folder, its manifest and its tables.

The run folder is the only channel between processes. A file of it counts when the manifest, written last,
holds its digest.
"""

import io
import json
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from pydantic import ValidationError

from satstore.config.experiment import ExperimentConfig, pooling_flag
from satstore.config.keys import latents_key, split_latents_key
from satstore.config.validation import describe_invalid
from satstore.consent import check_plugins, is_named
from satstore.contents import CostsFile, find_table, read_cells
from satstore.errors import ConfigError, CorruptError, NotFoundError, UnknownNameError, printable, reason_of
from satstore.events import Event, EventLog, Listener
from satstore.lock import WriteLock
from satstore.manifest import (
    LATENTS,
    RECORDED,
    STAGE_KEYS,
    FileRecord,
    Manifest,
    StageRecord,
    StageStatus,
    describe_manifest,
    read_manifest,
    split_probe_key,
)
from satstore.registry import load_plugins, suggest
from satstore.storage.commit_log import CommitLog, Damage, is_anything, is_metadata
from satstore.storage.files import Digest, refusals, remove_partials, sync_folder, write_file
from satstore.storage.location import Folder, Location, is_url, locate
from satstore.storage.safe_files import check_folders, is_file, read_content
from satstore.storage.safe_names import as_key
from satstore.system.signals import told_to_stop
from satstore.system.text import printable_content

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from satstore.analysis.spectrum import Definition
    from satstore.storage.zarr import LatentSplit

MAKERS: Mapping[str, str] = {
    "saturation.csv": "saturation",
    "receptive_field.csv": "receptive-field",
    "projection.csv": "project",
    "computational_info.json": "flops",
}
"""The stages that make the files of a run folder; tables of probes and what training writes are not here."""


Parameters = ParamSpec("Parameters")
Found = TypeVar("Found")

N_TRIES = 5
"""How often a reader begins anew, at most, where a run is committed to meanwhile again and again."""


def _of_what_is_committed_now(
    read: "Callable[Concatenate[Run, Parameters], Found]",
) -> "Callable[Concatenate[Run, Parameters], Found]":
    """Read anew what seems damaged, where something was committed since the run was opened, or meanwhile."""

    @wraps(read)
    def read_again(run: "Run", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Found:
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


class Run:
    """One experiment's folder.

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
    def is_imported(self) -> bool:
        """Whether other software made it: it has tables, and neither spectra nor probes' coefficients."""
        return "imported_from" in self.manifest.environment

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

    @_of_what_is_committed_now
    def table(self, name: str) -> "pd.DataFrame":
        """Return a table of the run, such as ``"metrics"``, ``"saturation"`` or ``"probe-pool4"``.

        Raises
        ------
        NotFoundError
            If the run has no such table (yet).
        CorruptError
            If the file isn't what was committed, or no such table; see :mod:`satstore.contents`.
        """
        import pandas as pd

        file = f"{name}.csv"
        content = self.read_file(file)
        with self._reading(file):
            if find_table(name) is not None:
                read_cells(name, content)
            # Layers of an nn.Sequential are called 0 and 1.0, which are no numbers, and one may be called NA.
            text = io.StringIO(printable(content.decode("utf-8-sig"), "\n\t\r"))
            return pd.read_csv(text, converters={"layer": str}, low_memory=False)

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

    @_of_what_is_committed_now
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
            raise CorruptError(f"{self.path / name} {found}; {self.remedy(name)}") from error
        except ValueError as error:
            found = reason_of(error)
            raise CorruptError(f"{self.path / name} {found}; {self.remedy(name)}") from error

    @_of_what_is_committed_now
    def costs(self) -> dict[str, Any] | None:
        """Return what ``satstore flops`` counted, see docs/store-format.md; None if it did not yet.

        Raises
        ------
        CorruptError
            If the file isn't what was committed, or holds no such counts.
        """
        name = "computational_info.json"
        if not self.has_file(name):
            return None
        content = self.read_file(name)
        with self._reading(name):
            try:
                CostsFile.model_validate_json(content)
            except ValidationError as error:
                raise ValueError(f"has {describe_invalid(error)}") from error
            found: dict[str, Any] = printable_content(json.loads(content))
        return found

    @_of_what_is_committed_now
    def rows(self, name: str) -> list[dict[str, str]]:
        """Return a table's rows as text, to the last digit and without pandas; none if it isn't there.

        Raises
        ------
        CorruptError
            As :meth:`table`.
        """
        file = f"{name}.csv"
        if not self.has_file(file):
            return []
        content = self.read_file(file)
        with self._reading(file):
            columns, rows = read_cells(name, content)
        return [dict(zip(columns, cells, strict=False)) for cells in rows]

    @_of_what_is_committed_now
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
            raise CorruptError(f"{path} is not there, or not what was committed; {self.remedy(name)}")

    def remedy(self, name: str) -> str:
        """Return what to do about a file of the run folder that is damaged, for who reads it.

        Of what only training makes, that is to look first: to train again takes all that came of it along.
        """
        if name.startswith("probe-") or name in MAKERS:
            return f"restore it, or make it again with: {self.repair(name)}"
        return f"restore it from a copy; satstore verify {self.name} says what is damaged, and what to do"

    def repair(self, name: str) -> str:
        """Return the command that makes a file of the run folder again."""
        if name.startswith("probe-"):
            command = self.probing(name.removeprefix("probe-").removesuffix(".csv"))
        else:
            command = f"satstore {MAKERS.get(name, 'train')} --run {self.name}"
        return f"{command} --overwrite"

    def probing(self, key: str) -> str:
        """Return the command that fits the probes of a table (``pool4``), or what is missing of them."""
        table = split_probe_key(key)
        named = f" --prefix {table.prefix}" if table.prefix else ""
        flags = f" -d {pooling_flag(table.pooling)}{self._epoch_flags(table.epoch)}"
        return f"satstore probe --run {self.name}{flags}{named}"

    @property
    def is_recorded(self) -> bool:
        """Whether ``satstore.record`` made it: its model and data are not satstore's to build."""
        return bool(self.manifest.config.get("dataset") == RECORDED)

    def recording(self) -> str:
        """Return the call that makes a recorded run again, in the program of its user's."""
        return f"satstore.record(…, {self.run_id!r}, overwrite=True)"

    def extraction(self, *keys: str, overwrite: bool = False) -> str:
        """Return the command that writes some latents, or what is missing of them; or commands, after ``;``.

        Parameters
        ----------
        *keys
            Such as ``pool4``, or ``epochs/5/pool4`` of an earlier epoch.
        overwrite
            Also what is there.
        """
        if self.is_recorded:
            return self.recording()
        poolings: dict[int | None, str] = {}
        for pooling, epoch in map(split_latents_key, keys):
            poolings[epoch] = f"{poolings.get(epoch, '')} -d {pooling_flag(pooling)}"
        epochs: dict[str, list[int | None]] = {}
        for epoch, flags in poolings.items():
            epochs.setdefault(flags, []).append(epoch)
        command = f"satstore extract --run {self.name}"
        last = " --overwrite" if overwrite else ""
        commands = "; ".join(f"{command}{f}{self._epoch_flags(*e)}" for f, e in epochs.items()) or command
        return commands + last

    def _epoch_flags(self, *epochs: int | None) -> str:
        """Return the flags that name epochs, None for the last; none where that is the default."""
        is_last = all(epoch is None for epoch in epochs)
        if self.last_epoch < 0 or (is_last and not self.manifest.config.get("latent_epochs")):
            return ""
        return "".join(f" --epoch {(self.last_epoch if epoch is None else epoch) + 1}" for epoch in epochs)

    @_of_what_is_committed_now
    def latents(self, pooling: str, split: str, epoch: int | None = None) -> "LatentSplit":
        """Return the latents of one pooling (``pool4``) and split (``train``, ``eval``): layer to array.

        Parameters
        ----------
        epoch
            After which the weights were those that the latents are of, counted from 0; by default the last.

        Raises
        ------
        NotFoundError
            If they aren't there.
        CorruptError
            If what is there isn't what was committed.
        """
        from satstore.storage.zarr import open_latents

        key = latents_key(pooling, None if epoch == self.last_epoch else epoch)
        command = self.extraction(key)
        if key in self.manifest.re_extractable:
            raise NotFoundError(
                f"the latents {key!r} of {self.name} were removed; write them again with: {command}"
            )
        if key not in self.manifest.latents:
            stored = ", ".join(self.manifest.latents) or "none"
            raise NotFoundError(
                f"{self.name} has no latents {key!r} (stored: {stored}); write them with: {command}"
            )
        remedy = f"write it again with: {command}"
        location = self.latents_location
        self.commits.read(location.name).check(location, f"{key}/{split}", remedy)
        found = open_latents(self.latents_path).split(key, split)
        layers = self.manifest.latents[key].layers
        return found.only(layers.get(split, {})) if layers else found

    @_of_what_is_committed_now
    def spectra(self, split: str, layers: Collection[str] | None = None) -> "dict[str, NDArray[np.float64]]":
        """Return each layer's eigenvalues (epoch, eigenvalue), descending; NaN where the layer failed.

        Parameters
        ----------
        split
            ``train`` or ``eval``.
        layers
            Those to read; by default all.

        Raises
        ------
        CorruptError
            If what is stored isn't what was committed.
        """
        from satstore.storage.zarr import AnalysisStore

        # Other than the latents' shards, these are small: what is read is what was written, to the last bit.
        self.commits.read(self.analysis_path.name).check(
            Folder(self.analysis_path), f"spectra/{split}", self.remedy("metrics.csv"), is_of_eigenvalues
        )
        n_epochs = self.manifest.summary.epochs_done
        found = AnalysisStore(self.analysis_path).spectra(split, layers)
        return {layer: eigenvalues[:n_epochs] for layer, eigenvalues in found.items()}

    def saturation(
        self, delta: float | None = None, definition: "Definition" = "exact", split: str | None = None
    ) -> "pd.DataFrame":
        """Return saturation and intrinsic dimension at any delta, from the stored spectra.

        Parameters
        ----------
        delta
            Share of the variance to explain, in (0, 1]; the config's by default.
        definition
            ``exact`` or ``delve``; see :func:`satstore.analysis.spectrum.intrinsic_dimension`.
        split
            ``train``, ``eval``, or None for both.

        Returns
        -------
        pandas.DataFrame
            A row per epoch, split and layer, layers in forward order.

        Raises
        ------
        NotFoundError
            If no spectra are there yet.
        """
        from satstore.analysis.spectrum import tabulate_saturation

        if split not in (None, "train", "eval"):
            raise UnknownNameError(f"no split named {split!r}; known are train, eval")
        spectra = {name: self.spectra(name) for name in (("train", "eval") if split is None else (split,))}
        if not any(spectra.values()):
            why = "was imported without spectra" if self.is_imported else "has no spectra yet; train it first"
            raise NotFoundError(f"{self.name} {why}")
        stored = {layer for found in spectra.values() for layer in found}
        if not stored & set(self.layers):
            found = ", ".join(sorted(stored)[:4])
            raise CorruptError(
                f"{self.analysis_path} has spectra of {found}, and of no layer that the manifest names; "
                f"{self.remedy('metrics.csv')}"
            )
        delta = self.config.delta if delta is None else delta
        return tabulate_saturation(spectra, self.layers, delta, definition)

    def probe_tables(self) -> list[str]:
        """Return the names of the tables of probes on the last epoch's latents, as they were fitted."""
        return [key for key in self.manifest.probes if split_probe_key(key).epoch is None]

    def probe_evolution(self, pooling: str = "pool4", prefix: str = "") -> "pd.DataFrame":
        """Return the probes of every epoch that has some, the last one's included.

        Parameters
        ----------
        pooling
            Such as ``"pool4"``.
        prefix
            The one that the probes were fitted with.

        Returns
        -------
        pandas.DataFrame
            A row per epoch (counted from 0) and layer, layers in forward order: ``epoch``, and the columns of
            ``probe-pool4.csv``.

        Raises
        ------
        NotFoundError
            If no probes are there yet.
        CorruptError
            If a table isn't what was committed.
        """
        import pandas as pd

        tables = {}
        for key in self.manifest.probes:
            table = split_probe_key(key)
            if (table.pooling, table.prefix) == (pooling, prefix) and self.has_file(f"probe-{key}.csv"):
                tables[self.last_epoch if table.epoch is None else table.epoch] = f"probe-{key}"
        if not tables:
            raise NotFoundError(
                f"{self.name} has no probes at {pooling!r} yet; fit them with: "
                f"satstore probe --run {self.name} -d {pooling_flag(pooling)}"
            )
        found = [self.table(tables[epoch]).assign(epoch=epoch) for epoch in sorted(tables)]
        rows = pd.concat(found, ignore_index=True)
        return rows[["epoch", *(column for column in rows if column != "epoch")]]

    @_of_what_is_committed_now
    def confusion(self, layer: str, table: str | None = None) -> "pd.DataFrame":
        """Return how a layer's probe classifies the eval split.

        Parameters
        ----------
        layer
            The layer's PyTorch name.
        table
            The pooling, such as ``"pool4"``, or ``"P-pool4"`` for probes fitted with the prefix P, or
            ``"epoch5-pool4"`` for those of an earlier epoch; by default the first of the last epoch's.

        Returns
        -------
        pandas.DataFrame
            Samples of each true class (rows) by predicted class (columns), over the classes of the train
            split; of probes of each position, their sum.

        Raises
        ------
        UnknownNameError
            If the run has no such layer.
        NotFoundError
            If the layer has no probe there.
        CorruptError
            If what is stored isn't what was committed.
        """
        import numpy as np
        import pandas as pd

        from satstore.storage.zarr import AnalysisStore

        key = table or next(iter(self.probe_tables()), "pool4")
        self._check_probe(layer, key)
        remedy = f"fit it again with: {self.probing(key)} --overwrite"
        self.commits.read(self.analysis_path.name).check(
            Folder(self.analysis_path), f"probes/{key}", remedy, is_anything
        )
        arrays = AnalysisStore(self.analysis_path).probe(key, layer)
        if "confusion" not in arrays:
            raise NotFoundError(
                f"{self.name} has no confusion of layer {layer} at {key}: matrices of that many classes and "
                "positions are not kept; the table says how accurate the probes are"
            )
        n_classes = arrays["confusion"].shape[-1]
        classes = self.manifest.dataset.classes if self.manifest.dataset else []
        places = arrays.get("class_index", np.arange(n_classes))
        if not np.isin(places, np.arange(len(classes))).all():
            raise CorruptError(
                f"{self.analysis_path}/probes/{key} has a probe of layer {layer} for classes up to "
                f"{max(places)}; expected some of the {len(classes)} that the manifest names; {remedy}"
            )
        names = [classes[place] for place in places]
        counts = arrays["confusion"].reshape(-1, n_classes, n_classes).sum(axis=0)
        return pd.DataFrame(
            counts, pd.Index(names, name="true_class"), pd.Index(names, name="predicted_class")
        )

    def class_accuracy(self, layer: str, table: str | None = None) -> "pd.Series[float]":
        """Return the share of each class's eval samples that a layer's probe gets right; see `confusion`.

        NaN for a class that the eval split lacks. Classes that the train split lacks are not in it.
        """
        counts = self.confusion(layer, table)
        accuracy: pd.Series[float] = counts.to_numpy().diagonal() / counts.sum(axis=1)
        return accuracy.rename("accuracy")

    def _check_probe(self, layer: str, key: str) -> None:
        if layer not in self.layers:
            raise UnknownNameError(f"{self.name} has no layer {layer!r}{suggest(layer, self.layers)}")
        tables = self.manifest.summary.probe_accuracy
        if layer not in tables.get(key, {}):
            fitted = ", ".join(tables) or "none"
            raise NotFoundError(
                f"{self.name} has no probe of layer {layer} at {key!r} (tables fitted: {fitted}); "
                f"fit it with: {self.probing(key)}"
            )
        if tables[key][layer] is None:
            raise NotFoundError(
                f"{self.name}: layer {layer} at {key} allows no probe; its row in probe-{key}.csv says why"
            )

    def plot(self) -> "Figure":
        """Draw saturation and probe accuracy over the layers; see :func:`satstore.plots.plot_layers`."""
        from satstore.plots import plot_layers

        return plot_layers(self)

    # Writing

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the experiment for writing, and mend first what a crash left half done.

        Raises
        ------
        LockedError
            At once, if another process holds it; the message names it.
        CorruptError
            If the run's folder is a link: it is worked on where it lies.
        """
        check_folders(self.path.parent.parent, self.path / "manifest.json")
        with self._lock.hold(self.name) as dead:
            self._recover(dead)
            self.damage_seen = {}
            try:
                yield
            finally:
                self.damage_seen = None

    def commit(
        self, files: Mapping[str, bytes] | None = None, change: Callable[[Manifest], None] | None = None
    ) -> None:
        """Replace files and change the manifest, all or nothing.

        The files are written beside their old versions; the manifest, written next, is the commit; then they
        are renamed. A crash before the manifest leaves the old state; one after it, the next lock mends.

        Parameters
        ----------
        files
            Name to content.
        change
            Changes a copy of the manifest in place.
        """
        try:
            self._commit(files or {}, change)
        except KeyboardInterrupt:  # who is stopped has the time that a crash has not
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
        """Finish or undo a commit that was cut off: renames that are left, and files never committed."""
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
        """Mend what a crash left: half a commit, stages that ran, temporary files of writers that died."""
        self._finish_commit()
        if any(record.status == "running" for record in self.manifest.stages.values()):
            self.commit(change=_end_stages)
        if dead:
            remove_partials(self.path, dead)
        if dead and self.manifest.latents_path != LATENTS and self.has_named_place():
            self.latents_location.remove_partials(dead)

    def emit(self, stage: str, kind: Any, text: str = "", **fields: Any) -> None:
        """Tell those who watch what happens; see :class:`satstore.events.Event`.

        Raises
        ------
        KeyboardInterrupt
            With progress, if this process was told to stop: a library that was being imported swallowed it.
        """
        if kind == "progress" and told_to_stop.is_set():
            raise KeyboardInterrupt
        self.events.emit(Event(stage, kind, text, **fields))

    @contextmanager
    def stage(self, stage: str, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Mark a stage as running, then done, failed or cancelled, in manifest and events.

        The lock must be held.

        One that was done stays so where another start of it fails before it committed anything.
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
            is_stopped = isinstance(error, KeyboardInterrupt) or told_to_stop.is_set()
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
        """Mark what ran as cancelled, where its process was killed before it could say so.

        Raises
        ------
        LockedError
            If a process goes on with the experiment.
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
        """Return what tells whether anything was committed: all but how stages went."""
        return self.manifest.model_dump(exclude={"stages", "warnings"}), self.commits.size_bytes

    def settle(self, stage: str) -> None:
        """Mark a stage as done that has nothing left to do: its last start was killed just before that."""

        def change(manifest: Manifest) -> None:
            record = manifest.stages[stage]
            record.status, record.error, record.ended = "done", None, time.time()

        if self.was_cut_off(stage):
            self.commit(change=change)

    def was_cut_off(self, stage: str) -> bool:
        """Tell, of a stage that no process is in, whether its last start came to no good end."""
        record = self.manifest.stages.get(stage)
        return record is not None and record.status != "done"

    def warn(self, stage: str, text: str) -> None:
        """Record a warning in the manifest and tell those who watch."""
        line = f"{stage}: {text}"
        if line not in self.manifest.warnings:  # what is done again may have the same to say
            self.commit(change=lambda manifest: manifest.warnings.append(line))
        self.emit(stage, "warning", text)


def _end_stages(manifest: Manifest) -> None:
    """Mark stages that ran as failed: who takes the lock knows that their process is gone."""
    for record in manifest.stages.values():
        if record.status == "running":
            record.status = "failed"


def is_of_eigenvalues(key: str) -> bool:
    """Tell whether a file of the analysis store is read for its eigenvalues."""
    return is_metadata(key) or "/eigenvalues/" in key
