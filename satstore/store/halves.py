"""Values as they are stored: float16, some of the mantissa rounded away, and what can't be probed of them."""

from dataclasses import dataclass

import numpy as np
from numcodecs import BitRound
from numpy.typing import NDArray

from satstore.store.layout import FLOAT16_MANTISSA_BITS

FIRST_NON_FINITE = 0x7C00
"""The bits of float16's infinity; without its sign, what is not finite is no smaller."""


@dataclass(frozen=True)
class Problem:
    """The first batch of a layer, samples first_row to last_row - 1, with values that can't be probed.

    In what was committed before the writer was opened, an infinity counts as an overflow.
    """

    pooling: str
    layer: str
    first_row: int
    last_row: int
    n_non_finite: int
    n_overflows: int

    def __str__(self) -> str:
        found = [f"{self.n_non_finite} values are NaN or infinite"] if self.n_non_finite else []
        found += [f"{self.n_overflows} are beyond float16 (65504)"] if self.n_overflows else []
        where = f"samples {self.first_row} to {self.last_row - 1}"
        return f"layer {self.layer}: {' and '.join(found)} in {where}, {self.pooling},"


def has_non_finite(values: NDArray[np.float16]) -> bool:
    """Tell whether there is a NaN or infinity; on the bits: NumPy takes a hundred times longer on float16."""
    return bool((values.view(np.int16) & 0x7FFF).max(initial=0) >= FIRST_NON_FINITE)


def round_mantissa(values: NDArray[np.float16], n_bits: int) -> None:
    """Round to the nearest value with n bits of mantissa, ties to even, in place; NaN stay NaN."""
    if n_bits == FLOAT16_MANTISSA_BITS:
        return
    rounded = BitRound(n_bits).encode(values).view(np.float16)
    values[...] = np.where(np.isnan(values), values, rounded) if has_non_finite(values) else rounded
