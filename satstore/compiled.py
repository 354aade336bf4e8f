"""Models compiled by torch: their layers' hooks are called only where they run as they were written."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from satstore.errors import ConfigError


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` wrapped, or the model itself; its parameters are the same.

    Raises
    ------
    ConfigError
        If it is TorchScript: its layers are no modules that Python calls.
    """
    while _is_wrapper(model):
        model = cast(nn.Module, model._orig_mod)
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"the model is TorchScript ({type(model).__name__}), whose layers can't be looked into; give the "
            "module that it was made of"
        )
    return model


def compiled_parts(model: nn.Module) -> list[str]:
    """Return the names of the modules that are compiled; the model's own is ``""``."""
    return [
        name
        for name, module in model.named_modules()
        if _is_wrapper(module) or module._compiled_call_impl is not None
    ]


def _is_wrapper(module: nn.Module) -> bool:
    frames = sys.modules.get("torch._dynamo.eval_frame")  # there once something was compiled
    return frames is not None and isinstance(module, frames.OptimizedModule)


@contextmanager
def run_as_written(model: nn.Module) -> Iterator[None]:
    """Let compiled parts of a model run as they were written for as long as the context lasts.

    What torch compiled before a hook was added goes on without the hook.
    """
    if not compiled_parts(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
