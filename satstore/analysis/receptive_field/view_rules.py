"""Rules for views of a tensor, and for writing into them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from satstore.analysis.receptive_field.fields import AxisField, TensorField, axis_field_of
from satstore.analysis.receptive_field.measurement import UnmeasurableError
from satstore.analysis.receptive_field.operator_call import OperatorCall, merge_fields
from satstore.analysis.receptive_field.positions import NOTHING, Positions, compress, reshape


def drop_dimensions(field: TensorField, output: Tensor) -> TensorField:
    """Reduce a field to the number of dimensions of another output of the same operator, such as indices."""
    ndim = field.widest[0].first.ndim
    return field if ndim == output.ndim else field.reduced(range(ndim - output.ndim), keep=False)


def constant_field(fields: Sequence[TensorField], ndim: int) -> TensorField:
    """Return the field of an operator on tensors, the elements of each of which all see the same."""
    alike = [field.map_axes(lambda _, axis_field: axis_field.reshaped((1,) * ndim)) for field in fields]
    return replace(merge_fields(alike, ndim), axes=None)


def move_field(call: OperatorCall, tensor: Tensor, field: TensorField) -> list[TensorField]:
    """Return the fields of the views that an operator makes of a tensor.

    Raises
    ------
    UnmeasurableError
        If the operator does more than to move elements.
    """
    moved: dict[int, list[Positions]] = {}

    def move(positions: Positions) -> list[Positions]:
        if id(positions) not in moved:
            special = SPECIAL_VIEWS.get(call.name)
            moved[id(positions)] = (
                [special(positions, tensor, call.output)]
                if special
                else _run_on_positions(call, tensor, positions)
            )
        return moved[id(positions)]

    return [
        replace(
            field.map_axes(lambda _, axis: axis.placed(move(axis.first)[o], move(axis.last)[o])),  # noqa: B023
            axes=axes,
        )
        for o, axes in enumerate(find_moved_axes(call, tensor, field.axes))
    ]


def _run_on_positions(call: OperatorCall, tensor: Tensor, positions: Positions) -> list[Positions]:
    """Run a view operator on an array of positions in place of the tensor."""
    given = torch.from_numpy(positions.copy()).expand(tensor.shape)
    if call.name == "as_strided":
        given = given.contiguous()
        if not tensor.is_contiguous():
            raise UnmeasurableError("it reads memory by strides that are not the tensor's")
    return [compress(view.numpy()) for view in call.run(lambda value: given if value is tensor else value)]


def _reshape(positions: Positions, before: Tensor, after: Tensor) -> Positions:
    return reshape(positions, before.shape, after.shape)


def _keep(positions: Positions, _before: Tensor, _after: Tensor) -> Positions:
    return positions


def _split_complex(positions: Positions, _before: Tensor, _after: Tensor) -> Positions:
    expanded: Positions = positions[..., None]
    return expanded


def _join_complex(positions: Positions, _before: Tensor, _after: Tensor) -> Positions:
    if (positions != positions[..., :1]).any():
        raise UnmeasurableError("real and imaginary parts read other places")
    joined: Positions = positions[..., 0]
    return joined


RESHAPES = ("view", "_unsafe_view", "reshape")
"""Views that are reshapes whatever the tensor's strides."""

SPECIAL_VIEWS: Mapping[str, Callable[[Positions, Tensor, Tensor], Positions]] = {
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(("_conj", "_neg_view"), _keep),
    "view_as_real": _split_complex,
    "view_as_complex": _join_complex,
}
"""Views that can't run on an array of positions: how they move positions, by the operator's name."""


def find_moved_axes(
    call: OperatorCall, tensor: Tensor, axes: tuple[int, int] | None
) -> list[tuple[int, int] | None]:
    """Find the dimensions that are height and width in views of a tensor, by its strides.

    Strides tell dimensions apart even where they are 1 long.
    """
    ends = [(output.ndim - 2, output.ndim - 1) if output.ndim >= 4 else None for output in call.outputs]
    if axes is None:
        return ends
    marked = torch.empty_strided(tensor.shape, MARKS[: tensor.ndim], dtype=tensor.dtype, device="meta")
    try:
        views = call.run(lambda value: marked if value is tensor else value)
    except RuntimeError:  # what joins dimensions needs other strides
        return ends
    positions = [
        [[d for d, stride in enumerate(view.stride()) if stride % MARKS[axis] == 0] for axis in axes]
        for view in views
    ]
    return [(p[0][-1], p[1][-1]) if p[0] and p[1] and p[0][-1] != p[1][-1] else None for p in positions]


MARKS = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099, 1_000_117, 1_000_121)
"""Primes: strides by which a view's dimensions are recognised."""


def overwrite(
    tensor: Tensor, field: TensorField | None, part: Tensor, written: TensorField | None
) -> TensorField:
    """Return the field of a tensor after a part of its memory was written.

    Parameters
    ----------
    tensor, field
        The tensor that shares its memory with the part, and its field before; None if it saw nothing.
    part, written
        The part, and the field of what was written; None if it sees nothing.
    """
    size = tensor.untyped_storage().nbytes() // tensor.element_size()

    def change(one: AxisField | None, two: AxisField | None) -> AxisField:
        if one and two and (one.intervals != two.intervals or one.n_positions != two.n_positions):
            one, two = one.resolved(), two.resolved()
        found = []
        for end, nothing in (("first", NOTHING), ("last", -NOTHING)):
            memory = np.full(size, nothing)
            for axis_field, view in ((one, tensor), (two, part)):
                positions = nothing if axis_field is None else getattr(axis_field, end)
                _strided(memory, view)[...] = positions
            found.append(_strided(memory, tensor))
        known = one or two
        assert known is not None
        return known.placed(found[0], found[1])

    known = field or written
    assert known is not None
    return TensorField.build(
        lambda kind, i: change(axis_field_of(field, kind, i), axis_field_of(written, kind, i)),
        known.axes if known is field or part.ndim == tensor.ndim else None,
        all(f.is_pooled for f in (field, written) if f is not None),
    )


def _strided(memory: Positions, tensor: Tensor) -> Positions:
    strides = [8 * stride for stride in tensor.stride()]
    start = memory[tensor.storage_offset() :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides)
