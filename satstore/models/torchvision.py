"""torchvision's classification models with random weights, which return logits in every mode."""

from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torchvision.models
from torch import nn
from torchvision.models import regnet

OPTIONS: dict[str, dict[str, Any]] = {
    # No auxiliary classifiers, which return tuples in training; no initialisation of their own: it is slow.
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


def build(name: str, *, num_classes: int = 1000) -> nn.Module:
    """Build the model of a torchvision name, its weights random."""
    with ExitStack() as stack:
        if name.startswith("regnet"):
            stack.enter_context(_block_parameters_on_the_cpu())
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **OPTIONS.get(name, {})
        )
    return model


def build_for(name: str, *, size: str, num_classes: int = 1000, resolution: int = 224) -> nn.Module:
    """Build a model whose layers fit one resolution.

    Parameters
    ----------
    size
        The name of torchvision's argument for the resolution.
    """
    given = (resolution, resolution) if size == "input_size" else resolution
    model: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **{size: given}
    )
    return model


def densenet(block_config: tuple[int, ...], *, num_classes: int = 1000) -> nn.Module:
    """Build a DenseNet of another depth: growth rate 32, a stem of 64 channels."""
    model: nn.Module = torchvision.models.DenseNet(32, block_config, 64, num_classes=num_classes)
    return model


@contextmanager
def _block_parameters_on_the_cpu() -> Any:
    """Let RegNets compute their widths on the CPU while their layers are built on the ``meta`` device."""
    compute = regnet.BlockParams.from_init_params

    def on_the_cpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return compute(*args, **kwargs)

    with patch.object(regnet.BlockParams, "from_init_params", on_the_cpu):
        yield
