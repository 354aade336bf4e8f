"""Recording a trained model of one's own: its latents and spectra, without a config."""

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from satstore.analysis.compiled_models import uncompiled
from satstore.analysis.receptive_field.table import receptive_field
from satstore.config.grid import read_config
from satstore.datasets.lost_workers import explaining_lost_workers
from satstore.errors import ConfigError, SatstoreError
from satstore.registry import stand_in
from satstore.runs.events import Listener
from satstore.runs.logs_folder import find_logs_dir, make_run
from satstore.runs.manifest import CHECKPOINT, RECORDED
from satstore.runs.run import Run
from satstore.stages.parameters import DEFAULT_MEMORY_LIMIT
from satstore.stages.pipeline import make_plan, raise_first, run_stages
from satstore.stages.receptive_field import write_fields
from satstore.stages.record.batches import Batches
from satstore.stages.record.writer import Recording
from satstore.training.devices import choose_device


@explaining_lost_workers("give the loader fewer num_workers, or a smaller batch_size")
def record(
    model: nn.Module,
    loader: Iterable[Any],
    run: str,
    eval_loader: Iterable[Any] | None = None,
    *,
    classes: Sequence[str] | None = None,
    pooling: Collection[str] = ("4",),
    layers: str | None = None,
    exclude_layers: str | None = None,
    device: str | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    overwrite: bool = False,
    force: bool = False,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
) -> Run:
    """Store latents and spectra of a trained model, as a run that probes, plots and the terminal app take.

    Each loader is passed over once, as it was built: its order, batches, workers and dtype are taken as they
    come, and what a batch holds is what is stored. The model is in evaluation mode meanwhile; it gets back
    its modes and its device. Go on with ``satstore probe --run RUN``, or with :func:`satstore.apply_stages`.
    An attempt that fails leaves no run behind.

    Parameters
    ----------
    model
        Maps inputs (batch, …) to logits (batch, class), or to a tuple of which they are the first tensor, or
        to a mapping or object that calls them ``logits``. Without them, or with others than one for each
        class, no accuracy is noted.
    loader, eval_loader
        Yield (inputs, labels, …): what probes are fitted on, and what they are tested on. Labels are class
        indices, or one-hot rows. Without the second, the first is both, and accuracies are those of the fit.
    run
        The run id.
    classes
        Their names; by default the numbers from 0 to the largest label.
    pooling, layers, exclude_layers
        As the config's keys of these names.
    device
        Where the model is evaluated; by default where it is.
    memory_limit
        Bytes that this may take beside what the process holds before.
    overwrite
        Replace what was recorded under this run id of a model of this name, and all that was made of it.
    force
        Begin also where disk or memory are not expected to suffice.
    logs_dir
        By default SATSTORE_LOGS_DIR, else ``./logs``.

    Returns
    -------
    Run
        With its latents, spectra and saturation. A sample's id is its place in the loader's order.

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
    target = choose_device(device) if device is not None else _device_of(model)
    train = Batches(loader, "loader")
    kind = re.sub(r"\W+", "_", type(model).__name__)
    owners = {
        name: SimpleNamespace(**{key: record}) for name, key in (("models", kind), ("datasets", RECORDED))
    }
    with stand_in(owners):
        [config] = read_config(
            {
                "model": kind,
                "dataset": RECORDED,
                "resolution": int(train.first.shape[-1]),
                "batch_size": len(train.first),
                "epoch": 1,
                "augment": False,
                "pooling": list(pooling),
                "layers": layers,
                "exclude_layers": exclude_layers,
                "device": device,
                "stages": ["train", "extract", "saturation"],
            }
        )
        logs = find_logs_dir(logs_dir, config)
        is_new = not (logs / run / config.experiment / CHECKPOINT).exists()
        if not is_new and not overwrite:
            raise ConfigError(
                f"{run}/{config.experiment} is there already; record under another run id, or with "
                "overwrite=True"
            )
        found = make_run(logs, run, config, listener)
        try:
            with _lent(model, target):
                recording = Recording(found, model, train, target, memory_limit)
                recording.plan(force=force)
                with found.lock():
                    is_new = True  # from here on, nothing is left of what was there
                    with found.stage("train", {}), found.stage("extract", {"pooling": list(pooling)}):
                        recording.write(eval_loader, classes)
            raise_first(run_stages([found], make_plan(["saturation"], {}), with_needs=False))
        except BaseException:
            if is_new:
                _remove(found)
            raise
    found.reload()
    if train.first.ndim == 4 and train.first.shape[-1] == train.first.shape[-2]:
        with found.lock():
            _record_fields(found, model, train.first.shape[1])
    return found


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _lent(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let a model be evaluated on a device without gradients; it gets back its modes and its device."""
    modes = {module: module.training for module in model.modules()}
    before = _device_of(model)
    model.eval()
    if device != before:
        model.to(device)
    try:
        with torch.no_grad():
            yield
    finally:
        if device != before:
            model.to(before)
        for module, mode in modes.items():
            module.training = mode


def _remove(run: Run) -> None:
    """Remove a run of which nothing is whole, and the folder of its run id if that is empty."""
    with suppress(SatstoreError):  # why there is no run says more
        run.writable_latents().remove()
    shutil.rmtree(run.path, ignore_errors=True)
    with suppress(OSError):  # holds other experiments
        run.path.parent.rmdir()


def _record_fields(run: Run, model: nn.Module, n_channels: int) -> None:
    """Tabulate receptive fields, of a model that can be traced."""
    try:
        table = receptive_field(model, run.config.resolution, n_channels)
    except ConfigError as error:
        run.warn("receptive-field", str(error))
        return
    with run.stage("receptive_field", {}):
        write_fields(run, table[table["layer"].isin(run.layers)])
