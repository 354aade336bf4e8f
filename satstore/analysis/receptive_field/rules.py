"""What torch's operators do to the fields of their inputs.

The operators are those that a model's functions and modules come down to (torch.ops.aten). A rule takes a
call, and returns the field of what it puts out. Rules are exact; what has none is element-wise by torch's own
tag, a view, or measured (:mod:`satstore.analysis.receptive_field.measure`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from satstore.analysis.receptive_field.call import Call, merge_fields
from satstore.analysis.receptive_field.lines import Field, Line, concatenate_lines, line_of
from satstore.analysis.receptive_field.window_rules import adapt, convolve, everywhere, pad, pool, resize

Rule = Callable[[Call], Field | None]


def merge(call: Call) -> Field:
    """Elements stay where they are; what several tensors see is seen together, as by addition."""
    return merge_fields([field for _, field in call.seen()], call.output.ndim)


def reduce(call: Call) -> Field:
    """Means, maxima and the like over dimensions take what lies along them together."""
    if isinstance(call["other"], Tensor):  # the larger of two
        return merge(call)
    image, field = call.map()
    dims = _dims(call["dim"], image.ndim)
    return field.reduced(dims, call.output.ndim == image.ndim)


def scan(call: Call) -> Field:
    """Softmax, sorting and the like: each element reads all that lie along a dimension."""
    image, field = call.map()
    name = "dims" if "dims" in call.arguments else "dim"
    return replace(field.reduced(_dims(call[name], image.ndim)), axes=field.axes)


def _dims(dims: Any, ndim: int) -> list[int]:
    if dims is None or dims == []:
        return list(range(ndim))
    return [d % ndim for d in ([dims] if isinstance(dims, int) else dims)] if ndim else []


CONTRACTIONS: Mapping[str, Mapping[str, int]] = {
    "mm": {"self": 1, "mat2": 0},
    "bmm": {"self": 2, "mat2": 1},
    "addmm": {"self": -1, "mat1": 1, "mat2": 0},
    "baddbmm": {"self": -1, "batch1": 2, "batch2": 1},
}
"""The dimension of each argument that a product of matrices sums over; -1: none, it is added."""


def multiply(call: Call) -> Field:
    """Products of matrices take together what lies along the dimension that they sum over."""
    fields = []
    for name, dim in CONTRACTIONS[call.name].items():
        field = call.field_of(call[name])
        if field is not None:
            fields.append(field if dim < 0 else field.reduced([dim]))
    return replace(merge_fields(fields, call.output.ndim), axes=None)


def project(call: Call) -> Field:
    """A linear layer takes the last dimension together."""
    image, field = call.map()
    return field.reduced([image.ndim - 1])


def attend(call: Call) -> Field:
    """Attention: each query reads itself, and all keys and values."""
    ndim = call.output.ndim
    fields = []
    for name, dims in (("query", [-1]), ("key", [-1, -2]), ("value", [-1, -2])):
        tensor = call[name]
        if (field := call.field_of(tensor)) is not None:
            fields.append(field.reduced([d % tensor.ndim for d in dims]))
    return merge_fields(fields, ndim)


def recur(call: Call) -> Field:
    """A recurrent layer's outputs are taken to read all steps."""
    fields = [everywhere(field, 1) for _, field in call.seen()]
    found = merge_fields(fields, 1)
    return replace(found, is_pooled=True)


def normalise_batch(call: Call) -> Field:
    """In eval mode, elements stay where they are; without running statistics, those of the map are read."""
    image, field = call.map()
    running = call["running_mean"] is not None and not call["training"]
    return field if running else field.with_statistics([0, *range(2, image.ndim)])


def normalise_groups(call: Call) -> Field:
    """The statistics are of groups of channels and all positions."""
    image, field = call.map()
    return field.with_statistics(range(1, image.ndim))


def normalise_layer(call: Call) -> Field:
    """The statistics are of the last dimensions."""
    image, field = call.map()
    return field.with_statistics(range(image.ndim - len(call["normalized_shape"]), image.ndim))


def concatenate(call: Call) -> Field:
    """Concatenation along channels merges; along positions, they follow one another."""
    tensors = [t for t in call["tensors"] if t.numel()]
    fields = [call.field_of(t) for t in tensors]
    known = [field for field in fields if field is not None]
    axis = (call["dim"] or 0) % call.output.ndim
    if any(axis in line.axes for field in known for line in field.widest) or _is_position(known, axis):
        return _in_a_row(fields, [t.shape for t in tensors], axis)
    return merge_fields(known, call.output.ndim)


def _in_a_row(fields: Sequence[Field | None], shapes: Sequence[Sequence[int]], axis: int) -> Field:
    """Return the field of tensors that follow one another along an axis."""
    lines = [
        [concatenate_lines([line_of(field, kind, i) for field in fields], shapes, axis) for i in (0, 1)]
        for kind in ("widest", "narrowest")
    ]
    known = [field for field in fields if field is not None]
    pooled = all(field.is_pooled for field in known)
    return Field((lines[0][0], lines[0][1]), (lines[1][0], lines[1][1]), known[0].axes, pooled)


def _is_position(fields: Sequence[Field], axis: int) -> bool:
    return any(field.axes is not None and axis in field.axes for field in fields)


def stack(call: Call) -> Field:
    """A new dimension: parts of one map follow one another along it, other tensors are seen together."""
    axis = (call["dim"] or 0) % call.output.ndim
    fields = [
        field and replace(field.each(lambda _, line: _unsqueezed(line, axis)), axes=_after(field.axes, axis))
        for field in map(call.field_of, call["tensors"])
    ]
    known = [field for field in fields if field is not None]
    if all(
        one.reach == two.reach
        for field in known
        for one, two in zip(field.widest, known[0].widest, strict=True)
    ):
        return _in_a_row(fields, [_with_one(t.shape, axis) for t in call["tensors"]], axis)
    return merge_fields(known, call.output.ndim)


def _with_one(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis:])


def _unsqueezed(line: Line, axis: int) -> Line:
    shape = _with_one(line.first.shape, axis)
    return replace(line, first=line.first.reshape(shape), last=line.last.reshape(shape))


def _after(axes: tuple[int, int] | None, axis: int) -> tuple[int, int] | None:
    return axes and (axes[0] + (axis <= axes[0]), axes[1] + (axis <= axes[1]))


def nothing(_: Call) -> None:
    """A new tensor of a tensor's shape or type: it doesn't depend on the values."""
    return


def replaced(call: Call) -> Field | None:
    """What is copied into a tensor takes the place of what was there."""
    field = call.field_of(call["src"])
    return field and merge_fields([field], call.output.ndim)


def filled(call: Call) -> Field | None:
    """A number in the place of all elements."""
    return None


RULES: Mapping[str, Rule] = {
    "convolution": convolve,
    "_convolution": convolve,
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d"), pool),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), pool),
    **dict.fromkeys(("max_pool2d", "max_pool3d", "max_pool1d_with_indices"), pool),
    **dict.fromkeys(
        [
            f"{prefix}adaptive_{kind}_pool{n}d"
            for prefix in ("", "_")
            for kind in ("avg", "max")
            for n in (1, 2, 3)
        ],
        adapt,
    ),
    **dict.fromkeys(
        ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"), resize
    ),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"), resize),
    **dict.fromkeys([f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)], resize),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), resize),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **dict.fromkeys([f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)], pad),
    **dict.fromkeys(
        ("mean", "sum", "nansum", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp"),
        reduce,
    ),
    **dict.fromkeys(("var_mean", "std_mean", "argmax", "argmin", "median", "nanmedian", "mode"), reduce),
    **dict.fromkeys(("any", "all", "aminmax", "norm", "linalg_vector_norm", "count_nonzero"), reduce),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "sort", "argsort"), scan),
    **dict.fromkeys(CONTRACTIONS, multiply),
    "linear": project,
    "scaled_dot_product_attention": attend,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recur),
    "batch_norm": normalise_batch,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), normalise_batch),
    **dict.fromkeys(("group_norm", "native_group_norm"), normalise_groups),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), normalise_layer),
    "cat": concatenate,
    "concat": concatenate,
    "stack": stack,
    **dict.fromkeys(("clone", "_to_copy", "hardswish", "hardswish_", "prelu", "lift_fresh"), merge),
    **dict.fromkeys(("dropout", "feature_dropout", "contiguous", "dropout_", "alpha_dropout"), merge),
    "copy_": replaced,
    **dict.fromkeys(("zero_", "fill_"), filled),
    **dict.fromkeys(
        [f"{kind}_like" for kind in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")], nothing
    ),
    **dict.fromkeys([f"new_{kind}" for kind in ("empty", "zeros", "ones", "full", "empty_strided")], nothing),
}
"""Operators by name. Of the rest, torch's tag says which are element-wise; views move elements."""

ONLY_MAP = (
    pool,
    adapt,
    resize,
    pad,
    reduce,
    scan,
    project,
    normalise_batch,
    normalise_groups,
    normalise_layer,
)
"""Rules for operators whose other tensors are parameters; made from the image, they take another way."""


def is_elementwise(func: Any) -> bool:
    """Whether torch says that an operator works on each element alone."""
    return torch.Tag.pointwise in func.tags
