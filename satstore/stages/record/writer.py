"""Write a run from one pass of a model over each loader: weights, spectra, latents and metrics."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from satstore.capture.layers import describe_layers, select_layers
from satstore.capture.recorders import LatentRecorder, MomentRecorder
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError
from satstore.planning.estimate import TYPICAL_RATIO, latent_bytes
from satstore.runs.latents_record import describe_latents, describe_store
from satstore.runs.manifest import CHECKPOINT, RECORDED, DatasetRecord, Manifest
from satstore.runs.run import Run
from satstore.stages.record.batches import Batches, explain_forward_errors, find_logits
from satstore.stages.train import remove_results
from satstore.storage.location import Folder
from satstore.storage.zarr import (
    AnalysisStore,
    LatentWriter,
    choose_shard_rows,
    copy_split,
    digest_labels,
    replace_attributes,
)
from satstore.storage.zarr.layout import FLOAT16_MANTISSA_BITS, Shapes
from satstore.system.limits import check_disk
from satstore.system.memory import peak_bytes, reset_peak, resident_bytes
from satstore.system.process_group import SINGLE_PROCESS
from satstore.training.checkpoint import serialize_checkpoint
from satstore.training.epoch_spectra import check_moments, compute_spectra, make_recorder
from satstore.training.metrics import MeanLoss, PassResult, start_metrics
from satstore.training.provenance import describe_machine, set_layers

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
        """The digest of labels and sample ids; an id is the sample's place in the loader's order."""
        return digest_labels(self.batches.labels, np.arange(self.n_samples))


class RecordWriter:
    """Writes a run from one pass of a model, in evaluation mode on the device, over each loader.

    Results that the run has are replaced. ``memory_limit`` bounds the bytes that writing may take beside
    what the process holds now.
    """

    def __init__(
        self, run: Run, model: nn.Module, train: Batches, device: torch.device, memory_limit: int
    ) -> None:
        config = run.config
        self._run, self._model, self._train, self._device = run, model, train, device
        self._memory_limit, self._held_bytes = memory_limit, resident_bytes()
        selected = select_layers(model, config.layers, config.exclude_layers)

        def forward(n: int) -> None:
            model(train.first[torch.arange(n) % len(train.first)].to(device))

        with explain_forward_errors(train.first, "the loader's first batch"):
            self._layers = describe_layers(model, forward, selected).layers

    def plan(self, *, force: bool) -> None:
        """Pass the first batch through the model, and check memory and disk, unless forced to begin.

        MemoryLimitError or DiskSpaceError if they don't suffice.
        """
        run = self._run
        if not force:
            check_moments(run, self._layers, self._device)
        reset_peak()
        with LatentRecorder(self._layers, run.config.pooling) as recorder:
            self._forward(self._train.first)
            latents = _by_key(recorder)
        self._shapes: Shapes = {
            key: {layer: latent.shape[1:] for layer, latent in part.items()} for key, part in latents.items()
        }
        self._room_bytes = self._memory_limit - (peak_bytes() - self._held_bytes)
        n_expected = self._train.n_expected
        self._choose_shard_rows(n_expected)
        location = run.latents_location
        if n_expected is not None and not force and isinstance(location, Folder):
            n_bytes = sum(
                latent_bytes(shape, n_expected, TYPICAL_RATIO)
                for layers in self._shapes.values()
                for shape in layers.values()
            )
            check_disk(location.path, n_bytes, f"the latents of {run.name}")

    def write(self, eval_loader: Iterable[Any] | None, classes: Sequence[str] | None) -> None:
        """Read the loaders, and commit weights, metrics, spectra and latents; see :func:`.record.record`."""
        run = self._run
        if run.has_file(CHECKPOINT):
            remove_results(run)
        self._commit_weights()
        analysis = AnalysisStore(run.analysis_path, run.commits)
        splits: dict[str, RecordedSplit] = {}
        with make_recorder(self._layers, run.config, SINGLE_PROCESS) as moments:
            for split in ("train", "eval"):
                if split == "eval" and eval_loader is None:
                    splits[split] = splits["train"]
                    copy_split(run.writable_latents(), run.commits, self._shapes, "train", "eval")
                else:
                    batches = self._train if split == "train" else Batches(eval_loader or (), "eval_loader")
                    moments.begin(split)
                    splits[split] = self._pass(batches, split, moments)
                    moments.enabled = False
                spectra = compute_spectra(run, 0, moments, self._layers, split)
                analysis.write_spectra(split, 0, 1, spectra.eigenvalues)
                analysis.write_moments(split, spectra.moments)
        self._commit_metrics(splits, classes)
        replace_attributes(run.latents_location, run.commits, describe_store(run.manifest))
        analysis.finish_spectra(1)
        self._commit_latents(splits)

    def _commit_weights(self) -> None:
        """Commit the weights, and the manifest's record of layers and machine."""
        content = serialize_checkpoint({"model": self._model.state_dict(), "epoch": 1})

        def change(manifest: Manifest) -> None:
            manifest.environment |= describe_machine(self._device)
            set_layers(manifest, self._layers)
            manifest.dataset = DatasetRecord(name=RECORDED, n_train=0, n_eval=0, classes=[], fingerprint="")

        self._run.commit({CHECKPOINT: content}, change)

    def _forward(self, inputs: Tensor, place: str = "the loader's first batch") -> Any:
        with explain_forward_errors(inputs, place):
            return self._model(inputs.to(self._device, non_blocking=True))

    def _choose_shard_rows(self, n_samples: int | None) -> int:
        n_rows = UNKNOWN_LENGTH if n_samples is None else n_samples
        return choose_shard_rows(self._shapes, n_rows, self._room_bytes, "raise memory_limit")

    def _pass(self, batches: Batches, split: str, moments: MomentRecorder) -> RecordedSplit:
        """Read a loader once, recording moments, latents, labels and metrics."""
        run, n_expected = self._run, batches.n_expected
        mean_loss, metrics = MeanLoss(), start_metrics(run.config.metrics)
        n_done, n_outputs = 0, None
        with (
            LatentRecorder(self._layers, run.config.pooling) as latents,
            self._open_writer(split, n_expected) as writer,
        ):
            for inputs, labels in batches:
                moments.next_batch()
                latents.next_batch()
                logits = find_logits(self._forward(inputs, batches.place))
                writer.append(_by_key(latents), n_done)
                n_outputs = _count_logits(logits, labels, n_outputs, is_first=n_done == 0)
                if n_outputs is not None and logits is not None:
                    expected = torch.from_numpy(labels).to(logits.device)
                    batch_sum = F.cross_entropy(logits.float(), expected, reduction="sum").double()
                    mean_loss.update(batch_sum, len(labels))
                    for metric in metrics:
                        metric.update(logits, expected)
                n_done += len(labels)
                total = n_expected if n_expected is not None and n_done <= n_expected else None
                run.emit("extract", "progress", split, done=n_done, total=total)
            writer.finish(batches.labels, np.arange(n_done))
        for problem in writer.problems:
            run.warn("extract", problem.describe(split))
        if batches.is_one_hot:
            run.warn("extract", f"labels of split {split} came one-hot; the place of the 1 is the class")
        if n_outputs is None:
            return RecordedSplit(batches, None, None)
        values = {metric.column: metric.compute() for metric in metrics}
        return RecordedSplit(batches, PassResult(mean_loss.compute(split), values), n_outputs)

    def _open_writer(self, split: str, n_expected: int | None) -> LatentWriter:
        run = self._run
        return LatentWriter(
            run.writable_latents(),
            run.commits,
            attributes=describe_store(run.manifest),
            source={"checkpoint_sha256": run.manifest.files[CHECKPOINT].sha256},
            shapes=self._shapes,
            split=split,
            shard_rows=self._choose_shard_rows(n_expected),
            memory_bytes=self._room_bytes,
        )

    def _commit_metrics(self, splits: Mapping[str, RecordedSplit], classes: Sequence[str] | None) -> None:
        """Commit the metrics, and the manifest's record of data and accuracy."""
        import pandas as pd

        run = self._run
        names = _name_classes(splits, classes)
        n_outputs = {part.n_outputs for part in splits.values()}
        row: dict[str, float] = {"epoch": 0}
        if n_outputs == {len(names)}:
            for split, part in splits.items():
                row |= part.result.columns(split) if part.result else {}
        else:
            run.warn("train", _explain_no_accuracy(n_outputs, len(names), is_given=classes is not None))

        def change(manifest: Manifest) -> None:
            manifest.dataset = DatasetRecord(
                name=RECORDED,
                n_train=splits["train"].n_samples,
                n_eval=splits["eval"].n_samples,
                classes=names,
                fingerprint=splits["train"].batches.fingerprint(),
                labels_sha256={split: part.labels_sha256 for split, part in splits.items()},
            )
            manifest.summary.epochs_done = 1
            manifest.summary.test_accuracy = row.get("eval_accuracy")

        run.commit({"metrics.csv": pd.DataFrame([row]).to_csv(index=False).encode()}, change)

    def _commit_latents(self, splits: Mapping[str, RecordedSplit]) -> None:
        """Commit the manifest's record of the latents."""
        committed = self._run.commits.read(self._run.latents_location.name)
        names = [layer.name for layer in self._layers]

        def change(manifest: Manifest) -> None:
            for key, shapes in self._shapes.items():
                manifest.latents[key] = describe_latents(
                    committed,
                    key,
                    {split: [name for name in names if name in shapes] for split in splits},
                    checkpoint_sha256=manifest.files[CHECKPOINT].sha256,
                    mantissa_bits=FLOAT16_MANTISSA_BITS,
                    n_samples={split: part.n_samples for split, part in splits.items()},
                )

        self._run.commit(change=change)


def _name_classes(splits: Mapping[str, RecordedSplit], classes: Sequence[str] | None) -> list[str]:
    """Return the classes' names; by default the numbers from 0 to the largest label."""
    n_found = 1 + max(int(part.batches.labels.max()) for part in splits.values())
    names = list(map(str, range(n_found) if classes is None else classes))
    if n_found > len(names):
        raise ConfigError(
            f"the loaders yield labels up to {n_found - 1}, for which {len(names)} classes are too few; "
            "labels count from 0"
        )
    return names


def _by_key(recorder: LatentRecorder) -> dict[LatentsKey, dict[str, np.ndarray[Any, Any]]]:
    """Return a batch's latents by key and layer."""
    return {
        LatentsKey(pooling): {layer: latent.numpy() for layer, latent in part.items()}
        for pooling, part in recorder.pop().items()
    }


def _count_logits(
    logits: Tensor | None, labels: np.ndarray[Any, Any], known: int | None, *, is_first: bool
) -> int | None:
    """Return the number of logits, if all batches so far have as many, and one for each label."""
    if logits is None or len(logits) != len(labels) or labels.max() >= logits.shape[1]:
        return None
    return logits.shape[1] if is_first or known == logits.shape[1] else None


def _explain_no_accuracy(n_outputs: Collection[int | None], n_classes: int, *, is_given: bool) -> str:
    found = next((f"{n} values" for n in n_outputs if n is not None), "no logits for all labels")
    remedy = "" if is_given else "; if they are logits, name all their classes (classes=)"
    return f"no accuracy: the model returns {found}, the labels are of {n_classes} classes{remedy}"
