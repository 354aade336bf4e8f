"""The model of a run: built from its config, loaded from its checkpoint, its layers recorded."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from satstore.capture.layers import Layers
from satstore.config.experiment import ExperimentConfig
from satstore.errors import CorruptError
from satstore.models.build import build_model, explaining_misfit
from satstore.models.plan import arranged_by_class, describe_model
from satstore.runs.manifest import checkpoint_name
from satstore.runs.run import Run
from satstore.training.checkpoint import read_checkpoint


def initialize_model(config: ExperimentConfig, n_classes: int, device: torch.device) -> nn.Module:
    """Build a config's model on a device; the config's seed fixes its initial weights."""
    torch.manual_seed(config.seed)
    with explaining_misfit(config.model, config.resolution):
        model = build_model(config.model, n_classes, config.resolution)
    # With channels last, a map's positions are rows of its memory: the samples of spectra without a copy.
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def recorded_layers(run: Run, model: nn.Module) -> Layers:
    """Return the layers of a run's model in forward order, arranged as they are stored.

    Runs of earlier versions don't say how: a layer's class alone tells.
    """
    old = {record.layer for record in run.manifest.layers if not record.form}
    return arranged_by_class(describe_model(model, run.config).layers, old)


def load_model(run: Run, n_classes: int, device: torch.device, epoch: int | None = None) -> nn.Module:
    """Build a run's model and load its weights: the checkpoint's, or those kept of an earlier epoch.

    CorruptError if the checkpoint is of another model.
    """
    model = initialize_model(run.config, n_classes, device)
    load_weights(model, read_checkpoint(run, epoch)["model"], run, epoch)
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], run: Run, epoch: int | None = None) -> None:
    """Load weights into a run's model; see :func:`load_model`."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CorruptError(
            f"{run.path / checkpoint_name(epoch)} is of another model than {run.config.model}: {reason}"
        ) from error
