"""Receptive fields of every layer, from a model's graph.

The graph is torch.fx's; the shapes are those of a forward pass on the ``meta`` device, which computes no
values.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from satstore.analysis.field_rules import (
    Call,
    Field,
    UnknownOperationError,
    field_of_function,
    field_of_module,
)
from satstore.analysis.layers import LAYER_TYPES
from satstore.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


def receptive_field(model: nn.Module, resolution: int, n_channels: int = 3) -> "pd.DataFrame":
    """Tabulate the receptive field of every Conv, ConvTranspose, Linear and LSTM layer of a model.

    A layer's field is what one of its outputs depends on: along one axis, the number of input pixels from the
    first to the last, borders not cut off. Normalisation counts as in eval mode, and what pools over the
    whole map as a window of the map's size; a branch of that kind (squeeze and excitation) widens what it is
    merged with to its own size.

    Parameters
    ----------
    model
        Any module that torch.fx can trace, called with (1, n_channels, resolution, resolution); not changed.
    resolution
        Height and width of the input, in pixels.
    n_channels
        Of the input.

    Returns
    -------
    pandas.DataFrame
        A row per layer, in forward order. ``receptive_field_min`` and ``receptive_field_max``: of the path
        that sees least, and of all paths together; where the axes differ, of the smaller and of the larger.
        ``jump``: input pixels from one output to the next. ``start``: the middle of what the first output
        sees, in pixels, the first pixel being from 0 to 1. ``map_size``: outputs along an axis. ``border``
        marks the first convolution whose input has a largest field above the resolution, ``strict_border``
        the first whose input has a smallest field above it. jump, start and map_size are vertical.

    Raises
    ------
    ConfigError
        If the model can't be traced or followed, or can't take the resolution; the message names the module.

    Notes
    -----
    r₀ = 1, j₀ = 1; r = r₋ + (k_eff − 1)·j₋; j = j₋·s; k_eff = k + (k − 1)(dilation − 1): Araujo, Norris and
    Sim, "Computing receptive fields of convolutional neural networks", Distill, 2019.
    """
    import pandas as pd

    if resolution < 1:
        raise ConfigError(f"resolution {resolution} can't be used; give the pixels of a side, at least 1")
    walk = _Walk(trace_without_values(model))
    walk.run(torch.empty(1, n_channels, resolution, resolution, device="meta"))
    rows: list[dict[str, Any]] = walk.rows
    for column, key in (("border", "_input_max"), ("strict_border", "_input_min")):
        first = next((r for r in rows if r["_is_conv"] and r[key] > resolution), None)
        for row in rows:
            row[column] = row is first
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = (
    "layer",
    "kind",
    "receptive_field_min",
    "receptive_field_max",
    "jump",
    "start",
    "map_size",
    "border",
    "strict_border",
)


def trace_without_values(model: nn.Module) -> fx.GraphModule:
    """Return the graph of a model in eval mode, without hooks, its parameters and buffers without memory.

    Raises
    ------
    ConfigError
        If the model can't be traced; the message names the module.
    """
    blank = _without_values(model)
    return fx.GraphModule(blank, _trace(blank))


def _without_values(model: nn.Module) -> nn.Module:
    held = [*model.parameters(), *model.buffers()]
    blank: dict[int, Any] = {
        id(value): nn.Parameter(value.to("meta"), value.requires_grad)
        if isinstance(value, nn.Parameter)
        else value.to("meta")
        for value in held
    }
    found = copy.deepcopy(model, blank).eval().float()
    for module in found.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return found


class _Tracer(fx.Tracer):
    """Remembers the innermost module that it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not after an error, so that it names the module
        return result


def _trace(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(model)
    except Exception as error:  # what a model's code raises when it is given a proxy for a tensor
        name = tracer.inside[-1] if tracer.inside else ""
        module = model.get_submodule(name)
        where = (
            f"module {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        )
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{where} can't be traced: {reason[:200]}; its forward must not branch on its tensors' values"
        ) from error


class _Walk(fx.Interpreter):
    """Runs a graph on the meta device, and finds each node's field on the way."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.rows: list[dict[str, Any]] = []
        self.extra_traceback = False  # torch's would make errors many lines

    def run_node(self, n: fx.Node) -> Any:
        try:
            output = super().run_node(n)
            inputs = [node for node in n.all_input_nodes if "field" in node.meta]
            n.meta.update({"field": Field()} if n.op == "placeholder" else {})
            if inputs and _has_tensor(output):
                n.meta["field"] = self._field(n, inputs, output)
        except ConfigError:
            raise
        except UnknownOperationError as error:
            raise ConfigError(f"{_place(n)}: no receptive field is known of {error}") from error
        except Exception as error:  # what a layer raises on a map that is too small for it
            reason = " ".join(str(error).split())
            raise ConfigError(f"{_place(n)} can't be followed: {reason[:200]}") from error
        if n.op == "call_module" and inputs:
            self._tabulate(n, inputs[0].meta["field"], output)
        return output

    def _field(self, n: fx.Node, inputs: list[fx.Node], output: Any) -> Field:
        tensors = [self.env[node] for node in inputs]
        pairs = [
            (node.meta["field"], tensor[0] if isinstance(tensor, tuple | list) else tensor)
            for node, tensor in zip(inputs, tensors, strict=True)
        ]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        call = Call([f for f, _ in pairs], [t for _, t in pairs], output, tuple(args), kwargs)
        if n.op == "call_module":
            return field_of_module(self.fetch_attr(str(n.target)), call)
        return call.field if n.op == "output" else field_of_function(n.target, call)

    def _tabulate(self, n: fx.Node, seen: Field, output: Any) -> None:
        module, name = self.fetch_attr(str(n.target)), str(n.target)
        if not isinstance(module, LAYER_TYPES) or any(row["layer"] == name for row in self.rows):
            return
        field: Field = n.meta["field"]
        vertical = field.spans[0].widest
        jump = float(vertical.jump)
        self.rows.append(
            {
                "layer": name,
                "kind": type(module).__name__,
                "receptive_field_min": min(span.narrowest.size for span in field.spans),
                "receptive_field_max": max(span.widest.size for span in field.spans),
                "jump": int(jump) if jump.is_integer() else jump,
                "start": vertical.start,
                "map_size": field.sizes(output)[0] if isinstance(output, Tensor) else 1,
                "_is_conv": isinstance(module, _ConvNd) and not seen.is_pooled,
                "_input_max": max(span.widest.size for span in seen.spans),
                "_input_min": min(span.narrowest.size for span in seen.spans),
            }
        )


def _has_tensor(output: Any) -> bool:
    return isinstance(output, Tensor) or (
        isinstance(output, tuple | list) and bool(output) and isinstance(output[0], Tensor)
    )


def _place(n: fx.Node) -> str:
    """Return where in the model a node is."""
    stack = list((n.meta.get("nn_module_stack") or {}).values())
    name = str(n.target) if n.op == "call_module" else (stack[-1][0] if stack else "")
    return f"module {name!r}" if name else "the model"
