"""A model's sizes without training it: the shapes of its layers' outputs and latents.

Shapes come from the model on torch's ``meta`` device, which computes no values: a ResNet50 at 224 px takes
no memory and hardly any time.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import LatentsKey, LatentsRequest, has_latents

if TYPE_CHECKING:
    from torch import nn

    from satstore.capture.layers import Layer, LayerDescription, Layers
    from satstore.capture.outputs import OutputLayout

T = TypeVar("T")


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, and the shape of one sample's latent for each key of the last epoch that applies to it."""

    layer: str
    kind: str
    output_shape: tuple[int, ...]
    layout: "OutputLayout"
    latents: Mapping[LatentsKey, tuple[int, ...]]

    def n_features(self, key: LatentsKey) -> int:
        """Return the features of a key; 0 if it does not apply."""
        return prod(self.latents[key]) if key in self.latents else 0


@dataclass(frozen=True)
class ModelPlan:
    """The sizes of a model.

    Attributes
    ----------
    n_activations
        Values of all modules' outputs for one image, which training keeps for the backward pass.
    widest
        The most values of one module's inputs and outputs together, for one image.
    """

    layers: tuple[PlannedLayer, ...]
    n_values: int
    n_activations: int
    widest: int

    @property
    def keys(self) -> tuple[LatentsKey, ...]:
        """The keys that layers have latents of."""
        return tuple(dict.fromkeys(key for layer in self.layers for key in layer.latents))

    @property
    def shapes(self) -> dict[LatentsKey, dict[str, tuple[int, ...]]]:
        """Key to layer to the shape of one sample's latent."""
        return {
            key: {layer.layer: layer.latents[key] for layer in self.layers if key in layer.latents}
            for key in self.keys
        }

    @property
    def n_features(self) -> list[int]:
        """Features of every layer at every pooling."""
        return [prod(shape) for layer in self.layers for shape in layer.latents.values()]


def build_blank(config: ExperimentConfig, n_classes: int, device: str) -> "nn.Module":
    """Build a config's model on a device, with any weights."""
    import torch

    from satstore.models.build import build_model, explaining_misfit

    with explaining_misfit(config.model, config.resolution), torch.device(device):
        return build_model(config.model, n_classes, config.resolution)


def on_meta_or_cpu(measure: Callable[[str], T]) -> T:
    """Call a function with the ``meta`` device, or with the CPU if the model needs values."""
    try:
        return measure("meta")
    except (NotImplementedError, RuntimeError):
        return measure("cpu")


def describe_model(model: "nn.Module", config: ExperimentConfig) -> "LayerDescription":
    """Describe the layers of a config's model that the config records."""
    import torch

    from satstore.capture.layers import describe_layers, select_layers
    from satstore.models.build import explaining_misfit

    device, size = next(model.parameters()).device, config.resolution
    selected = select_layers(model, config.layers, config.exclude_layers, config.modules)

    def forward(n: int) -> None:
        model(torch.zeros(n, 3, size, size, device=device))

    with explaining_misfit(config.model, size):
        return describe_layers(model, forward, selected, config.calls)


def arranged_by_class(layers: "Layers", names: Collection[str]) -> "Layers":
    """Return layers, those of some names arranged as their classes alone tell, as earlier versions did."""
    from satstore.capture.outputs import typed_layout

    found = {}
    for layer, module in layers.items():
        if layer.name in names:
            layout = typed_layout(module, 1 + len(layer.output_shape))
            layer = replace(layer, layout=layout, n_prefix=0, grid=())
        found[layer] = module
    return found


def plan_model(
    config: ExperimentConfig,
    n_classes: int,
    request: LatentsRequest | None = None,
    old_layers: Collection[str] = (),
) -> ModelPlan:
    """Build a config's model without memory, and take its sizes.

    Parameters
    ----------
    request
        The latents to plan for; by default the config's.
    old_layers
        The layers of which a run does not say how they are arranged.
    """
    request = config.latents_request if request is None else request

    def measure(device: str) -> "tuple[nn.Module, Layers, _ActivationCounter]":
        model = build_blank(config, n_classes, device)
        layers = arranged_by_class(describe_model(model, config).layers, old_layers)
        return model, layers, _ActivationCounter(model, config.resolution)

    model, layers, counter = on_meta_or_cpu(measure)
    values = [*model.parameters(), *model.buffers()]
    return ModelPlan(
        layers=tuple(_plan_layer(layer, request.keys(list(layers)), request.with_grid) for layer in layers),
        n_values=sum(value.numel() for value in values),
        n_activations=counter.n_values,
        widest=counter.widest,
    )


class _ActivationCounter:
    """Counts the values in and out of a model's innermost modules for one image of a size, in eval mode."""

    def __init__(self, model: "nn.Module", size: int) -> None:
        import torch

        self.n_values = self.widest = 0
        for module in model.modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(self._see)
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))

    def _see(self, module: "nn.Module", inputs: Any, output: Any) -> None:
        sizes = [_count(part) for part in (inputs, output)]
        if not getattr(module, "inplace", False):
            self.n_values += sizes[1]
        self.widest = max(self.widest, sum(sizes))


def _count(value: Any) -> int:
    if isinstance(value, tuple | list):
        return sum(map(_count, value))
    return int(value.numel()) if hasattr(value, "numel") else 0


def _plan_layer(layer: "Layer", keys: Iterable[LatentsKey], with_grid: bool) -> PlannedLayer:
    import torch

    from satstore.capture.layer_samples import make_latent
    from satstore.capture.outputs import arrange

    blank = arrange(torch.empty(1, *layer.output_shape, device="meta"), layer.layout.of_samples)
    latents = {
        key: tuple(make_latent(blank, layer, key)[0].shape)
        for key in keys
        if has_latents(layer, key, with_grid=with_grid)
    }
    return PlannedLayer(layer.name, layer.kind, layer.output_shape, layer.layout, latents)
