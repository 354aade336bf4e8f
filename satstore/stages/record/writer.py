"""Write a run from one pass of a model over each loader: weights, spectra, latents and metrics."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from satstore.analysis.moments import state_bytes
from satstore.capture.layers import describe_layers, select_layers
from satstore.capture.recorders import MomentRecorder
from satstore.config.experiment import RECORDED
from satstore.config.latent_keys import SPLITS
from satstore.errors import ConfigError
from satstore.runs.latents_record import describe_latents, describe_store
from satstore.runs.manifest import (
    CHECKPOINT,
    RECORDING,
    DatasetRecord,
    Manifest,
    SourceRecord,
)
from satstore.runs.run import Run
from satstore.stages.record.batches import Loaders, explain_forward_errors
from satstore.stages.record.inputs import call_model, take_samples
from satstore.stages.record.passes import FIRST_BATCH, LatentPasses, RecordedSplit
from satstore.stages.record.progress import PassProgress, ProgressFile, check_model, remove_progress
from satstore.stages.train import remove_results
from satstore.storage.zarr import AnalysisStore, copy_split, replace_attributes
from satstore.storage.zarr.layout import FLOAT16_MANTISSA_BITS
from satstore.system.process_group import SINGLE_PROCESS
from satstore.training.checkpoint import serialize_checkpoint
from satstore.training.epoch_spectra import (
    check_moments,
    compute_spectra,
    count_layer_features,
    make_recorder,
)
from satstore.training.provenance import describe_machine, set_layers


class RecordWriter:
    """Writes a run from one pass of a model, in evaluation mode on the device, over each loader.

    Results that the run has are replaced. ``memory_limit`` bounds the bytes that writing may take beside
    what the process holds now.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        loaders: Loaders,
        device: torch.device,
        memory_limit: int,
        *,
        resume: bool,
    ) -> None:
        config = run.config
        self._run, self._model, self._loaders, self._device = run, model, loaders, device
        selected = select_layers(model, config.layers, config.exclude_layers, config.modules)
        first = loaders.train.first

        def forward(n: int) -> None:
            call_model(model, take_samples(first.inputs, torch.arange(n) % first.n_samples), device)

        with explain_forward_errors(first.inputs, FIRST_BATCH):
            self._described = describe_layers(model, forward, selected, config.calls)
        self._layers = self._described.layers
        config.latents_request.check_tokens({layer.name: layer for layer in self._layers}, "the model")
        self._progress = ProgressFile(run, device, is_kept=resume)
        self._passes = LatentPasses(run, model, self._layers, device, self._progress, memory_limit)

    def plan(self, *, force: bool) -> None:
        """Pass the first batch through the model, and check memory and disk, unless forced to begin.

        MemoryLimitError or DiskSpaceError if they don't suffice.
        """
        if not force:
            check_moments(self._run, self._layers, self._device)
        reserved = 0
        if self._progress.is_kept:  # twice while it is serialized
            reserved = 2 * state_bytes(count_layer_features(self._layers, self._run.config).values())
        self._passes.plan(self._loaders.train, force=force, reserved_bytes=reserved)

    def write(self, source: SourceRecord | None) -> None:
        """Read the loaders, and commit weights, metrics, spectra and latents; see :func:`.record.record`."""
        run = self._run
        stored = run.config.model_dump(mode="json", include={"pooling", "tokens"})
        with run.stage("train", {}), run.stage("extract", stored):
            self._begin(source)
            analysis = AnalysisStore(run.analysis_path, run.commits)
            splits: dict[str, RecordedSplit] = {}
            with make_recorder(self._layers, run.config, SINGLE_PROCESS) as moments:
                for split in SPLITS:
                    splits[split] = self._record_split(split, splits, moments)
                    if not self._progress.has_whole(split):
                        spectra = compute_spectra(run, 0, moments, self._layers, split)
                        analysis.write_spectra(split, 0, 1, spectra.eigenvalues)
                        analysis.write_moments(split, spectra.moments)
                        self._note_whole(split, splits[split])
            self._commit_metrics(splits)
            replace_attributes(run.latents_location, run.commits, describe_store(run.manifest))
            analysis.finish_spectra(1)
            self._commit_latents(splits)
            remove_progress(run)

    def _begin(self, source: SourceRecord | None) -> None:
        """Remove what was recorded and commit the weights, or go on with what is there."""
        run = self._run
        if self._progress.is_kept and run.has_file(CHECKPOINT):
            check_model(run, self._model, self._layers, self._device)
            self._progress.load()
            return
        if run.has_file(CHECKPOINT):
            remove_results(run)
        self._commit_weights(source)

    def _record_split(
        self, split: str, splits: Mapping[str, RecordedSplit], moments: MomentRecorder
    ) -> RecordedSplit:
        """Record a split's latents and moments: without a loader of its own, those of the train split."""
        batches = self._loaders.train if split == "train" else self._loaders.open_eval()
        if batches is None:
            run = self._run
            copy_split(run.writable_latents(), run.commits, self._passes.shapes, "train", split)
            return splits["train"]
        return self._passes.record(batches, split, moments)

    def _note_whole(self, split: str, recorded: RecordedSplit) -> None:
        """Commit that a split is whole, if another loader is to be read."""
        if split == "train" and self._loaders.has_eval:
            found = PassProgress(recorded.batches.marks, recorded.metrics.state(), {}, None)
            self._progress.save(split, found)

    def _commit_weights(self, source: SourceRecord | None) -> None:
        """Commit the weights, and the manifest's record of their source, of layers and machine."""
        content = serialize_checkpoint({"model": self._model.state_dict(), "epoch": 1})

        def change(manifest: Manifest) -> None:
            manifest.environment |= describe_machine(self._device)
            set_layers(manifest, self._layers)
            manifest.source = source
            manifest.dataset = DatasetRecord(name=RECORDED, n_train=0, n_eval=0, classes=[], fingerprint="")

        self._run.commit({CHECKPOINT: content}, change)
        for text in self._described.warnings:
            self._run.warn("extract", text)

    def _commit_metrics(self, splits: Mapping[str, RecordedSplit]) -> None:
        """Commit the metrics, and the manifest's record of data and accuracy."""
        import pandas as pd

        run, has_labels, classes = self._run, self._loaders.train.has_labels, self._loaders.classes
        names = _name_classes(splits, classes) if has_labels else []
        n_outputs = {part.metrics.n_outputs for part in splits.values()}
        row: dict[str, float] = {"epoch": 0}
        if has_labels and n_outputs == {len(names)}:
            for split, part in splits.items():
                row |= part.result.columns(split) if part.result else {}
        elif has_labels:
            run.warn("train", _explain_no_accuracy(n_outputs, len(names), is_given=classes is not None))

        def change(manifest: Manifest) -> None:
            manifest.dataset = DatasetRecord(
                name=RECORDED,
                n_train=splits["train"].n_samples,
                n_eval=splits["eval"].n_samples,
                classes=names,
                fingerprint=splits["train"].batches.fingerprint(),
                labels_sha256={split: part.labels_sha256 for split, part in splits.items()},
                has_labels=has_labels,
            )
            manifest.summary.epochs_done = 1
            manifest.summary.test_accuracy = row.get("eval_accuracy")

        run.commit({"metrics.csv": pd.DataFrame([row]).to_csv(index=False).encode()}, change)

    def _commit_latents(self, splits: Mapping[str, RecordedSplit]) -> None:
        """Commit the manifest's record of the latents."""
        committed = self._run.commits.read(self._run.latents_location.name)
        names = [layer.name for layer in self._layers]

        def change(manifest: Manifest) -> None:
            manifest.files.pop(RECORDING, None)
            for key, shapes in self._passes.shapes.items():
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


def _explain_no_accuracy(n_outputs: Collection[int | None], n_classes: int, *, is_given: bool) -> str:
    found = next((f"{n} values" for n in n_outputs if n is not None), "no logits for all labels")
    remedy = "" if is_given else "; if they are logits, name all their classes (classes=)"
    return f"no accuracy: the model returns {found}, the labels are of {n_classes} classes{remedy}"
