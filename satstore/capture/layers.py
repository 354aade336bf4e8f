"""The layers of a model that are recorded: chosen by their type and name, described by a forward pass."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from satstore.analysis.compiled_models import called_when_compiled
from satstore.analysis.modules import LAYER_TYPES, in_eval_mode, name_module, without_nested_tensors
from satstore.capture.outputs import (
    FEATURES_FIRST,
    FEATURES_LAST,
    LAYER_NORMS,
    FoundLayout,
    OutputLayout,
    expect_tensor,
    find_layout,
    find_tensor,
    typed_feature_axis,
    why_no_tensor,
)
from satstore.capture.patches import OutputShapes, PatchGrid
from satstore.config.experiment import Calls, split_pattern
from satstore.errors import ConfigError
from satstore.system.text import list_first

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

    @property
    def form(self) -> str:
        """How its output is arranged; see `OutputLayout`."""
        return self.layout.form

    @property
    def n_axes(self) -> int:
        """The axes of positions of a map; 0 if it is none."""
        return len(self.output_shape) - 1 if self.form == "map" else 0


Layers = Mapping[Layer, nn.Module]


@dataclass(frozen=True)
class Selected:
    """A module whose output is to be recorded, by its PyTorch name, or a part of its output."""

    name: str
    module: nn.Module
    part: str | None = None

    @property
    def layer(self) -> str:
        """The name of the layer: ``encoder.layer.3``, or, of a part, ``encoder.layer.3:hidden_states``."""
        return self.name if self.part is None else f"{self.name}:{self.part}"


@dataclass(frozen=True)
class LayerDescription:
    """The layers of a model in forward order, with their modules.

    ``left_out`` has the selected modules that are no layers, and why; ``doubts`` what may be otherwise.
    """

    layers: Layers
    left_out: Mapping[str, str]
    doubts: Mapping[str, str]

    @property
    def warnings(self) -> list[str]:
        """What a user should know: a line for what is left out, and one for what is in doubt."""
        found = {"left out": self.left_out, "unclear": self.doubts}
        return [f"{title}: {_list_by_text(texts)}" for title, texts in found.items() if texts]


def _list_by_text(texts: Mapping[str, str]) -> str:
    """List names by the text about them: ``a, b (not called); c (a packed sequence)``."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name or "the model")
    return "; ".join(f"{list_first(of_text, 5)} ({text})" for text, of_text in names.items())


def select_layers(
    model: nn.Module,
    include: str | None = None,
    exclude: str | None = None,
    modules: Sequence[str] | None = None,
) -> dict[str, Selected]:
    """Find the layers to record, by name.

    Parameters
    ----------
    include, exclude
        Regular expressions, found anywhere in a name. `include` is of Conv, ConvTranspose, Linear and LSTM
        layers, by default of all of them; `exclude` wins.
    modules
        Regular expressions of modules of any class, which are selected in place of Conv, ConvTranspose,
        Linear and LSTM layers, or, where `include` is given, besides. At the end, ``:part`` may name the part
        of the output to take, by a key, a field, or a number from 0; without, its first tensor is taken. What
        comes before it may be the module's own name.

    Raises
    ------
    ConfigError
        A pattern is no regular expression or matches nothing, or no layer is left.
    """
    kept, dropped = (_compile(key, text) for key, text in (("include", include), ("exclude", exclude)))
    found: list[Selected] = []
    if modules is None or include is not None:
        typed = (pair for pair in model.named_modules() if isinstance(pair[1], LAYER_TYPES))
        found += [Selected(name, one) for name, one in typed if kept is None or kept.search(name)]
    for pattern in modules or ():
        found += _select_modules(model, pattern)
    layers: dict[str, Selected] = {}
    known: set[tuple[nn.Module, str | None]] = set()
    for one in found:
        if not (dropped and dropped.search(one.layer)) and (one.module, one.part) not in known:
            known.add((one.module, one.part))
            layers[one.layer] = one
    if not layers:
        names = [name for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)]
        close = get_close_matches(include or "", names, n=3) or names[:3]
        text = f"its layers are called {', '.join(close)}, …" if close else "it has none"
        given = f"include={include!r}, exclude={exclude!r}" + (f", modules={modules!r}" if modules else "")
        raise ConfigError(f"no layer of the model is left by {given}: {text}")
    return layers


def _select_modules(model: nn.Module, text: str) -> list[Selected]:
    """Find the modules that a pattern matches, which may end in ``:part``."""
    pattern, part = split_pattern(text)
    _compile("modules", pattern)
    named = dict(model.named_modules(remove_duplicate=False))
    if part is not None and pattern in named:  # whose own parts would match, too
        return [Selected(pattern, named[pattern], part)]
    found = [Selected(name, one, part) for name, one in named.items() if re.search(pattern, name)]
    if not found:
        known = [name for name in named if name]
        plain = re.sub(r"\\[A-Za-z]|[^\w.]", "", pattern)
        names = get_close_matches(plain, known, n=3, cutoff=0.4) or known[:3]
        listed = f"its modules are called {', '.join(names)}, …" if names else "it has none within it"
        raise ConfigError(f"no module of the model matches {text!r}; {listed} (satstore list modules SOURCE)")
    return found


def describe_layers(
    model: nn.Module,
    forward: Callable[[int], object],
    selected: Mapping[str, Selected],
    calls: Calls = "last",
) -> LayerDescription:
    """Describe layers in the order in which a forward pass calls them.

    Two passes, of two and of three samples, tell the axes of each output. They run in eval mode without
    gradients; modes, buffers and random states stay as they were.

    Parameters
    ----------
    forward
        Passes so many samples through the model.
    selected
        From `select_layers`.
    calls
        "all": each call of a module is a layer; where there are several, ``name@0``, ``name@1``, …

    Raises
    ------
    ConfigError
        If an output lacks the part that is to be taken, or all are left out.
    """
    # 1. The shape of each call's output, for two samples and for three.
    shapes = OutputShapes()
    two, three = (_see_calls(model, forward, selected, n, shapes) for n in (2, 3))
    # 2. The layouts of each module's calls, or the reason why it is left out.
    left_out: dict[str, str] = {}
    found: list[tuple[SeenCall, str, int, FoundLayout]] = []
    for name, one in selected.items():
        layouts = _find_layouts(model, one, two[name], three[name], calls)
        if isinstance(layouts, str):
            left_out[name] = layouts
        else:
            n_layers = len(layouts) if calls == "all" else 1
            found += [(two[name][call], name, call, layouts[call]) for call in range(n_layers)]
    if not found:
        raise ConfigError(f"nothing to record, all modules are left out: {_list_by_text(left_out)}")
    # 3. A layer for each module or call, in forward order.
    layers: dict[Layer, nn.Module] = {}
    doubts: dict[str, str] = {}
    for seen, name, call, (layout, doubt) in sorted(found):
        one, shape = selected[name], layout.sample_shape(seen.shape)
        layer = Layer(
            name=f"{name}@{call}" if calls == "all" and len(two[name]) > 1 else name,
            index=len(layers),
            kind=type(one.module).__name__,
            n_features=layout.count_features(shape),
            output_shape=shape,
            layout=layout,
            module=one.name,
            part=one.part,
            call=call if calls == "all" else None,
            block=find_block(model, one.name),
        )
        layers[layer] = one.module
        if doubt:
            doubts[layer.name] = doubt
    return LayerDescription(_find_patches(layers, shapes.find_grids(model)), left_out, doubts)


def _find_patches(layers: Layers, grids: Mapping[int, PatchGrid]) -> Layers:
    """Return layers that know which of their tokens are patches, by the grid of so many tokens."""
    found: dict[Layer, nn.Module] = {}
    for layer, module in layers.items():
        grid = grids.get(layer.output_shape[0]) if layer.form == "tokens" else None
        found[layer if grid is None else replace(layer, n_prefix=grid.n_prefix, grid=grid.shape)] = module
    return found


class SeenCall(NamedTuple):
    """A call in a forward pass: its place, its output's shape, or the problem with it, and the known axis.

    See `find_layout` for the last.
    """

    place: int
    shape: tuple[int, ...]
    problem: str
    known_axis: int | None


def _see_calls(
    model: nn.Module,
    forward: Callable[[int], object],
    selected: Mapping[str, Selected],
    n_samples: int,
    shapes: OutputShapes,
) -> dict[str, list[SeenCall]]:
    """Pass samples through a model, and return the calls of each module that is selected, in their order.

    Also add the shapes of the outputs of all modules to `shapes`.
    """
    calls: dict[str, list[SeenCall]] = {name: [] for name in selected}
    count = itertools.count()
    axes: dict[tuple[int, ...], int] = {}

    def see(names: list[str], module: nn.Module, output: Any) -> None:
        for name in names:
            part = selected[name].part
            tensor = find_tensor(output, part)
            if tensor is None and part is not None:
                expect_tensor(output, part, name_module(selected[name].name, module))  # says what there is
            shape = () if tensor is None else tuple(tensor.shape)
            problem = why_no_tensor(output, part) if tensor is None else ""
            calls[name].append(SeenCall(next(count), shape, problem, axes.get(shape)))

    def see_typed(_: list[str], module: nn.Module, output: Any) -> None:
        tensor = find_tensor(output)
        axis = None if tensor is None else typed_feature_axis(module, tensor.shape[-1])
        if tensor is not None and axis is not None:
            axes[tuple(tensor.shape)] = axis

    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    modules = {name: one.module for name, one in selected.items()}
    telling = (*FEATURES_FIRST, *FEATURES_LAST, *LAYER_NORMS)
    typed = {name: module for name, module in model.named_modules() if isinstance(module, telling)}
    with (
        torch.no_grad(),
        torch.random.fork_rng(list(devices)),
        hooked(typed, see_typed),
        hooked(dict(model.named_modules()), shapes.see),
        hooked(modules, see),
        in_eval_mode(model),
        without_nested_tensors(model),
    ):
        forward(n_samples)
    return calls


def _find_layouts(
    model: nn.Module, one: Selected, two: Sequence[SeenCall], three: Sequence[SeenCall], calls: Calls
) -> list[FoundLayout] | str:
    """Find the layout of each call of a module, given its calls for two and for three samples.

    The text says why it can't be recorded.
    """
    if not two or not three:
        return "not called"
    if len(two) != len(three):
        return f"called {len(two)} times for 2 samples, {len(three)} times for 3"
    found: list[FoundLayout] = []
    for a, b in zip(two, three, strict=True):
        layout = a.problem or b.problem or find_layout(model, one.name, (a.shape, b.shape), a.known_axis)
        if isinstance(layout, str):
            return layout
        found.append(layout)
    kinds = {
        (layout, layout.count_features(layout.sample_shape(call.shape)))
        for (layout, _), call in zip(found, two, strict=True)
    }
    if calls == "last" and len(kinds) > 1:
        return 'its calls differ in features or axes: take calls "all"'
    return found


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
        if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            keys.setdefault(module, []).append(key)
    with ExitStack() as stack:
        for module, of_module in keys.items():

            def hook(module: nn.Module, _: Any, output: Any, of_module: list[Key] = of_module) -> None:
                see(of_module, module, output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield
