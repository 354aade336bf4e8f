"""Details of a model: its parameters, depth and smallest resolution."""

from dataclasses import dataclass

import torch
from torch import fx, nn

from satstore.analysis.graph import trace_on_meta
from satstore.analysis.modules import LAYER_TYPES
from satstore.errors import ConfigError
from satstore.models.build import build_model, resolution_step, smallest_resolution

N_CLASSES = 1000


@dataclass(frozen=True)
class ModelDetails:
    """The sizes of a model with 1,000 classes.

    Attributes
    ----------
    depth
        Conv, ConvTranspose, Linear and LSTM layers on the longest path from image to logits; None if the
        model can't be traced.
    smallest_resolution
        The smallest resolution in pixels; None if it is above 1024, or can't be found on the meta device.
    """

    n_parameters: int
    depth: int | None
    smallest_resolution: int | None


def inspect_model(name: str) -> ModelDetails:
    """Build a model on the meta device and take its sizes."""
    try:
        smallest = smallest_resolution(name)
        device = "meta"
    except NotImplementedError:
        smallest, device = None, "cpu"
    with torch.device(device):
        model = build_model(name, N_CLASSES, smallest or 224 // resolution_step(name) * resolution_step(name))
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        depth = measure_depth(trace_on_meta(model))
    except ConfigError:
        depth = None
    return ModelDetails(n_parameters, depth, smallest)


def measure_depth(graph: fx.GraphModule) -> int:
    """Count the layers with weights along a graph's longest path; attention counts as two Linear layers."""
    depths: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        before = max((depths[n] for n in node.all_input_nodes), default=0)
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        layers = 2 if isinstance(module, nn.MultiheadAttention) else int(isinstance(module, LAYER_TYPES))
        depths[node] = before + layers
    return max(depths.values())
