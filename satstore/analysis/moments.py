"""Mean and covariance of samples, batch by batch: float32 products, summed in float64."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf, isfinite
from typing import Any, Self

import torch
from torch import Tensor

from satstore.errors import ConfigError, NumericsError

# Rows per product. A float32 product over 65,536 random rows is wrong by 6e-8 of the trace, in blocks of
# 16,384 that are added in float64 by 1.4e-8, of 4,096 by 5e-9. Calls cost, though: at the end of each,
# threads wait for each other, on a busy machine for a time slice.
_BLOCK_ROWS = 16384

# Narrower products are float64. MKL adds those of up to 8 features one by one, so that on mostly constant
# maps (a black canvas) all roundings go the same way: 2e-4 of Σ|x|² over 16,384 rows, where 12 features and
# more have 1e-6 at most. They are small, and cost as much to call as to compute.
_NARROW_FEATURES = 16

# Taking the mean product off costs the digits that mean and std are apart: the error, as a share of the
# trace, was measured as 6e-8 · |mean|² / trace on random features, 3e-6 · |mean|² / trace where 98 % of the
# rows are the same (64 to 512 features). Above this ratio the samples are centred before the product.
_CENTRE_ABOVE = 16.0

# A mean summed in float32 is apart from the value of a constant feature by this share at most.
_ABOUT_EQUAL = 2.0**-16

# Rows that wait for a product at most, where the features aren't more: of 1,024 features 16 MiB.
_WAITING_ROWS = 4096

# Features per strip at least: narrower ones cost more in calls than they save in flops.
_STRIP_FEATURES = 64

# Below it squares underflow in float32, and above float32's range their sum overflows: both take float64.
_SMALLEST_MEAN_SQUARE = 1e-30


class NonFiniteError(NumericsError):
    """Samples with NaN or infinities (or float64 values too large to be squared)."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message, count)
        self.count = count


class Moments:
    """Count, mean and scatter of samples, accumulated by pairwise merging.

    The state lives on the device of the first samples (on the CPU for MPS, which has no float64).

    Notes
    -----
    The merging rule is Chan, Golub and LeVeque's: "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979. Within one batch the scatter is Σxxᵀ less the mean's product, which is safe
    while the mean isn't many times the standard deviation, and saves the centred copy; where it is,
    the batch is centred first. Over the whole pass, Σxxᵀ − n·μμᵀ is never formed.

    Batches of few rows wait until there are more: a merge reads and writes the whole scatter, which for 32
    rows of 4,096 features takes far longer than their product, and for 512 rows of 512 half as long.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.empty(0, dtype=torch.float64)
        self._scatter = torch.empty(0, 0, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    @property
    def count(self) -> int:
        """The number of samples."""
        return self._settled()._count

    @property
    def n_features(self) -> int:
        """The number of features; 0 before the first samples."""
        return self._waiting[0].shape[1] if self._waiting else self._mean.shape[0]

    @property
    def mean(self) -> Tensor:
        """(feature,) float64."""
        return self._settled()._mean

    @property
    def scatter(self) -> Tensor:
        """(feature, feature) float64: the sum over samples of (x − mean)(x − mean)ᵀ."""
        return self._settled()._scatter

    def update(self, samples: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        samples
            (sample, feature), floating point, in any memory order; 0 rows change nothing.

        Raises
        ------
        NonFiniteError
            The batch holds NaN or infinities; the moments stay as they were.
        ConfigError
            It isn't two-dimensional, or has another number of features than before.
        """
        if samples.ndim != 2 or self.n_features not in (0, samples.shape[1]):
            expected = self.n_features or "features"
            raise ConfigError(f"expected samples of shape (n, {expected}), found {tuple(samples.shape)}")
        samples = samples.detach().cpu() if samples.device.type == "mps" else samples.detach()
        n_samples, n_features = samples.shape
        with torch.no_grad():
            if n_samples >= _rows_to_wait_for(n_features):
                self._add(_moments_of(samples))
            elif n_samples > 0:
                self._wait(samples)

    def merge(self, other: "Moments") -> None:
        """Add the samples of other moments by Chan's rule; `other` stays as it is."""
        if other.count and self.count and other.n_features != self.n_features:
            raise ConfigError(f"can't merge moments of {other.n_features} features into {self.n_features}")
        self._add(other)

    def _add(self, other: "Moments") -> None:
        """Merge moments that have no waiting rows."""
        if self._count == 0:
            self._count, self._mean, self._scatter = other._count, other._mean.clone(), other._scatter.clone()
        elif other._count > 0:
            count = self._count + other._count
            shift = other._mean.to(self._mean.device) - self._mean
            self._scatter += other._scatter.to(self._scatter.device)
            self._scatter.addr_(shift, shift, alpha=self._count * (other._count / count))
            self._mean.add_(shift, alpha=other._count / count)
            self._count = count

    def _wait(self, samples: Tensor) -> None:
        norm = float(torch.linalg.vector_norm(samples))
        if not isfinite(norm * norm):  # also where only a sum in float32 overflows
            norm = float(torch.linalg.vector_norm(samples, dtype=torch.float64))
            if not isfinite(norm * norm):
                raise _non_finite(samples)
        # A copy: the caller may write over its tensor, or want its memory back.
        self._waiting.append(samples.clone())
        if sum(map(len, self._waiting)) >= _rows_to_wait_for(samples.shape[1]):
            self._settled()

    def _settled(self) -> "Moments":
        """Add the waiting rows, and return itself."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            with torch.no_grad():
                self._add(_moments_of(torch.cat(waiting)))
        return self

    def cpu(self) -> "Moments":
        """Return a copy on the CPU."""
        copy = Moments()
        copy._count, copy._mean, copy._scatter = self.count, self.mean.cpu(), self.scatter.cpu()
        return copy

    def state(self) -> dict[str, Any]:
        """Return a copy of all that it holds, on the CPU, for `from_state`; rows that wait go on waiting."""
        return {
            "count": self._count,
            "mean": self._mean.to("cpu", copy=True),
            "scatter": self._scatter.to("cpu", copy=True),
            "waiting": [rows.to("cpu", copy=True) for rows in self._waiting],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Self:
        """Return moments of samples on a device that go on from a state, to the last bit."""
        moments, place = cls(), "cpu" if device.type == "mps" else device
        moments._count = state["count"]
        moments._mean, moments._scatter = (state[name].to(place) for name in ("mean", "scatter"))
        moments._waiting = [rows.to(place) for rows in state["waiting"]]
        return moments

    def covariance(self) -> Tensor:
        """Return the scatter divided by the number of samples, (feature, feature); 0 for a single sample."""
        if self.count == 0:
            raise NumericsError(
                "no samples were recorded, so there is no covariance; update the moments first"
            )
        return self.scatter / self.count


def _rows_to_wait_for(n_features: int) -> int:
    """Return how many rows are gathered for one product: four per feature, where memory allows."""
    return max(n_features, min(4 * n_features, _WAITING_ROWS))


def moments_bytes(n_features: Iterable[int]) -> int:
    """Estimate the peak memory of the moments of a pass, in bytes.

    Each layer holds its scatter, rows that wait, and, once computed, the covariances of two splits; one layer
    at a time has products of a batch, or its eigenvalues computed.
    """
    sizes = list(n_features)
    held = sum(24 * n**2 + 4 * n * _rows_to_wait_for(n) for n in sizes)
    return held + 28 * max((n**2 for n in sizes), default=0)


def state_bytes(n_features: Iterable[int]) -> int:
    """Estimate the size of the states of some moments, in bytes."""
    return sum(8 * n * (n + 1) + 4 * n * _rows_to_wait_for(n) for n in n_features)


def _moments_of(samples: Tensor) -> Moments:
    """Compute the moments of one batch of at least one row."""
    n_samples, n_features = samples.shape
    gram, sums = _sum_products(samples)
    # Both numbers in one transfer: the only time that a GPU is waited for.
    squares, squared_sums = torch.stack((gram.trace(), sums @ sums)).tolist()
    # NaN and infinities always reach the sum of squares, where nothing cancels.
    if not _SMALLEST_MEAN_SQUARE * n_samples * n_features <= squares < inf:
        if samples.dtype != torch.float64:
            return _moments_of(samples.double())
        if not isfinite(squares):
            raise _non_finite(samples)
    moments = Moments()
    moments._count = n_samples
    moments._mean = sums / n_samples
    if squared_sums / n_samples > _CENTRE_ABOVE * (squares - squared_sums / n_samples):
        shift = moments._mean.to(torch.promote_types(samples.dtype, torch.float32)).double()
        # A feature that is constant has no variance at all: less its own value, not a rounded mean of it.
        first = samples[0].double()
        shift = torch.where((first - shift).abs() <= _ABOUT_EQUAL * shift.abs(), first, shift)
        gram, sums = _sum_products(samples, shift)
        moments._mean = shift + sums / n_samples  # the sums hold what rounding the shift left over
    moments._scatter = gram.addr_(sums, sums, alpha=-1.0 / n_samples)
    return moments


def _sum_products(samples: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum xxᵀ and x over the rows, minus `shift`: mostly float32 within a block, float64 over blocks."""
    n_features = samples.shape[1]
    narrow = n_features < _NARROW_FEATURES
    precision = torch.float64 if narrow else torch.promote_types(samples.dtype, torch.float32)
    product = samples.new_empty(n_features, n_features, dtype=precision)
    products = sums = None
    with torch.autocast(samples.device.type, enabled=False), full_precision():
        for rows in torch.split(samples, _BLOCK_ROWS):
            block = rows.to(precision) if shift is None else rows.to(precision) - shift.to(precision)
            part = _symmetric_product(block, product)
            products = part.to(torch.float64, copy=True) if products is None else products.add_(part)
            sums = block.sum(0).double() if sums is None else sums.add_(block.sum(0))
    assert products is not None
    assert sums is not None
    return products, sums


def _symmetric_product(rows: Tensor, product: Tensor) -> Tensor:
    """Compute rowsᵀ · rows, the triangle in strips and the rest by mirroring: down to 5/8 of the flops."""
    n_features = rows.shape[1]
    width = max(_STRIP_FEATURES, -(-n_features // 4))
    for start in range(0, n_features, width):
        stop = min(start + width, n_features)
        torch.mm(rows[:, start:stop].T, rows[:, :stop], out=product[start:stop, :stop])
        product[:start, start:stop] = product[start:stop, :start].T
    return product


def _non_finite(samples: Tensor) -> NonFiniteError:
    count = max(1, int((~torch.isfinite(samples.square())).sum()))
    message = f"{count} of {samples.numel()} values are NaN, infinite or too large to be squared"
    return NonFiniteError(f"{message}; a lower learning rate may help", count)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep TF32 and bfloat16 out of float32 products: three digits are too few for a spectrum."""
    mkldnn: Any = torch.backends.mkldnn  # its type has no attribute `matmul`, though the module has
    backends: list[Any] = [torch.backends.cuda.matmul, mkldnn.matmul]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
