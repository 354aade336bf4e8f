"""The model of a run: built from its config, its weights loaded, the layers that are recorded."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from satstore.capture.layers import Layer, describe_layers, select_layers
from satstore.capture.recorders import LatentRecorder
from satstore.config.experiment import ExperimentConfig
from satstore.errors import CorruptError
from satstore.models.build import build_model as build_model_of
from satstore.models.build import explaining_misfit
from satstore.runs.manifest import checkpoint_name
from satstore.runs.run import Run
from satstore.training.checkpoint import read_checkpoint


def build_model(config: ExperimentConfig, n_classes: int, device: torch.device) -> nn.Module:
    """Build a config's model on a device, its weights fixed by the config's seed."""
    torch.manual_seed(config.seed)
    with explaining_misfit(config.model, config.resolution):
        model = build_model_of(config.model, n_classes, config.resolution)
    # With channels last, a map's positions are rows of its memory: the samples of spectra without a copy.
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def recorded_layers(
    model: nn.Module, config: ExperimentConfig, image: torch.Tensor | None = None
) -> dict[Layer, nn.Module]:
    """Return the layers of a model that a config records, in forward order.

    Parameters
    ----------
    image
        What the model is called with; by default a black one of three channels and the config's size.
    """
    layers = select_layers(model, config.layers, config.exclude_layers)
    device = next(model.parameters()).device
    if image is None:
        image = torch.zeros(1, 3, config.resolution, config.resolution)
    with explaining_misfit(config.model, config.resolution):
        found = describe_layers(model, image.to(device), layers)
    return {layer: layers[layer.name] for layer in found}


@contextmanager
def recording(
    model: nn.Module, layers: Mapping[str, nn.Module], poolings: Iterable[str]
) -> Iterator[LatentRecorder]:
    """Record the latents of some of a model's layers, in eval mode, at some poolings."""
    model.eval()
    with LatentRecorder(layers, poolings) as recorder:
        yield recorder


def load_model(run: Run, n_classes: int, device: torch.device, epoch: int | None = None) -> nn.Module:
    """Build a run's model and load its checkpoint's weights, or those that were kept of an earlier epoch.

    Raises
    ------
    CorruptError
        If the checkpoint is of another model.
    """
    model = build_model(run.config, n_classes, device)
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
