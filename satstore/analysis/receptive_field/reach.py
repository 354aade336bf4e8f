"""How far a position of a map sees, along one axis of the input, as exact numbers.

Position o of a map sees the input's positions from ``jump·o + low`` to ``jump·o + high``. After a transposed
convolution or an enlargement, low and high depend on o's remainder by a period; a window that slides over
such a map reduces the period again. Borders are not cut: a field may reach beyond the input.

The arithmetic of windows is that of Araujo, Norris and Sim, "Computing receptive fields of convolutional
neural networks" (Distill, 2019), with intervals in place of sizes, so that paths with different paddings are
merged exactly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

Interval = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class Reach:
    """What each position of a map sees along one axis.

    Attributes
    ----------
    jump
        Input positions from one position of the map to the next.
    intervals
        First and last input position that position o sees, less ``jump·o``, by o's remainder; None where a
        position sees nothing, as between the taps of a transposed convolution.
    """

    jump: Fraction = Fraction(1)
    intervals: tuple[Interval | None, ...] = ((Fraction(0), Fraction(0)),)

    @property
    def size(self) -> int:
        """The number of input positions that a position sees, from first to last; the largest of all."""
        return int(max((high - low + 1 for low, high in filter(None, self.intervals)), default=0))

    def read(self, reads: Sequence[Sequence[int]], step: int) -> "Reach":
        """Return the reach of a map whose position o reads ``(o // P)·step + tap`` for each tap of its phase.

        Parameters
        ----------
        reads
            The taps of each phase o mod P; P is their number.
        step
            Positions that are moved on by from one period of the new map to the next.
        """
        phases, period = len(reads), len(self.intervals)
        jump = self.jump * step / phases
        if period == 1:
            reads = [(min(taps), max(taps)) if taps else () for taps in reads]
        return Reach(
            jump,
            _shortest(
                _union(_moved(self._at(o // phases * step + tap), -jump * o) for tap in reads[o % phases])
                for o in range(phases * (period // gcd(period, step)))
            ),
        )

    def window(self, taps: Sequence[int], stride: int = 1) -> "Reach":
        """Return the reach of a window whose position o reads ``o·stride + tap`` for each tap."""
        return self.read([taps], stride)

    def interval(self, first: int, last: int) -> Interval | None:
        """Return the first and the last input position that positions first to last see together."""
        period = len(self.intervals)
        if last - first >= 2 * period:  # what lies between sees nothing beyond what its ends see
            ends = (*range(first, first + period), *range(last - period + 1, last + 1))
        else:
            ends = tuple(range(first, last + 1))
        return _union(self._at(position) for position in ends)

    def merge(self, other: "Reach") -> "Reach":
        """Return what a position sees through either of two maps of one jump."""
        period = lcm(len(self.intervals), len(other.intervals))
        return Reach(
            self.jump,
            _shortest(
                _union((self.intervals[p % len(self.intervals)], other.intervals[p % len(other.intervals)]))
                for p in range(period)
            ),
        )

    def widened(self, size: int) -> "Reach":
        """Return a reach of at least that size, of the same middle."""
        more = Fraction(max(0, size - self.size), 2)
        return Reach(self.jump, tuple((i[0] - more, i[1] + more) if i else None for i in self.intervals))

    def _at(self, position: int) -> Interval | None:
        return _moved(self.intervals[position % len(self.intervals)], self.jump * position)


def conv_taps(kernel_size: int, padding: int, dilation: int) -> range:
    """Return what a convolution reads, from its position times its stride on."""
    return range(-padding, -padding + dilation * (kernel_size - 1) + 1, dilation)


def spread_taps(taps: Sequence[int], stride: int) -> list[list[int]]:
    """Return what a transposed convolution reads, by phase: position i where ``i·stride + tap`` is o."""
    return [
        [(phase - tap) // stride for tap in taps if (phase - tap) % stride == 0] for phase in range(stride)
    ]


def _moved(interval: Interval | None, by: Fraction) -> Interval | None:
    return None if interval is None else (interval[0] + by, interval[1] + by)


def _union(intervals: Iterable[Interval | None]) -> Interval | None:
    found = [interval for interval in intervals if interval is not None]
    if not found:
        return None
    return min(low for low, _ in found), max(high for _, high in found)


def _shortest(intervals: Iterable[Interval | None]) -> tuple[Interval | None, ...]:
    """Return one period of the intervals, the shortest."""
    found = tuple(intervals)
    for period in range(1, len(found)):
        if len(found) % period == 0 and found == found[:period] * (len(found) // period):
            return found[:period]
    return found
