"""What views of a tensor, and writing into them, do to its field."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from satstore.analysis.receptive_field.lines import Field, Line, line_of
from satstore.analysis.receptive_field.places import NOTHING, Places


def of_shape(field: Field, output: Tensor) -> Field:
    """Return the field of another of an operator's outputs: one of fewer dimensions, as indices are."""
    ndim = field.widest[0].first.ndim
    return field if ndim == output.ndim else field.reduced(range(ndim - output.ndim), keep=False)


def constant_field(fields: Sequence[Field], ndim: int) -> Field:
    """Return the field of an operator on tensors all of whose elements see the same."""
    shape = (1,) * ndim
    alike = [
        field.each(
            lambda _, line: replace(line, first=line.first.reshape(shape), last=line.last.reshape(shape))
        )
        for field in fields
    ]
    found = alike[0]
    for other in alike[1:]:
        found = found.merge(other, ndim)
    return replace(found, axes=None)


def move_field(field: Field, move: Any, axes: Sequence[Any]) -> list[Field]:
    """Return the fields of the tensors that a view of one tensor has."""
    done: dict[int, list[Places]] = {}

    def place(places: Places) -> list[Places]:
        if id(places) not in done:
            done[id(places)] = move(places)
        return done[id(places)]

    return [
        replace(
            field.each(lambda _, line: line.placed(place(line.first)[o], place(line.last)[o])),  # noqa: B023
            axes=found,
        )
        for o, found in enumerate(axes)
    ]


def find_moved_axes(
    func: Any, tensor: Tensor, axes: tuple[int, int] | None, outputs: Sequence[Tensor], args: Any, kwargs: Any
) -> list[tuple[int, int] | None]:
    """Return where height and width lie in views of a tensor, also where they are 1: strides tell."""
    ends = [(output.ndim - 2, output.ndim - 1) if output.ndim >= 4 else None for output in outputs]
    if axes is None:
        return ends
    marked = torch.empty_strided(tensor.shape, MARKS[: tensor.ndim], dtype=tensor.dtype, device="meta")
    try:
        found = func(*tree_map(lambda v: marked if v is tensor else v, args), **kwargs)
    except RuntimeError:  # what joins dimensions needs other strides
        return ends
    views = found if isinstance(found, list | tuple) else [found]
    places = [
        [[d for d, stride in enumerate(view.stride()) if stride % MARKS[axis] == 0] for axis in axes]
        for view in views
    ]
    return [(p[0][-1], p[1][-1]) if p[0] and p[1] and p[0][-1] != p[1][-1] else None for p in places]


MARKS = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099, 1_000_117, 1_000_121)
"""Strides by which dimensions are known again: primes."""


def overwrite(tensor: Tensor, field: Field | None, part: Tensor, written: Field | None) -> Field:
    """Return the field of a tensor, after a part of its memory was written."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()

    def change(one: Line | None, two: Line | None) -> Line:
        if one and two and (one.reach != two.reach or one.n_places != two.n_places):
            one, two = one.resolved(), two.resolved()
        found = []
        for end, nothing in (("first", NOTHING), ("last", -NOTHING)):
            memory = np.full(size, nothing)
            for line, view in ((one, tensor), (two, part)):
                places = nothing if line is None else getattr(line, end)
                _strided(memory, view)[...] = places
            found.append(_strided(memory, tensor))
        known = one or two
        assert known is not None
        return known.placed(found[0], found[1])

    lines = [
        [change(*(line_of(f, kind, i) for f in (field, written))) for i in (0, 1)]
        for kind in ("widest", "narrowest")
    ]
    known = field or written
    assert known is not None
    axes = known.axes if known is field or part.ndim == tensor.ndim else None
    pooled = all(f.is_pooled for f in (field, written) if f is not None)
    return Field((lines[0][0], lines[0][1]), (lines[1][0], lines[1][1]), axes, pooled)


def _strided(memory: Places, tensor: Tensor) -> Places:
    strides = [8 * stride for stride in tensor.stride()]
    start = memory[tensor.storage_offset() :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides)
