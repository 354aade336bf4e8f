"""The model of a run: built from its config, loaded from its checkpoint, its layers recorded."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from satstore.capture.layers import Layer, Layers
from satstore.capture.outputs import typed_layout
from satstore.config.experiment import ExperimentConfig
from satstore.errors import CorruptError
from satstore.models.build import build_model, explaining_misfit
from satstore.models.plan import describe_model
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
    forms = {record.layer: record.form for record in run.manifest.layers}
    found: dict[Layer, nn.Module] = {}
    for layer, module in describe_model(model, run.config).layers.items():
        is_old = forms.get(layer.name) == ""
        layout = typed_layout(module, 1 + len(layer.output_shape)) if is_old else layer.layout
        found[replace(layer, layout=layout)] = module
    return found


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
