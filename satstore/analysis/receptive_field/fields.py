"""The receptive fields of a tensor's elements, along the height and the width of the image.

An :class:`AxisField` holds, for one axis of the image, which positions of a feature map each element reads,
and what these positions see (:class:`.input_intervals.InputIntervals`). An operator that only moves elements
(reshape, slices) moves the positions; a window over evenly spaced positions changes the intervals, so that
borders are not cut. Where positions aren't evenly spaced, windows are taken element by element, within the
tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

import numpy as np

from satstore.analysis.receptive_field.input_intervals import InputIntervals
from satstore.analysis.receptive_field.positions import NOTHING, Positions, compress, find_taps


@dataclass(frozen=True, eq=False)
class AxisField:
    """The receptive fields of a tensor's elements along one axis of the image.

    Attributes
    ----------
    intervals
        The intervals of the image that the positions of a feature map see.
    first, last
        The first and last position of that map that each element reads: of the tensor's shape, but 1 long
        along dimensions along which they are the same.
    n_positions
        The number of positions of that map; what lies beyond them is border.
    """

    intervals: InputIntervals
    first: Positions
    last: Positions
    n_positions: int

    @classmethod
    def along(cls, intervals: InputIntervals, axis: int, n_positions: int, ndim: int) -> "AxisField":
        """Return the field of a map whose positions lie along an axis of a tensor."""
        positions = np.arange(n_positions).reshape([n_positions if d == axis else 1 for d in range(ndim)])
        return cls(intervals, positions, positions, n_positions)

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The tensor's axes along which elements see different positions."""
        return tuple(d for d, n in enumerate(self.first.shape) if n > 1)

    @property
    def is_empty(self) -> bool:
        """Whether no element sees anything."""
        return bool((self.first > self.last).all())

    @cached_property
    def even_intervals(self) -> InputIntervals | None:
        """The intervals of the tensor's positions; None unless they lie along one axis, evenly spaced."""
        if len(self.axes) > 1 or self.is_empty:
            return None
        if not self.axes and self.first.item() < self.last.item():  # one position: no other phase is there
            interval = self.intervals.interval(self.first.item(), self.last.item())
            return InputIntervals(self.intervals.jump, (interval,))
        found = find_taps(self.first.ravel(), self.last.ravel(), self.n_positions)
        return found and self.intervals.read(*found)

    @cached_property
    def size(self) -> int:
        """The largest number of input positions that an element sees, from first to last."""
        if self.even_intervals is not None:
            return self.even_intervals.size
        resolved = self.resolved()
        return max(0, int((resolved.last - resolved.first).max()) + 1)

    @property
    def jump(self) -> float:
        """Input positions from one position to the next; NaN where they aren't evenly spaced."""
        return (
            float(self.even_intervals.jump if self.axes else self.intervals.jump)
            if self.even_intervals
            else float("nan")
        )

    @property
    def start(self) -> float:
        """The middle of what the first position sees, in pixels; NaN where they aren't evenly spaced."""
        interval = self.even_intervals and self.even_intervals.interval(0, 0)
        return float((interval[0] + interval[1]) / 2) + 0.5 if interval else float("nan")

    def resolved(self) -> "AxisField":
        """Return the field with the image itself as the map that is read."""
        pairs, inverse = np.unique(
            np.stack([self.first.ravel(), self.last.ravel()]), axis=1, return_inverse=True
        )
        ends = np.array([(NOTHING, -NOTHING)] * pairs.shape[1], dtype=np.int64)
        for i, (first, last) in enumerate(pairs.T.tolist()):
            if first <= last and (interval := self.intervals.interval(first, last)):
                ends[i] = int(interval[0]), int(interval[1])
        first, last = ends[inverse.ravel()].T
        shape = self.first.shape
        return AxisField(InputIntervals(), first.reshape(shape), last.reshape(shape), NOTHING)

    def placed(self, first: Positions, last: Positions) -> "AxisField":
        """Return a field of the same map whose elements read other positions of it."""
        first, last = compress(np.asarray(first)), compress(np.asarray(last))
        first, last = np.broadcast_arrays(first, last)
        return replace(self, first=first, last=last)

    def reduced(self, dims: Sequence[int], keep: bool = True) -> "AxisField":
        """Return the field after a reduction over dimensions, such as a mean."""
        dims = tuple(dims)
        first, last = self.first.min(dims, keepdims=keep), self.last.max(dims, keepdims=keep)
        return self.placed(first, last)

    def reshaped(self, shape: Sequence[int]) -> "AxisField":
        """Return the field of a tensor of another shape, whose elements read the same in the same order."""
        return replace(self, first=self.first.reshape(shape), last=self.last.reshape(shape))

    def shaped(self, ndim: int) -> "AxisField":
        """Return the field with leading dimensions, as broadcasting adds them."""
        n_new = ndim - self.first.ndim
        return self.reshaped((1,) * n_new + self.first.shape) if n_new else self

    def equals(self, other: "AxisField") -> bool:
        """Tell whether elements read the same positions, which see the same intervals."""
        if self.intervals != other.intervals:
            return False
        return (self.first is other.first and self.last is other.last) or (
            np.array_equal(self.first, other.first) and np.array_equal(self.last, other.last)
        )

    def window(self, axis: int, reads: Sequence[Sequence[int]], step: int, n_outputs: int) -> "AxisField":
        """Return the field after windows along an axis; see :meth:`InputIntervals.read`."""
        if self.even_intervals is not None and self.axes in ((), (axis,)):
            return AxisField.along(self.even_intervals.read(reads, step), axis, n_outputs, self.first.ndim)
        if axis not in self.axes:
            return self
        size, phases = self.first.shape[axis], len(reads)
        windows = [
            [p for tap in reads[o % phases] if 0 <= (p := o // phases * step + tap) < size]
            for o in range(n_outputs)
        ]
        first = [self.first.take(window, axis).min(axis, initial=NOTHING) for window in windows]
        last = [self.last.take(window, axis).max(axis, initial=-NOTHING) for window in windows]
        return self.placed(np.stack(first, axis), np.stack(last, axis))

    def adapted(self, axis: int, size: int, n_outputs: int) -> "AxisField":
        """Return the field after adaptive pooling of `size` positions along an axis to `n_outputs`."""
        if axis not in self.axes:
            return self
        cells = [range(o * size // n_outputs, ceil((o + 1) * size / n_outputs)) for o in range(n_outputs)]
        first = [self.first.take(cell, axis).min(axis) for cell in cells]
        last = [self.last.take(cell, axis).max(axis) for cell in cells]
        return self.placed(np.stack(first, axis), np.stack(last, axis))


@dataclass(frozen=True, eq=False)
class TensorField:
    """The receptive fields of a tensor's elements along both axes of the image.

    Attributes
    ----------
    widest
        Along the image's height and width: from the first to the last position that any path sees.
    narrowest
        The same of the path that sees least.
    axes
        The tensor's dimensions that are height and width, also where they are 1 long; None once flattened.
    is_pooled
        Whether every path reduced over all positions, as global pooling does.
    """

    widest: tuple[AxisField, AxisField]
    narrowest: tuple[AxisField, AxisField]
    axes: tuple[int, int] | None = (2, 3)
    is_pooled: bool = False

    @classmethod
    def build(
        cls, make: Callable[[str, int], AxisField], axes: tuple[int, int] | None, is_pooled: bool
    ) -> "TensorField":
        """Return the fields made by a function of "widest" or "narrowest" and the image's axis, 0 or 1."""
        widest, narrowest = ((make(kind, 0), make(kind, 1)) for kind in ("widest", "narrowest"))
        return cls(widest, narrowest, axes, is_pooled)

    @property
    def is_flat(self) -> bool:
        """Whether height and width lie along one dimension of the tensor."""
        return bool(set(self.widest[0].axes) & set(self.widest[1].axes))

    @property
    def size(self) -> tuple[int, int]:
        """The smallest and the largest field of all elements, in input positions, over both axes."""
        return min(field.size for field in self.narrowest), max(field.size for field in self.widest)

    def map_axes(self, change: Callable[[int, AxisField], AxisField]) -> "TensorField":
        """Apply a function of an axis's number (0: height, 1: width) and its field to all axis fields."""
        height, width = (change(i, axis_field) for i, axis_field in enumerate(self.widest))
        done = {id(axis_field): new for axis_field, new in zip(self.widest, (height, width), strict=True)}
        high, wide = (
            done[id(axis_field)] if id(axis_field) in done else change(i, axis_field)
            for i, axis_field in enumerate(self.narrowest)
        )
        return replace(self, widest=(height, width), narrowest=(high, wide))

    def reduced(self, dims: Sequence[int], keep: bool = True) -> "TensorField":
        """Return the fields after a reduction over dimensions, such as a mean; see :attr:`is_pooled`."""
        found = self.map_axes(lambda _, axis_field: axis_field.reduced(dims, keep))
        gone = bool(set(dims) & {a for axis_field in self.widest for a in axis_field.axes}) or (
            self.axes is not None and set(self.axes) <= set(dims)
        )
        if not keep and self.axes is not None:
            kept = not set(dims) & set(self.axes)
            moved = [a - sum(d < a for d in dims) for a in self.axes]
            found = replace(found, axes=(moved[0], moved[1]) if kept else None)
        constant = not any(axis_field.axes for axis_field in found.widest)
        return replace(found, is_pooled=self.is_pooled or (gone and constant))

    def merge(self, other: "TensorField", ndim: int) -> "TensorField":
        """Return the fields of an element-wise operator on two tensors, which are broadcast."""
        flat = self.is_flat or other.is_flat

        def merge_axes(kind: str, i: int) -> AxisField:
            one, two = (getattr(field, kind)[i].shaped(ndim) for field in (self, other))
            return merge_axis_fields(one, two, flat) if kind == "widest" else narrower_axis_field(one, two)

        axes = self.axes if self.axes is not None and ndim == self.widest[0].first.ndim else other.axes
        return self.build(merge_axes, axes, self.is_pooled and other.is_pooled)

    def with_statistics(self, dims: Sequence[int]) -> "TensorField":
        """Return the fields after normalisation by the statistics of all elements along dimensions."""
        if not any(set(axis_field.axes) & set(dims) for axis_field in self.widest):
            return self
        return self.merge(self.reduced(dims), self.widest[0].first.ndim)


def axis_field_of(field: TensorField | None, kind: str, i: int) -> AxisField | None:
    """Return the "widest" or "narrowest" field along axis i of the image; None without a field."""
    found: AxisField | None = None if field is None else getattr(field, kind)[i]
    return found


def merge_axis_fields(one: AxisField, two: AxisField, is_flat: bool) -> AxisField:
    """Return the field of elements that read two tensors of the same number of dimensions.

    Evenly spaced positions stay so: the other field widens them all by the largest union.
    """
    if one.equals(two):
        return one
    main, other = sorted((one, two), key=_evenness, reverse=True)
    if main.even_intervals is None or is_flat or not set(other.axes) <= set(main.axes):
        return _united(one, two)
    if (
        main.axes == other.axes
        and other.even_intervals is not None
        and other.even_intervals.jump == main.even_intervals.jump
    ):
        intervals = main.even_intervals.merge(other.even_intervals)
    else:  # the other is a branch that pooled over the whole map, or one whose positions lie elsewhere
        intervals = main.even_intervals.widened(_united(one, two).size)
    return AxisField.along(intervals, main.axes[0] if main.axes else 0, main.first.size, main.first.ndim)


def narrower_axis_field(one: AxisField, two: AxisField) -> AxisField:
    """Return the smaller of two fields; where it sees nothing, the other.

    Parts of one map, as slices of every second position, count as a window over it.
    """
    if _are_parts(one, two) and not one.equals(two):
        return _united(one, two)
    less, more = sorted((one, two), key=lambda axis_field: (axis_field.size, -_evenness(axis_field)[0]))
    empty = less.first > less.last
    if not empty.any():
        return less
    less, more = _in_one_map(less, more)
    return less.placed(np.where(empty, more.first, less.first), np.where(empty, more.last, less.last))


def _are_parts(one: AxisField, two: AxisField) -> bool:
    """Tell whether two fields are evenly spaced parts of one map, equally far apart, along one axis."""
    if one.intervals != two.intervals or one.axes != two.axes or not one.axes:
        return False
    return (
        one.even_intervals is not None
        and two.even_intervals is not None
        and one.even_intervals.jump == two.even_intervals.jump != 0
    )


def _evenness(axis_field: AxisField) -> tuple[bool, Fraction, int]:
    even_intervals = axis_field.even_intervals if axis_field.axes else None
    return (
        even_intervals is not None,
        abs(even_intervals.jump) if even_intervals else Fraction(0),
        axis_field.first.size,
    )


def _in_one_map(one: AxisField, two: AxisField) -> tuple[AxisField, AxisField]:
    same = one.intervals == two.intervals and one.n_positions == two.n_positions
    return (one, two) if same else (one.resolved(), two.resolved())


def _united(one: AxisField, two: AxisField) -> AxisField:
    one, two = _in_one_map(one, two)
    return one.placed(np.minimum(one.first, two.first), np.maximum(one.last, two.last))


def concatenate_axis_fields(
    axis_fields: Sequence[AxisField | None], sizes: Sequence[Sequence[int]], axis: int
) -> AxisField:
    """Return the field of tensors that are concatenated along an axis.

    Parameters
    ----------
    axis_fields
        The field of each tensor; None where it sees nothing of the image.
    """
    known = [axis_field for axis_field in axis_fields if axis_field is not None]
    if any(
        axis_field.intervals != known[0].intervals or axis_field.n_positions != known[0].n_positions
        for axis_field in known
    ):
        axis_fields = [axis_field and axis_field.resolved() for axis_field in axis_fields]
        known = [axis_field for axis_field in axis_fields if axis_field is not None]
    shape = list(
        np.broadcast_shapes(*([1 if d == axis else n for d, n in enumerate(k.first.shape)] for k in known))
    )
    parts: tuple[list[Positions], list[Positions]] = ([], [])
    for axis_field, size in zip(axis_fields, sizes, strict=True):
        shape[axis] = size[axis]
        for part, positions, nothing in zip(
            parts,
            (axis_field.first, axis_field.last) if axis_field else (None, None),
            (NOTHING, -NOTHING),
            strict=True,
        ):
            part.append(np.full(shape, nothing) if positions is None else np.broadcast_to(positions, shape))
    return known[0].placed(np.concatenate(parts[0], axis), np.concatenate(parts[1], axis))
