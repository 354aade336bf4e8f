"""Processes that train one model together: each on its share of every batch.

A rank is a process; the first, the main one, has the run's lock, and alone writes and reports. A single
process is a group of one, for which everything here is a matter of course.
"""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class Ranks:
    """A group of processes, of which this is one; by default a group of one.

    Attributes
    ----------
    rank
        This process's place, from 0.
    size
        How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def counts(self, n_items: int) -> list[int]:
        """Return how many of some items each rank takes: as equal as can be, the first ones more."""
        return [n_items // self.size + (rank < n_items % self.size) for rank in range(self.size)]

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's part of some items; the parts follow each other in the order of the ranks."""
        counts = self.counts(len(items))
        start = sum(counts[: self.rank])
        return items[start : start + counts[self.rank]]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return what is called in training: the model, its gradients averaged over the ranks."""
        if self.size == 1:
            return model
        return cast(nn.Module, DistributedDataParallel(model, gradient_as_bucket_view=False))

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the main one's buffers, such as running means."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks on the main one; none on the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, found, dst=0)
        return found or []

    def broadcast(self, value: T) -> T:
        """Return the main rank's value on all of them."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def gather_rows(self, rows: Tensor, n_rows: int) -> Tensor:
        """Return the rows of all ranks in their order, on every one.

        Parameters
        ----------
        rows
            (n, …), this rank's part of ``n_rows``, as :meth:`share` gives it.
        """
        if self.size == 1:
            return rows
        counts = self.counts(n_rows)
        # Collectives want equal sizes: shorter parts are filled up.
        mine = rows.new_zeros(counts[0], *rows.shape[1:])
        mine[: len(rows)] = rows
        found = [torch.empty_like(mine) for _ in counts]
        dist.all_gather(found, mine)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])


ALONE = Ranks()
"""The group of a process that trains by itself."""
