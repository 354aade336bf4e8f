"""Compute each feature's mean and standard deviation over rows."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.row_source import RowSource
from satstore.analysis.tiles import tile_height, tiles
from satstore.errors import ConfigError, NumericsError


class FeatureMoments(NamedTuple):
    """The mean and the standard deviation (divided by n) of each feature, (n_features,) float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def feature_moments(rows: RowSource, pool: Executor) -> FeatureMoments:
    """Take each feature's mean and standard deviation from the source, or compute them in one float64 pass.

    Blocks are merged by the rule of Chan, Golub and LeVeque (1979): no difference of large sums is taken.

    Raises
    ------
    NumericsError
        If there are NaN or infinities; it names their number and rows.
    """
    n_features = rows.shape[1]
    known = [getattr(rows, name, None) for name in FeatureMoments._fields]
    if all(moment is not None for moment in known):
        return _known_moments(known, n_features)
    count, mean, squares = 0, np.zeros(n_features), np.zeros(n_features)
    step = max(1, 2**18 // n_features)  # float64 copies of 2 MiB
    for place, tile in tiles(rows, tile_height(n_features, 1), pool):
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(tile), step):
                block = tile[start : start + step].astype(np.float64)
                block_mean = block.mean(axis=0)
                block -= block_mean
                delta, total = block_mean - mean, count + len(block)
                squares += np.einsum("ij,ij->j", block, block) + delta**2 * (count * len(block) / total)
                mean += delta * (len(block) / total)
                count = total
        if not np.isfinite(squares).all():
            # In the pool, where no other read of this source can be under way.
            raise pool.submit(nonfinite_error, rows, place.start).result()
    return FeatureMoments(mean, np.sqrt(squares / count))


def _known_moments(known: Sequence[Any], n_features: int) -> FeatureMoments:
    mean, std = (np.asarray(moment, np.float64).ravel() for moment in known)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != n_features or not np.isfinite(values).all():
            raise ConfigError(
                f"expected the rows' {name} to be {n_features} finite numbers, got {len(values)}, "
                f"{np.count_nonzero(~np.isfinite(values))} of them not finite"
            )
    return FeatureMoments(mean, std)


def nonfinite_error(rows: RowSource, start: int = 0) -> NumericsError:
    """Count the values that are not finite, from a row on, and return the error that reports them."""
    height = tile_height(rows.shape[1], 1)
    n_values, n_bad = 0, 0
    found: list[str] = []
    for low in range(start, rows.shape[0], height):
        tile = rows.read(low, min(low + height, rows.shape[0]))
        counts = np.count_nonzero(~np.isfinite(tile), axis=1)
        n_values += int(counts.sum())
        n_bad += int(np.count_nonzero(counts))
        found += [str(low + row) for row in np.flatnonzero(counts)[: 5 - len(found)]]
    if not n_values:
        return NumericsError("the products of rows and weights overflow float32; scale the features down")
    return NumericsError(
        f"{n_values} values are NaN or infinite, in {n_bad} of {rows.shape[0]} rows "
        f"({', '.join(found)}{', …' if n_bad > len(found) else ''}); finite ones are needed: "
        "extract the layer again, or leave these rows out"
    )
