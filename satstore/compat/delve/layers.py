"""The layers that a tracker records, under delve's names, and the samples in their outputs."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.functional import interpolate

from satstore.analysis.compiled_models import uncompiled
from satstore.analysis.modules import LAYER_TYPES
from satstore.analysis.spectrum import Definition
from satstore.capture.layer_samples import ConvMethod, to_samples
from satstore.capture.outputs import OutputLayout, typed_layout
from satstore.errors import ConfigError

DelveTimeseriesMethod = Literal["last_timestep", "timestepwise"]
InterpolationStrategy = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "area"]

COMPILED = "_orig_mod"
"""The name of a module inside what ``torch.compile`` returns."""


def find_layers(modules: nn.Module | Iterable[nn.Module]) -> dict[str, nn.Module]:
    """Find the layers to record, under the names that delve gives them.

    A model's layers are called ``features-0``; of several models and layers, a layer is called
    ``Module-0-Linear``, by its place and class. Where layers of several models are called alike,
    ``Module-0-`` and so on go before their names. Raises ConfigError if there is no layer, or what is given
    is no module.
    """
    parts = [modules] if isinstance(modules, nn.Module) else list(modules)
    for part in parts:
        if not isinstance(part, nn.Module):
            raise ConfigError(f"expected modules to be a torch module, or several; found {part!r}")
    named = [(i, *found) for i, part in enumerate(parts) for found in _layers_of(i, uncompiled(part))]
    counts = Counter(name for _, name, _ in named)
    layers = {name if counts[name] == 1 else f"Module-{i}-{name}": layer for i, name, layer in named}
    if not layers:
        raise ConfigError("no Conv, ConvTranspose, Linear or LSTM layer in the modules to be recorded")
    return layers


def _layers_of(place: int, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(module, LAYER_TYPES):
        return [(f"Module-{place}-{type(module).__name__}", module)]
    return [
        ("-".join(part for part in name.split(".") if part != COMPILED), layer)
        for name, layer in module.named_modules()
        if isinstance(layer, LAYER_TYPES)
    ]


def name_layers(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Name layers by their own attribute ``name`` where they have one, as delve does.

    Raises ConfigError if two layers have one name.
    """
    named: dict[str, nn.Module] = {}
    for place, layer in layers.items():
        own = getattr(layer, "name", None)
        name = own if isinstance(own, str) else place
        if name in named:
            raise ConfigError(f"two layers are called {name!r}: change the attribute 'name' of {place!r}")
        named[name] = layer
    return named


class Sampler:
    """Converts a layer's output to samples, as delve's arguments ask for.

    Raises ConfigError if a method is unknown, or `interpolation_downsampling` is below 1.

    Parameters
    ----------
    conv_method
        Samples of maps; see :func:`satstore.capture.layer_samples.to_samples`.
    timeseries_method
        Samples of sequences: their last step, or all steps.
    definition
        ``exact``: a sequence's axes are those that its layer states, each step or token is one sample, and
        all steps of a Linear layer are taken. ``delve``: the first axis is the batch and the second the time,
        whatever ``batch_first`` says, in a Linear layer's output too; ``timestepwise`` makes one sample of
        all steps.
    interpolation_strategy, interpolation_downsampling
        Mode by which larger maps are interpolated to this many positions along both axes; None: as they are.
    """

    def __init__(
        self,
        conv_method: ConvMethod,
        timeseries_method: DelveTimeseriesMethod,
        definition: Definition,
        interpolation_strategy: InterpolationStrategy | None,
        interpolation_downsampling: int,
    ) -> None:
        for key, value, allowed in (
            ("conv_method", conv_method, get_args(ConvMethod)),
            ("timeseries_method", timeseries_method, get_args(DelveTimeseriesMethod)),
            ("definition", definition, get_args(Definition)),
            ("interpolation_strategy", interpolation_strategy, (None, *get_args(InterpolationStrategy))),
        ):
            if value not in allowed:
                raise ConfigError(f"{key} is {value!r}, but has to be one of {', '.join(map(str, allowed))}")
        if interpolation_downsampling < 1:
            raise ConfigError(
                f"interpolation_downsampling is {interpolation_downsampling}, but has to be 1 at least"
            )
        self._conv_method, self._timeseries_method = conv_method, timeseries_method
        self._is_delves = definition == "delve"
        self._strategy, self._size = interpolation_strategy, interpolation_downsampling

    def layout(self, output: Tensor, module: nn.Module) -> OutputLayout:
        """Return the layout of an output, as the definition has it."""
        if self._is_delves and output.ndim == 3 and is_sequential(module):
            return OutputLayout("steps")
        return typed_layout(module, output.ndim)

    def samples(self, tensor: Tensor, layout: OutputLayout, n_images: int | None) -> Tensor:
        """Return (sample, feature) of the first `n_images` images of an output, as `arrange` returns it."""
        tensor = tensor[:n_images]
        if self._is_delves and layout.form == "steps":
            return tensor[:, -1] if self._timeseries_method == "last_timestep" else tensor.flatten(1)
        if self._strategy is not None and layout.has_channels:
            tensor = self._shrink(tensor)
        return to_samples(
            tensor,
            layout,
            self._conv_method,
            timeseries_method="last" if self._timeseries_method == "last_timestep" else "every",
        )

    def _shrink(self, maps: Tensor) -> Tensor:
        if maps.ndim != 4 or max(maps.shape[2:]) <= self._size:
            return maps
        return interpolate(maps, size=self._size, mode=str(self._strategy))


def is_sequential(module: nn.Module) -> bool:
    """Return whether a layer's output can be a sequence."""
    return isinstance(module, (nn.Linear, nn.LSTM))
