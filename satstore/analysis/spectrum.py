"""Spectra of covariances, and their intrinsic dimension and saturation.

Spectra are stored, so that saturation at any delta and by either definition can be computed afterwards, for
all epochs at once. NumPy only: `satstore saturation` need not wait for torch.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from satstore.errors import ConfigError, NumericsError

if TYPE_CHECKING:
    import pandas as pd

Float64 = NDArray[np.float64]
Definition = Literal["exact", "delve"]


def eigenvalues(covariance: Float64) -> Float64:
    """Compute the spectrum of one covariance; raise a NumericsError if there is none.

    Parameters
    ----------
    covariance
        (feature, feature), symmetric; only its lower triangle is read.

    Returns
    -------
    ndarray
        (feature,), descending, negatives set to 0. Values below about 1e-7 of the sum are rounding
        if the moments came from float32 latents: they matter only for a delta that close to 1.
    """
    covariance = np.asarray(covariance, dtype=np.float64)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ConfigError(f"a covariance has shape (features, features), but this one has {covariance.shape}")
    if not np.isfinite(covariance).all():
        bad = int((~np.isfinite(covariance)).sum())
        raise NumericsError(
            f"{bad} of {covariance.size} entries of the covariance are not finite: no spectrum"
        )
    # A covariance is positive semidefinite: what falls below 0 is rounding.
    try:
        found = np.linalg.eigvalsh(covariance)
    except np.linalg.LinAlgError as error:
        raise NumericsError(
            f"the eigenvalues of the covariance can't be found ({error}): no spectrum"
        ) from error
    spectrum: Float64 = found[::-1].clip(min=0.0)
    return spectrum


def intrinsic_dimension(eigenvalues: Float64, delta: float, definition: Definition = "exact") -> Float64:
    """Count the directions that hold the share `delta` of the variance.

    Parameters
    ----------
    eigenvalues
        (..., eigenvalue), descending and not negative, as `eigenvalues` returns them; the leading
        axes (epochs, say) are kept.
    delta
        In (0, 1].
    definition
        "exact" is the smallest k with λ₁ + … + λ_k ≥ delta · Σλ: 1 for rank 1, and 0 only if Σλ is 0.
        "delve" is what the `delve` package returns (0.1.50, ``compute_intrinsic_dimensionality``): the
        number of cumulative shares strictly below delta, as a rule one less, and 0 for rank 1. (Its code
        would add one back in two cases, but slices an array that holds no more columns by then.)

    Returns
    -------
    ndarray
        (...), whole numbers as float64, so that a spectrum with NaN or infinities can give NaN.

    Raises
    ------
    ConfigError
        `delta` is outside (0, 1], or the definition is neither of the two.
    """
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    if not isinstance(delta, int | float) or not 0.0 < delta <= 1.0:
        raise ConfigError(f"delta is {delta!r}, but has to be a number above 0 and at most 1")
    if eigenvalues.ndim == 0 or eigenvalues.shape[-1] == 0:
        raise ConfigError(f"a spectrum has shape (..., eigenvalues), but this one has {eigenvalues.shape}")
    if definition not in get_args(Definition):
        raise ConfigError(f"definition is {definition!r}, but has to be 'exact' or 'delve'")
    # What overflows is not finite, and gives NaN; so does 0 / 0, which is below nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        cumulative = np.cumsum(eigenvalues, axis=-1)
        # The total is the last cumulative sum, not a sum of its own: another order of additions could
        # round to more than any cumulative sum reaches, and delta = 1 would find no k.
        total = cumulative[..., -1:]
        if definition == "exact":
            count = np.where(total[..., 0] > 0, (cumulative < delta * total).sum(axis=-1) + 1, 0)
        else:
            count = (cumulative / total < delta).sum(axis=-1)
    return np.where(np.isfinite(total[..., 0]), count.astype(np.float64), np.nan)


def dimension_table(eigenvalues: Float64, deltas: Sequence[float]) -> Float64:
    """Tabulate the exact intrinsic dimension (epoch, delta) of spectra (epoch, eigenvalue)."""
    table = np.full((len(eigenvalues), len(deltas)), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.cumsum(eigenvalues, axis=-1)
    for epoch, cumulative in enumerate(sums):
        total = cumulative[-1]
        if np.isfinite(total):
            below = np.searchsorted(cumulative, np.asarray(deltas) * total)
            table[epoch] = below + 1 if total > 0 else 0
    return table


def saturation(eigenvalues: Float64, delta: float, definition: Definition = "exact") -> Float64:
    """Divide the intrinsic dimension by the number of features: in [0, 1], or NaN.

    Parameters, shapes and errors are those of `intrinsic_dimension`.
    """
    dimension: Float64 = intrinsic_dimension(eigenvalues, delta, definition)
    return dimension / float(np.shape(eigenvalues)[-1])


def tabulate_saturation(
    spectra: Mapping[str, Mapping[str, Float64]],
    layers: Sequence[str],
    delta: float,
    definition: Definition = "exact",
) -> "pd.DataFrame":
    """Tabulate intrinsic dimension and saturation, a row per epoch, split and layer, in this order.

    Parameters
    ----------
    spectra
        Split to layer to (epoch, eigenvalue).
    """
    import pandas as pd

    frames = []
    recorded = [(split, layer) for split in spectra for layer in layers if layer in spectra[split]]
    for place, (split, layer) in enumerate(recorded):
        dimension = intrinsic_dimension(spectra[split][layer], delta, definition)
        n_features = spectra[split][layer].shape[-1]
        columns = {
            "delta": delta,
            "definition": definition,
            "epoch": range(len(dimension)),
            "split": split,
            "layer": layer,
            "index": layers.index(layer),
            "n_features": n_features,
            "intrinsic_dimension": dimension,
            "saturation": dimension / n_features,
        }
        frames.append(pd.DataFrame(columns).assign(place=place))
    return pd.concat(frames).sort_values(["epoch", "place"], ignore_index=True).drop(columns="place")
