"""The session of a training: everything that an epoch changes and a checkpoint holds."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from satstore.config.experiment import ExperimentConfig
from satstore.datasets.image_data import Batch, ImageData
from satstore.datasets.loaders import make_loader
from satstore.system.process_group import SINGLE_PROCESS, ProcessGroup
from satstore.training.optimizers import make_optimizer
from satstore.training.session_data import choose_workers


class Session:
    """Train a model on data: its optimizer and scheduler, the order of the data, and the history so far.

    Each process of a group makes a session of equal weights.

    Attributes
    ----------
    model
        The model on its device, its parameters and buffers under its own names.
    training_model
        What training calls: the model, or what averages its gradients over several processes.
    epoch
        Epochs done.
    history
        One row of metrics per epoch done.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: nn.Module,
        data: ImageData,
        device: torch.device,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.config, self.data, self.device, self.group = config, data, device, group
        if group.size > 1 and device.type == "cuda":
            # Statistics of the whole batch, as one process has them; torch has no such layer for the CPU.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self.model, self.training_model = model, group.wrap_model(model)
        if not group.is_main:
            torch.manual_seed(config.seed + (group.rank << 32))  # dropout and augmentation of its own
        self.optimizer, self.scheduler = make_optimizer(config.optimizer, self.model)
        self.workers = choose_workers(config, data.in_memory)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.history: list[dict[str, float]] = []

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch was trained, or one that is good enough to stop."""
        accuracy = self.history[-1]["eval_accuracy"] if self.history else None
        return self.config.is_finished(self.epoch, accuracy)

    def loader(self, split: str) -> DataLoader[Batch]:
        """Return a loader of this process's share of a split's batches; those of training are shuffled."""
        is_training = split == "train"
        return make_loader(
            self.data.train if is_training else self.data.eval,
            self.config.batch_size,
            shuffle=is_training,
            generator=self.generator if is_training else None,
            workers=self.workers,
            pin_memory=True,
            group=self.group,
        )

    def end_epoch(self, row: dict[str, float]) -> None:
        """Step the scheduler, count the epoch, and append its metrics to the history."""
        if self.scheduler:
            self.scheduler.step()
        self.epoch += 1
        self.history.append(row)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, in types that load with ``weights_only=True``.

        All processes of the group have to call it together; the main one's has the random states of all.
        """
        rng, *others = self.group.gather(self._rng()) or [{}]
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
        """Load a state that :meth:`state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.epoch = state["epoch"]
        self.history = state["history"]
        self.generator.set_state(state["loader"])
        known = [state["rng"], *state.get("rng_of_ranks", ())]
        if self.group.rank >= len(known):
            return  # more processes than before: this one goes on with its own seed
        rng = known[self.group.rank]
        torch.set_rng_state(rng["torch"])
        if rng["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)
        version, internal, gauss = rng["python"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(tuple(rng["numpy"]))  # noqa: NPY002


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value
