"""Choose the precision of stored latents: float16 if it keeps the spread of every feature, else float32.

The first bits of a float's mantissa hold what a feature's values have in common, such as its mean. The number
of these lost bits, log2(2^exponent of the largest value / range), decides: float16 may lose two of its ten,
so that at least eight tell the values of every feature apart.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import numpy as np
from numcodecs import BitRound
from numpy.typing import NDArray

from satstore.storage.zarr.layout import FLOAT32_MANTISSA_BITS
from satstore.storage.zarr.value_problems import has_non_finite

MAX_LOST_BITS = 2
"""The most bits of the mantissa that may be lost to what a feature's values have in common."""

WINDOW_ROWS, MIN_WINDOW_ROWS = 32, 8
WINDOW_LOST_BITS = 3
"""Windows of adjoining rows are checked too: one outlier gives its feature a wide range, beside which other
rows may look equal. A few rows have a smaller range than all: they may lose three bits more."""

NOISE = 2.0**-21
"""The range relative to the largest value up to which a feature is constant: four to eight float32 steps."""

FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
SPREAD_REASON = "float16 keeps less than 8 bits of a feature's spread"
RANGE_REASON = "values are beyond float16's 65504"

ROUNDED_BYTES = 2**20

Float32s = NDArray[np.float32]


@dataclass(frozen=True)
class StoragePrecision:
    """The precision that a layer's values are stored in.

    Attributes
    ----------
    dtype
        float16 or float32.
    mantissa_bits
        The bits of the mantissa that are kept of each value; the others are rounded to zero.
    reason
        Why it is float32; empty for float16.
    """

    dtype: np.dtype[Any]
    mantissa_bits: int
    reason: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of a float32 layer's array and group; none for float16, the default."""
        return {"mantissa_bits": self.mantissa_bits, "float32_because": self.reason} if self.reason else {}

    @classmethod
    def read(cls, dtype: np.dtype[Any], attributes: Any, mantissa_bits: int) -> Self:
        """Read an array's precision from its dtype and attributes, and the bits of its split."""
        if dtype == FLOAT16:
            return cls(dtype, mantissa_bits)
        kept = attributes.get("mantissa_bits", FLOAT32_MANTISSA_BITS)
        return cls(dtype, int(kept), str(attributes.get("float32_because", SPREAD_REASON)))

    def at_least(self, other: "StoragePrecision") -> "StoragePrecision":
        """Return the precision that holds the values of both."""
        if FLOAT32 not in (self.dtype, other.dtype):
            return self
        bits = max(p.mantissa_bits for p in (self, other) if p.dtype == FLOAT32)
        return StoragePrecision(FLOAT32, bits, self.reason or other.reason)

    def round(self, values: Float32s) -> NDArray[Any]:
        """Round values to this precision; float32 is rounded in place."""
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype, copy=False)
        round_mantissa(stored, self.mantissa_bits)
        return stored


@dataclass
class Extent:
    """The smallest and the largest finite value of each feature, over the rows seen.

    Attributes
    ----------
    low, high
        (n_features,): inf and −inf where there is no finite value yet.
    window_lost
        The most bits that a feature of any window of rows loses; see :func:`lost_bits`.
    """

    low: Float32s
    high: Float32s
    window_lost: float = -np.inf

    @classmethod
    def empty(cls, n_features: int) -> Self:
        """Return the extent of no rows."""
        return cls(np.full(n_features, np.inf, np.float32), np.full(n_features, -np.inf, np.float32))

    @classmethod
    def of(cls, values: Float32s) -> Self:
        """Compute the extent of rows (n, …)."""
        rows = values.reshape(len(values), -1)
        found = cls.empty(rows.shape[1])
        for start in range(0, len(rows), WINDOW_ROWS):
            window = rows[start : start + WINDOW_ROWS]
            low, high = _ends(window)
            if len(window) >= MIN_WINDOW_ROWS:
                found.window_lost = max(found.window_lost, lost_bits(low, high))
            np.minimum(found.low, low, out=found.low)
            np.maximum(found.high, high, out=found.high)
        return found

    def joined(self, other: "Extent") -> "Extent":
        """Return the extent of both, with the windows of the other."""
        return Extent(np.minimum(self.low, other.low), np.maximum(self.high, other.high), other.window_lost)

    def rounded(self, precision: StoragePrecision) -> "Extent":
        """Return the extent of the same rows after rounding, which keeps their order."""
        low, high = (precision.round(end.copy()).astype(np.float32) for end in (self.low, self.high))
        return Extent(low, high)


def choose_precision(extent: Extent, mantissa_bits: int) -> StoragePrecision:
    """Choose the precision to store rows of an extent in; of float16's mantissa, 1 to 10 bits are kept.

    A layer that needs float32 keeps as many more as its features lose.
    """
    ends = np.concatenate([extent.low, extent.high])
    largest = float(np.abs(ends[np.isfinite(ends)]).max(initial=0))
    lost = max(lost_bits(extent.low, extent.high), extent.window_lost - WINDOW_LOST_BITS)
    is_kept = max(lost, lost_bits(extent.low, extent.high, FLOAT16)) <= MAX_LOST_BITS
    if is_kept and largest < overflow(FLOAT16, mantissa_bits):
        return StoragePrecision(FLOAT16, mantissa_bits)
    bits = mantissa_bits if lost <= MAX_LOST_BITS else min(FLOAT32_MANTISSA_BITS, mantissa_bits + ceil(lost))
    if largest >= overflow(FLOAT32, bits):
        bits = FLOAT32_MANTISSA_BITS
    return StoragePrecision(FLOAT32, bits, RANGE_REASON if is_kept else SPREAD_REASON)


def lost_bits(low: Float32s, high: Float32s, dtype: np.dtype[Any] = FLOAT32) -> float:
    """Compute the most bits of a mantissa that are the same in all values of a feature; −inf for none.

    For values up to 2^exponent in size that lie in a range, they are log2(2^exponent / range). Below a type's
    smallest normal number the exponent goes no further down. Features that are constant don't count.

    Parameters
    ----------
    low, high
        Smallest and largest value of each feature, (n_features,); inf and −inf where there is none.
    """
    largest = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(over="ignore", invalid="ignore"):  # twice the largest float32, or inf − inf
        spread = high - low
        varies = (spread > NOISE * largest) & np.isfinite(largest)
        # A cheap check that nearly all features pass: they lose none.
        matters = varies & ~((spread >= largest) & (largest >= np.finfo(dtype).smallest_normal))
    if not matters.any():
        return -np.inf
    exponents = np.frexp(largest[matters])[1] - 1
    exponents = np.maximum(exponents, np.finfo(dtype).minexp)
    ranges = high[matters].astype(np.float64) - low[matters]
    return float((exponents - np.log2(ranges)).max())


def overflow(dtype: np.dtype[Any], mantissa_bits: int) -> float:
    """Return the least value that rounds to infinity if so many bits of a type's mantissa are kept."""
    return float((2 - 2.0 ** -(mantissa_bits + 1)) * 2.0 ** (np.finfo(dtype).maxexp - 1))


def round_mantissa(values: NDArray[Any], n_bits: int) -> None:
    """Round to the nearest value with n bits of mantissa, ties to even, in place; NaN stay NaN."""
    if n_bits == np.finfo(values.dtype).nmant:
        return
    rounding = BitRound(n_bits)
    step = max(1, ROUNDED_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):  # the codec takes several times the memory
        block = values[start : start + step]
        rounded = rounding.encode(block).view(values.dtype)
        block[...] = np.where(np.isnan(block), block, rounded) if has_non_finite(block) else rounded


def _ends(rows: Float32s) -> tuple[Float32s, Float32s]:
    """Return the smallest and the largest finite value of each column; inf and −inf where there is none."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    if np.isfinite(low).all() and np.isfinite(high).all():
        return low, high
    finite = np.isfinite(rows)
    low = np.where(finite, rows, np.float32(np.inf)).min(axis=0)
    high = np.where(finite, rows, np.float32(-np.inf)).max(axis=0)
    return low, high
