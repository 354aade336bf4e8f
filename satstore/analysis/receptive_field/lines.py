"""What each element of a tensor sees of the image, along its height and its width.

A :class:`Line` holds, for one axis of the image, which positions of a map each element reads, and what these
positions see (:class:`.reach.Reach`). What only moves elements (reshape, slices) moves these numbers; a
window over evenly spaced positions changes the reach, so that borders are not cut. Where positions aren't
evenly spaced, windows are taken element by element, within the tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

import numpy as np

from satstore.analysis.receptive_field.places import NOTHING, Places, compress, find_reads
from satstore.analysis.receptive_field.reach import Reach


@dataclass(frozen=True, eq=False)
class Line:
    """What each element of a tensor sees along one axis of the image.

    Attributes
    ----------
    reach
        What the positions of a map see.
    first, last
        The positions of that map that each element reads, from first to last; of the tensor's dimensions, or
        1 where they are the same along a dimension.
    n_places
        Positions of that map; what lies beyond them is border.
    """

    reach: Reach
    first: Places
    last: Places
    n_places: int

    @classmethod
    def along(cls, reach: Reach, axis: int, n_places: int, ndim: int) -> "Line":
        """Return the line of a map whose positions lie along an axis of a tensor."""
        places = np.arange(n_places).reshape([n_places if d == axis else 1 for d in range(ndim)])
        return cls(reach, places, places, n_places)

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """The tensor's axes along which elements see different positions."""
        return tuple(d for d, n in enumerate(self.first.shape) if n > 1)

    @property
    def is_empty(self) -> bool:
        """Whether no element sees anything."""
        return bool((self.first > self.last).all())

    @cached_property
    def even(self) -> Reach | None:
        """What position o of the tensor's axis sees, if all are evenly spaced along one axis or one place."""
        if len(self.axes) > 1 or self.is_empty:
            return None
        if not self.axes and self.first.item() < self.last.item():  # one position: no other phase is there
            seen = self.reach.interval(self.first.item(), self.last.item())
            return Reach(self.reach.jump, (seen,))
        found = find_reads(self.first.ravel(), self.last.ravel(), self.n_places)
        return found and self.reach.read(*found)

    @cached_property
    def size(self) -> int:
        """The number of input positions that an element sees, from first to last; the largest of all."""
        if self.even is not None:
            return self.even.size
        resolved = self.resolved()
        return max(0, int((resolved.last - resolved.first).max()) + 1)

    @property
    def jump(self) -> float:
        """Input positions from one position to the next; NaN where they aren't evenly spaced."""
        return float(self.even.jump if self.axes else self.reach.jump) if self.even else float("nan")

    @property
    def start(self) -> float:
        """The middle of what the first position sees, in pixels; NaN where they aren't evenly spaced."""
        seen = self.even and self.even.interval(0, 0)
        return float((seen[0] + seen[1]) / 2) + 0.5 if seen else float("nan")

    def resolved(self) -> "Line":
        """Return the line as places of the image itself."""
        pairs, inverse = np.unique(
            np.stack([self.first.ravel(), self.last.ravel()]), axis=1, return_inverse=True
        )
        ends = np.array([(NOTHING, -NOTHING)] * pairs.shape[1], dtype=np.int64)
        for i, (first, last) in enumerate(pairs.T.tolist()):
            if first <= last and (seen := self.reach.interval(first, last)):
                ends[i] = int(seen[0]), int(seen[1])
        first, last = ends[inverse.ravel()].T
        shape = self.first.shape
        return Line(Reach(), first.reshape(shape), last.reshape(shape), NOTHING)

    def placed(self, first: Places, last: Places) -> "Line":
        """Return a line of the same map whose elements read other places of it."""
        first, last = compress(np.asarray(first)), compress(np.asarray(last))
        first, last = np.broadcast_arrays(first, last)
        return replace(self, first=first, last=last)

    def reduced(self, dims: Sequence[int], keep: bool = True) -> "Line":
        """Return the line of what takes all elements along dimensions together."""
        dims = tuple(dims)
        first, last = self.first.min(dims, keepdims=keep), self.last.max(dims, keepdims=keep)
        return self.placed(first, last)

    def shaped(self, ndim: int) -> "Line":
        """Return the line with leading dimensions, as broadcasting adds them."""
        if self.first.ndim == ndim:
            return self
        shape = (1,) * (ndim - self.first.ndim) + self.first.shape
        return replace(self, first=self.first.reshape(shape), last=self.last.reshape(shape))

    def window(self, axis: int, reads: Sequence[Sequence[int]], step: int, n_outputs: int) -> "Line":
        """Return the line of windows along an axis; see :meth:`Reach.read` for what position o reads."""
        if self.even is not None and self.axes in ((), (axis,)):
            return Line.along(self.even.read(reads, step), axis, n_outputs, self.first.ndim)
        if axis not in self.axes:
            return self
        size, phases = self.first.shape[axis], len(reads)
        first: list[Places] = []
        last: list[Places] = []
        for o in range(n_outputs):
            taken = [p for tap in reads[o % phases] if 0 <= (p := o // phases * step + tap) < size]
            for found, places, least in ((first, self.first, True), (last, self.last, False)):
                part = places.take(taken, axis)
                found.append(part.min(axis, initial=NOTHING) if least else part.max(axis, initial=-NOTHING))
        return self.placed(np.stack(first, axis), np.stack(last, axis))

    def adapted(self, axis: int, size: int, n_outputs: int) -> "Line":
        """Return the line of a pooling to a number of positions, of cells that differ by one at most."""
        if axis not in self.axes:
            return self
        cells = [(o * size // n_outputs, ceil((o + 1) * size / n_outputs)) for o in range(n_outputs)]
        parts = [self.reduced_cell(axis, *cell) for cell in cells]
        first, last = (np.concatenate(part, axis) for part in zip(*parts, strict=True))
        return self.placed(first, last)

    def reduced_cell(self, axis: int, start: int, stop: int) -> tuple[Places, Places]:
        """Return what the elements from start to stop along an axis read together."""
        cell = range(start, stop)
        return (
            self.first.take(cell, axis).min(axis, keepdims=True),
            self.last.take(cell, axis).max(axis, keepdims=True),
        )


@dataclass(frozen=True, eq=False)
class Field:
    """What each element of a tensor sees.

    Attributes
    ----------
    widest
        Along the input's height and its width, from the first to the last position that any path reaches.
    narrowest
        Of the path that sees least.
    axes
        Where height and width lie in the tensor, also where they are 1; None once they were flattened.
    is_pooled
        Whether every path came through what takes all positions together.
    """

    widest: tuple[Line, Line]
    narrowest: tuple[Line, Line]
    axes: tuple[int, int] | None = (2, 3)
    is_pooled: bool = False

    @property
    def is_flat(self) -> bool:
        """Whether height and width lie along one axis."""
        return bool(set(self.widest[0].axes) & set(self.widest[1].axes))

    @property
    def size(self) -> tuple[int, int]:
        """The least and the most that an element sees: along the smaller axis, and along the larger."""
        return min(line.size for line in self.narrowest), max(line.size for line in self.widest)

    def each(self, change: Callable[[int, Line], Line]) -> "Field":
        """Return the field with each line changed, by its place (0: height, 1: width) and the line."""
        height, width = (change(i, line) for i, line in enumerate(self.widest))
        done = {id(line): new for line, new in zip(self.widest, (height, width), strict=True)}
        high, wide = (
            done[id(line)] if id(line) in done else change(i, line) for i, line in enumerate(self.narrowest)
        )
        return replace(self, widest=(height, width), narrowest=(high, wide))

    def reduced(self, dims: Sequence[int], keep: bool = True) -> "Field":
        """Return the field of what takes all elements along dimensions together."""
        found = self.each(lambda _, line: line.reduced(dims, keep))
        gone = bool(set(dims) & {a for line in self.widest for a in line.axes}) or (
            self.axes is not None and set(self.axes) <= set(dims)
        )
        if not keep and self.axes is not None:
            kept = not set(dims) & set(self.axes)
            moved = [a - sum(d < a for d in dims) for a in self.axes]
            found = replace(found, axes=(moved[0], moved[1]) if kept else None)
        constant = not any(line.axes for line in found.widest)
        return replace(found, is_pooled=self.is_pooled or (gone and constant))

    def merge(self, other: "Field", ndim: int) -> "Field":
        """Return what an element sees through either of two tensors that are broadcast."""
        flat = self.is_flat or other.is_flat
        pairs = [
            [(a.shaped(ndim), b.shaped(ndim)) for a, b in zip(*lines, strict=True)]
            for lines in ((self.widest, other.widest), (self.narrowest, other.narrowest))
        ]
        widest = tuple(merge_lines(a, b, flat) for a, b in pairs[0])
        narrowest = tuple(least_line(a, b) for a, b in pairs[1])
        axes = self.axes if self.axes is not None and ndim == self.widest[0].first.ndim else other.axes
        return Field(
            (widest[0], widest[1]), (narrowest[0], narrowest[1]), axes, self.is_pooled and other.is_pooled
        )

    def with_statistics(self, dims: Sequence[int]) -> "Field":
        """Return the field of what is normalised by the statistics of all elements along dimensions."""
        if not any(set(line.axes) & set(dims) for line in self.widest):
            return self
        return self.merge(self.reduced(dims), self.widest[0].first.ndim)


def line_of(field: Field | None, kind: str, i: int) -> Line | None:
    """Return the "widest" or "narrowest" line of a field along an axis of the image, None of none."""
    found: Line | None = None if field is None else getattr(field, kind)[i]
    return found


def merge_lines(one: Line, two: Line, is_flat: bool) -> Line:
    """Return what an element sees through either of two lines of one number of dimensions.

    Evenly spaced positions stay so: what the other line sees elsewhere widens them, by the largest union.
    """
    if one.reach == two.reach and _equal(one, two):
        return one
    main, other = sorted((one, two), key=_evenness, reverse=True)
    if main.even is None or is_flat or not set(other.axes) <= set(main.axes):
        return _united(one, two)
    if main.axes == other.axes and other.even is not None and other.even.jump == main.even.jump:
        reach = main.even.merge(other.even)
    else:  # the other is a branch that pooled over the whole map, or one whose positions lie elsewhere
        reach = main.even.widened(_united(one, two).size)
    return Line.along(reach, main.axes[0] if main.axes else 0, main.first.size, main.first.ndim)


def least_line(one: Line, two: Line) -> Line:
    """Return the line of the path that sees less; where it sees nothing, the other's.

    Parts of one map, as slices of every second position, count as a window over it.
    """
    if _are_parts(one, two) and not _equal(one, two):
        return _united(one, two)
    less, more = sorted((one, two), key=lambda line: (line.size, -_evenness(line)[0]))
    empty = less.first > less.last
    if not empty.any():
        return less
    less, more = _in_one_map(less, more)
    return less.placed(np.where(empty, more.first, less.first), np.where(empty, more.last, less.last))


def _are_parts(one: Line, two: Line) -> bool:
    """Whether two lines are evenly spaced parts of one map, of one distance, along one axis."""
    if one.reach != two.reach or one.axes != two.axes or not one.axes:
        return False
    return one.even is not None and two.even is not None and one.even.jump == two.even.jump != 0


def _evenness(line: Line) -> tuple[bool, Fraction, int]:
    even = line.even if line.axes else None
    return (even is not None, abs(even.jump) if even else Fraction(0), line.first.size)


def _equal(one: Line, two: Line) -> bool:
    return (one.first is two.first and one.last is two.last) or (
        np.array_equal(one.first, two.first) and np.array_equal(one.last, two.last)
    )


def _in_one_map(one: Line, two: Line) -> tuple[Line, Line]:
    same = one.reach == two.reach and one.n_places == two.n_places
    return (one, two) if same else (one.resolved(), two.resolved())


def _united(one: Line, two: Line) -> Line:
    one, two = _in_one_map(one, two)
    return one.placed(np.minimum(one.first, two.first), np.maximum(one.last, two.last))


def concatenate_lines(lines: Sequence[Line | None], sizes: Sequence[Sequence[int]], axis: int) -> Line:
    """Return the line of tensors that are concatenated along an axis; None sees nothing.

    Parameters
    ----------
    lines
        Of each tensor.
    sizes
        The shape of each tensor.
    axis
        The axis along which they follow one another.
    """
    known = [line for line in lines if line is not None]
    if any(line.reach != known[0].reach or line.n_places != known[0].n_places for line in known):
        lines = [line and line.resolved() for line in lines]
        known = [line for line in lines if line is not None]
    shape = list(
        np.broadcast_shapes(*([1 if d == axis else n for d, n in enumerate(k.first.shape)] for k in known))
    )
    parts: tuple[list[Places], list[Places]] = ([], [])
    for line, size in zip(lines, sizes, strict=True):
        shape[axis] = size[axis]
        for part, places, nothing in zip(
            parts, (line.first, line.last) if line else (None, None), (NOTHING, -NOTHING), strict=True
        ):
            part.append(np.full(shape, nothing) if places is None else np.broadcast_to(places, shape))
    return known[0].placed(np.concatenate(parts[0], axis), np.concatenate(parts[1], axis))
