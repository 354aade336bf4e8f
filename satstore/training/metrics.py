"""Metrics of a classifier over one pass: ``METRICS[name]()`` returns a fresh one.

A metric counts samples on the device of the logits and divides once, in ``compute``: so each batch counts by
its samples, and the pass waits for a CUDA device once, not once per batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from satstore.errors import ConfigError, NumericsError
from satstore.registry import METRICS, Entry

if TYPE_CHECKING:
    from torch import Tensor

    from satstore.protocols import Metric, ValueMetric


def start_metrics(names: Iterable[str]) -> list[Metric]:
    """Return a fresh metric of each name, the accuracy always among them and first.

    Lists, plots and stopping early need the accuracy as a fraction, so it is always satstore's own.
    """
    metrics: list[Metric] = [TopAccuracy("accuracy", 1)]
    for name in names:
        metric = METRICS[name]()
        adapted: Metric = _ByValue(metric) if not hasattr(metric, "compute") else metric
        if adapted.column != metrics[0].column:
            metrics.append(adapted)
    return metrics


class _ByValue:
    """Adapts a :class:`~satstore.protocols.ValueMetric` to the protocol of a metric."""

    def __init__(self, metric: ValueMetric) -> None:
        # Looked up in the class: an object that has seen no batch may not have a value.
        if not (hasattr(metric, "update") and hasattr(metric, "name") and hasattr(type(metric), "value")):
            raise ConfigError(
                f"{type(metric).__name__} is no metric: expected update and compute, or update, name and "
                "the property value"
            )
        self.column = metric.name.replace("-", "_")
        self._metric = metric

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (B, k), labels int64 (B,), on one device."""
        self._metric.update(labels, logits)

    def compute(self) -> float:
        """Return the metric over all batches so far."""
        return float(self._metric.value)


@dataclass(frozen=True)
class PassResult:
    """The mean loss of a pass over a split, and its metrics by their columns."""

    loss: float
    metrics: dict[str, float]

    def columns(self, split: str) -> dict[str, float]:
        """Return loss and metrics by their columns in ``metrics.csv``, such as ``train_loss``."""
        return {f"{split}_{name}": value for name, value in {"loss": self.loss, **self.metrics}.items()}


class MeanLoss:
    """The mean loss over the samples of a pass."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._n_samples = 0

    def update(self, batch_sum: Tensor, n_samples: int) -> None:
        """Count a batch: the sum of its samples' losses, a float64 scalar."""
        self._sums.append(batch_sum)
        self._n_samples += n_samples

    def compute(self, split: str, context: str = "") -> float:
        """Return the mean over all batches so far.

        NumericsError, naming the split, the first such batch and the context, if a loss is not finite.
        """
        import torch

        sums = torch.stack(self._sums)
        if not bool(torch.isfinite(sums).all()):
            batch = int(torch.nonzero(~torch.isfinite(sums))[0])
            raise NumericsError(f"the {split} loss is {float(sums[batch])} in batch {batch}{context}")
        return float(sums.sum()) / self._n_samples


class TopAccuracy:
    """The fraction of samples whose label is among the largest logits, ``n_guesses`` at most."""

    def __init__(self, column: str, n_guesses: int) -> None:
        self.column = column
        self._n_guesses = n_guesses
        self._n_samples = 0
        self._n_correct: Tensor | int = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (B, k), labels int64 (B,), on one device."""
        guesses = logits.detach().topk(min(self._n_guesses, logits.shape[1]), dim=1).indices
        self._n_correct = self._n_correct + (guesses == labels[:, None]).sum()
        self._n_samples += len(labels)

    def compute(self) -> float:
        """Return the fraction, in [0, 1], over all batches so far; NumericsError if there was none."""
        return int(self._n_correct) / _at_least_one(self._n_samples, self.column)


class MCC:
    """The Matthews correlation coefficient of several classes, in [-1, 1].

    With s samples, c of them right, and t and p the true and predicted counts of each class, it is
    (c·s − Σ t·p) / √((s² − Σ p²)(s² − Σ t²)), and 0 where one class takes all labels or all predictions
    (Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient"). The
    confusion matrix enters by its trace and its two margins alone, so only these are kept.
    """

    column = "mcc"

    def __init__(self) -> None:
        self._n_samples = 0
        self._n_correct: Tensor | int = 0
        self._true: Tensor | None = None
        self._predicted: Tensor | None = None

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (B, k), labels int64 (B,), on one device."""
        if self._true is None or self._predicted is None:
            self._true = labels.new_zeros(logits.shape[1])
            self._predicted = labels.new_zeros(logits.shape[1])
        predictions = logits.detach().argmax(dim=1)
        # Not bincount, which waits for the device to learn the largest class.
        ones = labels.new_ones(labels.shape)
        self._true.index_add_(0, labels, ones)
        self._predicted.index_add_(0, predictions, ones)
        self._n_correct = self._n_correct + (predictions == labels).sum()
        self._n_samples += len(labels)

    def compute(self) -> float:
        """Return the coefficient over all batches so far; NumericsError if there was none."""
        n = _at_least_one(self._n_samples, self.column)
        assert self._true is not None
        assert self._predicted is not None
        # Python's integers: the product of the two variances passes int64 from some 60,000 samples on.
        true: list[int] = self._true.tolist()
        predicted: list[int] = self._predicted.tolist()
        covariance = int(self._n_correct) * n - sum(t * p for t, p in zip(true, predicted, strict=True))
        variances = (n * n - sum(p * p for p in predicted)) * (n * n - sum(t * t for t in true))
        return covariance / sqrt(variances) if variances else 0.0


def _at_least_one(n_samples: int, column: str) -> int:
    if n_samples == 0:
        raise NumericsError(f"{column} of no samples; update the metric with a batch first")
    return n_samples


ROWS = (
    Entry(
        "Accuracy",
        "satstore.training.metrics:TopAccuracy",
        {"column": "accuracy", "n_guesses": 1},
        family="classification",
        description="fraction of samples classified correctly",
    ),
    Entry(
        "Top5Accuracy",
        "satstore.training.metrics:TopAccuracy",
        {"column": "top5_accuracy", "n_guesses": 5},
        family="classification",
        description="fraction of samples whose class is among the five likeliest, or all if there are fewer",
    ),
    Entry(
        "MCC",
        "satstore.training.metrics:MCC",
        family="classification",
        description="Matthews correlation coefficient of several classes",
    ),
)

ABSENT = {
    r"(Adjusted)?BalancedAccuracy|F1|Precision|Recall|Sensitivity|Specificity|ConfusionMatrix": (
        "satstore has Accuracy, Top5Accuracy and MCC, and run.confusion() and run.class_accuracy() of probes"
    )
}
"""Of metrics that phd-lab's configs name and satstore lacks: a pattern of names to what it has."""
