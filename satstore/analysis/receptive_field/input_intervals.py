"""The interval of the input that each position of a feature map sees along one axis, as exact numbers.

Position o of a map sees the input's positions from ``jump·o + low`` to ``jump·o + high``. After a transposed
convolution or an enlargement, low and high depend on o's remainder by a period; a window that slides over
such a map reduces the period again. Borders are not cut: an interval may extend beyond the input.

The arithmetic of windows is that of Araujo, Norris and Sim, "Computing receptive fields of convolutional
neural networks" (Distill, 2019), with intervals instead of sizes, so that paths with different paddings are
merged exactly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

Interval = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class InputIntervals:
    """The input intervals that the positions of a feature map see along one axis.

    Attributes
    ----------
    jump
        Input positions from one position of the map to the next.
    by_phase
        First and last input position that position o sees, minus ``jump·o``, for each remainder of o by the
        period; None where a position sees nothing, as between the taps of a transposed convolution.
    """

    jump: Fraction = Fraction(1)
    by_phase: tuple[Interval | None, ...] = ((Fraction(0), Fraction(0)),)

    @property
    def size(self) -> int:
        """The largest number of input positions that a position sees, from first to last."""
        return int(max((high - low + 1 for low, high in filter(None, self.by_phase)), default=0))

    def read(self, reads: Sequence[Sequence[int]], step: int) -> "InputIntervals":
        """Return the intervals of a map each of whose positions reads several positions of this one.

        Position o reads ``(o // P)·step + tap`` for each tap of its phase o mod P.

        Parameters
        ----------
        reads
            The taps of each phase o mod P; P is their number.
        step
            How many positions of this map one period of the new map advances.
        """
        phases, period = len(reads), len(self.by_phase)
        jump = self.jump * step / phases
        if period == 1:
            reads = [(min(taps), max(taps)) if taps else () for taps in reads]
        return InputIntervals(
            jump,
            _shortest(
                _union(_moved(self._at(o // phases * step + tap), -jump * o) for tap in reads[o % phases])
                for o in range(phases * (period // gcd(period, step)))
            ),
        )

    def interval(self, first: int, last: int) -> Interval | None:
        """Return the first and the last input position that positions first to last see together."""
        period = len(self.by_phase)
        if last - first >= 2 * period:  # what lies between sees nothing beyond what its ends see
            ends = (*range(first, first + period), *range(last - period + 1, last + 1))
        else:
            ends = tuple(range(first, last + 1))
        return _union(self._at(position) for position in ends)

    def merge(self, other: "InputIntervals") -> "InputIntervals":
        """Return what a position sees through either of two maps of one jump."""
        period = lcm(len(self.by_phase), len(other.by_phase))
        return InputIntervals(
            self.jump,
            _shortest(
                _union((self.by_phase[p % len(self.by_phase)], other.by_phase[p % len(other.by_phase)]))
                for p in range(period)
            ),
        )

    def widened(self, size: int) -> "InputIntervals":
        """Return intervals of at least that size, around the same middles."""
        more = Fraction(max(0, size - self.size), 2)
        return InputIntervals(
            self.jump, tuple((i[0] - more, i[1] + more) if i else None for i in self.by_phase)
        )

    def _at(self, position: int) -> Interval | None:
        return _moved(self.by_phase[position % len(self.by_phase)], self.jump * position)


def conv_taps(kernel_size: int, padding: int, dilation: int) -> range:
    """Return the offsets that a convolution reads, relative to its position times its stride."""
    return range(-padding, -padding + dilation * (kernel_size - 1) + 1, dilation)


def spread_taps(taps: Sequence[int], stride: int) -> list[list[int]]:
    """Return the offsets that a transposed convolution reads, by phase: i where ``i·stride + tap`` is o."""
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
    """Return the shortest period of a sequence of intervals."""
    found = tuple(intervals)
    for period in range(1, len(found)):
        if len(found) % period == 0 and found == found[:period] * (len(found) // period):
            return found[:period]
    return found
