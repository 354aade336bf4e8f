"""Projections of a layer's features: onto the principal axes of a covariance, or onto random axes."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.spectrum import intrinsic_dimension
from satstore.errors import NumericsError

if TYPE_CHECKING:
    from torch import Tensor

Float64 = NDArray[np.float64]

DELTAS = (
    *(round(0.9 + 0.01 * n, 2) for n in range(10)),
    *(0.992, 0.994, 0.996, 0.998, 0.999),
    *(round(0.999 + 0.0001 * n, 4) for n in range(1, 10)),
)
"""The shares of the variance that projections are tried at."""


@dataclass(frozen=True)
class Axes:
    """A covariance's eigenvalues (feature,), descending, and its eigenvectors (feature, axis)."""

    eigenvalues: Float64
    eigenvectors: Float64

    def dimension(self, delta: float) -> int:
        """Return the intrinsic dimension at delta; see `satstore.analysis.spectrum.intrinsic_dimension`."""
        return int(intrinsic_dimension(self.eigenvalues, delta))

    def basis(self, delta: float) -> Float64:
        """Return the first axes, as many as explain delta of the variance: (feature, dimension)."""
        return self.eigenvectors[:, : self.dimension(delta)]


def decompose(covariance: Float64) -> Axes:
    """Compute the axes of a covariance (feature, feature); raise a NumericsError if it is not finite."""
    if not np.isfinite(covariance).all():
        raise NumericsError("the covariance is not finite, so it has no principal axes")
    values, vectors = np.linalg.eigh(covariance)
    return Axes(values[::-1].clip(min=0.0), np.ascontiguousarray(vectors[:, ::-1]))


def random_basis(n_features: int, dimension: int, seed: Iterable[int]) -> Float64:
    """Draw an orthonormal basis (feature, dimension), every subspace as likely.

    The columns are those of Q in the QR decomposition of a Gaussian matrix, whose span is uniformly
    distributed (Stewart, "The efficient generation of random orthogonal matrices", 1980).
    """
    draws = np.random.default_rng(list(seed)).standard_normal((n_features, dimension))
    basis: Float64 = np.linalg.qr(draws)[0]
    return basis


def project_onto(x: "Tensor", projection: "Tensor", mean: "Tensor") -> "Tensor":
    """Project features on axis 1: mean + P(x − mean), in the dtype of x.

    Parameters
    ----------
    x
        (batch, feature, …).
    projection
        (feature, feature): P, symmetric.
    mean
        (feature,): the point that the projection leaves unchanged.
    """
    import torch

    in_full = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
    with in_full:
        features_last = x.to(projection.dtype).transpose(1, -1)
        return ((features_last - mean) @ projection + mean).transpose(1, -1).to(x.dtype)
