"""Train one model in several processes, one per GPU: start them, group them, report their errors."""

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from satstore.config.experiment import ExperimentConfig
from satstore.errors import DeviceError, SatstoreError, StageError, reason_of
from satstore.registry import load_plugins
from satstore.runs.run import Run
from satstore.system.process_group import ProcessGroup
from satstore.system.signals import children_ignoring_sigint, follow_main_process
from satstore.training.loop import train

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it gives up: the main one computes an epoch's spectra."""

READY = ""
"""The message of a worker that is ready to join the group; any other message is its error."""

ERROR_WAIT_S = 10.0
"""How long the main process waits for the error message of a worker that failed."""


@dataclass(frozen=True)
class Member:
    """The place of one process in a group, whose processes find each other by a file in a folder.

    ``device_type`` is ``"cuda"``, where each process has the GPU of its rank, or ``"cpu"``.
    """

    device_type: str
    rank: int
    size: int
    folder: Path


@dataclass(frozen=True)
class Worker:
    """A process other than the main one, and the pipe that its messages come through."""

    name: str
    process: BaseProcess
    receiver: Connection

    def read_message(self) -> str | None:
        """Return its next message; None if there is none yet, or its end of the pipe is closed."""
        with contextlib.suppress(EOFError):
            if self.receiver.poll():
                return str(self.receiver.recv())
        return None


def count_processes(config: ExperimentConfig, device: torch.device) -> int:
    """Return how many processes train a config's model: one, unless ``data_parallel`` is on.

    DeviceError if there are fewer GPUs than ``ranks``.
    """
    if not config.data_parallel:
        return 1
    if device.type == "cpu":
        return config.ranks or 1
    n_gpus = torch.cuda.device_count()
    if config.ranks is not None and config.ranks > n_gpus:
        raise DeviceError(
            f"ranks {config.ranks} need as many GPUs, {n_gpus} are visible here; take fewer, or null for all"
        )
    return config.ranks or n_gpus


def train_in_processes(run: Run, device: torch.device, n_processes: int, *, force: bool = False) -> None:
    """Train a run's model in several processes, of which this is the main one; see :func:`.loop.train`.

    StageError, with its message, if another process failed.
    """
    with tempfile.TemporaryDirectory(prefix="satstore-") as folder:
        main, *others = (Member(device.type, rank, n_processes, Path(folder)) for rank in range(n_processes))
        workers = _start_workers(run, others)
        try:
            with join_group(main, partial(_wait_until_ready, workers)) as (group, own_device):
                train(run, own_device, group, force=force)
        except SatstoreError:
            raise
        except Exception as error:  # torch's own, when a process that it talks to is gone
            reason = _read_error(workers)
            if reason is None:
                raise
            raise StageError(reason) from error
        finally:
            for worker in workers:
                worker.process.join(1)
                if worker.process.is_alive():
                    worker.process.kill()


@contextmanager
def join_group(member: Member, meet: Callable[[], None]) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """Join the group of a member's folder; give the group and this process's device, and leave at the end.

    `meet` is called when this process is ready. torch waits without end for a process that never joins: so
    the main one returns from it only once all others are ready.
    """
    n_threads = torch.get_num_threads()
    if member.device_type == "cuda":
        device = torch.device("cuda", member.rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(max(1, n_threads // member.size))
    meet()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if member.device_type == "cuda" else "gloo",
        init_method=f"file://{member.folder / 'meeting'}",
        rank=member.rank,
        world_size=member.size,
        timeout=TIMEOUT,
    )
    try:
        yield ProcessGroup(member.rank, member.size), device
    finally:
        torch.set_num_threads(n_threads)
        with contextlib.suppress(Exception):  # the group may be broken already
            dist.destroy_process_group()


def _start_workers(run: Run, members: Iterable[Member]) -> list[Worker]:
    context = multiprocessing.get_context("spawn")
    workers = []
    with children_ignoring_sigint():
        for member in members:
            receiver, sender = context.Pipe(duplex=False)
            arguments = (run.path, run.config.model_dump_json(), member, sender)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            sender.close()  # so that the pipe ends with the worker
            workers.append(Worker(f"rank {member.rank} of {member.size}", process, receiver))
    return workers


def _work(path: Path, config: str, member: Member, sender: Connection) -> None:
    """Train along with the main process; send it what goes wrong."""
    follow_main_process()
    try:
        settings = ExperimentConfig.model_validate_json(config)
        load_plugins(settings.plugins)
        with join_group(member, partial(sender.send, READY)) as (group, device):
            train(Run(path, config=settings), device, group)
    except Exception as error:  # the main process reports it, in one line
        sender.send(reason_of(error, with_type=not isinstance(error, SatstoreError)))
        raise SystemExit(1) from None


def _wait_until_ready(workers: Sequence[Worker]) -> None:
    """Wait until all workers are ready to join the group; StageError if one ends before that."""
    for worker in workers:
        wait([worker.receiver, worker.process.sentinel])
        message = worker.read_message()
        if message is None:
            worker.process.join(ERROR_WAIT_S)  # its pipe closes a moment before it has ended
            message = f"ended with exit code {worker.process.exitcode} before training began"
        if message != READY:
            raise StageError(f"{worker.name} failed: {message}")


def _read_error(workers: Sequence[Worker]) -> str | None:
    """Return the error of the worker that failed first; None if none failed.

    The others then lose their connections and fail too: such an error is returned only if no other comes.
    """
    errors: list[str] = []
    causes: list[str] = []
    deadline = time.monotonic() + ERROR_WAIT_S
    while time.monotonic() < deadline:
        have_ended = all(worker.process.exitcode is not None for worker in workers)
        for worker in workers:
            worker.process.join(0.05)
            message = worker.read_message()
            if message is not None:
                errors.append(f"{worker.name} failed: {message}")
            elif worker.process.exitcode not in (None, 0, 1):
                errors.append(f"{worker.name} ended with exit code {worker.process.exitcode}")
        causes = [text for text in errors if "onnection" not in text]
        is_late = time.monotonic() > deadline - ERROR_WAIT_S / 2
        if causes or have_ended or (errors and is_late):
            break
    return next(iter(causes or errors), None)
