"""The positions of a map that the elements of a tensor read, and whether they are evenly spaced."""

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
NOTHING = 1 << 40
"""The first place of an element that reads nothing; its last place is the negative."""


def compress(places: Places) -> Places:
    """Return places 1 long along the dimensions along which they are the same."""
    # What was broadcast shows in its strides; only the rest is compared.
    found = places[tuple(slice(0, 1 if stride == 0 else None) for stride in places.strides)]
    for d, n in enumerate(found.shape):
        part = found[(slice(None),) * d + (slice(0, 1),)]
        if n > 1 and (found == part).all():
            found = part
    return found


def reshape(places: Places, before: Sequence[int], after: Sequence[int]) -> Places:
    """Return the places of a tensor that is reshaped, 1 long along dimensions along which they are the same.

    Dimensions are taken in the smallest groups that keep their number of elements; only groups along which
    places differ are broadcast.
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
        varies = any(n > 1 for n in places.shape[start:i])
        broadcast += before[start:i] if varies else places.shape[start:i]
        shape += after[begin:j] if varies else [1] * (j - begin)
    return compress(np.broadcast_to(places, broadcast).reshape(shape))


def find_reads(first: Places, last: Places, n_places: int) -> tuple[list[range], int] | None:
    """Find which taps positions read, by phase, and how many places a period moves on.

    Parameters
    ----------
    first, last
        (n,) places that each position reads, from first to last.
    n_places
        Of the map that is read. Beyond its borders nothing was seen: there, less may be read.
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
        found = _find_cut_reads(first, last, n_places, period)
        if found:
            return found
    return None


def _find_cut_reads(
    first: Places, last: Places, n_places: int, period: int
) -> tuple[list[range], int] | None:
    """Find reads of a period in the middle of a map, that hold up to its borders once they are cut there."""
    base = (len(first) - period) // 2 // period * period
    nexts = [first[base + period] - first[base], last[base + period] - last[base]]
    if nexts[0] != nexts[1] or nexts[0] <= 0:
        return None
    step = int(nexts[0])
    turns, phases = np.divmod(np.arange(len(first)) - base, period)
    low, high = (places[base + phases] + turns * step for places in (first, last))
    cut_low, cut_high = np.maximum(low, 0), np.minimum(high, n_places - 1)
    empty = cut_low > cut_high
    agree = np.where(empty, first > last, (cut_low == first) & (cut_high == last))
    if not agree.all():
        return None
    back = base // period * step
    return [range(int(first[base + p]) - back, int(last[base + p]) - back + 1) for p in range(period)], step
