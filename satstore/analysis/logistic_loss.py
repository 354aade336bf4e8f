"""The losses of logistic regression, and one tile's share of them: pure functions."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from satstore.analysis.rows import Floats

Float64s = NDArray[np.float64]
Codes = NDArray[np.int64]


class LossSums(NamedTuple):
    """Sums over rows: the loss, and its gradients by W (K, F), one tile's in its dtype, and by b (K,)."""

    loss: float
    weights: Floats
    intercept: Float64s


Loss = Callable[[Floats, Codes], tuple[float, Floats]]


def softmax_loss(logits: Floats, codes: Codes) -> tuple[float, Floats]:
    """Compute −Σᵢ log softmax(logitsᵢ)[codeᵢ] and its gradient by the logits.

    Parameters
    ----------
    logits
        (k, n), overwritten. Classes go first: their sums and maxima then run along the long axis.
    codes
        (n,), from 0 to k − 1.

    Returns
    -------
    tuple of float and array
        The sum, and the gradient softmax − onehot, (k, n).
    """
    columns = np.arange(logits.shape[1])
    logits -= logits.max(axis=0)
    own = logits[codes, columns].astype(np.float64)
    np.exp(logits, out=logits)
    # In float64: of a row that is almost certain, the loss is log(1 + tiny), and float32 would drop the tiny.
    totals = logits.sum(axis=0, dtype=np.float64)
    logits *= (1 / totals).astype(logits.dtype)
    logits[codes, columns] -= 1
    return float(np.sum(np.log(totals) - own)), logits


def binomial_loss(logits: Floats, codes: Codes) -> tuple[float, Floats]:
    """Compute Σᵢ log(1 + exp(∓logitᵢ)), − for code 1, and its gradient by the logits.

    Parameters
    ----------
    logits
        (1, n).
    codes
        (n,), 0 or 1.

    Returns
    -------
    tuple of float and array
        The sum, and the gradient expit(logit) − code, (1, n).
    """
    wide = logits[0].astype(np.float64)
    loss = np.logaddexp(0, np.where(codes == 1, -wide, wide)).sum()
    return float(loss), (expit(wide) - codes).astype(logits.dtype)[None]


def class_logits(logits: Floats) -> Floats:
    """Give two classes a logit each, (2, n): 0 and the one there is. More classes have theirs, (k, n)."""
    return np.concatenate([np.zeros_like(logits), logits]) if len(logits) == 1 else logits


def softmax(logits: Floats) -> Floats:
    """Compute softmax along the first axis."""
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def tile_logits(tile: Floats, weights: Floats, offset: Floats) -> Floats:
    """Compute weights (K, F) times tile (n, F) plus offset (K,), (K, n)."""
    logits = weights @ tile.T
    logits += offset[:, None]
    return logits


def tile_loss_and_gradient(
    tile: Floats, codes: Codes, weights: Floats, offset: Floats, loss: Loss
) -> LossSums:
    """Compute one tile's share of the loss and the gradient: a pure function of its arguments.

    Parameters
    ----------
    tile
        (n, F), float32 or float64, and of the same dtype: weights (K, F), offset (K,).
    codes
        (n,), the class numbers.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # NaN shows in the loss, and is told there
        total, residuals = loss(tile_logits(tile, weights, offset), codes)
        return LossSums(total, residuals @ tile, residuals.sum(axis=1, dtype=np.float64))


def sum_in_order(parts: Iterable[LossSums], shape: tuple[int, int]) -> LossSums:
    """Add tiles' shares in float64, first to last: the one order that every way of computing them keeps."""
    loss, weights, intercept = 0.0, np.zeros(shape), np.zeros(shape[0])
    for part in parts:
        loss += part.loss
        weights += part.weights
        intercept += part.intercept
    return LossSums(loss, weights, intercept)
