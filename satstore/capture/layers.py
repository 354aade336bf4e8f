"""The layers of a model that are recorded: chosen by their type and name, described by a forward pass."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
from torch import nn

from satstore.analysis.compiled_models import called_when_compiled
from satstore.analysis.modules import LAYER_TYPES, in_eval_mode, name_module
from satstore.capture.outputs import OutputLayout, expect_tensor, typed_layout
from satstore.errors import ConfigError

_log = logging.getLogger(__name__)

Key = TypeVar("Key")


@dataclass(frozen=True)
class Layer:
    """What is recorded under one name: a module's output, or a part of it, or that of one of its calls.

    Attributes
    ----------
    index
        Its place in forward order.
    kind
        The class's name.
    output_shape
        That of one sample.
    layout
        How the output is arranged.
    module
        The module's PyTorch name.
    part
        The part of the output that is taken; None for its first tensor.
    call
        Which of the module's calls in a batch is taken, from 0; None: moments take each, latents the last.
    block
        The name of the block that it is part of, or is; empty for none.
    n_prefix
        The tokens before the patches of an image: class, distillation and register tokens.
    grid
        The patches (y, x) of an image that its tokens are; empty if they are none.
    """

    name: str
    index: int
    kind: str
    n_features: int
    output_shape: tuple[int, ...]
    layout: OutputLayout
    module: str
    part: str | None = None
    call: int | None = None
    block: str = ""
    n_prefix: int = 0
    grid: tuple[int, ...] = ()


Layers = Mapping[Layer, nn.Module]


@dataclass(frozen=True)
class Selected:
    """A module whose output is to be recorded, and the part of the output; None for its first tensor."""

    module: nn.Module
    part: str | None = None


@dataclass(frozen=True)
class LayerDescription:
    """The layers of a model in forward order with their modules, and why others are left out, by name."""

    layers: Layers
    left_out: Mapping[str, str]


def select_layers(
    model: nn.Module, include: str | None = None, exclude: str | None = None
) -> dict[str, Selected]:
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
    layers = {
        name: Selected(module)
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


def describe_layers(
    model: nn.Module, forward: Callable[[int], object], selected: Mapping[str, Selected]
) -> LayerDescription:
    """Describe layers in the order in which a forward pass first calls them.

    The pass runs in eval mode without gradients; modes, buffers and random states stay as they were.

    Parameters
    ----------
    forward
        Passes so many samples through the model.
    selected
        From `select_layers`. Layers that the pass doesn't call are left out, with a warning in the log.
    """
    outputs: dict[str, tuple[OutputLayout, tuple[int, ...]]] = {}

    def see(names: list[str], module: nn.Module, output: Any) -> None:
        for name in names:
            tensor = expect_tensor(output, selected[name].part, name_module(name, module))
            layout = typed_layout(module, tensor.ndim)
            outputs.setdefault(name, (layout, layout.sample_shape(tensor.shape)))

    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    modules = {name: one.module for name, one in selected.items()}
    with torch.no_grad(), torch.random.fork_rng(list(devices)), hooked(modules, see), in_eval_mode(model):
        forward(1)
    if not outputs:
        raise ConfigError(
            f"the forward pass calls none of {', '.join(list(selected)[:3])}, …; a layer is recorded "
            "when it is called as a module"
        )
    left_out = {name: "not called" for name in selected if name not in outputs}
    if left_out:
        _log.warning("left out, as the forward pass doesn't call them: %s", ", ".join(left_out))
    layers = [
        Layer(
            name=name,
            index=index,
            kind=type(modules[name]).__name__,
            n_features=layout.count_features(shape),
            output_shape=shape,
            layout=layout,
            module=name,
            block=find_block(model, name),
        )
        for index, (name, (layout, shape)) in enumerate(outputs.items())
    ]
    return LayerDescription({layer: modules[layer.name] for layer in layers}, left_out)


def find_block(model: nn.Module, name: str) -> str:
    """Return the name of the block that a module is part of, or is; empty for none.

    It is the nearest module with parts of its own, itself or above, that a Sequential, ModuleList or
    ModuleDict lists.
    """
    while name:
        above, _, _ = name.rpartition(".")
        is_listed = isinstance(model.get_submodule(above), nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if is_listed and any(True for _ in model.get_submodule(name).children()):
            return name
        name = above
    return ""


def _compile(key: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{key} is {pattern!r}, which is no regular expression: {error}") from error


@contextmanager
def hooked(
    modules: Mapping[Key, nn.Module], see: Callable[[list[Key], nn.Module, Any], None]
) -> Iterator[None]:
    """Call `see` after every call of a module, with the keys of the module, the module and its output."""
    see = called_when_compiled(see)
    keys: dict[nn.Module, list[Key]] = {}
    for key, module in modules.items():
        keys.setdefault(module, []).append(key)
    with ExitStack() as stack:
        for module, of_module in keys.items():

            def hook(module: nn.Module, _: Any, output: Any, of_module: list[Key] = of_module) -> None:
                see(of_module, module, output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield
