"""The stage ``extract``: one forward pass that writes every layer's latents, at every pooling asked for."""

from typing import TYPE_CHECKING, Any

from satstore.config import pooling_key
from satstore.errors import ConfigError
from satstore.files import FORMAT_VERSION
from satstore.location import join, locate
from satstore.manifest import CHECKPOINT, LATENTS, LatentsRecord, Manifest
from satstore.run import Run
from satstore.stages.stage import (
    DEFAULT_MEMORY_LIMIT,
    Device,
    LatentsDir,
    MemoryLimit,
    Overwrite,
    Poolings,
    Stage,
    StageParameters,
    poolings_of,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from satstore.capture import LatentRecorder
    from satstore.datasets.images import ImageData, ImageSplit
    from satstore.store import LatentWriter


class ExtractParameters(StageParameters):
    """Parameters of ``extract``."""

    device: Device = None
    pooling: Poolings = None
    latents_dir: LatentsDir = None
    memory_limit: MemoryLimit = DEFAULT_MEMORY_LIMIT
    overwrite: Overwrite = False


def pending(run: Run, parameters: ExtractParameters) -> list[str]:
    """Say which poolings are missing, or are of another checkpoint than the run's."""
    check_place(run, parameters.latents_dir)
    return [
        key for key in map(pooling_key, poolings_of(run, parameters)) if _is_pending(run, parameters, key)
    ]


def _is_pending(run: Run, parameters: ExtractParameters, key: str) -> bool:
    record = run.manifest.latents.get(key)
    checkpoint = run.manifest.files.get(CHECKPOINT)
    if parameters.overwrite or record is None or checkpoint is None:
        return True
    return record.checkpoint_sha256 != checkpoint.sha256 or is_damaged(run, key)


def is_damaged(run: Run, key: str) -> bool:
    """Tell whether files of a pooling that was committed are gone, or not of their size."""
    location = run.latents_location
    committed = run.commits.read(location.name)
    damage = committed.damaged(location, key)
    return not committed.under(key) or any(True for _ in damage)


def extract(run: Run, parameters: ExtractParameters) -> None:
    """Write the latents that are missing, train and eval, and commit them."""
    keys = pending(run, parameters)
    if not keys:
        return
    from satstore import session

    place(run, parameters.latents_dir)
    device = session.choose_device(parameters.device or run.config.device)
    data = session.load_data(run.config)
    session.check_data(run, data)
    model = session.load_model(run, len(data.classes), device)
    forget(run, [key for key in keys if parameters.overwrite or is_damaged(run, key)])
    poolings = [p for p in poolings_of(run, parameters) if pooling_key(p) in keys]
    progress = Progress(run, len(data.train) + len(data.eval))
    with session.recording(model, run.config, poolings) as recorder:
        for split, images in (("train", data.train_plain), ("eval", data.eval)):
            write_split(run, model, recorder, images, split, parameters.memory_limit, progress)
    commit(run, keys, data)


def check_place(run: Run, latents_dir: str | None) -> str:
    """Return where a run's latents lie, or are to lie.

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
    return place


def place(run: Run, latents_dir: str | None) -> None:
    """Note where a run's latents are to lie, once something answers there."""
    found = check_place(run, latents_dir)
    if found != run.manifest.latents_path:
        locate(found).sizes()
        run.commit(change=lambda manifest: setattr(manifest, "latents_path", found))


def forget(run: Run, keys: list[str]) -> None:
    """Let go of poolings that are to be written again, the manifest first."""

    def change(manifest: Manifest) -> None:
        for key in keys:
            manifest.latents.pop(key, None)

    run.commit(change=change)
    for key in keys:
        run.commits.remove(run.latents_location.name, key)


class Progress:
    """Reports how far an extraction is, in samples of both splits."""

    def __init__(self, run: Run, total: int) -> None:
        self._run, self._total, self._done = run, total, 0

    def advance(self, n_samples: int, split: str) -> None:
        """Count samples."""
        self._done += n_samples
        self._run.emit("extract", "progress", split, done=self._done, total=self._total)


def write_split(
    run: Run,
    model: "nn.Module",
    recorder: "LatentRecorder",
    images: "ImageSplit",
    split: str,
    memory_limit: int,
    progress: Progress,
) -> None:
    """Write one split's latents, from the first row that isn't committed on."""
    import torch
    from torch.utils.data import Subset

    from satstore.datasets.images import make_loader
    from satstore.session import choose_workers

    writer = open_writer(run, model, recorder, len(images), split, memory_limit)
    progress.advance(writer.n_rows, split)
    start = writer.n_rows
    if start < len(images):
        rest = Subset(images, range(start, len(images)))
        workers = choose_workers(run.config, in_memory=images.source.in_memory)
        device = next(model.parameters()).device
        # torch's Subset hands whole batches on to the split, which is all that the loader asks for.
        loader = make_loader(rest, run.config.batch_size, shuffle=False, workers=workers, pin_memory=True)
        with torch.inference_mode():
            for batch, labels in loader:
                model(batch.to(device, non_blocking=True, memory_format=torch.channels_last))
                latents = {pooling_key(str(p)): _as_numpy(part) for p, part in recorder.pop().items()}
                ids = images.sample_ids[start : start + len(labels)]
                writer.append(latents, labels.numpy(), ids)
                start += len(labels)
                progress.advance(len(labels), split)
    writer.close()
    for problem in writer.problems:
        run.warn("extract", f"{problem} of split {split}; a probe of that layer will refuse them")


def open_writer(
    run: Run, model: "nn.Module", recorder: "LatentRecorder", n_samples: int, split: str, memory_limit: int
) -> "LatentWriter":
    """Open a run's store for one split; the shapes are those that a blank image gives."""
    import torch

    from satstore.store import LatentWriter, choose_shard_rows

    with torch.inference_mode():
        resolution = run.config.resolution
        model(torch.zeros(1, 3, resolution, resolution, device=next(model.parameters()).device))
    shapes = {
        pooling_key(str(pooling)): {layer: tuple(latent.shape[1:]) for layer, latent in layers.items()}
        for pooling, layers in recorder.pop().items()
    }
    # Half for the shards in the making; the other half holds the maps of a batch and what is being encoded.
    shard_rows = choose_shard_rows(shapes, n_samples, memory_limit // 2)
    assert run.manifest.dataset is not None
    attributes = {
        "format_version": FORMAT_VERSION,
        "run_id": run.run_id,
        "experiment": run.experiment,
        "config": run.manifest.config,
        "layers": run.layers,
        "classes": run.manifest.dataset.classes,
    }
    source = {"checkpoint_sha256": run.manifest.files[CHECKPOINT].sha256}
    return LatentWriter(
        run.latents_location, run.commits, attributes, source, shapes, split, n_samples, shard_rows
    )


def _as_numpy(latents: "dict[str, torch.Tensor]") -> dict[str, Any]:
    return {layer: latent.numpy() for layer, latent in latents.items()}


def commit(run: Run, keys: list[str], data: "ImageData") -> None:
    """Commit whole poolings to the manifest."""
    committed = run.commits.read(run.latents_location.name)

    def change(manifest: Manifest) -> None:
        for key in keys:
            files = committed.under(key)
            manifest.latents[key] = LatentsRecord(
                checkpoint_sha256=manifest.files[CHECKPOINT].sha256,
                digest=committed.digest(key),
                size_bytes=sum(digest.size_bytes for digest in files.values()),
                n_train=len(data.train),
                n_eval=len(data.eval),
            )
            manifest.re_extractable.pop(key, None)

    run.commit(change=change)


STAGE = Stage(
    name="extract",
    description="Store the latents of every layer, at one pooling or several, in one pass over the data.",
    function=extract,
    pending=pending,
    parameters=ExtractParameters,
    needs=("train",),
)
