"""Optimizers: ``OPTIMIZERS[name](model)`` returns the optimizer and its scheduler, or None.

The scheduler is stepped once per epoch. torch is imported when an optimizer is made, not to list the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from satstore.errors import ConfigError
from satstore.registry import OPTIMIZERS, Entry

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from satstore.protocols import Scheduler


def sgd(
    model: nn.Module, *, lr: float = 0.01, step_epochs: int | None = None, weight_decay: float = 5e-4
) -> tuple[Optimizer, LRScheduler | None]:
    """Return SGD with momentum 0.9, its rate divided by 10 every ``step_epochs``."""
    from torch.optim import SGD
    from torch.optim.lr_scheduler import StepLR

    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    return optimizer, StepLR(optimizer, step_epochs, gamma=0.1) if step_epochs else None


def adaptive(model: nn.Module, *, algorithm: str) -> tuple[Optimizer, None]:
    """Return an optimizer of ``torch.optim`` at torch's defaults."""
    import torch.optim

    optimizer: Optimizer = getattr(torch.optim, algorithm)(model.parameters())
    return optimizer, None


def make_optimizer(name: str, model: nn.Module) -> tuple[Optimizer, Scheduler | None]:
    """Make the optimizer of a name, whichever of the forms of its protocol its factory returns.

    ConfigError if it returns none of them.
    """
    from torch.optim import Optimizer

    found = OPTIMIZERS[name](model)
    if isinstance(found, Optimizer):
        return found, None
    optimizer, scheduler = (
        found
        if isinstance(found, tuple) and len(found) == 2
        else (getattr(found, "optimizer", None), getattr(found, "scheduler", None))
    )
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer {name!r} returned {type(found).__name__}; expected a torch optimizer, or one "
            "and its schedule"
        )
    return optimizer, scheduler


def _sgd_row(name: str, description: str, **arguments: float) -> Entry:
    return Entry(name, "satstore.training.optimizers:sgd", arguments, "SGD", description)


def _adaptive_row(name: str, algorithm: str) -> Entry:
    description = f"{algorithm} at torch's defaults"
    return Entry(
        name, "satstore.training.optimizers:adaptive", {"algorithm": algorithm}, "adaptive", description
    )


ROWS = (
    _sgd_row("lrs", "SGD at 0.1, divided by 10 every 10 epochs: for 30 epochs", lr=0.1, step_epochs=10),
    _sgd_row("lrs60", "SGD at 0.1, divided by 10 every 20 epochs: for 60 epochs", lr=0.1, step_epochs=20),
    _sgd_row("lrs90", "SGD at 0.1, divided by 10 every 30 epochs: for 90 epochs", lr=0.1, step_epochs=30),
    _sgd_row("lrs180", "SGD at 0.1, divided by 10 every 50 epochs", lr=0.1, step_epochs=50),
    _sgd_row("lrs_imgnet", "lrs with a weight decay of 1e-4", lr=0.1, step_epochs=10, weight_decay=1e-4),
    _sgd_row("lrs60_imgnet", "lrs60 with a weight decay of 1e-4", lr=0.1, step_epochs=20, weight_decay=1e-4),
    _sgd_row("noopt", "SGD at 0: weights stay as they are", lr=0.0),
    _sgd_row("sgd", "SGD at 0.01"),
    _adaptive_row("adam", "Adam"),
    _adaptive_row("adamw", "AdamW"),
    _adaptive_row("radam", "RAdam"),
)
