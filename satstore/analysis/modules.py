"""The modules of a model: which of them count as layers, how errors name them, and their modes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.conv import _ConvNd

LAYER_TYPES = (_ConvNd, nn.Linear, nn.LSTM)
"""The types with weights that mix features; _ConvNd is the base of Conv and ConvTranspose."""


def name_module(name: str, module: nn.Module) -> str:
    """Return a module's name and type for an error; the empty name is the model's."""
    kind = type(module).__name__
    return f"module {name!r} ({kind})" if name else f"the model ({kind})"


@contextmanager
def without_nested_tensors(model: nn.Module) -> Iterator[None]:
    """Let torch's TransformerEncoders compute padded tensors, as they do in training; restore them after.

    In evaluation mode they turn a batch with a padding mask into a nested tensor, which has no shape.
    """
    encoders = [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
    before = [encoder.use_nested_tensor for encoder in encoders]
    try:
        for encoder in encoders:
            encoder.use_nested_tensor = False
        yield
    finally:
        for encoder, is_nested in zip(encoders, before, strict=True):
            encoder.use_nested_tensor = is_nested


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and restore the mode of each of its modules after."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
