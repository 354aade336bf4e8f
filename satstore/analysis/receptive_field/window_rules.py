"""Rules for windows over a map: convolution, pooling, interpolation, padding, and attention in windows."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from satstore.analysis.receptive_field.fields import AxisField, TensorField
from satstore.analysis.receptive_field.input_intervals import conv_taps, spread_taps
from satstore.analysis.receptive_field.measurement import count_axes, measure_interpolation
from satstore.analysis.receptive_field.operator_call import OperatorCall, merge_fields
from satstore.analysis.receptive_field.view_rules import constant_field

Reads = tuple[Sequence[Sequence[int]], int]
"""The taps of each phase, and the step of a period; see :meth:`.input_intervals.InputIntervals.read`."""


def convolve(call: OperatorCall) -> TensorField:
    """Slide a window over the map, or spread it if transposed; reduce over the channels."""
    image, kernel = call["input"], call["weight"]
    n = kernel.ndim - 2
    fields = []
    if (field := call.field_of(image)) is not None:
        fields.append(_convolved(call, field, n))
    for other in (kernel, call["bias"]):
        if isinstance(other, Tensor) and (field := call.field_of(other)) is not None:
            fields.append(everywhere(field, call.output.ndim))
    return merge_fields(fields, call.output.ndim)


def _convolved(call: OperatorCall, field: TensorField, n: int) -> TensorField:
    kernel = call["weight"].shape[2:]
    strides, paddings, dilations = (_tuple(call[k], n) for k in ("stride", "padding", "dilation"))
    taps = [conv_taps(*part) for part in zip(kernel, paddings, dilations, strict=True)]
    if call["transposed"]:
        reads: list[Reads] = [(spread_taps(t, s), 1) for t, s in zip(taps, strides, strict=True)]
    else:
        reads = [([t], s) for t, s in zip(taps, strides, strict=True)]
    return _windows(field.reduced([1]), call["input"], call.output, reads)


def _windows(field: TensorField, before: Tensor, after: Tensor, reads: Sequence[Reads]) -> TensorField:
    """Apply windows along a tensor's last axes; image axes that are 1 long there are taken in their order."""
    ndim, spatial = after.ndim, range(after.ndim - len(reads), after.ndim)
    own = locate_axes(field, spatial)

    def change(i: int, axis_field: AxisField) -> AxisField:
        for axis, (taps, step) in zip(spatial, reads, strict=True):
            whole = not axis_field.axes and axis == own[i] and before.shape[axis] == 1
            keeps = step == 1 and len(taps) == 1 and list(taps[0]) == [0]
            if (axis in axis_field.axes or whole) and not keeps:
                axis_field = axis_field.window(axis, taps, step, after.shape[axis])
        return axis_field

    return replace(field.map_axes(change), axes=own if None not in own and ndim >= 3 else None)


def locate_axes(field: TensorField, spatial: range) -> Any:
    """Find height and width among the spatial axes: where fields vary, were before, or in their order."""
    if field.is_flat:
        return None, None
    found = [axis_field.axes[0] if len(axis_field.axes) == 1 else None for axis_field in field.widest]
    for i in (0, 1):
        hint = field.axes[i] if field.axes else spatial[i - 2] if len(spatial) > 1 else None
        if found[i] is None and not field.widest[i].axes and hint in spatial and hint not in found:
            found[i] = hint
    return tuple(found)


def everywhere(field: TensorField, ndim: int) -> TensorField:
    """Let each output see all that the tensor sees, such as a kernel that is made of the image."""
    return constant_field([field.reduced(range(field.widest[0].first.ndim))], ndim)


def pool(call: OperatorCall) -> TensorField:
    """Pool over windows."""
    image, field = call.first_input()
    n = count_axes(call.name)
    sizes = _tuple(call["kernel_size"], n)
    strides = _tuple(call["stride"], n) if call["stride"] not in (None, []) else sizes
    paddings, dilations = _tuple(call["padding"] or 0, n), _tuple(call["dilation"] or 1, n)
    parts = zip(sizes, paddings, dilations, strict=True)
    reads = [([conv_taps(*part)], s) for part, s in zip(parts, strides, strict=True)]
    return _windows(field, image, call.output, reads)


def adapt(call: OperatorCall) -> TensorField:
    """Pool to a number of positions, each of which reads a cell of the map."""
    image, field = call.first_input()
    dims = range(image.ndim - count_axes(call.name), image.ndim)
    if all(call.output.shape[d] == 1 for d in dims):
        return field.reduced(dims)

    def change(_: int, axis_field: AxisField) -> AxisField:
        for d in dims:
            axis_field = axis_field.adapted(d, image.shape[d], call.output.shape[d])
        return axis_field

    return field.map_axes(change)


def resize(call: OperatorCall) -> TensorField:
    """Interpolate a map to another size."""
    image, field = call.first_input()
    n = count_axes(call.name)
    given = call["scale_factors"]
    scales = list(given) if given else [call[k] for k in ("scales_d", "scales_h", "scales_w")][3 - n :]
    if n == 1 and not given:
        scales = [call["scales"]]
    reads = []
    for d, scale in zip(range(image.ndim - n, image.ndim), scales, strict=True):
        before, after = image.shape[d], call.output.shape[d]
        ratio = Fraction(after, before) if scale is None else Fraction(scale).limit_denominator(1000)
        reads.append(measure_interpolation(call.name, bool(call["align_corners"]), before, after, ratio))
    return _windows(field, image, call.output, reads)


def pad(call: OperatorCall) -> TensorField:
    """Shift the positions by a padding of any kind, as if the map went on beyond its border."""
    image, field = call.first_input()
    widths = list(call["pad"] if call["pad"] is not None else call["padding"])
    before = {image.ndim - 1 - i: w for i, w in enumerate(widths[::2])}
    own = locate_axes(field, range(image.ndim))

    def change(i: int, axis_field: AxisField) -> AxisField:
        for axis, width in before.items():
            alone = not axis_field.axes and axis == own[i] and image.shape[axis] == 1
            if axis in axis_field.axes or (alone and (width or call.output.shape[axis] > 1)):
                axis_field = axis_field.window(axis, [[-width]], 1, call.output.shape[axis])
        return axis_field

    return field.map_axes(change)


def attend_in_windows(
    field: TensorField, image: Tensor, window: Sequence[int], shifts: Sequence[int]
) -> TensorField:
    """Return the field after Swin's attention, within windows of (batch, height, width, channel) maps.

    Its mask keeps opposite borders of the map, which meet in shifted windows, apart.
    """
    sizes = image.shape[1:3]
    tiles = [min(w, n) for w, n in zip(window, sizes, strict=True)]
    moved = [s if t < n else 0 for s, t, n in zip(shifts, tiles, sizes, strict=True)]

    def change(i: int, axis_field: AxisField) -> AxisField:
        tile, axis, n = tiles[i], i + 1, sizes[i]
        reads = [[p - (p - moved[i]) % tile + j for j in range(tile)] for p in range(tile)]
        return axis_field.window(axis, reads, tile, n)

    return replace(field.reduced([3]).map_axes(change), axes=(1, 2))


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * n if len(values) == 1 else values)
