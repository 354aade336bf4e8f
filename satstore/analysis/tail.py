"""The tail: the last layers of a network, which do no work that the ones before did not do."""

import math
from collections.abc import Sequence

import numpy as np

LEAST_GAIN, TAIL_SHARE = 0.01, 0.5


def find_tail(
    probe_accuracy: Sequence[float | None],
    saturation: Sequence[float | None],
    least_gain: float = LEAST_GAIN,
    share: float = TAIL_SHARE,
) -> int | None:
    """Return the first layer of the tail.

    From it on, no probe gains more than `least_gain` over the best before it, and saturation stays under
    `share` of the median of all layers.

    Parameters
    ----------
    probe_accuracy, saturation
        By layer, in forward order, fractions; None or NaN where unknown.

    Returns
    -------
    int or None
        Its place; None if there is no tail, or too little is known: a layer without either ends the search.
    """
    accuracy = np.array([math.nan if value is None else value for value in probe_accuracy], dtype=float)
    saturated = np.array([math.nan if value is None else value for value in saturation], dtype=float)
    if len(accuracy) != len(saturated) or not np.isfinite(saturated).any():
        return None
    low = saturated < share * np.nanmedian(saturated)
    start = None
    for place in range(len(accuracy) - 1, 0, -1):
        before = accuracy[:place]
        best = np.nanmax(before) if np.isfinite(before).any() else math.nan
        if not (low[place] and accuracy[place] <= best + least_gain):  # which NaN is not
            break
        start = place
    return start
