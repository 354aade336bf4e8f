"""Arrange a layer's output as samples × features for its moments, or pool it for the latent store."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal, assert_never, get_args

import torch
from torch import Tensor
from torch.nn import functional

from satstore.capture.layers import Layer
from satstore.capture.outputs import OutputLayout
from satstore.capture.patches import PatchGrid
from satstore.capture.tokens import TokenMask, pool_tokens
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError

ConvMethod = Literal["channelwise", "mean", "max", "median", "flatten"]
DownsamplingMethod = Literal["centred", "nearest", "average"]
TimeseriesMethod = Literal["last", "every"]

_ADAPTIVE_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def to_samples(
    tensor: Tensor,
    layout: OutputLayout,
    method: ConvMethod = "channelwise",
    downsampling: int | None = None,
    *,
    downsampling_method: DownsamplingMethod = "centred",
    timeseries_method: TimeseriesMethod = "last",
    n_images: int | None = None,
    mask: TokenMask | None = None,
) -> Tensor:
    """Arrange a layer's output as samples.

    Parameters
    ----------
    tensor
        The output, as `arrange` returns it.
    method
        For maps with channels first. "channelwise": (batch · positions, channel), a view if channels are last
        in memory, and in no particular order of rows. "mean", "max", "median" (of an even number the lower,
        as in `delve`): over positions, (batch, channel). "flatten": (batch, channel · positions).
    downsampling
        The most positions n to keep along an axis of such a map.
    downsampling_method
        "centred": positions floor((i + ½) · size / n). "nearest": floor(i · size / n), what `delve` takes.
        "average": adaptive average pooling, which changes the quantity.
    timeseries_method
        For steps: (batch, feature), or every step as a sample (batch · step, feature).
    n_images
        The number of images of the batch to take, the first ones; by default all.
    mask
        The tokens, or steps, that count; by default all.

    Returns
    -------
    Tensor
        (sample, feature). Vectors, tokens and maps with features last: one sample per position.
    """
    _check("conv_method", method, ConvMethod)
    if layout.form == "steps":
        _check("timeseries_method", timeseries_method, TimeseriesMethod)
        if timeseries_method == "last":
            return pool_tokens(tensor, "last", 0, mask)[:n_images]
    if mask is not None and layout.form in ("tokens", "steps"):
        return tensor.flatten(0, 1).index_select(0, mask.rows(tensor.device, n_images))
    tensor = tensor[:n_images]
    if not layout.has_channels:
        tensor = tensor.movedim(1, -1) if layout.form == "map" else tensor
        return tensor.reshape(-1, tensor.shape[-1])
    if downsampling is not None:
        tensor = _downsample(tensor, downsampling, downsampling_method)
    match method:
        case "channelwise" if tensor.stride(1) == 1:
            return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])
        case "channelwise":
            # Copies runs of positions: one to channels-last gathers single values and took 50 times as long.
            return tensor.transpose(0, 1).flatten(1).T
        case "mean":
            return tensor.flatten(2).mean(2)
        case "max":
            return tensor.flatten(2).amax(2)
        case "median":
            return tensor.flatten(2).median(2).values
        case "flatten":
            return tensor.flatten(1)
        case _:
            assert_never(method)


def count_features(
    layout: OutputLayout, output_shape: Sequence[int], method: ConvMethod, downsampling: int | None
) -> int:
    """Count the features of a layer's samples, from its output's layout, and its shape for one image."""
    if not layout.has_channels:
        return output_shape[-1]
    if method != "flatten":
        return output_shape[0]
    return output_shape[0] * prod(min(size, downsampling or size) for size in output_shape[1:])


def pool_latent(tensor: Tensor, layout: OutputLayout, pooling: str) -> Tensor:
    """Pool maps, or vectors, for the latent store.

    Parameters
    ----------
    tensor
        The output, as `arrange` returns it.
    pooling
        As configs have it. "4": adaptive average pooling to 4 positions per axis, never up-sampled.
        "full": as it is. "pixelwise": as it is, features last; for maps with two axes of positions or more.

    Returns
    -------
    Tensor
        In the output's dtype, features on axis 1. Maps: (batch, feature, y, x). Vectors: (batch, feature).
        Pixelwise: (batch, y, x, feature). It may share memory with the output.
    """
    size = int(pooling) if pooling.isdecimal() else None
    if pooling not in ("full", "pixelwise") and not size:
        raise ConfigError(
            f"pooling is {pooling!r}, but has to be 'full', 'pixelwise' or a positive number of positions"
        )
    if pooling == "pixelwise":
        return tensor.movedim(1, -1)
    if not layout.has_channels and tensor.ndim > 5:
        tensor = tensor.flatten(2)  # three axes can be pooled at most
    sizes = list(tensor.shape[2:])
    target = [min(size, of_axis) for of_axis in sizes] if size else sizes
    return tensor if target == sizes else _ADAPTIVE_POOLS[len(sizes)](tensor, target)


def make_latent(tensor: Tensor, layer: Layer, key: LatentsKey, mask: TokenMask | None = None) -> Tensor:
    """Make a layer's latent of a key that it has latents of.

    Parameters
    ----------
    tensor
        The output, as `arrange` returns it.
    mask
        The tokens, or steps, that count; by default all.

    Returns
    -------
    Tensor
        Of tokens as `pool_tokens` has it, of maps as `pool_latent` has it; patches are maps (batch, feature,
        y, x). It may share memory with the output.

    Raises
    ------
    ConfigError
        If the output has other tokens than the latents need.
    """
    if key.is_of_tokens and layer.form != "vector":
        if key.pooling == "all" and tensor.shape[1] != layer.output_shape[0]:
            raise ConfigError(
                f"{tensor.shape[1]} tokens, and {layer.output_shape[0]} in the first batch; pad to one "
                "length, or take cls, mean or last"
            )
        return pool_tokens(tensor, key.pooling, layer.n_prefix, mask)
    match layer.form:
        case "vector":
            return tensor
        case "steps":
            return pool_tokens(tensor, "last", 0, mask)
        case "tokens":
            maps = PatchGrid(layer.n_prefix, (layer.grid[0], layer.grid[1])).to_maps(tensor)
            return pool_latent(maps, OutputLayout("map", feature_axis=1), key.pooling)
    return pool_latent(tensor, layer.layout, key.pooling)


def _downsample(maps: Tensor, n: int, method: DownsamplingMethod) -> Tensor:
    if n < 1:
        raise ConfigError(f"downsampling is {n}, but has to be a positive number of positions, or null")
    _check("downsampling_method", method, DownsamplingMethod)
    if method == "average":
        return _ADAPTIVE_POOLS[maps.ndim - 2](maps, [min(n, size) for size in maps.shape[2:]])
    for axis, size in enumerate(maps.shape[2:], start=2):
        if size > n:
            steps = torch.arange(n, device=maps.device) * 2 + (method == "centred")
            maps = maps.index_select(axis, steps * size // (2 * n))
    return maps


def _check(key: str, value: object, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ConfigError(f"{key} is {value!r}, but has to be one of {', '.join(get_args(allowed))}")
