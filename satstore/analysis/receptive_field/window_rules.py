"""What windows over a map do to its field: convolution, pooling, interpolation, padding and tiles."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from satstore.analysis.receptive_field.call import Call, merge_fields
from satstore.analysis.receptive_field.lines import Field, Line
from satstore.analysis.receptive_field.measure import measure_resize
from satstore.analysis.receptive_field.reach import conv_taps, spread_taps

Reads = tuple[Sequence[Sequence[int]], int]
"""What positions read, by phase, and the step of a period; see :meth:`.reach.Reach.read`."""


def convolve(call: Call) -> Field:
    """Slide a window over the map, or, transposed, spread it; channels are taken together."""
    image, kernel = call["input"], call["weight"]
    n = kernel.ndim - 2
    fields = []
    if (field := call.field_of(image)) is not None:
        fields.append(_convolved(call, field, n))
    for other in (kernel, call["bias"]):
        if isinstance(other, Tensor) and (field := call.field_of(other)) is not None:
            fields.append(everywhere(field, call.output.ndim))
    return merge_fields(fields, call.output.ndim)


def _convolved(call: Call, field: Field, n: int) -> Field:
    kernel = call["weight"].shape[2:]
    strides, paddings, dilations = (_tuple(call[k], n) for k in ("stride", "padding", "dilation"))
    taps = [conv_taps(*part) for part in zip(kernel, paddings, dilations, strict=True)]
    if call["transposed"]:
        reads: list[Reads] = [(spread_taps(t, s), 1) for t, s in zip(taps, strides, strict=True)]
    else:
        reads = [([t], s) for t, s in zip(taps, strides, strict=True)]
    return _windows(field.reduced([1]), call["input"], call.output, reads)


def _windows(field: Field, before: Tensor, after: Tensor, reads: Sequence[Reads]) -> Field:
    """Apply windows along a tensor's last axes; axes of the image that are 1 there lie in their order."""
    ndim, spatial = after.ndim, range(after.ndim - len(reads), after.ndim)
    own = find_axes(field, spatial)

    def change(i: int, line: Line) -> Line:
        for axis, (taps, step) in zip(spatial, reads, strict=True):
            whole = not line.axes and axis == own[i] and before.shape[axis] == 1
            keeps = step == 1 and len(taps) == 1 and list(taps[0]) == [0]
            if (axis in line.axes or whole) and not keeps:
                line = line.window(axis, taps, step, after.shape[axis])
        return line

    return replace(field.each(change), axes=own if None not in own and ndim >= 3 else None)


def find_axes(field: Field, spatial: range) -> Any:
    """Return where height and width lie among the spatial axes: where they vary, were known, or are left."""
    if field.is_flat:
        return None, None
    found = [line.axes[0] if len(line.axes) == 1 else None for line in field.widest]
    for i in (0, 1):
        hint = field.axes[i] if field.axes else spatial[i - 2] if len(spatial) > 1 else None
        if found[i] is None and not field.widest[i].axes and hint in spatial and hint not in found:
            found[i] = hint
    return tuple(found)


def everywhere(field: Field, ndim: int) -> Field:
    """Return the field of all of a tensor, for each element of another: of a kernel made from the image."""
    count = field.widest[0].first.ndim
    found = field.reduced(range(count))
    return replace(
        found.each(
            lambda _, line: replace(
                line, first=line.first.reshape((1,) * ndim), last=line.last.reshape((1,) * ndim)
            )
        ),
        axes=None,
    )


def pool(call: Call) -> Field:
    """Pool over windows."""
    image, field = call.map()
    kernel = call["kernel_size"]
    n = 3 if call.name.endswith(("3d", "3d_with_indices")) else 2 if "2d" in call.name else 1
    sizes = _tuple(kernel, n)
    strides = _tuple(call["stride"], n) if call["stride"] not in (None, []) else sizes
    paddings, dilations = _tuple(call["padding"] or 0, n), _tuple(call["dilation"] or 1, n)
    parts = zip(sizes, paddings, dilations, strict=True)
    reads = [([conv_taps(*part)], s) for part, s in zip(parts, strides, strict=True)]
    return _windows(field, image, call.output, reads)


def adapt(call: Call) -> Field:
    """Pool to a number of positions, each of a cell of the map."""
    image, field = call.map()
    n = int(call.name[-2]) if call.name[-2].isdigit() else 2
    dims = range(image.ndim - n, image.ndim)
    if all(call.output.shape[d] == 1 for d in dims):
        return field.reduced(dims)

    def change(_: int, line: Line) -> Line:
        for d in dims:
            line = line.adapted(d, image.shape[d], call.output.shape[d])
        return line

    return field.each(change)


def resize(call: Call) -> Field:
    """Enlarge or shrink a map: each position reads what the interpolation reads of it."""
    image, field = call.map()
    n = 3 if "3d" in call.name or "trilinear" in call.name else 1 if "1d" in call.name else 2
    n = 1 if call.name == "upsample_linear1d" else n
    given = call["scale_factors"]
    scales = list(given) if given else [call[k] for k in ("scales_d", "scales_h", "scales_w")][3 - n :]
    if n == 1 and not given:
        scales = [call["scales"]]
    reads = []
    for d, scale in zip(range(image.ndim - n, image.ndim), scales, strict=True):
        before, after = image.shape[d], call.output.shape[d]
        ratio = Fraction(after, before) if scale is None else Fraction(scale).limit_denominator(1000)
        reads.append(measure_resize(call.name, bool(call["align_corners"]), before, after, ratio))
    return _windows(field, image, call.output, reads)


def pad(call: Call) -> Field:
    """Padding of any kind moves the first position out of the map, as if the map went on there."""
    image, field = call.map()
    widths = list(call["pad"] if call["pad"] is not None else call["padding"])
    before = {image.ndim - 1 - i: w for i, w in enumerate(widths[::2])}
    own = find_axes(field, range(image.ndim))

    def change(i: int, line: Line) -> Line:
        for axis, width in before.items():
            alone = not line.axes and axis == own[i] and image.shape[axis] == 1
            if axis in line.axes or (alone and (width or call.output.shape[axis] > 1)):
                line = line.window(axis, [[-width]], 1, call.output.shape[axis])
        return line

    return field.each(change)


def attend_in_windows(field: Field, image: Tensor, window: Sequence[int], shifts: Sequence[int]) -> Field:
    """Return the field of Swin's attention, within tiles of (batch, height, width, channel) maps.

    The mask of shifted tiles keeps what meets at the map's borders apart.
    """
    sizes = image.shape[1:3]
    tiles = [min(w, n) for w, n in zip(window, sizes, strict=True)]
    moved = [s if t < n else 0 for s, t, n in zip(shifts, tiles, sizes, strict=True)]

    def change(i: int, line: Line) -> Line:
        tile, axis, n = tiles[i], i + 1, sizes[i]
        reads = [[p - (p - moved[i]) % tile + j for j in range(tile)] for p in range(tile)]
        return line.window(axis, reads, tile, n)

    return replace(field.reduced([3]).each(change), axes=(1, 2))


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * n if len(values) == 1 else values)
