"""Hooks on models that torch.compile compiled: compiled code calls only hooks that were there before."""

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn

from satstore.errors import ConfigError

Hook = TypeVar("Hook", bound=Callable[..., Any])

_log = logging.getLogger(__name__)


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` wrapped, or the model itself; its parameters are the same.

    Raises
    ------
    ConfigError
        If it is TorchScript, whose layers Python doesn't call.
    """
    frames = sys.modules.get("torch._dynamo.eval_frame")  # there once something was compiled
    while frames is not None and isinstance(model, frames.OptimizedModule):
        model = cast(nn.Module, model._orig_mod)
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"the model is TorchScript ({type(model).__name__}), whose layers can't be looked into; give the "
            "module that it was made of"
        )
    return model


def prepare_to_compile() -> None:
    """Import torch's compiler, so that hooks added from now on are called if the model is compiled later.

    The import takes a second; optimizers import it as well.
    """
    import torch._dynamo  # noqa: F401 - for the sake of the import


def called_when_compiled(hook: Hook) -> Hook:
    """Return a hook that compiled code calls too; models that were compiled before are compiled again."""
    if "torch._dynamo" not in sys.modules:
        return hook
    if _has_compiled():
        _log.info("compiled models are compiled anew: what was compiled before calls no hooks")
        torch.compiler.reset()
    # Not traced: each function that a hook calls would be compiled for each layer.
    return cast(Hook, torch.compiler.disable(hook))  # type: ignore[no-untyped-call]  # torch has no hints here


def _has_compiled() -> bool:
    """Tell whether ``torch.compile`` compiled anything since its last reset; True if torch doesn't tell."""
    seen = getattr(getattr(sys.modules["torch._dynamo"], "convert_frame", None), "input_codes", None)
    return bool(getattr(seen, "seen", True))
