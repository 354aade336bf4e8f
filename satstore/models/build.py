"""Build a model by its name for a resolution, and find the resolutions that it takes."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from satstore.errors import ConfigError, SatstoreError
from satstore.models.torchvision_entries import SIZED
from satstore.registry import MODELS

LARGEST_PX = 1024
"""The largest resolution that :func:`smallest_resolution` tries, in pixels."""

SIZE_ERRORS = (RuntimeError, ValueError, AssertionError)
"""The errors of torch and its models for maps that become too small, or patches that don't fit."""


def build_model(name: str, num_classes: int, resolution: int) -> nn.Module:
    """Build the model of a name; its factory gets the resolution if it has such a parameter."""
    factory = MODELS[name]
    sized = "resolution" in inspect.signature(factory).parameters
    model: nn.Module = factory(num_classes=num_classes, **({"resolution": resolution} if sized else {}))
    return model


def takes_resolution(name: str, resolution: int) -> bool:
    """Tell whether a model can be trained at a resolution, by a pass of two images on the meta device.

    Raises
    ------
    NotImplementedError
        If the model needs values to be built or run.
    """
    try:
        with torch.device("meta"):
            build_model(name, 2, resolution).train()(torch.empty(2, 3, resolution, resolution))
    except NotImplementedError:  # a RuntimeError that has nothing to do with the size
        raise
    except SIZE_ERRORS:
        return False
    return True


def smallest_resolution(name: str) -> int | None:
    """Find the smallest resolution that a model can be trained at, in pixels; None if it is above 1024.

    Raises
    ------
    NotImplementedError
        As :func:`takes_resolution`.
    """
    step = resolution_step(name)
    fits = step
    while not takes_resolution(name, fits):
        fits *= 2
        if fits > LARGEST_PX:
            return None
    below = fits // 2 if fits > step else 0
    while fits - below > step:
        middle = (fits + below) // 2 // step * step
        if takes_resolution(name, middle):
            fits = middle
        else:
            below = middle
    return fits


def resolution_step(name: str) -> int:
    """Return the number that a model's resolutions have to be multiples of."""
    return SIZED[name][2] if name in SIZED else 1


@contextmanager
def explaining_misfit(name: str, resolution: int) -> Iterator[None]:
    """Turn errors about the size of maps into one that names the resolutions that the model takes.

    Raises
    ------
    ConfigError
        Names the smallest resolution, or the nearest two for a model that takes multiples.
    """
    try:
        yield
    except SatstoreError:
        raise
    except SIZE_ERRORS as error:
        reason = _explain(name, resolution)
        if reason is None:
            raise
        raise ConfigError(f"{name} can't take {resolution} px: {reason}") from error


def _explain(name: str, resolution: int) -> str | None:
    """Explain why a model can't take a resolution; return None if the resolution is not the cause."""
    step = resolution_step(name)
    if resolution % step:
        lower, upper = resolution // step * step, -(-resolution // step) * step
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        return f"it takes multiples of {step}; the nearest are {nearest} px"
    try:
        if takes_resolution(name, resolution):
            return None
        smallest = smallest_resolution(name)
    except NotImplementedError:
        return None
    if smallest is None or smallest <= resolution:
        return None
    return f"the smallest resolution that it takes is {smallest} px"
