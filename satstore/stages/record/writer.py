"""Writes what one pass over each loader yields into a run."""

import io
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from satstore.capture.layers import Layer, describe_layers, select_layers
from satstore.capture.recorders import LatentRecorder, MomentRecorder
from satstore.config.keys import LatentsKey
from satstore.errors import ConfigError, NumericsError
from satstore.planning.estimate import TYPICAL_RATIO, latent_bytes
from satstore.runs.latents_record import describe_latents, describe_store
from satstore.runs.manifest import CHECKPOINT, RECORDED, DatasetRecord, Manifest
from satstore.runs.run import Run
from satstore.stages.record.batches import Batches, explaining_forward, logits_of
from satstore.stages.train import forget
from satstore.storage.location import Folder
from satstore.storage.zarr import (
    AnalysisStore,
    LatentWriter,
    choose_shard_rows,
    copy_split,
    describe_anew,
    digest_labels,
)
from satstore.storage.zarr.layout import FLOAT16_MANTISSA_BITS, Shapes
from satstore.system.limits import check_disk
from satstore.system.memory import forget_peak, peak_bytes, resident_bytes
from satstore.system.process_group import ALONE
from satstore.training.epoch_spectra import check_moments, make_recorder, take_spectra
from satstore.training.metrics import start_metrics
from satstore.training.provenance import note_layers

UNKNOWN_LENGTH = 2**20
"""Samples for which shards are sized where a loader doesn't say how many it has."""


@dataclass
class Passed:
    """What a pass over a loader gave: labels in their order, and metrics where there were logits.

    Attributes
    ----------
    n_outputs
        The number of logits; None where there were none, or too few for a label.
    """

    batches: Batches
    loss: float
    metrics: dict[str, float]
    n_outputs: int | None

    @property
    def sample_ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Each sample's place in the order of the loader."""
        return np.arange(len(self.batches.labels))


class Recording:
    """Writes what one pass over each loader yields into a run."""

    def __init__(
        self, run: Run, model: nn.Module, train: Batches, device: torch.device, memory_limit: int
    ) -> None:
        config = run.config
        self._run, self._model, self._train, self._device = run, model, train, device
        self._memory_limit, self._held_bytes = memory_limit, resident_bytes()
        layers = select_layers(model, config.layers, config.exclude_layers)
        with explaining_forward(train.first, "the loader's first batch"):
            described = describe_layers(model, train.first[:1].to(device), layers)
        self._layers: Mapping[Layer, nn.Module] = {layer: layers[layer.name] for layer in described}
        self._modules = {layer.name: module for layer, module in self._layers.items()}

    def plan(self, *, force: bool) -> None:
        """Pass the first batch through the model, and refuse what memory or disk can't suffice for."""
        run = self._run
        if not force:
            check_moments(run, self._layers, self._device)
        forget_peak()
        with LatentRecorder(self._modules, run.config.pooling) as recorder:
            self._forward(self._train.first)
            latents = _by_key(recorder)
        self._shapes: Shapes = {
            key: {layer: latent.shape[1:] for layer, latent in part.items()} for key, part in latents.items()
        }
        self._room_bytes = self._memory_limit - (peak_bytes() - self._held_bytes)
        n_expected = self._train.n_expected
        self._shard_rows(n_expected)
        location = run.latents_location
        if n_expected is not None and not force and isinstance(location, Folder):
            n_bytes = sum(
                latent_bytes(shape, n_expected, TYPICAL_RATIO)
                for layers in self._shapes.values()
                for shape in layers.values()
            )
            check_disk(location.path, n_bytes, f"the latents of {run.name}")

    def write(self, eval_loader: Iterable[Any] | None, classes: Sequence[str] | None) -> None:
        """Pass over the loaders, and commit weights, metrics, spectra and latents."""
        run, log = self._run, self._run.commits
        if run.has_file(CHECKPOINT):
            forget(run)
        self._begin()
        config = run.config
        analysis = AnalysisStore(run.analysis_path, log)
        passed: dict[str, Passed] = {}
        with make_recorder(self._modules, config, ALONE) as moments:
            for split in ("train", "eval"):
                if split == "train" or eval_loader is not None:
                    of_split = self._train if split == "train" else Batches(eval_loader or (), "eval_loader")
                    moments.begin(split)
                    passed[split] = self._pass(of_split, split, moments)
                    moments.enabled = False
                else:
                    passed[split] = passed["train"]
                    copy_split(run.writable_latents(), log, self._shapes, "train", "eval")
                spectra = take_spectra(run, 0, moments, self._layers, split)
                analysis.write_spectra(split, 0, 1, spectra.eigenvalues)
                analysis.write_moments(split, spectra.moments)
        self._commit(passed, classes)

    def _begin(self) -> None:
        """Commit the weights, and what the manifest says of layers and machine."""
        content = io.BytesIO()
        torch.save({"model": self._model.state_dict(), "epoch": 1}, content)

        def change(manifest: Manifest) -> None:
            manifest.environment |= {
                "host": platform.node(),
                "torch": torch.__version__,
                "device": str(self._device),
                "n_threads": torch.get_num_threads(),
            }
            note_layers(manifest, self._layers)
            manifest.dataset = DatasetRecord(name=RECORDED, n_train=0, n_eval=0, classes=[], fingerprint="")

        self._run.commit({CHECKPOINT: content.getvalue()}, change)

    def _forward(self, inputs: Tensor, place: str = "the loader's first batch") -> Any:
        with explaining_forward(inputs, place):
            return self._model(inputs.to(self._device, non_blocking=True))

    def _shard_rows(self, n_samples: int | None) -> int:
        return choose_shard_rows(
            self._shapes,
            UNKNOWN_LENGTH if n_samples is None else n_samples,
            self._room_bytes,
            "raise memory_limit",
        )

    def _pass(self, batches: Batches, split: str, moments: MomentRecorder) -> Passed:
        """Pass once over a loader: moments, latents, labels and metrics together."""
        run = self._run
        metrics = start_metrics(run.config.metrics)
        losses: list[Tensor] = []
        n_outputs: int | None = None
        n_done, n_expected = 0, batches.n_expected
        with (
            LatentRecorder(self._modules, run.config.pooling) as latents,
            self._open_writer(split, n_expected) as writer,
        ):
            for inputs, labels in batches:
                moments.next_batch()
                logits = logits_of(self._forward(inputs, batches.place))
                writer.append(_by_key(latents), n_done)
                n_outputs = _count_logits(logits, labels, n_outputs, is_first=n_done == 0)
                if n_outputs is not None and logits is not None:
                    of_batch = torch.from_numpy(labels).to(logits.device)
                    losses.append(F.cross_entropy(logits.float(), of_batch, reduction="sum").double())
                    for metric in metrics:
                        metric.update(logits, of_batch)
                n_done += len(labels)
                total = n_expected if n_expected is not None and n_done <= n_expected else None
                run.emit("extract", "progress", split, done=n_done, total=total)
            writer.finish(batches.labels, np.arange(n_done))
        for problem in writer.problems:
            run.warn("extract", problem.describe(split))
        if batches.is_one_hot:
            run.warn("extract", f"labels of split {split} came one-hot; the place of the 1 is the class")
        if n_outputs is None:
            return Passed(batches, float("nan"), {}, None)
        of_batches = torch.stack(losses)
        if not bool(torch.isfinite(of_batches).all()):
            first = int(torch.nonzero(~torch.isfinite(of_batches))[0])
            raise NumericsError(f"the {split} loss is {float(of_batches[first])} in batch {first}")
        values = {metric.column: metric.compute() for metric in metrics}
        return Passed(batches, float(of_batches.sum()) / n_done, values, n_outputs)

    def _open_writer(self, split: str, n_expected: int | None) -> LatentWriter:
        run = self._run
        return LatentWriter(
            run.writable_latents(),
            run.commits,
            describe_store(run.manifest),
            {"checkpoint_sha256": run.manifest.files[CHECKPOINT].sha256},
            self._shapes,
            split,
            None,
            None,
            self._shard_rows(n_expected),
            FLOAT16_MANTISSA_BITS,
            self._room_bytes,
        )

    def _commit(self, passed: Mapping[str, Passed], classes: Sequence[str] | None) -> None:
        """Commit what is known once all samples came: classes, metrics, latents."""
        import pandas as pd

        run = self._run
        n_found = 1 + max(int(part.batches.labels.max()) for part in passed.values())
        names = list(map(str, range(n_found) if classes is None else classes))
        if n_found > len(names):
            raise ConfigError(
                f"the loaders yield labels up to {n_found - 1}, for which {len(names)} classes are too few; "
                "labels count from 0"
            )
        n_outputs = {part.n_outputs for part in passed.values()}
        row: dict[str, float] = {"epoch": 0}
        if n_outputs == {len(names)}:
            for split, part in passed.items():
                row |= {f"{split}_loss": part.loss}
                row |= {f"{split}_{name}": value for name, value in part.metrics.items()}
        else:
            run.warn("train", _explain_no_accuracy(n_outputs, len(names), is_given=classes is not None))
        latents = run.latents_location
        n_samples = {split: len(part.batches.labels) for split, part in passed.items()}

        def change(manifest: Manifest) -> None:
            manifest.dataset = DatasetRecord(
                name=RECORDED,
                n_train=n_samples["train"],
                n_eval=n_samples["eval"],
                classes=names,
                fingerprint=passed["train"].batches.fingerprint(),
                labels_sha256={
                    split: digest_labels(part.batches.labels, part.sample_ids)
                    for split, part in passed.items()
                },
            )
            manifest.summary.epochs_done = 1
            manifest.summary.test_accuracy = row.get("eval_accuracy")

        run.commit({"metrics.csv": pd.DataFrame([row]).to_csv(index=False).encode()}, change)
        describe_anew(latents, run.commits, describe_store(run.manifest))
        AnalysisStore(run.analysis_path, run.commits).finish_spectra(1)
        committed = run.commits.read(latents.name)

        def add_latents(manifest: Manifest) -> None:
            for key, layers in self._shapes.items():
                manifest.latents[key] = describe_latents(
                    committed,
                    key,
                    {split: [layer for layer in self._modules if layer in layers] for split in passed},
                    checkpoint_sha256=manifest.files[CHECKPOINT].sha256,
                    mantissa_bits=FLOAT16_MANTISSA_BITS,
                    n_samples=n_samples,
                )

        run.commit(change=add_latents)


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
