"""The metrics, against scikit-learn on all samples at once."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef, top_k_accuracy_score

from satstore.errors import NumericsError
from satstore.registry import METRICS

Oracle = Callable[[np.ndarray, np.ndarray], float]


def top5(labels: np.ndarray, logits: np.ndarray) -> float:
    n_classes = logits.shape[1]
    if n_classes <= 5:
        return 1.0
    return float(top_k_accuracy_score(labels, logits, k=5, labels=np.arange(n_classes)))


ORACLES: dict[str, Oracle] = {
    "Accuracy": lambda labels, logits: float(accuracy_score(labels, logits.argmax(1))),
    "Top5Accuracy": top5,
    "MCC": lambda labels, logits: float(matthews_corrcoef(labels, logits.argmax(1))),
}
COLUMNS = {"Accuracy": "accuracy", "Top5Accuracy": "top5_accuracy", "MCC": "mcc"}


def make_predictions(n_samples: int, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that are right more often than by chance, classes of unequal size, and labels."""
    rng = np.random.default_rng(n_samples + n_classes)
    labels = np.minimum(rng.integers(0, n_classes, n_samples), rng.integers(0, n_classes, n_samples))
    logits = rng.normal(size=(n_samples, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(labels)


def measure(name: str, logits: torch.Tensor, labels: torch.Tensor, batch_size: int) -> float:
    metric = METRICS[name]()
    for batch in torch.arange(len(labels)).split(batch_size):
        metric.update(logits[batch], labels[batch])
    value = metric.compute()
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("name", METRICS)
def test_metric__is_described_and_named_for_tables(name: str) -> None:
    entry = METRICS.entry(name)
    assert entry.family
    assert entry.description
    column = METRICS[name]().column
    assert column.isidentifier()
    assert column == column.lower()
    assert column == COLUMNS.get(name, column)


def test_metrics__have_columns_of_their_own() -> None:
    columns = [METRICS[name]().column for name in METRICS]
    assert len(set(columns)) == len(columns)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("n_classes", [2, 4, 5, 10, 100])
def test_metric__equals_scikit_learn_on_unequal_batches(name: str, n_classes: int) -> None:
    logits, labels = make_predictions(1003, n_classes)
    whole = measure(name, logits, labels, 1003)
    # Batches of 64 leave one of 43; a mean of the batches' means would differ.
    assert measure(name, logits, labels, 64) == whole
    if name in ORACLES:
        assert whole == pytest.approx(ORACLES[name](labels.numpy(), logits.numpy()), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_metric__perfect_predictions_give_one(name: str) -> None:
    labels = torch.arange(50) % 7
    assert measure(name, torch.eye(7)[labels], labels, 8) == 1.0


@pytest.mark.parametrize("name", METRICS)
def test_metric__of_no_samples_is_an_error(name: str) -> None:
    with pytest.raises(NumericsError, match="no samples"):
        METRICS[name]().compute()


@pytest.mark.parametrize("name", METRICS)
def test_metric__starts_afresh(name: str) -> None:
    logits, labels = make_predictions(100, 10)
    first = measure(name, logits, labels, 10)
    assert measure(name, logits, labels, 10) == first


@pytest.mark.parametrize("name", METRICS)
def test_metric__takes_logits_that_need_a_gradient_and_half_precision(name: str) -> None:
    logits, labels = make_predictions(64, 10)
    half = logits.half().requires_grad_()
    expected = measure(name, half.detach().float(), labels, 64)
    assert measure(name, half, labels, 64) == expected


def test_top5_accuracy__of_few_classes_is_one() -> None:
    logits, labels = make_predictions(20, 3)
    assert measure("Top5Accuracy", logits, labels, 20) == 1.0


@pytest.mark.parametrize("constant", ["labels", "predictions"])
def test_mcc__is_zero_where_one_class_takes_all(constant: str) -> None:
    logits, labels = make_predictions(60, 4)
    if constant == "labels":
        labels = torch.full_like(labels, 2)
    else:
        logits = torch.eye(4)[torch.full_like(labels, 2)]
    assert measure("MCC", logits, labels, 16) == 0.0
    assert matthews_corrcoef(labels.numpy(), logits.argmax(1).numpy()) == 0.0


def test_mcc__is_negative_for_inverted_predictions() -> None:
    labels = torch.arange(40) % 2
    assert measure("MCC", torch.eye(2)[1 - labels], labels, 7) == -1.0


def test_mcc__does_not_overflow_at_a_million_samples() -> None:
    labels = torch.arange(1_500_000) % 3
    predictions = torch.where(torch.arange(1_500_000) % 10 == 0, (labels + 1) % 3, labels)
    value = measure("MCC", torch.eye(3)[predictions], labels, 500_000)
    assert value == pytest.approx(matthews_corrcoef(labels.numpy(), predictions.numpy()), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_metric__counts_on_cuda_without_waiting(name: str) -> None:
    logits, labels = make_predictions(1003, 10)
    expected = measure(name, logits, labels, 64)
    metric = METRICS[name]()
    batches = [(logits[batch].cuda(), labels[batch].cuda()) for batch in torch.arange(1003).split(64)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            metric.update(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric.compute() == expected


@pytest.mark.parametrize("registry", ["DATASETS", "OPTIMIZERS", "METRICS"])
def test_names__are_listed_without_torch(registry: str) -> None:
    code = (
        f"import sys; from satstore.registry import {registry} as names; list(names); names.entries(); "
        "print(sorted({'torch', 'torchvision', 'sklearn', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
