"""Building a model by its name for a resolution, and saying which resolutions it takes."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from satstore.errors import ConfigError, SatstoreError
from satstore.models.torchvision_rows import SIZED
from satstore.registry import MODELS

LARGEST_PX = 1024
"""Up to which resolution the smallest is looked for."""

MISFITS = (RuntimeError, ValueError, AssertionError)
"""What torch and its models raise for maps that get too small, and for patches that don't fit."""


def build_model(name: str, num_classes: int, resolution: int) -> nn.Module:
    """Build the model of a name, for a resolution where its factory has a parameter ``resolution``."""
    factory = MODELS[name]
    sized = "resolution" in inspect.signature(factory).parameters
    model: nn.Module = factory(num_classes=num_classes, **({"resolution": resolution} if sized else {}))
    return model


def takes(name: str, resolution: int) -> bool:
    """Tell whether a model can be trained at a resolution, by a pass of two images without values.

    Raises
    ------
    NotImplementedError
        If the model needs values to be built or run.
    """
    try:
        with torch.device("meta"):
            build_model(name, 2, resolution).train()(torch.empty(2, 3, resolution, resolution))
    except NotImplementedError:  # a RuntimeError, but none that says anything of the size
        raise
    except MISFITS:
        return False
    return True


def smallest_resolution(name: str) -> int | None:
    """Return the smallest resolution that a model can be trained at, in pixels; None if it is above 1024.

    Raises
    ------
    NotImplementedError
        As :func:`takes`.
    """
    step = resolution_step(name)
    fits = step
    while not takes(name, fits):
        fits *= 2
        if fits > LARGEST_PX:
            return None
    below = fits // 2 if fits > step else 0
    while fits - below > step:
        middle = (fits + below) // 2 // step * step
        if takes(name, middle):
            fits = middle
        else:
            below = middle
    return fits


def resolution_step(name: str) -> int:
    """Return what a model's resolutions have to be multiples of."""
    return SIZED[name][2] if name in SIZED else 1


@contextmanager
def explaining_misfit(name: str, resolution: int) -> Iterator[None]:
    """Say in one line which resolutions a model takes, where building or running it failed for the size.

    Raises
    ------
    ConfigError
        With the smallest resolution, or, of a model that takes multiples, the nearest two.
    """
    try:
        yield
    except SatstoreError:
        raise
    except MISFITS as error:
        reason = _explain(name, resolution)
        if reason is None:
            raise
        raise ConfigError(f"{name} can't take {resolution} px: {reason}") from error


def _explain(name: str, resolution: int) -> str | None:
    """Return what is wrong with a resolution; None if it is not what is wrong, or nobody can tell."""
    step = resolution_step(name)
    if resolution % step:
        lower, upper = resolution // step * step, -(-resolution // step) * step
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        return f"it takes multiples of {step}; the nearest are {nearest} px"
    try:
        if takes(name, resolution):
            return None
        smallest = smallest_resolution(name)
    except NotImplementedError:
        return None
    if smallest is None or smallest <= resolution:
        return None
    return f"the smallest resolution that it takes is {smallest} px"
