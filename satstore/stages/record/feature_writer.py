"""Write a run from files of features: each split is read once, into spectra and latents."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from satstore.capture.layers import Layer, Layers
from satstore.capture.outputs import OutputLayout
from satstore.capture.recorders import LatentRecorder, LayerRecorder, MomentRecorder
from satstore.config.experiment import RECORDED
from satstore.config.latent_keys import SPLITS
from satstore.planning.estimate import TYPICAL_RATIO, latent_bytes
from satstore.runs.latents_record import describe_latents, describe_store
from satstore.runs.manifest import DatasetRecord, Manifest, SourceRecord
from satstore.runs.run import Run
from satstore.stages.record.feature_data import FeatureData, FeatureDigest, FeatureFiles, FeatureSplit
from satstore.stages.record.passes import by_key
from satstore.stages.train import remove_results
from satstore.storage.location import Folder
from satstore.storage.zarr import AnalysisStore, LatentWriter, choose_shard_rows, copy_split, digest_labels
from satstore.storage.zarr.layout import FLOAT16_MANTISSA_BITS, Shapes
from satstore.system.limits import check_disk
from satstore.system.memory import peak_bytes, reset_peak, resident_bytes
from satstore.system.process_group import SINGLE_PROCESS
from satstore.training.epoch_spectra import check_moments, compute_spectra, make_recorder
from satstore.training.provenance import describe_machine, set_layers

KIND = "features"
"""The kind of layers whose features are imported."""

ONE_SPLIT = (
    "the same samples are train and eval: accuracies are those of the fit; --split .2 draws a part of them "
    "for evaluation, --eval-features has others"
)


def describe_features(files: FeatureFiles) -> Layers:
    """Describe the layers of files of features, by the number of their axes.

    (sample, feature) are vectors, (sample, token, feature) tokens, and with more axes, those after the second
    are positions of a map. The modules are stand-ins, which nothing calls.
    """
    layers: dict[Layer, nn.Module] = {}
    for index, (name, file) in enumerate(files.items()):
        shape = file.shape[1:]
        layout = {1: OutputLayout("vector"), 2: OutputLayout("tokens")}.get(
            len(shape), OutputLayout("map", feature_axis=1)
        )
        n_features = layout.count_features(shape)
        layer = Layer(name, index, KIND, n_features, shape, layout, module=name)
        layers[layer] = nn.Identity()
    return layers


class FeatureWriter:
    """Writes a run from features; what an earlier attempt has committed is not written again.

    ``memory_limit`` bounds the bytes that writing may take beside what the process holds now. The run's lock
    must be held.
    """

    shapes: Shapes

    def __init__(self, run: Run, data: FeatureData, memory_limit: int) -> None:
        self._run, self._data = run, data
        self._layers = describe_features(data.split("train").layers)
        self._memory_limit, self._held_bytes = memory_limit, resident_bytes()

    def plan(self, *, force: bool) -> None:
        """Read the first block, and check memory and disk, unless forced to begin.

        MemoryLimitError or DiskSpaceError if they don't suffice, ConfigError for tokens that there are not.
        """
        layers = {layer.name: layer for layer in self._layers}
        self._run.config.latents_request.check_tokens(layers, "the features")
        run, n_samples = self._run, max(len(split.rows) for split in self._data.splits.values())
        if not force:
            check_moments(run, self._layers, torch.device("cpu"))
        reset_peak()
        self.shapes = self._try_first_block()
        self._room_bytes = self._memory_limit - (peak_bytes() - self._held_bytes)
        self._choose_shard_rows(n_samples)
        if not force and isinstance(run.latents_location, Folder):
            n_bytes = sum(
                latent_bytes(shape, len(self._data.split(split).rows), TYPICAL_RATIO)
                for split in SPLITS
                for layers in self.shapes.values()
                for shape in layers.values()
            )
            written = sum(d.size_bytes for d in run.commits.read(run.latents_location.name).files.values())
            check_disk(run.latents_location.path, n_bytes - written, f"the latents of {run.name}")

    def _try_first_block(self) -> Shapes:
        """Record the first block as all are, for the memory that it takes, and return the latents' shapes."""
        part = self._data.split("train")
        with self._record_latents() as latents, self._record_moments() as moments:
            moments.begin("train")
            self._feed(next(part.read()), moments, latents)
            for found in moments.results().values():
                found.covariance()
            return {
                key: {layer: latent.shape[1:] for layer, latent in of_key.items()}
                for key, of_key in by_key(latents).items()
            }

    def write(self, source: SourceRecord, *, overwrite: bool) -> None:
        """Read the splits, and commit spectra and latents; see :func:`.features.record_features`."""
        run = self._run
        with run.stage("train", {}), run.stage("extract", {"pooling": list(run.config.pooling)}):
            if overwrite:
                remove_results(run)
            self._commit_data(source)
            analysis = AnalysisStore(run.analysis_path, run.commits)
            fingerprints = []
            with self._record_moments() as moments:
                for split in SPLITS:
                    fingerprints.append(self._record_split(split, moments))
                    spectra = compute_spectra(run, 0, moments, self._layers, split)
                    analysis.write_spectra(split, 0, 1, spectra.eigenvalues)
                    analysis.write_moments(split, spectra.moments)
            analysis.finish_spectra(1)
            self._commit_results(fingerprints[0])
        if "eval" not in self._data.splits:
            run.warn("import", ONE_SPLIT)

    def _commit_data(self, source: SourceRecord) -> None:
        """Commit the manifest's record of source, layers and data."""

        def change(manifest: Manifest) -> None:
            manifest.environment |= describe_machine(torch.device("cpu"))
            manifest.source = source
            set_layers(manifest, self._layers)
            parts = {split: self._data.split(split) for split in SPLITS}
            manifest.dataset = DatasetRecord(
                name=RECORDED,
                n_train=len(parts["train"].rows),
                n_eval=len(parts["eval"].rows),
                classes=list(self._data.classes),
                fingerprint="",
                labels_sha256={name: digest_labels(part.labels, part.rows) for name, part in parts.items()},
                has_labels=self._data.has_labels,
            )

        self._run.commit(change=change)

    def _record_split(self, split: str, moments: MomentRecorder) -> str:
        """Record a split's latents and moments, and return the digest of its values.

        Without samples of its own, the latents are those of the train split, and so are the moments.
        """
        run, part = self._run, self._data.splits.get(split)
        if part is None:
            copy_split(run.writable_latents(), run.commits, self.shapes, "train", split)
            return ""
        moments.begin(split)
        digest, n_done = FeatureDigest(part), 0
        with self._record_latents() as latents, self._open_writer(split, part) as writer:
            for blocks in part.read():
                self._feed(blocks, moments, latents)
                writer.append(by_key(latents), n_done)
                digest.update(blocks)
                n_done += len(next(iter(blocks.values())))
                run.emit("extract", "progress", split, done=n_done, total=len(part.rows))
        moments.enabled = False
        for problem in writer.problems:
            run.warn("extract", problem.describe(split))
        return str(digest)

    def _record_moments(self) -> MomentRecorder:
        return make_recorder(self._layers, self._run.config, SINGLE_PROCESS)

    def _record_latents(self) -> LatentRecorder:
        return LatentRecorder.for_request(self._layers, self._run.config.latents_request)

    def _feed(self, blocks: Mapping[str, NDArray[Any]], *recorders: LayerRecorder) -> None:
        for recorder in recorders:
            recorder.next_batch()
            for layer in self._layers:
                recorder.feed(layer, torch.from_numpy(blocks[layer.name]))

    def _choose_shard_rows(self, n_samples: int) -> int:
        return choose_shard_rows(self.shapes, n_samples, self._room_bytes, "raise --memory-limit")

    def _open_writer(self, split: str, part: FeatureSplit) -> LatentWriter:
        run = self._run
        return LatentWriter(
            run.writable_latents(),
            run.commits,
            attributes=describe_store(run.manifest),
            source={"imported_from": KIND},
            shapes=self.shapes,
            split=split,
            labels=part.labels,
            sample_ids=part.rows,
            shard_rows=self._choose_shard_rows(len(part.rows)),
            memory_bytes=self._room_bytes,
        )

    def _commit_results(self, fingerprint: str) -> None:
        """Commit the metrics, which features have none of, and the manifest's record of the latents."""
        run = self._run
        committed = run.commits.read(run.latents_location.name)
        names = [layer.name for layer in self._layers]

        def change(manifest: Manifest) -> None:
            assert manifest.dataset is not None
            manifest.dataset.fingerprint = fingerprint
            manifest.summary.epochs_done = 1
            for key, shapes in self.shapes.items():
                manifest.latents[key] = describe_latents(
                    committed,
                    key,
                    {split: [name for name in names if name in shapes] for split in SPLITS},
                    checkpoint_sha256="",
                    mantissa_bits=FLOAT16_MANTISSA_BITS,
                    n_samples={split: len(self._data.split(split).rows) for split in SPLITS},
                )

        run.commit({"metrics.csv": b"epoch\n0\n"}, change)
