"""Writes the latents of a split, a checkpoint's at some poolings, and commits what came of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from satstore.capture.recorders import LatentRecorder
from satstore.config.latent_keys import SPLITS, LatentsKey
from satstore.datasets.image_data import Batch, ImageData, ImageSplit
from satstore.datasets.loaders import make_loader
from satstore.datasets.worker_failures import explaining_lost_workers
from satstore.runs.latents_record import describe_latents, describe_store
from satstore.runs.manifest import Manifest, checkpoint_name
from satstore.runs.run import Run
from satstore.stages.extract.plan import PoolingPlan
from satstore.storage.zarr import LatentWriter, choose_shard_rows
from satstore.storage.zarr.layout import Shapes
from satstore.system.limits import beside_gpu, loader_bytes
from satstore.system.memory import peak_bytes, reset_peak
from satstore.training import run_model, session_data


def write_split(
    run: Run,
    model: nn.Module,
    images: ImageSplit,
    split: str,
    wanted: Mapping[LatentsKey, Sequence[str]],
    mantissa_bits: int,
    memory_limit: int,
) -> None:
    """Write one split's latents: of each key (of one epoch) the layers wanted, the rows that are missing."""
    model.eval()
    size, device = run.config.batch_size, next(model.parameters()).device
    with (
        record_wanted(run, model, wanted) as recorder,
        torch.inference_mode(),
        explaining_lost_workers("lower the config's workers, or its batch_size"),
    ):

        def forward(batch: torch.Tensor) -> dict[LatentsKey, dict[str, Any]]:
            recorder.next_batch()
            model(batch.to(device, non_blocking=True, memory_format=torch.channels_last))
            found = recorder.pop()
            return {
                key: {layer: found[key.pooling][layer].numpy() for layer in of_key}
                for key, of_key in wanted.items()
            }

        workers = session_data.choose_workers(run.config, images.source.in_memory, memory_limit)
        batch, _ = images.__getitems__(range(min(size, len(images))))
        shapes, room_bytes = measure_forward(forward, batch, memory_limit)
        room_bytes -= loader_bytes(workers)
        with open_writer(run, shapes, images, split, mantissa_bits, room_bytes) as writer:
            starts = batch_starts(writer.missing, size)
            missing = select_batches(images, starts, size)
            loader = make_loader(missing, size, shuffle=False, workers=workers, pin_memory=True)
            progress = SplitProgress(run, split, next(iter(wanted)).epoch, len(missing))
            for start, (batch, labels) in zip(starts, loader, strict=True):
                writer.append(forward(batch), start)
                progress.advance(len(labels))
    for problem in writer.problems:
        run.warn("extract", problem.describe(split))


def record_wanted(run: Run, model: nn.Module, wanted: Mapping[LatentsKey, Sequence[str]]) -> LatentRecorder:
    """Return a recorder of those layers of a run's model of which some latents are wanted."""
    names = {name for of_key in wanted.values() for name in of_key}
    recorded = run_model.recorded_layers(run, model)
    layers = {layer: module for layer, module in recorded.items() if layer.name in names}
    patches = {layer.name for layer in layers if layer.form == "tokens"}
    with_grid = any(patches & {*of_key} for key, of_key in wanted.items() if not key.is_of_tokens)
    return LatentRecorder(layers, [key.pooling for key in wanted], with_grid=with_grid)


def measure_forward(
    forward: Callable[[torch.Tensor], dict[LatentsKey, dict[str, Any]]],
    batch: torch.Tensor,
    memory_limit: int,
) -> tuple[Shapes, int]:
    """Return the shapes of a batch's latents, and the bytes that its forward pass leaves of a limit."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        forward(batch)  # loads what the GPU needs
        memory_limit = beside_gpu(memory_limit)
    reset_peak()
    first = forward(batch)
    shapes = {key: {layer: a.shape[1:] for layer, a in part.items()} for key, part in first.items()}
    return shapes, memory_limit - peak_bytes()


def select_batches(images: ImageSplit, starts: Sequence[int], size: int) -> Subset[Batch]:
    """Return the images of the batches that begin at some rows.

    torch's Subset hands whole batches on to the split, which is all that a loader asks for.
    """
    return Subset(images, [row for start in starts for row in range(start, min(start + size, len(images)))])


def batch_starts(missing: Sequence[tuple[int, int]], size: int) -> list[int]:
    """Return where the batches begin that hold missing rows: those of an undisturbed pass, bit for bit."""
    return sorted({b * size for start, stop in missing for b in range(start // size, (stop - 1) // size + 1)})


def open_writer(
    run: Run, shapes: Shapes, images: ImageSplit, split: str, mantissa_bits: int, memory_bytes: int
) -> LatentWriter:
    """Open a run's store for one split, with shards that fit the memory."""
    epoch = next(iter(shapes)).epoch
    return LatentWriter(
        run.writable_latents(),
        run.commits,
        attributes=describe_store(run.manifest),
        source={"checkpoint_sha256": run.manifest.files[checkpoint_name(epoch)].sha256},
        shapes=shapes,
        split=split,
        labels=images.labels,
        sample_ids=images.sample_ids,
        shard_rows=choose_shard_rows(shapes, len(images), memory_bytes),
        mantissa_bits=mantissa_bits,
        memory_bytes=memory_bytes,
    )


def commit(run: Run, plans: Sequence[PoolingPlan], data: ImageData) -> None:
    """Commit whole layers to the manifest."""
    committed = run.commits.read(run.latents_location.name)

    def change(manifest: Manifest) -> None:
        for plan in plans:
            old = manifest.latents.get(plan.key)
            layers: dict[str, list[str]] = {}
            for split in SPLITS:
                known = {*(old.layers.get(split, ()) if old else ()), *plan.missing.get(split, ())}
                layers[split] = [layer for layer in run.layers if layer in known]
            manifest.latents[plan.key] = describe_latents(
                committed,
                plan.key,
                layers,
                checkpoint_sha256=manifest.files[checkpoint_name(plan.key.epoch)].sha256,
                mantissa_bits=plan.mantissa_bits,
                n_samples={"train": len(data.train), "eval": len(data.eval)},
            )
            manifest.re_extractable.pop(plan.key, None)

    run.commit(change=change)


class SplitProgress:
    """Reports how far the pass over a split is, in samples."""

    def __init__(self, run: Run, split: str, epoch: int | None, total: int) -> None:
        self._run, self._total, self._done = run, total, 0
        self._text = split if epoch is None else f"{split}, epoch {epoch + 1}"

    def advance(self, n_samples: int) -> None:
        """Count samples."""
        self._done += n_samples
        self._run.emit("extract", "progress", self._text, done=self._done, total=self._total)
