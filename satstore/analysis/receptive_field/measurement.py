"""Which positions an operator reads, measured on real values, for operators without a rule.

The operator runs on a CPU in double precision, on inputs of the shapes that it has in the model. An operator
that only moves elements is recognised by inputs whose values are codes of their positions. For others, the
elements of one position after the other are changed: the outputs that change read that position.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from satstore.analysis.receptive_field.positions import NOTHING, Positions, compress

SEED = 0
MAX_POSITIONS = 1024
"""The most positions of an input that are changed one after the other."""


class UnmeasurableError(Exception):
    """An operator that can't be measured; the message says why."""


def count_axes(name: str) -> int:
    """Count the axes that an operator's windows slide along: the digit in its name."""
    [digit] = re.findall(r"(\d)d", name)
    return int(digit)


@lru_cache(maxsize=256)
def measure_interpolation(
    name: str, align_corners: bool, n_before: int, n_after: int, scale: Fraction
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Measure what an interpolation reads along an axis; see :meth:`.input_intervals.InputIntervals.read`.

    An interpolation is linear: its outputs for unit vectors are its weights. They repeat with the numerator
    of the scale; the period in the middle of a map that is long enough is not cut by a border.
    """
    if align_corners:
        over, under = n_after - 1, n_before - 1
        scale = Fraction(over, under) if over and under else Fraction(1)
    period, step = scale.numerator, scale.denominator
    if n_before == n_after and (scale == 1 or align_corners):
        return ((0,),), 1
    if align_corners and not (n_before > 1 and n_after > 1):
        return tuple((0,) for _ in range(n_after)), 0
    intervals = 4 + 4 * -(-step // period)
    turns = 2 * -(-intervals // step) + 3
    before, after = step * turns + align_corners, period * turns + align_corners
    weights = _weights(name, align_corners, before, after, scale)
    turn = turns // 2
    reads = tuple(
        tuple(i - turn * step for i in np.flatnonzero(weights[:, turn * period + p]).tolist())
        for p in range(period)
    )
    return reads, step


def _weights(name: str, align_corners: bool, before: int, after: int, scale: Fraction) -> Any:
    """Compute the weights (before, after) of an interpolation along its last axis."""
    function = getattr(torch.ops.aten, name)
    eye = torch.eye(before, dtype=torch.float64)
    n = count_axes(name)
    image = eye.reshape(before, 1, *[1] * (n - 1), before)
    options = {} if "nearest" in name else {"align_corners": align_corners}
    size, scales = [*[1] * (n - 1), after], [*[None] * (n - 1), float(scale)]
    names = {1: ["scales"], 2: ["scales_h", "scales_w"], 3: ["scales_d", "scales_h", "scales_w"]}[n]
    found = function(image, size, **options, **dict(zip(names, scales, strict=True)))
    # Weights this small are rounding errors of 0.
    return np.where(
        found.reshape(before, after).abs().numpy() < 1e-9, 0, found.reshape(before, after).numpy()
    )


def measure_reads(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    shapes: Sequence[tuple[int, ...]],
    positions: Sequence[tuple[Positions, Positions]],
) -> list[tuple[Positions, Positions]]:
    """Measure which positions each element of an operator's outputs reads.

    Parameters
    ----------
    run
        The operator: takes its inputs that depend on the image, returns its outputs.

    Returns
    -------
    list of (first, last)
        For each output; 1 long along dimensions along which they are the same.

    Raises
    ------
    UnmeasurableError
        If it has too many positions, or gives other values each time.
    """
    groups = [_group(*pair, shape) for pair, shape in zip(positions, shapes, strict=True)]
    if len(shapes) == 1 and (moved := _measure_moves(run, shapes[0], *groups[0])):
        return moved
    if sum(len(pairs) for _, pairs in groups) > MAX_POSITIONS:
        raise UnmeasurableError(f"it has more than {MAX_POSITIONS} positions along an axis")
    random = torch.Generator().manual_seed(SEED)
    inputs = [torch.rand(shape, generator=random, dtype=torch.float64) + 0.1 for shape in shapes]
    base = run(inputs)
    again = run(inputs)
    if any(b.shape != a.shape or not _equal(b, a).all() for b, a in zip(base, again, strict=True)):
        raise UnmeasurableError("it gives other values each time")
    ends = [(np.full(tuple(b.shape), NOTHING), np.full(tuple(b.shape), -NOTHING)) for b in base]
    for i, (group, pairs) in enumerate(groups):
        for number, (first, last) in enumerate(pairs):
            if first > last:
                continue
            for change in (7.0, -7.0, 0.01):
                changed = [*inputs]
                changed[i] = torch.where(group == number, inputs[i] + change, inputs[i])
                for (low, high), one, two in zip(ends, base, run(changed), strict=True):
                    differs = ~_equal(one, two).numpy()
                    low[differs] = np.minimum(low[differs], first)
                    high[differs] = np.maximum(high[differs], last)
    return [(compress(low), compress(high)) for low, high in ends]


def _equal(one: Tensor, two: Tensor) -> Tensor:
    """Compare values; NaN equals NaN."""
    return (one == two) | (one.isnan() & two.isnan())


def _group(first: Positions, last: Positions, shape: tuple[int, ...]) -> tuple[Tensor, list[list[int]]]:
    """Number the different pairs (first, last); return each element's number, and the pairs."""
    pairs, inverse = np.unique(np.stack([first.ravel(), last.ravel()]), axis=1, return_inverse=True)
    return torch.from_numpy(inverse.reshape(first.shape)).expand(shape), pairs.T.tolist()


def _measure_moves(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    shape: tuple[int, ...],
    group: Tensor,
    pairs: list[list[int]],
) -> list[tuple[Positions, Positions]] | None:
    """Measure an operator that only moves elements; return None if it does more."""
    random = torch.Generator().manual_seed(SEED)
    found: list[list[Positions]] = []
    for _ in range(2):
        codes = torch.randn(len(pairs), generator=random, dtype=torch.float64)
        order = torch.argsort(codes)
        numbers = []
        for output in run([codes[group]]):
            if not output.is_floating_point():
                return None
            position = torch.searchsorted(codes[order], output.contiguous()).clamp(max=len(pairs) - 1)
            number = order[position]
            known = codes[number] == output
            if not bool((known | (output == 0)).all()):
                return None
            numbers.append(torch.where(known, number, -1).numpy())
        found.append(numbers)
    if not all(np.array_equal(one, two) for one, two in zip(*found, strict=True)):
        return None
    ends = np.array([*pairs, (NOTHING, -NOTHING)], dtype=np.int64)  # the last is number -1: padding
    return [(compress(ends[n, 0]), compress(ends[n, 1])) for n in found[0]]
