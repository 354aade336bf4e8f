"""What each operation of a graph does to the fields of its inputs.

A rule takes the fields and tensors that go in, the tensor that comes out and the operation's own arguments.
What is not listed keeps positions as they are if it is torch's and its output has the same map, and is
refused if it is a third party's, for nobody knows what it reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import pooling
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from satstore.analysis.field import Span, conv_taps


@dataclass(frozen=True)
class Field:
    """What each position of a tensor sees.

    Attributes
    ----------
    spans
        Along the input's height and its width.
    axes
        Where these two lie in the tensor; None once all positions were taken together.
    is_pooled
        Whether every path came through what takes all positions together.
    """

    spans: tuple[Span, Span] = (Span(), Span())
    axes: tuple[int, int] | None = (2, 3)
    is_pooled: bool = False

    def sizes(self, tensor: Tensor) -> tuple[int, int]:
        """Return the map's height and width; 1 once all positions were taken together."""
        return (1, 1) if self.axes is None else (tensor.shape[self.axes[0]], tensor.shape[self.axes[1]])

    def each(self, change: Callable[[int, Span], Span]) -> "Field":
        """Return the field with each axis's span changed, by the axis's place (0, 1) and its span."""
        return replace(self, spans=(change(0, self.spans[0]), change(1, self.spans[1])))

    def pooled(self, tensor: Tensor) -> "Field":
        """Return the field of all positions taken together."""
        sizes = self.sizes(tensor)
        return replace(self.each(lambda i, span: span.window(range(sizes[i]))), axes=None, is_pooled=True)


@dataclass(frozen=True)
class Call:
    """An operation on tensors with fields: the first of them, all of them, and its arguments."""

    fields: Sequence[Field]
    tensors: Sequence[Tensor]
    output: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def field(self) -> Field:
        """The field of the first tensor that has one."""
        return self.fields[0]

    @property
    def tensor(self) -> Tensor:
        """The first tensor that has a field."""
        return self.tensors[0]

    def on_maps(self) -> Field:
        """Return the first field with its axes last where they were lost: a map was made of it again."""
        return self.field if self.field.axes else replace(self.field, axes=(2, 3))

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument, the tensor being number 0."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Rule = Callable[[Call], Field]


class UnknownOperationError(Exception):
    """An operation that no rule is known for; its text says which."""


def field_of_module(module: nn.Module, call: Call) -> Field:
    """Return the field of what a module of torch puts out."""
    field, m = call.on_maps(), module
    if isinstance(m, _ConvNd):
        # "same" and "valid" paddings are known by what is added on the last axis's two sides first.
        added = m._reversed_padding_repeated_twice
        paddings = (added[-2], added[0]) if isinstance(m.padding, str) else _pair(m.padding)
        parts = zip(_pair(m.kernel_size), paddings, _pair(m.dilation), strict=True)
        taps, strides = [conv_taps(*part) for part in parts], _pair(m.stride)
        if isinstance(m, _ConvTransposeNd):
            return field.each(lambda i, span: span.spread(taps[i], strides[i]))
        return field.each(lambda i, span: span.window(taps[i], strides[i]))
    if isinstance(m, pooling._MaxPoolNd | pooling._AvgPoolNd | pooling._LPPoolNd):
        options = {"padding": getattr(m, "padding", 0), "dilation": getattr(m, "dilation", 1)}
        return _pool(field, m.kernel_size, m.stride, **options)
    if isinstance(m, pooling._AdaptiveAvgPoolNd | pooling._AdaptiveMaxPoolNd):
        return adapt(replace_field(call, field))
    if isinstance(m, nn.Upsample | nn.modules.upsampling.UpsamplingNearest2d):
        return resize(replace_field(call, field, mode=m.mode))
    if isinstance(m, nn.MultiheadAttention | nn.RNNBase):
        return call.field.pooled(call.tensor)
    if isinstance(m, nn.Flatten | nn.Unflatten):
        return reshape(call)
    return merge(call)


def field_of_function(target: Any, call: Call) -> Field:
    """Return the field of what a function, or a tensor's method of this name, puts out.

    Raises
    ------
    UnknownOperationError
        If it is no function of torch's, and none that is known.
    """
    name = target if isinstance(target, str) else target.__name__
    if name in RULES:
        return RULES[name](call)
    home = "torch" if isinstance(target, str) else str(getattr(target, "__module__", "") or "torch")
    if home.partition(".")[0] not in ("torch", "_operator", "operator", "builtins", "math"):
        raise UnknownOperationError(f"the function {home}.{name}")
    return merge(call)


def replace_field(call: Call, field: Field, **kwargs: Any) -> Call:
    """Return a call whose first field is another one, with further arguments."""
    return replace(call, fields=(field, *call.fields[1:]), kwargs={**call.kwargs, **kwargs})


# The rules


def merge(call: Call) -> Field:
    """Positions stay as they are; what several tensors see is seen together, as by addition."""
    output = call.output[0] if isinstance(call.output, tuple | list) else call.output
    pairs = sorted(
        zip(call.fields, call.tensors, strict=True), key=lambda pair: -prod(pair[0].sizes(pair[1]))
    )
    field, tensor = pairs[0]
    for other, _ in pairs[1:]:
        spans = [one.merge(two) for one, two in zip(field.spans, other.spans, strict=True)]
        field = replace(field, spans=(spans[0], spans[1]), is_pooled=field.is_pooled and other.is_pooled)
    if field.axes is None or not isinstance(output, Tensor):
        return field
    shifted = output.ndim - tensor.ndim
    axes = field.axes if shifted == 0 else (field.axes[0] + shifted, field.axes[1] + shifted)
    kept = all(0 <= a < output.ndim for a in axes) and field.sizes(tensor) == tuple(
        output.shape[a] for a in axes
    )
    return replace(field, axes=axes) if kept else field.pooled(tensor)


def concatenate(call: Call) -> Field:
    """Concatenation along channels merges; along positions, all are taken together."""
    axis = call.argument(1, "dim", 0)
    field = call.field
    if field.axes is not None and axis % call.tensor.ndim in field.axes:
        return replace(field.pooled(call.tensor), axes=None)
    return merge(call)


def mix(call: Call) -> Field:
    """Products of matrices read all positions, once axes of positions are among what they sum over."""
    pooled = [f.pooled(t) for f, t in zip(call.fields, call.tensors, strict=True)]
    return merge(replace(call, fields=pooled))


def reduce(call: Call) -> Field:
    """Means and maxima over dimensions: over positions, all are taken together."""
    field, tensor = call.field, call.tensor
    dims = call.argument(1, "dim")
    if field.axes is None or dims is None:
        return field.pooled(tensor)
    gone = sorted(d % tensor.ndim for d in ([dims] if isinstance(dims, int) else dims))
    if set(gone) & set(field.axes):
        return field.pooled(tensor)
    if call.argument(2, "keepdim", False):
        return field
    height, width = (axis - sum(d < axis for d in gone) for axis in field.axes)
    return replace(field, axes=(height, width))


def reshape(call: Call) -> Field:
    """Height and width that stay dimensions of their own move; else all positions are taken together."""
    field, before, after = call.field, call.tensor.shape, call.output.shape
    if field.axes is None:
        return field
    places = [
        [d for d in range(len(after)) if after[d] == before[axis] and prod(after[:d]) == prod(before[:axis])]
        for axis in field.axes
    ]
    if not all(places):
        return field.pooled(call.tensor)
    return replace(field, axes=(places[0][-1], places[1][-1]))


def permute(call: Call) -> Field:
    """Dimensions change their places."""
    order = call.args[1] if isinstance(call.args[1], tuple | list) else call.args[1:]
    return _relocated(call, [d % call.tensor.ndim for d in order])


def transpose(call: Call) -> Field:
    """Two dimensions change places."""
    order = list(range(call.tensor.ndim))
    one, two = (d % call.tensor.ndim for d in (call.argument(1, "dim0"), call.argument(2, "dim1")))
    order[one], order[two] = order[two], order[one]
    return _relocated(call, order)


def index(call: Call) -> Field:
    """Slices of maps are windows of one tap; of a tuple, a part has the field of the whole."""
    key = call.args[1]
    if not isinstance(call.output, Tensor) or call.field.axes is None or isinstance(key, int | str):
        return call.field
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        place = keys.index(Ellipsis)
        keys[place : place + 1] = [slice(None)] * (call.tensor.ndim - len(keys) + 1)
    keys += [slice(None)] * (call.tensor.ndim - len(keys))
    if not all(isinstance(k, slice) for k in keys):
        return call.field.pooled(call.tensor)
    axes, sizes = call.field.axes, call.field.sizes(call.tensor)
    ranges = [range(sizes[i])[keys[axes[i]]] for i in (0, 1)]
    return call.field.each(lambda i, span: span.window([ranges[i].start], ranges[i].step))


def pad(call: Call) -> Field:
    """Padding moves the first position out of the map."""
    field, widths = call.field, list(call.argument(1, "pad"))
    if field.axes is None:
        return field
    before = {call.tensor.ndim - 1 - i: w for i, w in enumerate(widths[::2])}
    axes = field.axes
    return field.each(lambda i, span: span.window([-before.get(axes[i], 0)]))


def pool(call: Call) -> Field:
    """Pool over windows."""
    options = {
        name: call.argument(place, name, 1 if name == "dilation" else 0)
        for place, name in ((3, "padding"), (4, "dilation"))
    }
    if not isinstance(options["dilation"], int | tuple | list) or isinstance(options["dilation"], bool):
        options["dilation"] = 1  # average pooling has ceil_mode in this place
    return _pool(call.on_maps(), call.argument(1, "kernel_size"), call.argument(2, "stride"), **options)


def adapt(call: Call) -> Field:
    """Pool to a number of positions; where it doesn't divide the map's, by the longest window."""
    field = call.field
    before, after = field.sizes(call.tensor), field.sizes(_first(call.output))

    def change(i: int, span: Span) -> Span:
        n, size = after[i], before[i]
        window = max(ceil((o + 1) * size / n) - o * size // n for o in range(n))
        return span.window(range(window), max(1, size // n))

    return replace(field.each(change), is_pooled=field.is_pooled or after == (1, 1))


def resize(call: Call) -> Field:
    """Enlarge a map by whole numbers: the nearest position, or, in other modes, it and its neighbours."""
    field = call.on_maps()
    before, after = field.sizes(call.tensor), field.sizes(call.output)
    if any(large % small for small, large in zip(before, after, strict=True)):
        raise UnknownOperationError(
            f"the enlargement of a map of {before} to {after}, which is no whole factor"
        )
    factors = [large // small for small, large in zip(before, after, strict=True)]
    nearest = str(call.kwargs.get("mode", "nearest")).startswith("nearest")
    # Between two of the small map's middles, a position reads both of them.
    taps = [range(f) if nearest else range(-(f // 2), f + f // 2 + f % 2 * (f > 1)) for f in factors]
    return field.each(lambda i, span: span.spread(taps[i], factors[i]) if factors[i] > 1 else span)


def attend_in_windows(call: Call) -> Field:
    """Attention within tiles of a map (batch, height, width, channel): each position sees its tile."""
    field, sizes = call.field, call.field.sizes(call.tensor)
    tiles = [min(w, s) for w, s in zip(call.argument(4, "window_size"), sizes, strict=True)]
    shifts = [s if t < n else 0 for s, t, n in zip(call.argument(6, "shift_size"), tiles, sizes, strict=True)]
    return field.each(
        lambda i, span: (
            span.window([shifts[i]])
            .window(range(tiles[i]), tiles[i])
            .spread(range(tiles[i]), tiles[i])
            .window([-shifts[i]])
        )
    )


def halve(call: Call) -> Field:
    """Take the four positions of each 2 x 2 tile together, as channels."""
    return call.field.each(lambda i, span: span.window(range(2), 2))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    **dict.fromkeys(("matmul", "bmm", "einsum", "scaled_dot_product_attention", "baddbmm", "tensordot"), mix),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var", "norm", "logsumexp"), reduce),
    **dict.fromkeys(("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze"), reshape),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d"), pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), adapt),
    "_max_pool2d": pool,
    "permute": permute,
    "getitem": index,
    "pad": pad,
    "interpolate": resize,
    "stochastic_depth": merge,
    "project_onto": merge,
    "shifted_window_attention": attend_in_windows,
    "_patch_merging_pad": halve,
}
"""Functions and methods that do something to positions, or are none of torch's, by name."""


def _pool(field: Field, kernel: Any, stride: Any, padding: Any = 0, dilation: Any = 1) -> Field:
    strides = _pair(kernel if stride in (None, []) else stride)
    parts = zip(_pair(kernel), _pair(padding), _pair(dilation), strict=True)
    taps = [conv_taps(*part) for part in parts]
    return field.each(lambda i, span: span.window(taps[i], strides[i]))


def _relocated(call: Call, order: Sequence[int]) -> Field:
    if call.field.axes is None:
        return call.field
    height, width = (order.index(axis) for axis in call.field.axes)
    return replace(call.field, axes=(height, width))


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found
