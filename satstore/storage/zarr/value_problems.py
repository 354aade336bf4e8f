"""Find values of latents that can't be probed: non-finite ones, and spreads that float32 doesn't keep."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.config.latent_keys import LatentsKey

FIRST_NON_FINITE = 0x7C00
"""The bits of float16's infinity; those of non-finite values, without the sign, are at least as large."""

MIN_ROWS = 8
"""The number of samples that is needed to estimate a feature's spread."""


@dataclass(frozen=True)
class ValueProblem:
    """The first batch of a layer, samples first_row to last_row - 1, with values that can't be probed."""

    key: LatentsKey
    layer: str
    first_row: int
    last_row: int
    n_non_finite: int
    n_overflows: int
    n_flattened: int = 0

    def __str__(self) -> str:
        found = [f"{self.n_non_finite} values are NaN or infinite"] if self.n_non_finite else []
        if self.n_flattened:
            found.append(f"of {self.n_flattened} features, float32 keeps less than 8 bits of the spread")
        found += [f"{self.n_overflows} are beyond float32 (3.4e38)"] if self.n_overflows else []
        where = f"samples {self.first_row} to {self.last_row - 1}"
        return f"layer {self.layer}: {' and '.join(found)} in {where}, {self.key},"

    def describe(self, split: str) -> str:
        """Describe the problem in a split, and its effect on probes."""
        is_refused = self.n_non_finite or self.n_overflows
        effect = "will refuse them" if is_refused else "sees little of these features"
        return f"{self} of split {split}; a probe of that layer {effect}"


def find_value_problem(
    key: LatentsKey, layer: str, first_row: int, values: NDArray[Any], stored: NDArray[Any]
) -> ValueProblem | None:
    """Find values of a layer's samples that can't be probed, from the samples as they came and as stored."""
    is_wide = values.dtype == np.float64 and len(values) >= MIN_ROWS
    n_flattened = count_flattened(values) if is_wide else 0
    if not has_non_finite(stored) and not n_flattened:
        return None
    n_non_finite = int((~np.isfinite(values)).sum())
    n_overflows = int((~np.isfinite(stored)).sum()) - n_non_finite
    return ValueProblem(
        key, layer, first_row, first_row + len(values), n_non_finite, n_overflows, n_flattened
    )


def count_flattened(values: NDArray[np.float64]) -> int:
    """Count the features of samples (n, …) that vary too little, relative to their size, for float32.

    Below 2^-15 of the size, float32 keeps less than 8 of its 23 bits; below 2^-50, a difference may be
    float64's own rounding.
    """
    rows = values.reshape(len(values), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        share = np.ptp(rows, axis=0) / np.abs(rows).max(axis=0, initial=np.finfo(np.float64).tiny)
    return int(((share > 2.0**-50) & (share < 2.0**-15)).sum())


def has_non_finite(values: NDArray[Any]) -> bool:
    """Tell whether there is a NaN or infinity."""
    if values.dtype == np.float16:  # by the bits: NumPy takes a hundred times longer
        return bool((values.view(np.int16) & 0x7FFF).max(initial=0) >= FIRST_NON_FINITE)
    return not bool(np.isfinite(values).all())
