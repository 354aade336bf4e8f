"""torchvision's classification models: random weights, a number of classes, and logits whatever the mode."""

from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torchvision.models
from torch import nn
from torchvision.models import regnet

OPTIONS: dict[str, dict[str, Any]] = {
    # Without auxiliary classifiers, which put out tuples in training; their own initialisation takes long.
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


def build(name: str, *, num_classes: int = 1000) -> nn.Module:
    """Build the model of a torchvision name, its weights random.

    Parameters
    ----------
    num_classes
        Size of the output.
    """
    with ExitStack() as stack:
        if name.startswith("regnet"):
            stack.enter_context(_block_parameters_on_the_cpu())
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **OPTIONS.get(name, {})
        )
    return model


def build_for(name: str, *, size: str, num_classes: int = 1000, resolution: int = 224) -> nn.Module:
    """Build a model whose layers are made for one resolution.

    Parameters
    ----------
    size
        The name that torchvision's argument for the resolution has.
    resolution
        Height and width of the input, in pixels.
    """
    given = (resolution, resolution) if size == "input_size" else resolution
    model: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **{size: given}
    )
    return model


def densenet(block_config: tuple[int, ...], *, num_classes: int = 1000) -> nn.Module:
    """Build a DenseNet of other depth: growth rate 32, a stem of 64 channels.

    Parameters
    ----------
    block_config
        Layers of each block.
    num_classes
        Size of the output.
    """
    model: nn.Module = torchvision.models.DenseNet(32, block_config, 64, num_classes=num_classes)
    return model


@contextmanager
def _block_parameters_on_the_cpu() -> Any:
    """Let RegNets compute their widths with values where their layers are built without, on ``meta``."""
    compute = regnet.BlockParams.from_init_params

    def on_the_cpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return compute(*args, **kwargs)

    with patch.object(regnet.BlockParams, "from_init_params", on_the_cpu):
        yield
