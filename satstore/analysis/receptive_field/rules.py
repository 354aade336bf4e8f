"""Rules that give the receptive fields of an operator's outputs from those of its inputs.

The operators are those of torch.ops.aten, which all functions and modules call in the end. A rule takes a
call, and returns the field of its outputs; None if they don't depend on the image. Rules are exact. An
operator without a rule is element-wise by torch's tag, a view, or measured (:mod:`.operator_measurement`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from satstore.analysis.receptive_field.fields import (
    AxisField,
    TensorField,
    axis_field_of,
    concatenate_axis_fields,
)
from satstore.analysis.receptive_field.operator_call import OperatorCall, merge_fields
from satstore.analysis.receptive_field.window_rules import adapt, convolve, everywhere, pad, pool, resize

Rule = Callable[[OperatorCall], TensorField | None]


def merge(call: OperatorCall) -> TensorField:
    """Merge the fields of all inputs, as an element-wise operator such as addition does."""
    return merge_fields([field for _, field in call.image_inputs()], call.output.ndim)


def reduce(call: OperatorCall) -> TensorField:
    """Reduce the field over dimensions, as means and maxima do."""
    if isinstance(call["other"], Tensor):  # torch.max of two tensors
        return merge(call)
    image, field = call.first_input()
    dims = _dims(call["dim"], image.ndim)
    return field.reduced(dims, call.output.ndim == image.ndim)


def scan(call: OperatorCall) -> TensorField:
    """Let each element read all along a dimension, as softmax and sorting do."""
    image, field = call.first_input()
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
"""For each matrix product, the dimension of each argument that is summed over; -1: none, it is added."""


def multiply_matrices(call: OperatorCall) -> TensorField:
    """Reduce each factor over the dimension that the product sums over."""
    fields = [
        field if dim < 0 else field.reduced([dim])
        for name, dim in CONTRACTIONS[call.name].items()
        if (field := call.field_of(call[name])) is not None
    ]
    return replace(merge_fields(fields, call.output.ndim), axes=None)


def apply_linear(call: OperatorCall) -> TensorField:
    """Reduce over the last dimension, the features of a Linear layer."""
    image, field = call.first_input()
    return field.reduced([image.ndim - 1])


def attend(call: OperatorCall) -> TensorField:
    """Let each query read itself, and all keys and values."""
    fields = [
        field.reduced([d % call[name].ndim for d in dims])
        for name, dims in (("query", [-1]), ("key", [-1, -2]), ("value", [-1, -2]))
        if (field := call.field_of(call[name])) is not None
    ]
    return merge_fields(fields, call.output.ndim)


def apply_recurrent(call: OperatorCall) -> TensorField:
    """Let each output of a recurrent layer read all steps."""
    fields = [everywhere(field, 1) for _, field in call.image_inputs()]
    return replace(merge_fields(fields, 1), is_pooled=True)


def normalise_batch(call: OperatorCall) -> TensorField:
    """Keep the field; without running statistics, add a path through the statistics of the map."""
    image, field = call.first_input()
    running = call["running_mean"] is not None and not call["training"]
    return field if running else field.with_statistics([0, *range(2, image.ndim)])


def normalise_groups(call: OperatorCall) -> TensorField:
    """Add a path through the statistics of all positions."""
    image, field = call.first_input()
    return field.with_statistics(range(1, image.ndim))


def normalise_layer(call: OperatorCall) -> TensorField:
    """Add a path through the statistics of the last dimensions."""
    image, field = call.first_input()
    return field.with_statistics(range(image.ndim - len(call["normalized_shape"]), image.ndim))


def concatenate(call: OperatorCall) -> TensorField:
    """Merge fields along channels; along positions, let them follow one another."""
    tensors = [t for t in call["tensors"] if t.numel()]
    fields = [call.field_of(t) for t in tensors]
    known = [field for field in fields if field is not None]
    axis = (call["dim"] or 0) % call.output.ndim
    if any(axis in (*(field.axes or ()), *field.widest[0].axes, *field.widest[1].axes) for field in known):
        return _concatenate_positions(fields, [t.shape for t in tensors], axis)
    return merge_fields(known, call.output.ndim)


def _concatenate_positions(
    fields: Sequence[TensorField | None], shapes: Sequence[Sequence[int]], axis: int
) -> TensorField:
    """Return the field of tensors that are concatenated along an axis of positions."""

    def concatenate_axes(kind: str, i: int) -> AxisField:
        return concatenate_axis_fields([axis_field_of(field, kind, i) for field in fields], shapes, axis)

    known = [field for field in fields if field is not None]
    return TensorField.build(concatenate_axes, known[0].axes, all(field.is_pooled for field in known))


def stack(call: OperatorCall) -> TensorField:
    """Let parts of one map follow one another along the new dimension; merge the fields of other tensors."""
    axis = (call["dim"] or 0) % call.output.ndim

    def unsqueeze(_: int, axis_field: AxisField) -> AxisField:
        return axis_field.reshaped(_with_one(axis_field.first.shape, axis))

    fields = [
        field and replace(field.map_axes(unsqueeze), axes=_after(field.axes, axis))
        for field in map(call.field_of, call["tensors"])
    ]
    known = [field for field in fields if field is not None]
    if all(
        one.intervals == two.intervals
        for field in known
        for one, two in zip(field.widest, known[0].widest, strict=True)
    ):
        return _concatenate_positions(fields, [_with_one(t.shape, axis) for t in call["tensors"]], axis)
    return merge_fields(known, call.output.ndim)


def _with_one(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis:])


def _after(axes: tuple[int, int] | None, axis: int) -> tuple[int, int] | None:
    return axes and (axes[0] + (axis <= axes[0]), axes[1] + (axis <= axes[1]))


def ignore_values(_: OperatorCall) -> None:
    """Return no field: the new tensor takes an input's shape or type, not its values."""
    return


def copy_source(call: OperatorCall) -> TensorField | None:
    """Return the field of a copy's source, which replaces what was there."""
    field = call.field_of(call["src"])
    return field and merge_fields([field], call.output.ndim)


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
    **dict.fromkeys(CONTRACTIONS, multiply_matrices),
    "linear": apply_linear,
    "scaled_dot_product_attention": attend,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), apply_recurrent),
    "batch_norm": normalise_batch,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), normalise_batch),
    **dict.fromkeys(("group_norm", "native_group_norm"), normalise_groups),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), normalise_layer),
    "cat": concatenate,
    "concat": concatenate,
    "stack": stack,
    **dict.fromkeys(("clone", "_to_copy", "hardswish", "hardswish_", "prelu", "lift_fresh"), merge),
    **dict.fromkeys(("dropout", "feature_dropout", "contiguous", "dropout_", "alpha_dropout"), merge),
    "copy_": copy_source,
    **dict.fromkeys(("zero_", "fill_"), ignore_values),
    **dict.fromkeys(
        [f"{kind}_like" for kind in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")],
        ignore_values,
    ),
    **dict.fromkeys(
        [f"new_{kind}" for kind in ("empty", "zeros", "ones", "full", "empty_strided")], ignore_values
    ),
}
"""The rules by the operator's name."""

FIRST_INPUT_RULES = (
    pool,
    adapt,
    resize,
    pad,
    reduce,
    scan,
    apply_linear,
    normalise_batch,
    normalise_groups,
    normalise_layer,
)
"""Rules that hold while the first tensor alone depends on the image; else the operator is decomposed."""
