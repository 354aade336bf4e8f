"""Evaluate fitted probes on rows: accuracies, losses and confusion matrices in one pass."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.floats import Float64s, Floats
from satstore.analysis.logistic.loss import Codes, class_logits, softmax_loss, split_positions, tile_logits


class EvaluationSums(NamedTuple):
    """Sums over rows, of P probes: losses (P,), rows right and among the top (P,), confusions (P, k, k)."""

    loss: Float64s
    right: Codes
    top: Codes
    confusion: Codes


@dataclass(frozen=True)
class EvaluationQuery:
    """Evaluate probes of weights (P, K, F) and offset (P, K) on rows less a shift.

    Rows of codes below 0 count as wrong by all measures, and are left out of loss and confusion.

    Attributes
    ----------
    shift
        (P · F,), taken off every row; None for nothing.
    top
        A row counts as among the top if its class is one of so many most probable ones.
    confused
        Whether confusions are counted; else their array is empty, (P, 0, 0).
    """

    weights: Floats
    offset: Floats
    shift: Float64s | None
    top: int
    confused: bool = True

    def zero(self) -> EvaluationSums:
        """Return the sums over no rows."""
        p, n_outputs = self.offset.shape
        k = max(2, n_outputs) if self.confused else 0
        right, top = np.zeros((2, p), np.int64)
        return EvaluationSums(np.zeros(p), right, top, np.zeros((p, k, k), np.int64))

    def share(self, tile: Floats, codes: Codes) -> EvaluationSums:
        """Compute the share of a tile of rows (n, P · F), less the shift, of codes (n,)."""
        sums = self.zero()
        with np.errstate(invalid="ignore", over="ignore"):  # NaN shows in the loss, and is reported there
            maps = split_positions(tile, self.weights, None)
            logits = class_logits(tile_logits(maps, self.weights, self.offset))
            seen = np.flatnonzero(codes >= 0)
            logits, own = logits[..., seen], codes[seen]
            sums.top[:] = np.count_nonzero(count_more_probable(logits, own) < self.top, axis=-1)
            predicted = logits.argmax(axis=1)
            sums.right[:] = np.count_nonzero(predicted == own, axis=-1)
            if self.confused:
                np.add.at(sums.confusion, (np.arange(len(logits))[:, None], own, predicted), 1)
            # What is not finite has to show in the sum, also where no row was seen.
            sums.loss[:] = softmax_loss(logits, own)[0] if len(seen) else logits.sum(axis=(1, 2))
        return sums


def class_codes(labels: NDArray[np.generic], classes: NDArray[np.generic]) -> Codes:
    """Return each label's index in classes, which are ascending; −1 for a label that is not there."""
    codes = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    return np.where(classes[codes] == labels, codes, -1)


def count_more_probable(logits: Floats, codes: Codes) -> Codes:
    """Count the classes before each row's own, (P, n), as logits (P, k, n) descend and ties keep order."""
    own = logits[:, codes, np.arange(len(codes))][:, None]
    earlier = np.arange(logits.shape[1])[:, None] < codes
    return np.asarray(np.count_nonzero((logits > own) | ((logits == own) & earlier), axis=1))
