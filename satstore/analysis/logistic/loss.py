"""The losses of logistic regression, and one tile's share of them: pure functions.

P problems are computed at once, each with its own features of the same rows. Shapes as in :mod:`.problem`: P
problems (1, or one per position of a pixelwise probe), n rows, F features, k classes, K outputs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from satstore.analysis.floats import Float64s, Floats

Codes = NDArray[np.int64]
"""A class number per row, (n,): the place of its label among the sorted classes; −1 for none of them."""


class LossSums(NamedTuple):
    """Sums over rows: the losses (P,), and their gradients by W (P, K, F) and by b (P, K)."""

    loss: Float64s
    weights: Floats
    intercept: Float64s


def softmax_loss(logits: Floats, codes: Codes) -> tuple[Float64s, Floats]:
    """Compute −Σᵢ log softmax(logitsᵢ)[codeᵢ] and its gradient by the logits.

    Parameters
    ----------
    logits
        (P, k, n), overwritten. Classes go before rows: their sums and maxima then run along the long axis.

    Returns
    -------
    tuple of array and array
        The sums, (P,), and the gradient softmax − onehot, (P, k, n).
    """
    columns = np.arange(logits.shape[-1])
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[:, codes, columns].astype(np.float64)
    np.exp(logits, out=logits)
    # In float64: of a row that is almost certain, the loss is log(1 + tiny), and float32 would drop the tiny.
    totals = logits.sum(axis=1, dtype=np.float64)
    logits *= (1 / totals).astype(logits.dtype)[:, None]
    logits[:, codes, columns] -= 1
    return np.sum(np.log(totals) - own, axis=-1), logits


def binomial_loss(logits: Floats, codes: Codes) -> tuple[Float64s, Floats]:
    """Compute Σᵢ log(1 + exp(∓logitᵢ)), − for code 1, (P,), and its gradient by the logits (P, 1, n)."""
    wide = logits.astype(np.float64)
    losses = np.logaddexp(0, np.where(codes == 1, -wide, wide)).sum(axis=(1, 2))
    return losses, (expit(wide) - codes).astype(logits.dtype)


def class_logits(logits: Floats) -> Floats:
    """Give two classes a logit each, (P, 2, n): 0 and the one there is. More classes have theirs."""
    return np.concatenate([np.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits


def softmax(logits: Floats) -> Floats:
    """Compute softmax along the classes, (P, k, n)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def tile_logits(tile: Floats, weights: Floats, offset: Floats) -> Floats:
    """Compute weights (P, K, F) times tile (n, P, F) plus offset (P, K), (P, K, n)."""
    logits = weights @ tile.transpose(1, 2, 0)
    logits += offset[:, :, None]
    return logits


@dataclass(frozen=True)
class LossQuery:
    """Asks for the loss and its gradients at weights (p, K, F) and offset (p, K), of rows less a shift.

    Attributes
    ----------
    weights, offset
        In the dtype of the products, float32 or float64.
    shift
        (P · F,), taken off every row; None for nothing.
    positions
        Which of the P positions of a row the p problems are of; None for all.
    """

    weights: Floats
    offset: Floats
    shift: Float64s | None = None
    positions: NDArray[np.int64] | None = None

    def zero(self) -> LossSums:
        """Return the sums over no rows, float64."""
        shape = self.weights.shape
        return LossSums(np.zeros(shape[0]), np.zeros(shape), np.zeros(shape[:2]))

    def share(self, tile: Floats, codes: Codes) -> LossSums:
        """Compute the share of a tile of rows (n, P · F), less the shift, of codes (n,)."""
        maps = split_positions(tile, self.weights, self.positions)
        return tile_loss_and_gradient(maps, codes, self.weights, self.offset)


def split_positions(tile: Floats, weights: Floats, positions: NDArray[np.int64] | None) -> Floats:
    """Return a tile of rows (n, P · F) by position, (n, p, F)."""
    maps = tile.reshape(len(tile), -1, weights.shape[2])
    return maps if positions is None else maps[:, positions]


def tile_loss_and_gradient(tile: Floats, codes: Codes, weights: Floats, offset: Floats) -> LossSums:
    """Compute one tile's share of the loss and the gradient: a pure function of its arguments.

    Parameters
    ----------
    tile
        (n, P, F), float32 or float64, and of the same dtype: weights (P, K, F), offset (P, K).
    """
    compute_loss = softmax_loss if weights.shape[1] > 1 else binomial_loss
    with np.errstate(invalid="ignore", over="ignore"):  # NaN shows in the loss, and is reported there
        totals, residuals = compute_loss(tile_logits(tile, weights, offset), codes)
        return LossSums(totals, residuals @ tile.transpose(1, 0, 2), residuals.sum(axis=2, dtype=np.float64))
