"""Recording a trained model of one's own: its latents and spectra, without a config."""

import copy
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from satstore.analysis.receptive_field import receptive_field
from satstore.config import read_config
from satstore.datasets.images import make_loader
from satstore.errors import ConfigError
from satstore.events import Listener
from satstore.logs import find_logs_dir, make_run
from satstore.manifest import CHECKPOINT
from satstore.pipeline import make_plan, raise_first, run_stages
from satstore.ranks import ALONE
from satstore.registry import stand_in
from satstore.run import Run
from satstore.session import Session, choose_device, describe_run, load_data, recorded_layers
from satstore.stages.receptive_field import write_fields
from satstore.stages.train import forget
from satstore.store import AnalysisStore
from satstore.training import check_moments, commit_epoch, make_recorder, run_pass, take_spectra

DATASET = "Recorded"


def record(
    model: nn.Module,
    loader: "DataLoader[Any]",
    run: str,
    eval_loader: "DataLoader[Any] | None" = None,
    *,
    classes: Sequence[str] | None = None,
    pooling: Collection[str] = ("4",),
    layers: str | None = None,
    exclude_layers: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
) -> Run:
    """Store latents and spectra of a trained model, as a run that probes, plots and the terminal app take.

    The model is copied and put into evaluation mode; it and the loaders stay as they were. Go on with
    ``satstore probe --run RUN``, or with :func:`satstore.apply_stages`.

    Parameters
    ----------
    model
        Maps images (batch, channel, height, width) to logits.
    loader, eval_loader
        Yield images and class indices, in the same order at each pass: what probes are fitted on, and what
        they are tested on. Without the second, the first is both, and accuracies are those of the fit.
    run
        The run id.
    classes
        Their names; by default their numbers.
    pooling, layers, exclude_layers, device
        As the config's keys of these names.
    overwrite
        Replace what was recorded under this run id of a model of this name, and all that was made of it.
    logs_dir
        By default SATSTORE_LOGS_DIR, else ``./logs``.

    Returns
    -------
    Run
        With its latents, spectra and saturation.

    Raises
    ------
    ConfigError
        If a loader shuffles, or the run has such an experiment already.
    NumericsError
        If the loss is not finite.

    Examples
    --------
    >>> run = satstore.record(model, train_loader, "mine", test_loader)  # doctest: +SKIP
    """
    for name, part in (("loader", loader), ("eval_loader", eval_loader)):
        if part is not None and not isinstance(part.sampler, SequentialSampler):
            raise ConfigError(
                f"{name} takes the samples in an order of its own ({type(part.sampler).__name__}), which is "
                "another one at every pass; make it without shuffle and sampler"
            )
    images = next(iter(loader))[0]
    n_classes = len(classes) if classes is not None else _count_classes(loader, eval_loader)
    kind = re.sub(r"\W+", "_", type(model).__name__)

    def make_model(num_classes: int) -> nn.Module:
        return copy.deepcopy(model).cpu()

    def make_loaders(output_size: int, batch_size: int, **_: object) -> Any:
        # Who hands over loaders knows whether their images are augmented.
        return SimpleNamespace(
            train_dataset=loader, test_dataset=eval_loader or loader, cardinality=n_classes, is_plain=True
        )

    owners = {"models": SimpleNamespace(**{kind: make_model})}
    owners["datasets"] = SimpleNamespace(**{DATASET: make_loaders})
    with stand_in(owners):
        [config] = read_config(
            {
                "model": kind,
                "dataset": DATASET,
                "resolution": int(images.shape[-1]),
                "batch_size": len(images),
                "epoch": 1,
                "augment": False,
                "pooling": list(pooling),
                "layers": layers,
                "exclude_layers": exclude_layers,
                "device": device,
                "stages": ["train", "extract", "saturation"],
            }
        )
        found = make_run(find_logs_dir(logs_dir, config), run, config, listener)
        if found.has_file(CHECKPOINT) and not overwrite:
            raise ConfigError(
                f"{found.name} is there already; record under another run id, or with overwrite=True"
            )
        with found.lock(), found.stage("train", {}):
            if overwrite:
                forget(found)
                found.commit(change=lambda manifest: setattr(manifest, "dataset", None))
            _record_spectra(found, images[:1], classes, choose_device(config.device))
        # What it takes isn't projected: that is for images of three channels, as configs have them.
        wanted = {"device": device, "pooling": tuple(pooling), "force": True}
        plan = make_plan(["extract", "saturation"], wanted, strict=False)
        raise_first(run_stages([found], plan, with_needs=False))
    found.reload()
    if images.shape[-1] == images.shape[-2]:
        with found.lock():
            _record_fields(found, model, images.shape[1])
    return found


def _record_fields(run: Run, model: nn.Module, n_channels: int) -> None:
    """Tabulate receptive fields, of a model that can be traced."""
    try:
        table = receptive_field(model, run.config.resolution, n_channels)
    except ConfigError as error:
        run.warn("receptive-field", str(error))
        return
    with run.stage("receptive_field", {}):
        write_fields(run, table[table["layer"].isin(run.layers)])


def _count_classes(*loaders: "DataLoader[Any] | None") -> int:
    """Return one more than the largest label."""
    return 1 + max(int(labels.max()) for part in loaders if part is not None for _, labels in part)


def _record_spectra(
    run: Run, sample: torch.Tensor, classes: Sequence[str] | None, device: torch.device
) -> None:
    """Pass once over both splits, as evaluation does, and commit weights, metrics and spectra."""
    config = run.config
    data = load_data(config)
    session = Session(config, data, device)
    layers = recorded_layers(session.model, config, sample)
    check_moments(run, layers, device)
    describe_run(run, session, data, layers)
    if classes is not None:
        run.commit(change=lambda manifest: setattr(manifest.dataset, "classes", list(map(str, classes))))
    analysis = AnalysisStore(run.analysis_path, run.commits)
    row: dict[str, float] = {"epoch": 0, "lr": 0.0}
    with make_recorder({layer.name: module for layer, module in layers.items()}, config, ALONE) as recorder:
        for split, images in (("train", data.train_plain), ("eval", data.eval)):
            recorder.begin(split)
            passed = run_pass(
                session, make_loader(images, config.batch_size, shuffle=False), "eval", recorder, None
            )
            row |= {f"{split}_loss": passed.loss}
            row |= {f"{split}_{name}": value for name, value in passed.metrics.items()}
            spectra = take_spectra(run, session, recorder, layers, split)
            analysis.write_spectra(split, 0, 1, spectra.eigenvalues)
            analysis.write_moments(split, spectra.moments)
    session.epoch, session.history = 1, [row]
    commit_epoch(run, session, session.state())
    analysis.finish_spectra(1)
