"""Record a trained model that is in the caller's program: its latents and spectra, without a config file."""

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from satstore.analysis.compiled_models import uncompiled
from satstore.analysis.modules import in_eval_mode, without_nested_tensors
from satstore.analysis.receptive_field.table import receptive_field
from satstore.config.experiment import RECORDED, Calls, ExperimentConfig
from satstore.config.grid import expand_grid
from satstore.datasets.worker_failures import explaining_lost_workers
from satstore.errors import ConfigError, SatstoreError
from satstore.runs.events import Listener
from satstore.runs.logs_folder import find_logs_dir, make_run
from satstore.runs.manifest import CHECKPOINT, RECORDING
from satstore.runs.run import Run
from satstore.stages.parameters import DEFAULT_MEMORY_LIMIT
from satstore.stages.pipeline import apply_stages
from satstore.stages.receptive_field import write_fields
from satstore.stages.record.batches import Loaders
from satstore.stages.record.inputs import Adapt, InputBatch
from satstore.stages.record.origin import Origin
from satstore.stages.record.progress import settle_recording
from satstore.stages.record.writer import RecordWriter
from satstore.training.devices import choose_device

UNKNOWN_ORIGIN = Origin()


@explaining_lost_workers("give the loader fewer num_workers, or a smaller batch_size")
def record(
    model: nn.Module,
    loader: Iterable[Any],
    run: str,
    eval_loader: Iterable[Any] | None = None,
    *,
    classes: Sequence[str] | None = None,
    pooling: Collection[str] = ("4",),
    tokens: Collection[str | int] | None = None,
    layers: str | None = None,
    exclude_layers: str | None = None,
    modules: str | Sequence[str] | None = None,
    calls: Calls = "last",
    adapt: Adapt | None = None,
    max_samples: int | None = None,
    device: str | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
    origin: Origin = UNKNOWN_ORIGIN,
) -> Run:
    """Store latents and spectra of a trained model, as a run that probes, plots and the terminal app take.

    Each loader is read once, as it was built: its order, batches, workers and dtype are taken as they come,
    and what a batch holds is what is stored. The model is in evaluation mode meanwhile; its modes and its
    device are restored afterwards. Go on with ``satstore probe --run RUN``, or with
    :func:`satstore.apply_stages`. An attempt that fails leaves no run behind.

    Parameters
    ----------
    model
        Maps inputs (batch, …) to logits (batch, class), or to a tuple of which they are the first tensor, or
        to a mapping or object that calls them ``logits``. Without them, or with others than one for each
        class, no accuracy is noted.
    loader, eval_loader
        Yield batches: what probes are fitted on, and what they are tested on. Without the second, the first
        is both, and accuracies are those of the fit. A batch is inputs, (inputs, labels, …), or a mapping,
        such as a BatchEncoding, whose ``labels`` are the labels. Inputs are a tensor (batch, …), or a mapping
        of tensors, which the model takes by keyword. Labels are class indices, or one-hot rows; all batches
        have them, or none. Without labels there are latents, spectra and CKA, and neither accuracy nor
        probes.
    run
        The run id.
    classes
        Their names; by default the numbers from 0 to the largest label.
    pooling, tokens, layers, exclude_layers, modules, calls, max_samples
        As the config's keys of these names.
    adapt
        Maps a batch of another form to inputs, (inputs, labels) or (inputs, labels, mask). Inputs may be a
        tuple there, of what the model takes by position: ``((first, second), None)``.
    device
        Where the model is evaluated; by default where it is.
    memory_limit
        Bytes that this may take beside what the process holds before.
    resume
        Keep what an attempt recorded that failed or was killed, and go on from there. The loaders have to
        yield the same batches in the same order again; they are read from the start, and not computed twice.
        A run that is finished is returned as it is.
    overwrite
        Replace what was recorded under this run id of a model of this name, and all that was made of it.
    force
        Begin also where disk or memory are not expected to suffice.
    logs_dir
        By default SATSTORE_LOGS_DIR, else ``./logs``.
    listener
        Called with every event.
    origin
        Where the model and its data came from, as ``satstore record`` knows it.

    Returns
    -------
    Run
        With its latents, spectra and saturation. A sample's id is its place in the loader's order, unless
        the origin has others.

    Raises
    ------
    ConfigError
        If a batch can't be taken, or the run has such an experiment already.
    MemoryLimitError, DiskSpaceError
        If memory or disk can't suffice.
    NumericsError
        If the loss is not finite.

    Examples
    --------
    >>> run = satstore.record(model, train_loader, "mine", test_loader)  # doctest: +SKIP
    """
    model = uncompiled(model)
    loaders = Loaders(loader, eval_loader, adapt, classes, origin.sample_ids)
    keys: dict[str, Any] = {"pooling": list(pooling), "layers": layers, "exclude_layers": exclude_layers}
    keys |= {"tokens": None if tokens is None else list(tokens), "modules": modules, "calls": calls}
    keys |= {"max_samples": max_samples, "device": device, **origin.keys}
    config = _make_config(model, loaders.train.first, keys)
    place = _Place(find_logs_dir(logs_dir, config), run, config, origin, resume, overwrite)
    with ExitStack() as undo, _evaluated(model, device) as target:
        # From here on: torch raises the death of a loader's worker wherever the program is.
        recorded = place.make(undo, listener)
        if not (resume and settle_recording(recorded)):
            writer = RecordWriter(recorded, model, loaders, target, memory_limit, resume=resume)
            place.write(recorded, writer, undo, force=force)
        apply_stages(recorded, "saturation")
        undo.pop_all()
    _write_receptive_fields(recorded, model, loaders.train.first.inputs)
    return recorded


@dataclass(frozen=True)
class _Place:
    """The folder of the run that is to be recorded, and what becomes of what is there, or of a failure."""

    logs: Path
    run_id: str
    config: ExperimentConfig
    origin: Origin
    resume: bool
    overwrite: bool

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return self.logs / self.run_id / self.config.experiment

    def make(self, undo: ExitStack, listener: Listener | None) -> Run:
        """Make the folder, which a failure removes again, or open it.

        ConfigError if something was recorded there, and is neither to be overwritten nor gone on with.
        """
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other")
        is_new = not (self.folder / CHECKPOINT).exists()
        if not is_new and not self.overwrite and not self.resume:
            remedy = (
                "go on with resume=True (--resume), or" if (self.folder / RECORDING).exists() else "record"
            )
            raise ConfigError(
                f"{self.run_id}/{self.config.experiment} is there already; {remedy} under another run id, or "
                "with overwrite=True (--overwrite)"
            )
        if is_new and not self.resume:
            undo.callback(remove_attempt, self.folder)
        run = make_run(self.logs, self.run_id, self.config, listener)
        for key in ("pooling", "tokens"):
            known, asked = (getattr(config, key) for config in (run.made_with, self.config))
            if self.resume and known != asked:
                raise ConfigError(f"resume: {run.name} was begun with {key} {known}, not {asked}")
        self.origin.begin(run)
        return run

    def write(self, run: Run, writer: RecordWriter, undo: ExitStack, *, force: bool) -> None:
        """Plan and write a run; a failure removes it from then on, as nothing is left of what was there."""
        writer.plan(force=force)
        with run.lock():
            if not self.resume:
                undo.callback(remove_attempt, self.folder)
            writer.write(self.origin.source)


def _make_config(model: nn.Module, batch: InputBatch, settings: Mapping[str, Any]) -> ExperimentConfig:
    """Return the config of a recorded run, from its model's class, its first batch, and some of its keys.

    The resolution is the last axis of a tensor of floats or images, else 1.
    """
    inputs = batch.inputs
    is_measured = isinstance(inputs, Tensor) and (inputs.is_floating_point() or inputs.ndim == 4)
    [config] = expand_grid(
        {
            "model": re.sub(r"\W+", "_", type(model).__name__),
            "dataset": RECORDED,
            "resolution": int(inputs.shape[-1]) if is_measured else 1,
            "batch_size": batch.n_samples,
            "epoch": 1,
            "augment": False,
            "stages": ["train", "extract", "saturation"],
            **settings,
        }
    )
    return config


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _evaluated(model: nn.Module, device: str | None) -> Iterator[torch.device]:
    """Put a model into evaluation mode on a device, by default its own, without gradients; yield the device.

    Modes and device are restored after.
    """
    before = _device_of(model)
    target = before if device is None else choose_device(device)
    with in_eval_mode(model), without_nested_tensors(model), torch.no_grad():
        if target != before:
            model.to(target)
        try:
            yield target
        finally:
            if target != before:
                model.to(before)


def remove_attempt(folder: Path) -> None:
    """Remove an incomplete run, and the folder of its run id if that is empty then."""
    with suppress(SatstoreError):  # the error that is being handled says more
        Run(folder).writable_latents().remove()
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # it holds other experiments
        folder.parent.rmdir()


def _write_receptive_fields(run: Run, model: nn.Module, inputs: Any) -> None:
    """Tabulate the receptive fields of convolutions over square images; warn if the model isn't traced."""
    is_images = isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[-1] == inputs.shape[-2]
    is_done = run.status("receptive_field") == "done"  # of a finished recording that is gone on with
    if is_done or not is_images or not any(layer.kind.startswith("Conv") for layer in run.manifest.layers):
        return
    with run.lock():
        try:
            table = receptive_field(model, run.config.resolution, inputs.shape[1])
        except ConfigError as error:
            run.warn("receptive-field", str(error))
            return
        with run.stage("receptive_field", {}):
            write_fields(run, table[table["layer"].isin(run.layers)])
