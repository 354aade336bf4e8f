"""Training on several GPUs at once, a process for each: the other processes, their start and their end."""

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from satstore.config.experiment import ExperimentConfig
from satstore.errors import DeviceError, SatstoreError, StageError, reason_of
from satstore.runs.run import Run
from satstore.system.process_group import Ranks
from satstore.system.signals import deaf_children, follow_main_process

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it gives up: for the slowest epoch's spectra, say."""

READY = ""
"""What another process says when it is ready to meet; all else that it says is what went wrong."""

WORDS_S = 10.0
"""How long the main process waits for a failed one's last words."""


def count_ranks(config: ExperimentConfig, device: torch.device) -> int:
    """Return how many processes train a config's model: one, unless ``data_parallel`` is on.

    Raises
    ------
    DeviceError
        If there are fewer GPUs than ``ranks``.
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


def train_together(run: Run, device: torch.device, n_ranks: int, *, force: bool = False) -> None:
    """Train a run's model on several processes, of which this is the main one.

    Raises
    ------
    StageError
        If another process failed; with its message.
    SatstoreError
        As :func:`satstore.training.loop.train`.
    """
    from satstore.training.loop import train

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="satstore-") as folder:
        others, ears = [], []
        for rank in range(1, n_ranks):
            ear, mouth = context.Pipe(duplex=False)
            words = (run.path, run.config.model_dump_json(), device.type, rank, n_ranks, Path(folder), mouth)
            others.append(context.Process(target=_follow, args=words, daemon=True))
            ears.append(ear)
        with deaf_children():
            for process in others:
                process.start()
        try:
            meet = partial(_wait_for_all, ears, others)
            with joined(device.type, 0, n_ranks, Path(folder), meet) as (ranks, own_device):
                train(run, own_device, ranks, force=force)
        except SatstoreError:
            raise
        except Exception as error:  # what torch raises when a process it talks to is gone
            said = _last_words(ears, others)
            if said is None:
                raise
            raise StageError(said) from error
        finally:
            for process in others:
                process.join(1)
                if process.is_alive():
                    process.kill()


@contextmanager
def joined(
    kind: str, rank: int, n_ranks: int, folder: Path, meet: Callable[[], None]
) -> Iterator[tuple[Ranks, torch.device]]:
    """Be part of a group of processes that meet by a file in a folder.

    Parameters
    ----------
    meet
        Called when this process is ready to meet the others, who wait without end for those that never come.
    """
    n_threads = torch.get_num_threads()
    if kind == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(max(1, n_threads // n_ranks))
    meet()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=n_ranks,
        timeout=PATIENCE,
    )
    try:
        yield Ranks(rank, n_ranks), device
    finally:
        torch.set_num_threads(n_threads)
        with contextlib.suppress(Exception):  # of a group that is broken already
            dist.destroy_process_group()


def _follow(
    path: Path, config: str, kind: str, rank: int, n_ranks: int, folder: Path, mouth: Connection
) -> None:
    """Train along with the main process, and tell it what went wrong."""
    follow_main_process()
    from satstore.registry import load_plugins
    from satstore.training.loop import train

    try:
        settings = ExperimentConfig.model_validate_json(config)
        load_plugins(settings.plugins)
        with joined(kind, rank, n_ranks, folder, partial(mouth.send, READY)) as (ranks, device):
            train(Run(path, config=settings), device, ranks)
    except Exception as error:  # goes to the main process, in one line
        text = reason_of(error)
        mouth.send(text if isinstance(error, SatstoreError) else f"{type(error).__name__}: {text}")
        raise SystemExit(1) from None


def _wait_for_all(ears: list[Any], others: list[Any]) -> None:
    """Wait until all other processes are ready.

    Raises
    ------
    StageError
        If one ends before that; with its message.
    """
    for rank, (ear, process) in enumerate(zip(ears, others, strict=True), start=1):
        if process.sentinel in wait([ear, process.sentinel]) or not ear.poll():
            process.join(WORDS_S)  # what it said is closed a moment before it has ended
        said = f"ended with exit code {process.exitcode} before training began"
        with contextlib.suppress(EOFError):
            if ear.poll():
                said = ear.recv()
        if said != READY:
            raise StageError(f"rank {rank} of {len(ears) + 1} failed: {said}")


def _last_words(ears: list[Any], others: list[Any]) -> str | None:
    """Return what the first process that failed said of it; None if none failed.

    Its neighbours fail too, for want of it: what they say of lost connections is passed over.
    """
    said: list[str] = []
    until = time.monotonic() + WORDS_S
    while time.monotonic() < until:
        for rank, (ear, process) in enumerate(zip(ears, others, strict=True), start=1):
            if ear.poll(0.05):
                with contextlib.suppress(EOFError):
                    said.append(f"rank {rank} of {len(ears) + 1} failed: {ear.recv()}")
            elif process.exitcode not in (None, 0, 1):
                said.append(f"rank {rank} of {len(ears) + 1} ended with exit code {process.exitcode}")
        if said:
            causes = [text for text in said if "onnection" not in text]
            if causes or time.monotonic() > until - WORDS_S / 2:
                return (causes or said)[0]
    return said[0] if said else None
