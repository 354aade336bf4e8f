"""What can't be probed of latents: values that are not finite."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST_NON_FINITE = 0x7C00
"""The bits of float16's infinity; without its sign, what is not finite is no smaller."""


@dataclass(frozen=True)
class Problem:
    """The first batch of a layer, samples first_row to last_row - 1, with values that can't be probed."""

    pooling: str
    layer: str
    first_row: int
    last_row: int
    n_non_finite: int
    n_overflows: int

    def __str__(self) -> str:
        found = [f"{self.n_non_finite} values are NaN or infinite"] if self.n_non_finite else []
        found += [f"{self.n_overflows} are beyond float32 (3.4e38)"] if self.n_overflows else []
        where = f"samples {self.first_row} to {self.last_row - 1}"
        return f"layer {self.layer}: {' and '.join(found)} in {where}, {self.pooling},"


def find_problem(
    pooling: str, layer: str, first_row: int, values: NDArray[Any], stored: NDArray[Any]
) -> Problem | None:
    """Return what can't be probed of a layer's samples, None if all can.

    Parameters
    ----------
    values, stored
        The samples as they came, and as they are stored.
    """
    if not has_non_finite(stored):
        return None
    n_non_finite = int((~np.isfinite(values)).sum())
    n_overflows = int((~np.isfinite(stored)).sum()) - n_non_finite
    return Problem(pooling, layer, first_row, first_row + len(values), n_non_finite, n_overflows)


def has_non_finite(values: NDArray[Any]) -> bool:
    """Tell whether there is a NaN or infinity."""
    if values.dtype == np.float16:  # by the bits: NumPy takes a hundred times longer
        return bool((values.view(np.int16) & 0x7FFF).max(initial=0) >= FIRST_NON_FINITE)
    return not bool(np.isfinite(values).all())
