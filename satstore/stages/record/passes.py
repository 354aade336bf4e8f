"""Pass a loader's batches through a model once: store latents, and measure loss and metrics on the way."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from satstore.capture.layers import Layers
from satstore.capture.recorders import LatentRecorder, MomentRecorder
from satstore.capture.tokens import BatchMask, describe_unmasked, find_mask
from satstore.config.latent_keys import LatentsKey
from satstore.planning.estimate import TYPICAL_RATIO, latent_bytes
from satstore.runs.latents_record import describe_store
from satstore.runs.manifest import CHECKPOINT
from satstore.runs.run import Run
from satstore.stages.record.batches import Batches, explain_forward_errors, find_logits
from satstore.stages.record.inputs import InputBatch, call_model
from satstore.storage.location import Folder
from satstore.storage.zarr import LatentWriter, choose_shard_rows, digest_labels
from satstore.storage.zarr.layout import Shapes
from satstore.system.limits import check_disk
from satstore.system.memory import peak_bytes, reset_peak, resident_bytes
from satstore.training.metrics import MeanLoss, PassResult, start_metrics

FIRST_BATCH = "the loader's first batch"

UNKNOWN_LENGTH = 2**20
"""Samples for which shards are sized where a loader doesn't say how many it has."""


@dataclass(frozen=True)
class RecordedSplit:
    """The batches of a pass over a loader, and its loss and metrics.

    ``result`` and ``n_outputs``, the number of logits, are None where there were no logits for all labels.
    """

    batches: Batches
    result: PassResult | None
    n_outputs: int | None

    @property
    def n_samples(self) -> int:
        """The samples that the loader yielded."""
        return len(self.batches.labels)

    @property
    def labels_sha256(self) -> str:
        """The digest of labels and sample ids."""
        return digest_labels(self.batches.labels, self.batches.sample_ids)


class LogitMetrics:
    """The loss and the metrics of a pass, as long as its batches have logits of one length for all labels."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._loss, self._metrics = MeanLoss(), start_metrics(names)
        self._n_batches = 0
        self.n_outputs: int | None = None

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
        memory_limit: int,
    ) -> None:
        self._run, self._model, self._layers, self._device = run, model, layers, device
        self._memory_limit, self._held_bytes = memory_limit, resident_bytes()

    def plan(self, train: Batches, *, force: bool) -> None:
        """Pass the first batch, which tells the shapes, and check memory and disk, unless forced to begin.

        MemoryLimitError or DiskSpaceError if they don't suffice.
        """
        run = self._run
        reset_peak()
        with LatentRecorder.for_request(self._layers, run.config.latents_request) as recorder:
            recorder.next_batch(_find_mask(train.first, FIRST_BATCH))
            self._forward(train.first, FIRST_BATCH)
            latents = _by_key(recorder)
        self.shapes = {
            key: {layer: latent.shape[1:] for layer, latent in part.items()} for key, part in latents.items()
        }
        self._room_bytes = self._memory_limit - (peak_bytes() - self._held_bytes)
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
        """Read a loader once, recording moments, latents, labels and metrics."""
        run, n_expected = self._run, batches.n_expected
        metrics, n_done = LogitMetrics(run.config.metrics), 0
        with (
            LatentRecorder.for_request(self._layers, run.config.latents_request) as latents,
            self._open_writer(split, n_expected) as writer,
        ):
            for batch, labels in batches:
                mask = _find_mask(batch, batches.place)
                moments.next_batch(mask)
                latents.next_batch(mask)
                output = self._forward(batch, batches.place)
                writer.append(_by_key(latents), n_done)
                metrics.update(output, labels)
                n_done += batch.n_samples
                total = n_expected if n_expected is not None and n_done <= n_expected else None
                run.emit("extract", "progress", split, done=n_done, total=total)
            writer.finish(batches.labels, batches.sample_ids)
        for problem in writer.problems:
            run.warn("extract", problem.describe(split))
        for text in describe_unmasked(latents.unmasked):
            run.warn("extract", text)
        if batches.is_one_hot:
            run.warn("extract", f"labels of split {split} came one-hot; the place of the 1 is the class")
        return RecordedSplit(batches, metrics.result(split), metrics.n_outputs)

    def _forward(self, batch: InputBatch, place: str) -> Any:
        with explain_forward_errors(batch.inputs, place):
            return call_model(self._model, batch.inputs, self._device)

    def _choose_shard_rows(self, n_samples: int | None) -> int:
        n_rows = UNKNOWN_LENGTH if n_samples is None else n_samples
        return choose_shard_rows(self.shapes, n_rows, self._room_bytes, "raise memory_limit")

    def _open_writer(self, split: str, n_expected: int | None) -> LatentWriter:
        run = self._run
        return LatentWriter(
            run.writable_latents(),
            run.commits,
            attributes=describe_store(run.manifest),
            source={"checkpoint_sha256": run.manifest.files[CHECKPOINT].sha256},
            shapes=self.shapes,
            split=split,
            shard_rows=self._choose_shard_rows(n_expected),
            memory_bytes=self._room_bytes,
        )


def _find_mask(batch: InputBatch, place: str) -> BatchMask | None:
    """Return which tokens of a batch count, as `adapt` or the inputs say."""
    return find_mask(batch.inputs if isinstance(batch.inputs, dict) else {}, place, batch.mask)


def _by_key(recorder: LatentRecorder) -> dict[LatentsKey, dict[str, NDArray[Any]]]:
    """Return a batch's latents by key and layer."""
    return {
        LatentsKey(pooling): {layer: latent.numpy() for layer, latent in part.items()}
        for pooling, part in recorder.pop().items()
    }


def _count_logits(logits: Tensor | None, labels: NDArray[np.int64]) -> int | None:
    """Return the number of a batch's logits; None if it has none, or not one for each label."""
    if logits is None or len(logits) != len(labels) or labels.max() >= logits.shape[1] or labels.min() < 0:
        return None
    return logits.shape[1]
