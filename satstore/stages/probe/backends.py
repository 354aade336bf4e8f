"""Where probes are fitted: threads of this process, or a torch device; for a cluster see dask_backend."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from satstore.analysis.floats import Floats, widen
from satstore.analysis.logistic.engine import Engine, ThreadEngine, TileThreads, start_tile_threads
from satstore.analysis.logistic.loss import Codes
from satstore.analysis.logistic.memory import fit_bytes
from satstore.analysis.logistic.problem import LogisticProblem
from satstore.analysis.row_source import BlockRows, RowSource
from satstore.config.latent_keys import SPLITS
from satstore.stages.probe.job import ProbeJob
from satstore.stages.probe.memory import MemoryBudget, MemoryPeaks
from satstore.storage.zarr import LatentArray
from satstore.system.cores import count_cores
from satstore.system.memory import resident_bytes


class Backend(AbstractContextManager["Backend"], Protocol):
    """Where probes are fitted. It is entered once for all layers, and ends what it has started.

    ``memory`` is what this process may take, ``peaks`` what fits take.
    """

    n_layers_at_once: int
    memory: MemoryBudget
    peaks: MemoryPeaks

    def engines(
        self, job: ProbeJob, problem: LogisticProblem
    ) -> AbstractContextManager[Mapping[str, Engine]]:
        """Make what passes over a layer's latents of each split.

        MemoryLimitError if the memory limit, or this machine's memory, is too small.
        """


class ThreadBackend(AbstractContextManager["ThreadBackend"]):
    """Threads of this process: as many as there are cores, and as the memory limit allows."""

    n_layers_at_once = 1

    def __init__(self, memory: MemoryBudget) -> None:
        self.memory, self.peaks = memory, MemoryPeaks()

    def __exit__(self, *_: object) -> None:
        """Nothing lasts longer than a layer."""

    @contextmanager
    def engines(self, job: ProbeJob, problem: LogisticProblem) -> Iterator[Mapping[str, Engine]]:
        """Make what passes over a layer's latents of each split; see :meth:`Backend.engines`."""
        n_threads = choose_threads(job, problem, self.memory)
        with start_tile_threads(n_threads) as threads:
            room_bytes = self.memory.free_bytes() - fit_bytes(problem, n_threads)
            engines: dict[str, Engine] = {}
            for split in SPLITS:
                # Those of eval are passed over once.
                rows = open_rows(job.open(split), room_bytes if split == "train" else 0)
                engines[split] = self.make_engine(rows, job.latents.codes(split), problem.n_logits, threads)
            yield engines

    def make_engine(self, rows: RowSource, codes: Codes, n_logits: int, threads: TileThreads) -> Engine:
        """Make what passes over one split."""
        return ThreadEngine(rows, codes, n_logits, threads)


class TorchBackend(ThreadBackend):
    """A torch device, such as ``cuda:0``, to which threads of this process read."""

    def __init__(self, memory: MemoryBudget, device: str) -> None:
        super().__init__(memory)
        self._device = device

    def make_engine(self, rows: RowSource, codes: Codes, n_logits: int, threads: TileThreads) -> Engine:
        """Make what passes over one split."""
        import torch

        from satstore.analysis.logistic.torch_engine import TorchEngine

        return TorchEngine(rows, codes, n_logits, threads, device=torch.device(self._device))


def open_rows(latents: LatentArray, room_bytes: int) -> RowSource:
    """Open a layer's rows: in memory, as they are stored, where there is room for them, else block by block.

    That spares every pass but the first the decoding, and changes no bit.
    """
    rows = latents.rows()
    if latents.array.nbytes > room_bytes:
        return rows
    values = latents.numpy()

    def load_floats(start: int, stop: int, out: Floats) -> Floats:
        widen(values[start:stop].reshape(out.shape), out)
        return out

    edges = range(values.shape[0] + 1)
    in_memory = BlockRows(
        lambda low, high: values[low:high], values.shape, values.dtype, edges, load_floats=load_floats
    )
    in_memory.mean, in_memory.std = rows.mean, rows.std
    return in_memory


def choose_threads(job: ProbeJob, problem: LogisticProblem, memory: MemoryBudget) -> int:
    """Return how many threads the memory limit allows, the cores at most; MemoryLimitError if none."""
    held_bytes = resident_bytes()
    for n_threads in range(count_cores(), 0, -1):
        if held_bytes + fit_bytes(problem, n_threads) <= memory.limit_bytes:
            break
    memory.check(held_bytes + fit_bytes(problem, n_threads), str(job))
    return n_threads
