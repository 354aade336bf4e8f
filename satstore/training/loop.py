"""The training loop: two passes an epoch, one that trains and one that evaluates, both recorded."""

import random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from satstore.capture.recorders import MomentRecorder
from satstore.datasets.in_memory import hold_in_memory
from satstore.datasets.worker_failures import explaining_lost_workers
from satstore.models.plan import describe_model
from satstore.runs.manifest import CHECKPOINT
from satstore.runs.run import Run
from satstore.system.process_group import SINGLE_PROCESS, ProcessGroup
from satstore.training.checkpoint import read_checkpoint
from satstore.training.epoch_spectra import gather_moments, make_recorder
from satstore.training.metrics import MeanLoss, PassResult, start_metrics
from satstore.training.reporter import Reporter, RunReporter
from satstore.training.run_model import initialize_model, load_weights
from satstore.training.session import Session
from satstore.training.session_data import check_batches, load_data


def train(
    run: Run, device: torch.device, group: ProcessGroup = SINGLE_PROCESS, *, force: bool = False
) -> None:
    """Train a run's model to its last epoch, going on from its checkpoint if there is one.

    After each epoch, the spectra, the checkpoint, the table of metrics and the manifest are committed.
    The processes of a group call this together, each with its device; the main one commits.

    Raises
    ------
    MemoryLimitError
        If memory can't suffice for the covariances, unless forced to begin.
    NumericsError
        If the loss is not finite.
    CorruptError
        If the checkpoint can't be loaded, or is of another model.
    """
    config = run.config

    # Load the data, decoded once and held in memory if there is room.
    data = hold_in_memory(load_data(config, run.manifest.dataset))
    check_batches(config, data, group)

    # Build model and optimizer, every random generator seeded: plugins may draw from Python's and NumPy's.
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # noqa: NPY002
    model = initialize_model(config, len(data.classes), device)
    session = Session(config, model, data, device, group)

    # Resume from the last committed epoch, if there is one.
    if run.has_file(CHECKPOINT):
        state = read_checkpoint(run)
        load_weights(session.model, state["model"], run)
        session.restore(state)

    # Record every layer; only the main process writes the run.
    described = describe_model(session.model, config)
    reporter = RunReporter(run, session, described) if group.is_main else Reporter()
    reporter.begin(force=force)

    # Train: an epoch is a training pass and an evaluation pass.
    with make_recorder(described.layers, config, group) as recorder:
        while not session.is_finished:
            row: dict[str, float] = {"epoch": session.epoch, "lr": session.optimizer.param_groups[0]["lr"]}
            for split in ("train", "eval"):
                recorder.begin(split)
                row |= run_pass(session, split, recorder, reporter).columns(split)
                gather_moments(recorder, group)
                reporter.end_pass(split, recorder)
            session.end_epoch(row)
            reporter.end_epoch(session.state())
    reporter.finish()


@explaining_lost_workers("lower the config's workers, or its batch_size")
def run_pass(session: Session, split: str, recorder: MomentRecorder, reporter: Reporter) -> PassResult:
    """Pass once over a split, training on it if it is the training split.

    NumericsError, naming the first batch, if the loss is not finite.
    """
    config, device, group = session.config, session.device, session.group
    is_training = split == "train"
    model = session.training_model if is_training else session.model
    session.model.train(is_training)
    loader = session.loader(split)
    n_images, n_done = len(loader.dataset), 0  # type: ignore[arg-type]
    mean_loss, metrics = MeanLoss(), start_metrics(config.metrics)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.amp and device.type == "cuda")
    with torch.set_grad_enabled(is_training):
        for images, labels in loader:
            # 1. Forward; the recorder's hooks see every layer's output.
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            recorder.next_batch()
            with autocast:
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            # 2. Backward; gradients are averaged over processes, so each counts by its share of the batch.
            n_in_batch = min(config.batch_size, n_images - n_done)
            if is_training:
                update_weights(session.optimizer, loss * (len(labels) * group.size / n_in_batch))
            # 3. Loss and metrics of the whole batch, of which each process has its share.
            if group.size > 1:
                logits, labels = (group.all_gather(part, n_in_batch) for part in (logits.detach(), labels))
                loss = F.cross_entropy(logits.float(), labels)
            for metric in metrics:
                metric.update(logits.detach(), labels)
            mean_loss.update(loss.detach().double() * len(labels), len(labels))
            n_done += len(labels)
            reporter.advance(len(labels), loss.detach(), metrics[0])
    if is_training:
        group.broadcast_buffers(session.model)
    remedy = "try a smaller learning rate or another seed; the last whole epoch is kept"
    loss_value = mean_loss.compute(split, f" of epoch {session.epoch + 1}; {remedy}")
    return PassResult(loss_value, {metric.column: metric.compute() for metric in metrics})


def update_weights(optimizer: Optimizer, loss: Tensor) -> None:
    """Take one step of the optimizer down the gradient of a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
