"""Forward hooks that project the outputs of a model's layers."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from satstore.analysis.projection import project_onto

Projection = tuple[Tensor, Tensor]
"""The matrix (feature, feature) and the mean (feature,) that `project_onto` takes."""


@contextmanager
def projected(modules: Mapping[str, nn.Module], projections: Mapping[str, Projection]) -> Iterator[None]:
    """Project the outputs of layers while the context lasts.

    Parameters
    ----------
    modules
        Layer to module. Features are on axis 1 of a Conv's output, and on the last axis of a Linear's.
    projections
        Layer to projection. One with as many features as channels times positions is for the flattened map.
    """
    with ExitStack() as stack:
        for name, projection in projections.items():

            def hook(module: nn.Module, _: Any, output: Tensor, p: Projection = projection) -> Tensor:
                return project_output(module, output, p)

            stack.callback(modules[name].register_forward_hook(hook).remove)
        yield


def project_output(module: nn.Module, output: Tensor, projection: Projection) -> Tensor:
    """Return a layer's output, projected; of the same shape, dtype and memory format."""
    matrix, mean = projection
    if not isinstance(module, _ConvNd):
        return project_onto(output.movedim(-1, 1), matrix, mean).movedim(1, -1)
    if len(mean) != output.shape[1]:
        return project_onto(output.flatten(1), matrix, mean).view_as(output.contiguous())
    found = project_onto(output, matrix, mean)
    is_channels_last = output.is_contiguous(memory_format=torch.channels_last) if output.ndim == 4 else False
    return found.contiguous(memory_format=torch.channels_last) if is_channels_last else found
