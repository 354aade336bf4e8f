"""Recording a trained model of one's own: its latents and spectra, without a config."""

import io
import platform
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from satstore.analysis.compiled_models import uncompiled
from satstore.analysis.receptive_field.table import receptive_field
from satstore.batches import Batches, explaining_forward, logits_of
from satstore.capture.layers import Layer, describe_layers, select_layers
from satstore.capture.recorders import LatentRecorder, MomentRecorder
from satstore.config.experiment import pooling_key
from satstore.config.grid import read_config
from satstore.datasets.lost_workers import explaining_lost_workers
from satstore.errors import ConfigError, NumericsError, SatstoreError
from satstore.pipeline import make_plan, raise_first, run_stages
from satstore.planning.estimate import TYPICAL_RATIO, latent_bytes
from satstore.registry import stand_in
from satstore.runs.events import Listener
from satstore.runs.latents_record import describe_latents, describe_store
from satstore.runs.logs_folder import find_logs_dir, make_run
from satstore.runs.manifest import CHECKPOINT, RECORDED, DatasetRecord, Manifest
from satstore.runs.run import Run
from satstore.stages.receptive_field import write_fields
from satstore.stages.stage import DEFAULT_MEMORY_LIMIT
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
from satstore.training.devices import choose_device
from satstore.training.epoch_spectra import check_moments, make_recorder, take_spectra
from satstore.training.metrics import start_metrics
from satstore.training.provenance import note_layers

UNKNOWN_LENGTH = 2**20
"""Samples for which shards are sized where a loader doesn't say how many it has."""


@explaining_lost_workers("give the loader fewer num_workers, or a smaller batch_size")
def record(
    model: nn.Module,
    loader: Iterable[Any],
    run: str,
    eval_loader: Iterable[Any] | None = None,
    *,
    classes: Sequence[str] | None = None,
    pooling: Collection[str] = ("4",),
    layers: str | None = None,
    exclude_layers: str | None = None,
    device: str | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    overwrite: bool = False,
    force: bool = False,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
) -> Run:
    """Store latents and spectra of a trained model, as a run that probes, plots and the terminal app take.

    Each loader is passed over once, as it was built: its order, batches, workers and dtype are taken as they
    come, and what a batch holds is what is stored. The model is in evaluation mode meanwhile; it gets back
    its modes and its device. Go on with ``satstore probe --run RUN``, or with :func:`satstore.apply_stages`.
    An attempt that fails leaves no run behind.

    Parameters
    ----------
    model
        Maps inputs (batch, …) to logits (batch, class), or to a tuple of which they are the first tensor, or
        to a mapping or object that calls them ``logits``. Without them, or with others than one for each
        class, no accuracy is noted.
    loader, eval_loader
        Yield (inputs, labels, …): what probes are fitted on, and what they are tested on. Labels are class
        indices, or one-hot rows. Without the second, the first is both, and accuracies are those of the fit.
    run
        The run id.
    classes
        Their names; by default the numbers from 0 to the largest label.
    pooling, layers, exclude_layers
        As the config's keys of these names.
    device
        Where the model is evaluated; by default where it is.
    memory_limit
        Bytes that this may take beside what the process holds before.
    overwrite
        Replace what was recorded under this run id of a model of this name, and all that was made of it.
    force
        Begin also where disk or memory are not expected to suffice.
    logs_dir
        By default SATSTORE_LOGS_DIR, else ``./logs``.

    Returns
    -------
    Run
        With its latents, spectra and saturation. A sample's id is its place in the loader's order.

    Raises
    ------
    ConfigError
        If a batch can't be taken, or the run has such an experiment already.
    MemoryLimitError, DiskSpaceError
        If memory or disk can't suffice.
    NumericsError
        If the loss is not finite.

    Examples
    --------
    >>> run = satstore.record(model, train_loader, "mine", test_loader)  # doctest: +SKIP
    """
    model = uncompiled(model)
    target = choose_device(device) if device is not None else _device_of(model)
    train = Batches(loader, "loader")
    kind = re.sub(r"\W+", "_", type(model).__name__)
    owners = {
        name: SimpleNamespace(**{key: record}) for name, key in (("models", kind), ("datasets", RECORDED))
    }
    with stand_in(owners):
        [config] = read_config(
            {
                "model": kind,
                "dataset": RECORDED,
                "resolution": int(train.first.shape[-1]),
                "batch_size": len(train.first),
                "epoch": 1,
                "augment": False,
                "pooling": list(pooling),
                "layers": layers,
                "exclude_layers": exclude_layers,
                "device": device,
                "stages": ["train", "extract", "saturation"],
            }
        )
        logs = find_logs_dir(logs_dir, config)
        is_new = not (logs / run / config.experiment / CHECKPOINT).exists()
        if not is_new and not overwrite:
            raise ConfigError(
                f"{run}/{config.experiment} is there already; record under another run id, or with "
                "overwrite=True"
            )
        found = make_run(logs, run, config, listener)
        try:
            with _lent(model, target):
                recording = _Recording(found, model, train, target, memory_limit)
                recording.plan(force=force)
                with found.lock():
                    is_new = True  # from here on, nothing is left of what was there
                    with found.stage("train", {}), found.stage("extract", {"pooling": list(pooling)}):
                        recording.write(eval_loader, classes)
            raise_first(run_stages([found], make_plan(["saturation"], {}), with_needs=False))
        except BaseException:
            if is_new:
                _remove(found)
            raise
    found.reload()
    if train.first.ndim == 4 and train.first.shape[-1] == train.first.shape[-2]:
        with found.lock():
            _record_fields(found, model, train.first.shape[1])
    return found


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _lent(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let a model be evaluated on a device without gradients; it gets back its modes and its device."""
    modes = {module: module.training for module in model.modules()}
    before = _device_of(model)
    model.eval()
    if device != before:
        model.to(device)
    try:
        with torch.no_grad():
            yield
    finally:
        if device != before:
            model.to(before)
        for module, mode in modes.items():
            module.training = mode


def _remove(run: Run) -> None:
    """Remove a run of which nothing is whole, and the folder of its run id if that is empty."""
    with suppress(SatstoreError):  # why there is no run says more
        run.writable_latents().remove()
    shutil.rmtree(run.path, ignore_errors=True)
    with suppress(OSError):  # holds other experiments
        run.path.parent.rmdir()


@dataclass
class _Passed:
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


class _Recording:
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
        self._poolings = tuple(int(p) if p.isdecimal() else p for p in config.pooling)

    def plan(self, *, force: bool) -> None:
        """Pass the first batch through the model, and refuse what memory or disk can't suffice for."""
        run = self._run
        if not force:
            check_moments(run, self._layers, self._device)
        forget_peak()
        with LatentRecorder(self._modules, self._poolings) as recorder:  # type: ignore[arg-type]
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
        passed: dict[str, _Passed] = {}
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

    def _pass(self, batches: Batches, split: str, moments: MomentRecorder) -> _Passed:
        """Pass once over a loader: moments, latents, labels and metrics together."""
        run = self._run
        metrics = start_metrics(run.config.metrics)
        losses: list[Tensor] = []
        n_outputs: int | None = None
        n_done, n_expected = 0, batches.n_expected
        with (
            LatentRecorder(self._modules, self._poolings) as latents,  # type: ignore[arg-type]
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
            return _Passed(batches, float("nan"), {}, None)
        of_batches = torch.stack(losses)
        if not bool(torch.isfinite(of_batches).all()):
            first = int(torch.nonzero(~torch.isfinite(of_batches))[0])
            raise NumericsError(f"the {split} loss is {float(of_batches[first])} in batch {first}")
        values = {metric.column: metric.compute() for metric in metrics}
        return _Passed(batches, float(of_batches.sum()) / n_done, values, n_outputs)

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

    def _commit(self, passed: Mapping[str, _Passed], classes: Sequence[str] | None) -> None:
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


def _by_key(recorder: LatentRecorder) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Return a batch's latents by key (``pool4``) and layer."""
    return {
        pooling_key(str(pooling)): {layer: latent.numpy() for layer, latent in part.items()}
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


def _record_fields(run: Run, model: nn.Module, n_channels: int) -> None:
    """Tabulate receptive fields, of a model that can be traced."""
    try:
        table = receptive_field(model, run.config.resolution, n_channels)
    except ConfigError as error:
        run.warn("receptive-field", str(error))
        return
    with run.stage("receptive_field", {}):
        write_fields(run, table[table["layer"].isin(run.layers)])
