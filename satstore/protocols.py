"""Protocols of the models, datasets, optimizers and metrics of plugins.

Each kind of factory is called by keyword or with one argument, as written here; further parameters need
defaults. A stage is a :class:`satstore.stages.stage.Stage`, which the decorator ``stage`` makes of a
function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import os

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader

    from satstore.datasets.image_data import ImageData


class ModelFactory(Protocol):
    """Makes a model with random weights."""

    def __call__(self, *, num_classes: int) -> nn.Module:
        """Return a module that maps float32 images (B, 3, r, r) to logits (B, num_classes)."""


class DatasetFactory(Protocol):
    """Makes a dataset, read as a whole or file by file; :func:`.image_data.assemble` helps."""

    def __call__(
        self, *, resolution: int, data_dir: str | os.PathLike[str], augment: bool, seed: int
    ) -> ImageData:
        """Return the training and evaluation images of a resolution, in pixels."""


class LoaderBundle(Protocol):
    """Two loaders of (images, labels), and the number of classes.

    The images of ``test_dataset`` must not be augmented. A tuple (train loader, test loader, size, number of
    classes) is accepted too.
    """

    train_dataset: DataLoader[Any]
    test_dataset: DataLoader[Any]
    cardinality: int


class LoaderFactory(Protocol):
    """Makes a dataset as torch loaders; known by its parameter ``output_size`` or ``output_resolution``."""

    def __call__(self, *, batch_size: int, output_size: int, cache_dir: str) -> LoaderBundle:
        """Return loaders over images of ``output_size`` pixels a side."""


class Scheduler(Protocol):
    """A learning rate's schedule, stepped once per epoch."""

    def step(self) -> None:
        """Switch to the next epoch's rate."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: tensors, numbers, strings, lists and dicts."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""


class OptimizerBundle(Protocol):
    """An optimizer and its schedule."""

    optimizer: Optimizer
    scheduler: Scheduler | None


class OptimizerFactory(Protocol):
    """Makes an optimizer of a model's parameters."""

    def __call__(self, model: nn.Module) -> Optimizer | tuple[Optimizer, Scheduler | None] | OptimizerBundle:
        """Return the optimizer, alone or with a schedule."""


class Metric(Protocol):
    """Measures a classifier over one pass.

    Attributes
    ----------
    column
        The metric's name in tables.
    """

    column: str

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (B, k), labels int64 (B,), on one device."""

    def compute(self) -> float:
        """Return the metric over all batches so far."""


class ValueMetric(Protocol):
    """A metric whose value is a property, and whose update takes the labels first."""

    name: str

    @property
    def value(self) -> float:
        """The metric over all batches so far."""

    def update(self, y_true: Tensor, y_pred: Tensor) -> None:
        """Count a batch: labels int64 (B,), logits (B, k), on one device."""


class MetricFactory(Protocol):
    """Makes a fresh metric for every pass."""

    def __call__(self) -> Metric | ValueMetric:
        """Return a metric that has seen no batch."""
