"""Copies of models without values, on the ``meta`` device, and their graphs."""

import copy
from typing import Any

from torch import Tensor, fx, nn

from satstore.analysis.modules import LAYER_TYPES, name_module
from satstore.errors import ConfigError, reason_of


def copy_to_meta(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device, in eval mode and without hooks; the model isn't changed."""
    held: list[Any] = [*model.parameters(), *model.buffers()]
    # Old-style weight norm, spectral norm and pruning leave the weight as a plain attribute.
    held += [
        value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)
    ]
    blank: dict[int, Any] = {
        id(value): nn.Parameter(value.to("meta"), value.requires_grad)
        if isinstance(value, nn.Parameter)
        else value.detach().to("meta")
        for value in held
    }
    found = copy.deepcopy(model, blank).eval().float()
    for module in found.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return found


def trace_on_meta(model: nn.Module) -> fx.GraphModule:
    """Trace the graph of a model in eval mode, without hooks; parameters and buffers take no memory.

    Raises
    ------
    ConfigError
        If the model can't be traced; the message names the module.
    """
    blank = copy_to_meta(model)
    return fx.GraphModule(blank, _trace(blank))


class _Tracer(fx.Tracer):
    """Traces a model, layers as one node each; knows the innermost module that it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYER_TYPES) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not after an error, which names the module
        return result


def _trace(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(model)
    except Exception as error:  # what a model's code raises when it is given a proxy for a tensor
        name = tracer.inside[-1] if tracer.inside else ""
        raise ConfigError(
            f"{name_module(name, model.get_submodule(name))} can't be traced: {reason_of(error)[:200]}; its "
            "forward must not branch on its tensors' values"
        ) from error
