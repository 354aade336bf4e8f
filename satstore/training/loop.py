"""The training loop: passes over the data, and what is committed after each epoch."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from satstore.capture.recorders import MomentRecorder
from satstore.datasets.image_data import ImageSplit
from satstore.datasets.in_memory import hold
from satstore.datasets.loaders import make_loader
from satstore.datasets.lost_workers import explaining_lost_workers
from satstore.errors import NumericsError
from satstore.runs.manifest import CHECKPOINT, Manifest, checkpoint_name
from satstore.runs.run import Run
from satstore.storage.zarr import AnalysisStore
from satstore.system.process_group import ALONE, Ranks
from satstore.training.checkpoint import read_checkpoint
from satstore.training.epoch_spectra import check_moments, make_recorder, merge_ranks, take_spectra
from satstore.training.metrics import start_metrics
from satstore.training.provenance import describe_run
from satstore.training.run_model import load_weights, recorded_layers
from satstore.training.session import Session
from satstore.training.session_data import check_batches, choose_workers, load_data


@dataclass(frozen=True)
class Pass:
    """What one pass over a split gave: the mean loss, and the metrics by their columns."""

    loss: float
    metrics: dict[str, float]


def train(run: Run, device: torch.device, ranks: Ranks = ALONE, *, force: bool = False) -> None:
    """Train a run's model to its last epoch, going on from its checkpoint if there is one.

    After each epoch, the spectra, the checkpoint, the table of metrics and the manifest are committed.
    Several ranks call this together, each with its device; the main one commits.

    Parameters
    ----------
    force
        Begin also where memory is not expected to suffice.

    Raises
    ------
    MemoryLimitError
        If memory can't suffice for the covariances.
    NumericsError
        If the loss is not finite.
    CorruptError
        If the checkpoint can't be gone on with.
    """
    config = run.config
    data = hold(load_data(config, run.manifest.dataset))
    check_batches(config, data, ranks)
    session = Session(config, data, device, ranks)
    if run.has_file(CHECKPOINT):
        state = read_checkpoint(run)
        load_weights(session.model, state["model"], run)
        session.restore(state)
    layers = recorded_layers(session.model, config)
    if ranks.is_main:
        if not force:
            check_moments(run, layers, device)
        describe_run(run, session, data, layers)
    analysis = AnalysisStore(run.analysis_path, run.commits)
    workers = choose_workers(config, data.in_memory)

    def loader(split: ImageSplit, shuffle: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        generator = session.generator if shuffle else None
        return make_loader(
            split,
            config.batch_size,
            shuffle=shuffle,
            generator=generator,
            workers=workers,
            pin_memory=True,
            ranks=ranks,
        )

    progress = Progress(run, session, len(data.train), len(data.eval)) if ranks.is_main else None
    modules = {layer.name: module for layer, module in layers.items()}
    with make_recorder(modules, config, ranks) as recorder:
        while not is_finished(session):
            row: dict[str, float] = {"epoch": session.epoch, "lr": session.optimizer.param_groups[0]["lr"]}
            spectra = {}
            for split, images in (("train", data.train), ("eval", data.eval)):
                recorder.begin(split)
                result = run_pass(session, loader(images, split == "train"), split, recorder, progress)
                row |= {f"{split}_loss": result.loss}
                row |= {f"{split}_{name}": value for name, value in result.metrics.items()}
                merge_ranks(recorder, ranks)
                if ranks.is_main:
                    spectra[split] = take_spectra(run, session.epoch, recorder, layers, split)
            if session.scheduler:
                session.scheduler.step()
            session.epoch += 1
            session.history.append(row)
            last = is_finished(session)
            for split, found in spectra.items():
                analysis.write_spectra(split, session.epoch - 1, config.epoch, found.eigenvalues)
                if last:
                    analysis.write_moments(split, found.moments)
            state = session.state()
            if ranks.is_main:
                commit_epoch(run, session, state)
    if ranks.is_main:  # after the commit: an epoch that has to be done again needs its place in the array
        analysis.finish_spectra(session.epoch)


def is_finished(session: Session) -> bool:
    """Tell whether the last epoch was trained, or one that is good enough to stop."""
    accuracy = session.history[-1]["eval_accuracy"] if session.history else None
    return session.config.is_finished(session.epoch, accuracy)


@explaining_lost_workers("lower the config's workers, or its batch_size")
def run_pass(
    session: Session,
    loader: DataLoader[tuple[Tensor, Tensor]],
    split: str,
    recorder: MomentRecorder,
    progress: "Progress | None",
) -> Pass:
    """Pass once over a split, training on it if it is the training split.

    Raises
    ------
    NumericsError
        If the loss is not finite; the message names the first batch.
    """
    training = split == "train"
    optimizer, device, ranks = session.optimizer, session.device, session.ranks
    model = session.trained if training else session.model
    metrics = start_metrics(session.config.metrics)
    losses, n_samples, n_images = [], 0, len(loader.dataset)  # type: ignore[arg-type]
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=session.config.amp and device.type == "cuda"
    )
    session.model.train(training)
    with torch.set_grad_enabled(training):
        for images, labels in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            recorder.next_batch()
            with autocast:
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            n_together = min(session.config.batch_size, n_images - n_samples)
            if training:
                optimizer.zero_grad(set_to_none=True)
                if ranks.size > 1:  # gradients are averaged over ranks; a share counts by what it holds
                    loss = loss * (len(labels) * ranks.size / n_together)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if ranks.size > 1:
                logits, labels = (ranks.gather_rows(part, n_together) for part in (logits.detach(), labels))
                loss = F.cross_entropy(logits.float(), labels)
            for metric in metrics:
                metric.update(logits.detach(), labels)
            # The mean over a batch weighs what the batch holds: the last one is smaller as a rule.
            losses.append(loss.detach().double() * len(labels))
            n_samples += len(labels)
            if progress is not None:
                progress.advance(len(labels), lambda: (float(losses[-1]) / len(labels), metrics[0].compute()))  # noqa: B023
    if training:
        ranks.share_buffers(session.model)
    found = torch.stack(losses)
    if not bool(torch.isfinite(found).all()):
        batch = int(torch.nonzero(~torch.isfinite(found))[0])
        raise NumericsError(
            f"the {split} loss is {float(found[batch])} in batch {batch} of epoch {session.epoch + 1}; "
            "try a smaller learning rate or another seed; the last whole epoch is kept"
        )
    values = {metric.column: metric.compute() for metric in metrics}
    return Pass(float(found.sum()) / n_samples, values)


class Progress:
    """Reports how far a run's training is, in samples over all epochs."""

    def __init__(self, run: Run, session: Session, n_train: int, n_eval: int) -> None:
        self._run = run
        self._session = session
        self._total = session.config.epoch * (n_train + n_eval)
        self._done = session.epoch * (n_train + n_eval)

    def advance(self, n_samples: int, measure: Callable[[], tuple[float, float]]) -> None:
        """Count samples; ``measure`` gives loss and accuracy, called only when it is time to report."""
        self._done += n_samples
        if not self._run.events.is_due():
            return
        loss, accuracy = measure()
        self._run.emit(
            "train",
            "progress",
            f"epoch {self._session.epoch + 1}/{self._session.config.epoch}",
            done=self._done,
            total=self._total,
            values={"loss": loss, "accuracy": accuracy},
        )


def commit_epoch(run: Run, session: Session, state: dict[str, Any]) -> None:
    """Commit checkpoint, metrics and manifest after an epoch, and the weights if they are to be kept."""
    import pandas as pd

    checkpoint = io.BytesIO()
    torch.save(state, checkpoint)
    files = {CHECKPOINT: checkpoint.getvalue()}
    epoch = session.epoch - 1
    if epoch in session.config.latent_epochs and not is_finished(session):  # the last are in the checkpoint
        weights = io.BytesIO()
        torch.save({"model": state["model"]}, weights)
        files[checkpoint_name(epoch)] = weights.getvalue()
    metrics = pd.DataFrame(session.history).to_csv(index=False).encode()

    def change(manifest: Manifest) -> None:
        manifest.summary.epochs_done = session.epoch
        manifest.summary.test_accuracy = session.history[-1]["eval_accuracy"]

    run.commit({**files, "metrics.csv": metrics}, change)
    row = session.history[-1]
    run.emit(
        "train",
        "message",
        f"epoch {session.epoch}/{session.config.epoch}: test accuracy {row['eval_accuracy']:.2%}",
        values=row,
    )
