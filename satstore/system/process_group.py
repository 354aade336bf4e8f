"""Group the processes that train one model together: each computes its share of every batch.

The first process, the main one, holds the run's lock, and alone writes and reports. A process that trains by
itself is a group of one: every method then returns what it is given.
"""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class ProcessGroup:
    """The `size` processes that train one model, seen from the one of a rank, counted from 0."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def counts(self, n_items: int) -> list[int]:
        """Return how many of some items each process takes: as equal as can be, the first ones more."""
        return [n_items // self.size + (rank < n_items % self.size) for rank in range(self.size)]

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of some items; the parts follow each other in the order of the ranks."""
        counts = self.counts(len(items))
        start = sum(counts[: self.rank])
        return items[start : start + counts[self.rank]]

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """Return a module that calls the model and averages its gradients over all processes."""
        if self.size == 1:
            return model
        return cast(nn.Module, DistributedDataParallel(model, gradient_as_bucket_view=False))

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the main process's buffers, such as running means, to all processes."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes on the main one; an empty list on the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, found, dst=0)
        return found or []

    def all_gather(self, part: Tensor, n_samples: int) -> Tensor:
        """Concatenate all processes' parts, (n, …) as :meth:`share` gives them, by rank, on every one."""
        if self.size == 1:
            return part
        counts = self.counts(n_samples)
        # Collectives take equal sizes only: shorter parts are filled up.
        padded = part.new_zeros(counts[0], *part.shape[1:])
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])


SINGLE_PROCESS = ProcessGroup()
"""The group of a process that trains by itself."""
