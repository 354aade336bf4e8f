"""The stage ``extract``: one pass per epoch that writes every layer's latents, at every pooling asked for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from satstore.config.experiment import pooling_key
from satstore.config.keys import split_latents_key
from satstore.errors import ConfigError
from satstore.runs.consent import remember_place
from satstore.runs.manifest import LATENTS, Manifest, checkpoint_name
from satstore.runs.run import Run
from satstore.stages.latent_plan import (
    SPLITS,
    PoolingPlan,
    describe_missing,
    group_by_epoch,
    group_by_rounding,
    plan_latents,
    record_of,
)
from satstore.stages.stage import (
    DEFAULT_MEMORY_LIMIT,
    Device,
    Epochs,
    Exclude,
    Force,
    LatentsDir,
    Layers,
    MemoryLimit,
    Overwrite,
    Poolings,
    Splits,
    Stage,
    StageParameters,
    poolings_of,
)
from satstore.storage.location import Folder, join, locate
from satstore.storage.safe_names import as_key
from satstore.system.memory import forget_peak, peak_bytes, resident_bytes
from satstore.system.signals import undisturbed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from satstore.datasets.image_data import ImageData, ImageSplit
    from satstore.storage.zarr import LatentWriter
    from satstore.storage.zarr.layout import Shapes


class ExtractParameters(StageParameters):
    """Parameters of ``extract``."""

    device: Device = None
    pooling: Poolings = None
    epoch: Epochs = None
    latents_dir: LatentsDir = None
    layers: Layers = None
    exclude: Exclude = None
    splits: Splits = SPLITS
    mantissa_bits: Annotated[
        int | None,
        Field(
            ge=1, le=10, description="bits of float16's mantissa to keep; by default those stored, else 10"
        ),
    ] = None
    memory_limit: MemoryLimit = DEFAULT_MEMORY_LIMIT
    check: Annotated[
        bool, Field(description="read all that is stored and compare it with what was committed")
    ] = True
    force: Force = False
    overwrite: Overwrite = False


def pending(run: Run, parameters: ExtractParameters) -> list[str]:
    """Say which latents are missing, damaged, or of another checkpoint than the run's."""
    check_place(run, parameters.latents_dir)
    if not run.layers:  # not trained yet: nobody knows
        return [pooling_key(pooling) for pooling in poolings_of(run, parameters)]
    return describe_missing(plan_latents(run, parameters))


def extract(run: Run, parameters: ExtractParameters) -> None:
    """Write the latents that are missing, mend those that are damaged, and commit them epoch by epoch."""
    plans = [plan for plan in plan_latents(run, parameters) if plan.missing]
    if not plans:
        return
    with undisturbed():
        from satstore.training import devices, provenance, run_model, session_data

    place(run, parameters.latents_dir)
    device = devices.choose_device(parameters.device or run.config.device)
    data = session_data.load_data(run.config, run.manifest.dataset)
    provenance.check_data(run, data)
    if run.manifest.dataset is None or not run.manifest.dataset.fingerprint:  # imported
        provenance.adopt(run, data, device)
    if not parameters.force:
        check_resources(run, plans, data, parameters)
    for epoch, of_epoch in group_by_epoch(plans).items():
        model = run_model.load_model(run, len(data.classes), device, epoch)
        forget(run, of_epoch, overwrite=parameters.overwrite)
        for bits, group in group_by_rounding(of_epoch).items():
            for split, images in (("train", data.train_plain), ("eval", data.eval)):
                wanted = {plan.key: plan.missing[split] for plan in group if split in plan.missing}
                if wanted:
                    write_split(run, model, images, split, wanted, bits, parameters.memory_limit)
        commit(run, of_epoch, data)


def check_resources(
    run: Run, plans: Sequence[PoolingPlan], data: "ImageData", parameters: ExtractParameters
) -> None:
    """Refuse to begin what disk or memory can't suffice for.

    Raises
    ------
    DiskSpaceError, MemoryLimitError
        Naming what is needed and what is there.
    """
    from satstore.models.plan import plan_model
    from satstore.planning.estimate import TYPICAL_RATIO, extraction_memory, latent_bytes
    from satstore.storage.zarr.layout import encode_layer
    from satstore.system.limits import check_disk, check_memory
    from satstore.training import session_data

    plan = plan_model(run.config, len(data.classes), poolings_of(run, parameters))
    n_samples = {"train": len(data.train), "eval": len(data.eval)}
    sizes = {(key, layer): shape for key, layers in plan.shapes.items() for layer, shape in layers.items()}
    needed_bytes = sum(
        latent_bytes(sizes[split_latents_key(todo.key)[0], layer], n_samples[split], TYPICAL_RATIO)
        for todo in plans
        for split, layers in todo.missing.items()
        for layer in layers
    )
    what, location = f"the latents of {run.name}", run.latents_location
    if isinstance(location, Folder):
        # What a killed extraction left counts: it is gone on with, or replaced.
        written = sum(
            sum(location.sizes(as_key(f"{todo.key}/{split}/{encode_layer(layer)}")).values())
            for todo in plans
            for split, layers in todo.missing.items()
            for layer in layers
        )
        check_disk(location.path, needed_bytes - written, what)
    n_most = max(n_samples.values())
    n_loaders = session_data.choose_workers(run.config, data.in_memory, parameters.memory_limit)
    limit, held_bytes = parameters.memory_limit, resident_bytes()
    needed = extraction_memory(plan, run.config, n_most, limit, held_bytes, n_loaders)
    check_memory(needed, None, what)  # the limit bounds the shards, and refuses those that it can't hold


def check_place(run: Run, latents_dir: str | None) -> str:
    """Return where a run's latents lie, or are to lie; what the user names is remembered.

    Raises
    ------
    ConfigError
        If latents are stored elsewhere.
    """
    known = run.manifest.latents_path
    if latents_dir is None:
        return known
    place = join(latents_dir, run.run_id, run.experiment, LATENTS)
    if place != known and run.commits.read(LATENTS).files:
        raise ConfigError(
            f"{run.name} has its latents at {run.latents_path}, not at {place}; to have them there, remove "
            f"these first: satstore clean {run.name} --latents"
        )
    if place != LATENTS:
        remember_place(run.path, place)
    return place


def place(run: Run, latents_dir: str | None) -> None:
    """Note where a run's latents are to lie, once something answers there.

    Raises
    ------
    ConfigError
        If latents are stored elsewhere, or the manifest alone names the place.
    """
    found = check_place(run, latents_dir)
    if latents_dir is None:
        run.writable_latents()
    if found != run.manifest.latents_path:
        locate(found).sizes()
        run.commit(change=lambda manifest: setattr(manifest, "latents_path", found))


def forget(run: Run, plans: Sequence[PoolingPlan], *, overwrite: bool) -> None:
    """Let go of what is to be written again, the manifest first."""
    from satstore.storage.zarr import discard
    from satstore.storage.zarr.layout import encode_layer

    def change(manifest: Manifest) -> None:
        for plan in plans:
            record = manifest.latents.get(plan.key)
            if record is None:
                continue
            if plan.is_anew:
                del manifest.latents[plan.key]
                continue
            kept = {split: dict.fromkeys(record_of(run, record, split), "") for split in SPLITS}
            record.layers = {
                split: {
                    layer: record.layers.get(split, {}).get(layer, "")
                    for layer in layers
                    if layer not in plan.missing.get(split, ())
                }
                for split, layers in kept.items()
            }

    run.commit(change=change)
    for plan in plans:
        gone: list[str] = [damage.key for damage in plan.damage]
        if plan.is_anew:
            gone = [plan.key]
        elif overwrite:
            gone += [
                f"{plan.key}/{split}/{encode_layer(layer)}"
                for split, ls in plan.missing.items()
                for layer in ls
            ]
        discard(run.writable_latents(), run.commits, gone)


class Progress:
    """Reports how far the pass over a split is, in samples."""

    def __init__(self, run: Run, total: int) -> None:
        self._run, self._total, self._done = run, total, 0

    def advance(self, n_samples: int, text: str) -> None:
        """Count samples."""
        self._done += n_samples
        self._run.emit("extract", "progress", text, done=self._done, total=self._total)


def write_split(
    run: Run,
    model: "nn.Module",
    images: "ImageSplit",
    split: str,
    wanted: Mapping[str, Sequence[str]],
    mantissa_bits: int,
    memory_limit: int,
) -> None:
    """Write one split's latents: of each key (of one epoch) the layers wanted, the rows that are missing."""
    import torch
    from torch.utils.data import Subset

    from satstore.datasets.loaders import make_loader
    from satstore.datasets.lost_workers import explaining_lost_workers
    from satstore.system.limits import beside_gpu, loader_bytes
    from satstore.training import run_model, session_data

    size, device = run.config.batch_size, next(model.parameters()).device
    modules = dict(model.named_modules())
    layers = {name: modules[name] for name in run.layers if any(name in part for part in wanted.values())}
    keys = {split_latents_key(key)[0]: key for key in wanted}
    epoch = split_latents_key(next(iter(wanted)))[1]
    text = split if epoch is None else f"{split}, epoch {epoch + 1}"
    with (
        run_model.recording(model, layers, keys) as recorder,
        torch.inference_mode(),
        explaining_lost_workers("lower the config's workers, or its batch_size"),
    ):

        def forward(batch: "torch.Tensor") -> dict[str, dict[str, Any]]:
            model(batch.to(device, non_blocking=True, memory_format=torch.channels_last))
            parts = {keys[pooling_key(str(pooling))]: part for pooling, part in recorder.pop().items()}
            return {key: {layer: part[layer].numpy() for layer in wanted[key]} for key, part in parts.items()}

        workers = session_data.choose_workers(run.config, images.source.in_memory, memory_limit)
        batch, _ = images.__getitems__(range(min(size, len(images))))
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            forward(batch)  # loads what the GPU needs
            memory_limit = beside_gpu(memory_limit)
        forget_peak()
        first = forward(batch)
        shapes = {key: {layer: a.shape[1:] for layer, a in part.items()} for key, part in first.items()}
        room_bytes = memory_limit - peak_bytes() - loader_bytes(workers)
        with open_writer(run, shapes, images, split, mantissa_bits, room_bytes) as writer:
            starts = batch_starts(writer.missing, size)
            rows = [row for start in starts for row in range(start, min(start + size, len(images)))]
            # torch's Subset hands whole batches on to the split, which is all that the loader asks for.
            loader = make_loader(Subset(images, rows), size, shuffle=False, workers=workers, pin_memory=True)
            progress = Progress(run, len(rows))
            for start, (batch, labels) in zip(starts, loader, strict=True):
                writer.append(forward(batch), start)
                progress.advance(len(labels), text)
    for problem in writer.problems:
        run.warn("extract", problem.describe(split))


def batch_starts(missing: Sequence[tuple[int, int]], size: int) -> list[int]:
    """Return where the batches begin that hold missing rows: those of an undisturbed pass, bit for bit."""
    return sorted({b * size for start, stop in missing for b in range(start // size, (stop - 1) // size + 1)})


def open_writer(
    run: Run,
    shapes: "Shapes",
    images: "ImageSplit",
    split: str,
    mantissa_bits: int,
    memory_bytes: int,
) -> "LatentWriter":
    """Open a run's store for one split, with shards that fit the memory."""
    from satstore.runs.latents_record import describe_store
    from satstore.storage.zarr import LatentWriter, choose_shard_rows

    epoch = split_latents_key(next(iter(shapes)))[1]
    return LatentWriter(
        run.writable_latents(),
        run.commits,
        describe_store(run.manifest),
        {"checkpoint_sha256": run.manifest.files[checkpoint_name(epoch)].sha256},
        shapes,
        split,
        images.labels,
        images.sample_ids,
        choose_shard_rows(shapes, len(images), memory_bytes),
        mantissa_bits,
        memory_bytes,
    )


def commit(run: Run, plans: Sequence[PoolingPlan], data: "ImageData") -> None:
    """Commit whole layers to the manifest."""
    from satstore.runs.latents_record import describe_latents

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
                checkpoint_sha256=manifest.files[checkpoint_name(plan.epoch)].sha256,
                mantissa_bits=plan.mantissa_bits,
                n_samples={"train": len(data.train), "eval": len(data.eval)},
            )
            manifest.re_extractable.pop(plan.key, None)

    run.commit(change=change)


STAGE = Stage(
    name="extract",
    description="Store the latents of every layer, at one pooling or several, in one pass over the data "
    "for each epoch.",
    function=extract,
    pending=pending,
    parameters=ExtractParameters,
    needs=("train",),
    needs_model=True,
)
