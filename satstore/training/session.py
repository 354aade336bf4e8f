"""A session: everything of a training that a checkpoint holds."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from satstore.config.experiment import ExperimentConfig
from satstore.datasets.image_data import ImageData
from satstore.system.process_group import ALONE, Ranks
from satstore.training.optimizers import make_optimizer
from satstore.training.run_model import build_model


class Session:
    """Everything that training changes: model, optimizer, scheduler, order of the data, history.

    Attributes
    ----------
    model
        The model, its parameters and buffers under its own names.
    trained
        What is called in training: the model, or around it what averages gradients over several ranks.
    epoch
        Epochs done.
    history
        One row of metrics per epoch done.
    """

    def __init__(
        self, config: ExperimentConfig, data: ImageData, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.config = config
        self.device = device
        self.ranks = ranks
        random.seed(config.seed)
        np.random.seed(config.seed % 2**32)  # noqa: NPY002  # third parties' augmentations may draw from it
        self.model = build_model(config, len(data.classes), device)
        if ranks.size > 1 and device.type == "cuda":
            # Statistics of the whole batch, as one process has them; torch has no such layer for the CPU.
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.trained = ranks.wrap(self.model)
        if not ranks.is_main:
            torch.manual_seed(config.seed + (ranks.rank << 32))  # dropout and augmentation of its own
        self.optimizer, self.scheduler = make_optimizer(config.optimizer, self.model)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.history: list[dict[str, float]] = []

    def state(self) -> dict[str, Any]:
        """Return all of it, in types that load with ``weights_only=True``; the ranks call this together."""
        rng, *others = self.ranks.gather(self._rng()) or [{}]
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "epoch": self.epoch,
            "history": self.history,
            "loader": self.generator.get_state(),
            "rng": rng,
            **({"rng_of_ranks": others} if others else {}),
        }

    def _rng(self) -> dict[str, Any]:
        kind, keys, *numpy_rest = np.random.get_state()  # noqa: NPY002
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "python": _as_lists(random.getstate()),
            "numpy": [kind, np.asarray(keys).tolist(), *numpy_rest],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state of :meth:`state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.epoch = state["epoch"]
        self.history = state["history"]
        self.generator.set_state(state["loader"])
        known = [state["rng"], *state.get("rng_of_ranks", ())]
        if self.ranks.rank >= len(known):
            return  # one more than there were: it goes on with its own seed
        rng = known[self.ranks.rank]
        torch.set_rng_state(rng["torch"])
        if rng["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)
        version, internal, gauss = rng["python"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(tuple(rng["numpy"]))  # noqa: NPY002


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value
