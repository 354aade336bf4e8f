"""Pass a loader's batches through a model once: store latents, and measure loss and metrics on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from satstore.capture.layers import Layers
from satstore.capture.recorders import LatentRecorder, LayerRecorder, MomentRecorder
from satstore.capture.tokens import describe_unmasked, find_mask
from satstore.config.latent_keys import LatentsKey
from satstore.planning.estimate import TYPICAL_RATIO, latent_bytes
from satstore.runs.latents_record import describe_store
from satstore.runs.manifest import CHECKPOINT
from satstore.runs.run import Run
from satstore.stages.record.batches import Batches, explain_forward_errors, find_logits
from satstore.stages.record.inputs import InputBatch, call_model
from satstore.stages.record.progress import PassProgress, ProgressFile
from satstore.storage.location import Folder
from satstore.storage.zarr import LatentWriter, choose_shard_rows, digest_labels
from satstore.storage.zarr.layout import Shapes
from satstore.system.limits import check_disk
from satstore.system.memory import peak_bytes, reset_peak, resident_bytes
from satstore.training.metrics import MeanLoss, PassResult, start_metrics

FIRST_BATCH = "the loader's first batch"

UNKNOWN_LENGTH = 2**20
"""Samples for which shards are sized where a loader doesn't say how many it has."""


class LogitMetrics:
    """The loss and the metrics of a pass, as long as its batches have logits of one length for all labels.

    ``n_outputs`` is the number of logits; None where they have not.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._loss, self._metrics = MeanLoss(), start_metrics(names)
        self._n_batches = 0
        self.n_outputs: int | None = None

    def state(self) -> dict[str, Any]:
        """Return the state after the batches so far, for `restore`; of a metric of other objects, None."""
        return {
            "n_batches": self._n_batches,
            "n_outputs": self.n_outputs,
            "loss": _plain_state(self._loss),
            "metrics": {metric.column: _plain_state(metric) for metric in self._metrics},
        }

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Go on from a state; return the columns of the metrics that can't, which have no value then."""
        self._n_batches, self.n_outputs = state["n_batches"], state["n_outputs"]
        vars(self._loss).update(state["loss"])
        lost = [name for name, found in state["metrics"].items() if found is None]
        self._metrics = [metric for metric in self._metrics if metric.column not in lost]
        for metric in self._metrics:
            vars(metric).update(state["metrics"][metric.column])
        return lost

    def update(self, output: Any, labels: NDArray[np.int64]) -> None:
        """Count a batch's output, given its class indices (batch,)."""
        logits = find_logits(output)
        n_outputs = _count_logits(logits, labels)
        is_first, self._n_batches = self._n_batches == 0, self._n_batches + 1
        self.n_outputs = n_outputs if is_first or n_outputs == self.n_outputs else None
        if self.n_outputs is None or logits is None:
            return
        expected = torch.from_numpy(labels).to(logits.device)
        batch_sum = F.cross_entropy(logits.float(), expected, reduction="sum").double()
        self._loss.update(batch_sum, len(labels))
        for metric in self._metrics:
            metric.update(logits, expected)

    def result(self, split: str) -> PassResult | None:
        """Return loss and metrics of the pass; None if they were not computed of all its batches."""
        if self.n_outputs is None:
            return None
        values = {metric.column: metric.compute() for metric in self._metrics}
        return PassResult(self._loss.compute(split), values)


@dataclass(frozen=True)
class RecordedSplit:
    """The batches of a pass over a loader, its loss and metrics; ``result`` is None if there are none."""

    batches: Batches
    metrics: LogitMetrics
    result: PassResult | None

    @property
    def n_samples(self) -> int:
        """The samples that the loader yielded."""
        return len(self.batches.labels)

    @property
    def labels_sha256(self) -> str:
        """The digest of labels and sample ids."""
        return digest_labels(self.batches.labels, self.batches.sample_ids)


class LatentPasses:
    """Passes of a model, in evaluation mode on the device, each of which stores the latents of a split.

    ``memory_limit`` bounds the bytes that writing may take beside what the process holds now.
    """

    shapes: Shapes

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        layers: Layers,
        device: torch.device,
        progress: ProgressFile,
        memory_limit: int,
    ) -> None:
        self._run, self._model, self._layers, self._device = run, model, layers, device
        self._progress = progress
        self._memory_limit, self._held_bytes = memory_limit, resident_bytes()

    def plan(self, train: Batches, *, force: bool, reserved_bytes: int) -> None:
        """Pass the first batch, which tells the shapes, and check memory and disk, unless forced to begin.

        MemoryLimitError or DiskSpaceError if they don't suffice beside the memory reserved.
        """
        run = self._run
        reset_peak()
        with LatentRecorder.for_request(self._layers, run.config.latents_request) as recorder:
            self._pass(train.first, FIRST_BATCH, recorder)
            latents = by_key(recorder)
        self.shapes = {
            key: {layer: latent.shape[1:] for layer, latent in part.items()} for key, part in latents.items()
        }
        self._room_bytes = self._memory_limit - (peak_bytes() - self._held_bytes) - reserved_bytes
        self._choose_shard_rows(train.n_expected)
        location = run.latents_location
        if train.n_expected is not None and not force and isinstance(location, Folder):
            n_bytes = sum(
                latent_bytes(shape, train.n_expected, TYPICAL_RATIO)
                for layers in self.shapes.values()
                for shape in layers.values()
            )
            check_disk(location.path, n_bytes, f"the latents of {run.name}")

    def record(self, batches: Batches, split: str, moments: MomentRecorder) -> RecordedSplit:
        """Read a loader once, recording moments, latents, labels and metrics.

        What an earlier process recorded is read, and not computed again. NumericsError if the loss is not
        finite.
        """
        run, known = self._run, self._progress.splits.get(split)
        metrics = LogitMetrics(run.config.metrics)
        moments.begin(split)
        if known is not None:
            batches.expect(known.marks, is_whole=known.is_whole)
            if not known.is_whole:
                moments.restore(known.moments)
            for column in metrics.restore(known.metrics):
                run.warn("train", f"{split}_{column} has no value: its state was lost by the interruption")
        if known is not None and known.is_whole:
            for _ in batches:
                pass
        else:
            self._store(batches, split, moments, metrics, known)
        moments.enabled = False
        if batches.is_one_hot:
            run.warn("extract", f"labels of split {split} came one-hot; the place of the 1 is the class")
        return RecordedSplit(batches, metrics, metrics.result(split))

    def _store(
        self,
        batches: Batches,
        split: str,
        moments: MomentRecorder,
        metrics: LogitMetrics,
        known: PassProgress | None,
    ) -> None:
        """Pass batches through the model, store their latents, and count those that are not known yet."""
        n_known, n_done = 0 if known is None else len(known.marks), 0
        with (
            LatentRecorder.for_request(self._layers, self._run.config.latents_request) as latents,
            self._open_writer(batches, split, known) as writer,
        ):
            n_stored, n_saved = writer.n_committed, 0
            if known is not None:
                writer.problems, latents.unmasked = list(known.problems), dict(known.unmasked)
            for batch, labels in batches:
                moments.enabled = len(batches.marks) > n_known
                # Known batches too, where they have rows of a shard that was not committed.
                if moments.enabled or n_done + batch.n_samples > n_stored:
                    output = self._pass(batch, batches.place, moments, latents)
                    writer.append(by_key(latents), n_done)
                    if moments.enabled:
                        metrics.update(output, labels)
                n_done += batch.n_samples
                self._emit(batches, split, n_done)
                if writer.n_handed_over > n_saved and moments.enabled and self._progress.is_due:
                    rows, n_saved = writer.committed_rows(), writer.n_handed_over
                    found = PassProgress(batches.marks, metrics.state(), moments.state(), rows)
                    found = replace(found, problems=writer.problems, unmasked=latents.unmasked)
                    self._progress.save(split, found)
            writer.finish(batches.labels, batches.sample_ids)
        for problem in writer.problems:
            self._run.warn("extract", problem.describe(split))
        for text in describe_unmasked(latents.unmasked):
            self._run.warn("extract", text)

    def _pass(self, batch: InputBatch, place: str, *recorders: LayerRecorder) -> Any:
        """Pass a batch through the model and return its output; recorders that are enabled count it."""
        named = batch.inputs if isinstance(batch.inputs, dict) else {}
        mask = find_mask(named, place, batch.mask)
        for recorder in recorders:
            if recorder.enabled:
                recorder.next_batch(mask)
        with explain_forward_errors(batch.inputs, place):
            return call_model(self._model, batch.inputs, self._device)

    def _emit(self, batches: Batches, split: str, n_done: int) -> None:
        n_expected = batches.n_expected
        total = n_expected if n_expected is not None and n_done <= n_expected else None
        self._run.emit("extract", "progress", split, done=n_done, total=total)

    def _choose_shard_rows(self, n_samples: int | None) -> int:
        n_rows = UNKNOWN_LENGTH if n_samples is None else n_samples
        return choose_shard_rows(self.shapes, n_rows, self._room_bytes, "raise memory_limit")

    def _open_writer(self, batches: Batches, split: str, known: PassProgress | None) -> LatentWriter:
        run = self._run
        return LatentWriter(
            run.writable_latents(),
            run.commits,
            attributes=describe_store(run.manifest),
            source={"checkpoint_sha256": run.manifest.files[CHECKPOINT].sha256},
            shapes=self.shapes,
            split=split,
            shard_rows=self._choose_shard_rows(batches.n_expected),
            kept=None if known is None else known.rows,
            memory_bytes=self._room_bytes,
        )


def by_key(recorder: LatentRecorder) -> dict[LatentsKey, dict[str, NDArray[Any]]]:
    """Return a batch's latents by key and layer."""
    return {
        LatentsKey(pooling): {layer: latent.numpy() for layer, latent in part.items()}
        for pooling, part in recorder.pop().items()
    }


def _plain_state(measure: object) -> dict[str, Any] | None:
    """Return the attributes of a measure; None unless all are tensors, numbers, text, or lists of such."""
    state = dict(getattr(measure, "__dict__", {"": measure}))
    plain = Tensor | int | float | str | None
    values = [part for value in state.values() for part in (value if isinstance(value, list) else [value])]
    return state if all(isinstance(value, plain) for value in values) else None


def _count_logits(logits: Tensor | None, labels: NDArray[np.int64]) -> int | None:
    """Return the number of a batch's logits; None if it has none, or not one for each label."""
    if logits is None or len(logits) != len(labels) or labels.max() >= logits.shape[1] or labels.min() < 0:
        return None
    return logits.shape[1]
