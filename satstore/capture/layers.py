"""The layers of a model that are recorded: chosen by their type and name, described by one forward pass."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from satstore.analysis.compiled_models import called_when_compiled
from satstore.analysis.modules import LAYER_TYPES, in_eval_mode, name_module
from satstore.capture.outputs import OutputLayout, expect_tensor, typed_layout
from satstore.errors import ConfigError

_log = logging.getLogger(__name__)

Layers = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Layer:
    """One layer of a model; `index` is its place in forward order, `output_shape` is without the batch."""

    name: str
    index: int
    kind: str
    n_features: int
    output_shape: tuple[int, ...]
    layout: OutputLayout


def select_layers(
    model: nn.Module, include: str | None = None, exclude: str | None = None
) -> dict[str, nn.Module]:
    """Find the layers to record: Conv, ConvTranspose, Linear and LSTM, under their PyTorch names.

    Parameters
    ----------
    include, exclude
        Regular expressions, found anywhere in a name; `exclude` wins.

    Raises
    ------
    ConfigError
        A pattern is no regular expression, or no layer is left.
    """
    kept, dropped = (_compile(key, text) for key, text in (("include", include), ("exclude", exclude)))
    found = {name: module for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)}
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in found.items()
        if (kept is None or kept.search(name)) and not (dropped is not None and dropped.search(name))
    }
    if not layers:
        close = get_close_matches(include or "", found, n=3) or list(found)[:3]
        names = f"its layers are called {', '.join(close)}, …" if close else "it has none"
        raise ConfigError(
            f"no layer of the model is left by include={include!r}, exclude={exclude!r}: {names}"
        )
    return layers


def describe_layers(model: nn.Module, sample_input: Any, layers: Layers) -> list[Layer]:
    """List the layers in the order in which one forward pass first calls them.

    The pass runs in eval mode without gradients; modes, buffers and random states stay as they were.

    Parameters
    ----------
    layers
        From `select_layers`. Layers that the pass doesn't call are left out, with a warning in the log.
    """
    outputs: dict[str, tuple[OutputLayout, tuple[int, ...]]] = {}

    def see(name: str, module: nn.Module, output: Any) -> None:
        tensor = expect_tensor(output, None, name_module(name, module))
        layout = typed_layout(module, tensor.ndim)
        outputs.setdefault(name, (layout, layout.sample_shape(tensor.shape)))

    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(list(devices)), hooked(layers, see), in_eval_mode(model):
        model(sample_input)
    if not outputs:
        raise ConfigError(
            f"the forward pass calls none of {', '.join(list(layers)[:3])}, …; a layer is recorded "
            "when it is called as a module"
        )
    if missing := [name for name in layers if name not in outputs]:
        _log.warning("left out, as the forward pass doesn't call them: %s", ", ".join(missing))
    return [
        Layer(
            name=name,
            index=index,
            kind=type(layers[name]).__name__,
            n_features=layout.count_features(shape),
            output_shape=shape,
            layout=layout,
        )
        for index, (name, (layout, shape)) in enumerate(outputs.items())
    ]


def _compile(key: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{key} is {pattern!r}, which is no regular expression: {error}") from error


@contextmanager
def hooked(layers: Layers, see: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Call `see` with name, module and output after every call of a layer."""
    see = called_when_compiled(see)
    with ExitStack() as stack:
        for name, layer in layers.items():

            def hook(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                see(name, module, output)

            stack.callback(layer.register_forward_hook(hook).remove)
        yield
