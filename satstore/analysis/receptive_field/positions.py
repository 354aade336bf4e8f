"""The positions of a map that the elements of a tensor read, and whether they are evenly spaced."""

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
NOTHING = 1 << 40
"""The first position of an element that reads nothing; its last position is ``-NOTHING``."""


def compress(positions: Positions) -> Positions:
    """Shorten dimensions along which all positions are the same to 1."""
    # Dimensions with stride 0 are broadcast; only the others are compared.
    found = positions[tuple(slice(0, 1 if stride == 0 else None) for stride in positions.strides)]
    for d, n in enumerate(found.shape):
        part = found[(slice(None),) * d + (slice(0, 1),)]
        if n > 1 and (found == part).all():
            found = part
    return found


def reshape(positions: Positions, before: Sequence[int], after: Sequence[int]) -> Positions:
    """Return the positions that a tensor's elements read after a reshape, compressed.

    Dimensions are taken in the smallest groups that keep their number of elements; only groups along which
    positions differ are broadcast.
    """
    if 0 in before:
        return np.zeros(tuple(after), dtype=np.int64)
    broadcast: list[int] = []
    shape: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start, begin = i, j
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while (have := prod(before[start:i])) != (want := prod(after[begin:j])):
            i, j = (i + 1, j) if have < want else (i, j + 1)
        varies = any(n > 1 for n in positions.shape[start:i])
        broadcast += before[start:i] if varies else positions.shape[start:i]
        shape += after[begin:j] if varies else [1] * (j - begin)
    return compress(np.broadcast_to(positions, broadcast).reshape(shape))


def find_taps(first: Positions, last: Positions, n_positions: int) -> tuple[list[range], int] | None:
    """Find a periodic pattern of reads: the taps of each phase, and how far a period advances.

    Parameters
    ----------
    first, last
        (n,): the first and last position that each output reads.
    n_positions
        The number of positions of the map that is read. Outputs at its borders may read less.

    Returns
    -------
    taps, step
        As :meth:`.input_intervals.InputIntervals.read` takes them; None if there is no such pattern.
    """
    n = len(first)
    if n == 1:
        return [range(int(first[0]), int(last[0]) + 1)], 1
    empty = first > last
    for period in range(1, n // 2 + 1) if not empty.any() else ():
        steps = np.concatenate([first[period:] - first[:-period], last[period:] - last[:-period]])
        if (steps == steps[0]).all():
            return [range(int(first[p]), int(last[p]) + 1) for p in range(period)], int(steps[0])
    if n == 2:
        return None
    for period in range(1, min(n // 3, 64) + 1):
        found = _find_cut_taps(first, last, n_positions, period)
        if found:
            return found
    return None


def _find_cut_taps(
    first: Positions, last: Positions, n_positions: int, period: int
) -> tuple[list[range], int] | None:
    """Find the taps of a period in the middle of a map; they must explain its borders too, cut there."""
    base = (len(first) - period) // 2 // period * period
    nexts = [first[base + period] - first[base], last[base + period] - last[base]]
    if nexts[0] != nexts[1] or nexts[0] <= 0:
        return None
    step = int(nexts[0])
    turns, phases = np.divmod(np.arange(len(first)) - base, period)
    low, high = (positions[base + phases] + turns * step for positions in (first, last))
    cut_low, cut_high = np.maximum(low, 0), np.minimum(high, n_positions - 1)
    empty = cut_low > cut_high
    agree = np.where(empty, first > last, (cut_low == first) & (cut_high == last))
    if not agree.all():
        return None
    back = base // period * step
    return [range(int(first[base + p]) - back, int(last[base + p]) - back + 1) for p in range(period)], step
