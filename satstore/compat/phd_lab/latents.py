"""Conversion of phd-lab's latents into a run's store.

They lie in a folder ``<Model>_<Dataset>_<resolution>`` of ``latent_datasets``: ``train-features-0.p``, one
pickle of a NumPy array (image, feature) per batch, a file for each split and layer; ``train-labels.p``; and
``model_pointer.txt``, which names the folder of the logs. Maps of convolutions are flattened, channels first.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satstore.compat.phd_lab.tables import DEFAULT_POOLING
from satstore.compat.phd_lab.tree import dotted, reporting_corruption
from satstore.config.latent_keys import SPLITS, LatentsKey
from satstore.errors import CorruptError
from satstore.runs.latents_record import describe_latents, describe_store
from satstore.runs.manifest import DatasetRecord, LayerRecord, Manifest
from satstore.runs.run import Run
from satstore.storage.safe_files import read_content
from satstore.storage.safe_pickles import read_arrays
from satstore.storage.zarr import LatentWriter, choose_shard_rows, digest_labels
from satstore.storage.zarr.latent_reader import NO_SAMPLE_ID
from satstore.system.limits import check_disk

POINTER = "model_pointer.txt"
MEMORY_BYTES = 2**30
"""Memory for the shards that are being filled, at most."""

LATENTS_NOTE = (
    "its latents are phd-lab's: of training images as it augmented them, in training mode, larger maps at "
    "the nearest positions and not averaged; they carry no sample ids"
)


@dataclass
class LatentFolder:
    """A folder of phd-lab's latents, of one pooling.

    Attributes
    ----------
    files
        Split to layer to its file, layers in forward order.
    labels
        Split to the class index of each image.
    shapes
        Layer to the shape of one image's latent.
    warnings
        What was left out, and why.
    """

    path: Path
    files: dict[str, dict[str, Path]]
    labels: dict[str, NDArray[np.int64]]
    shapes: dict[str, tuple[int, ...]]
    warnings: list[str] = field(default_factory=list)

    @property
    def key(self) -> LatentsKey:
        """Its key in satstore: the maps' size, or ``full`` where maps have several sizes."""
        sizes = {shape[1] for shape in self.shapes.values() if len(shape) > 1} or {DEFAULT_POOLING}
        return LatentsKey(str(sizes.pop()) if len(sizes) == 1 else "full")


def find_latent_folders(root: Path, tables: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield experiments' tables and folders of their latents, in the tree or ``latent_datasets`` beside."""
    places = [root, root.absolute().parent / "latent_datasets"]
    pointers = sorted({path.absolute() for place in places for path in place.rglob(POINTER)})
    homes = {table.absolute().parent.parts[-3:]: table for table in tables}
    for pointer in pointers:
        # Windows' paths have both kinds of slashes; POSIX's have no backslash.
        with reporting_corruption(pointer, "path of a folder of logs"):
            parts = PureWindowsPath(read_content(pointer, follow=True).decode().strip()).parts
        if parts[-3:] in homes:
            yield homes[parts[-3:]], pointer.parent


def read_latent_folder(folder: Path, layers: Sequence[LayerRecord]) -> LatentFolder:
    """Read a folder's labels and, for the latents' shapes, the first batch of each file.

    Raises CorruptError if a file holds anything but arrays of numbers, or has no labels.
    """
    records = {record.layer: record for record in layers}
    found = LatentFolder(folder, {}, {}, {})
    unknown = set()
    for split in SPLITS:
        paths = {dotted(p.stem.removeprefix(f"{split}-")): p for p in sorted(folder.glob(f"{split}-*.p"))}
        labels = paths.pop("labels", None)
        if not paths:
            continue
        if labels is None:
            raise CorruptError(f"{folder} has latents of the {split} split and no {split}-labels.p")
        found.labels[split] = read_labels(labels)
        unknown |= paths.keys() - records.keys()
        found.files[split] = {layer: paths[layer] for layer in records if layer in paths}
        for layer, path in found.files[split].items():
            first = next(read_arrays(path), None)
            if first is None or first.ndim < 2 or first.dtype.kind != "f":
                what = "nothing" if first is None else f"{first.dtype} of shape {first.shape}"
                raise CorruptError(f"{path} holds {what}; expected floats (image, feature)")
            shape = unflatten(math.prod(first.shape[1:]), records[layer])
            if found.shapes.setdefault(layer, shape) != shape:
                raise CorruptError(
                    f"{path} has latents of shape {shape}, the other split {found.shapes[layer]}"
                )
    if not any(found.files.values()):
        raise CorruptError(
            f"{folder} has no latents of the layers of its logs, such as train-{_example_name(layers)}.p"
        )
    if unknown:
        found.warnings.append(
            f"{folder.name} has latents of layers without saturation: {_join_names(unknown)}"
        )
    return found


def read_labels(path: Path) -> NDArray[np.int64]:
    """Read a split's labels; raise CorruptError if they are not class indices."""
    parts = [part.reshape(-1) for part in read_arrays(path)]
    labels = np.concatenate(parts) if parts else np.zeros(0)
    if labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0:
        raise CorruptError(f"{path} holds no class indices, which are integers from 0")
    return labels.astype(np.int64)


def unflatten(n_features: int, record: LayerRecord) -> tuple[int, ...]:
    """Return the shape of one image's latent: (channel, y, x) where a square map was flattened."""
    channels = record.n_features
    side = math.isqrt(n_features // channels) if channels else 0
    is_map = record.kind == "Conv2d" and side > 0 and channels * side**2 == n_features
    return (channels, side, side) if is_map else (n_features,)


def convert_latents(run: Run, folder: LatentFolder) -> None:
    """Write latents into a run's store, layer by layer; after an interruption, go on where it stopped.

    Raises CorruptError if a file has more or fewer images than there are labels, or can't be read to its end,
    and DiskSpaceError if there is no room for the store.
    """
    key = folder.key
    todo = [(split, layer) for split, files in folder.files.items() for layer in files]
    with run.lock():
        with run.stage("extract", {"imported_from": str(folder.path)}):
            record_dataset(run, folder)
            needed = sum(
                2 * math.prod(folder.shapes[layer]) * len(folder.labels[split]) for split, layer in todo
            )
            committed = run.commits.read(run.latents_location.name)
            written = sum(digest.size_bytes for digest in committed.files.values())
            check_disk(Path(run.latents_path), needed - written, f"the latents of {run.name}")
            for done, (split, layer) in enumerate(todo):
                run.emit("extract", "progress", f"{split}, {layer}", done=done, total=len(todo))
                convert_layer(run, folder, split, layer)
            record = describe_latents(
                run.commits.read(run.latents_location.name),
                key,
                folder.files,
                checkpoint_sha256="",
                mantissa_bits=10,
                n_samples={split: len(folder.labels.get(split, ())) for split in SPLITS},
            )
            run.commit(change=lambda manifest: manifest.latents.__setitem__(key, record))
        for line in (LATENTS_NOTE, *folder.warnings):
            run.warn("import", line)


def convert_layer(run: Run, folder: LatentFolder, split: str, layer: str) -> None:
    """Write one layer's latents of one split."""
    key, labels, path = folder.key, folder.labels[split], folder.files[split][layer]
    writer = LatentWriter(
        run.writable_latents(),
        run.commits,
        attributes=describe_store(run.manifest),
        source={"imported_from": "phd-lab"},
        shapes={key: {layer: folder.shapes[layer]}},
        split=split,
        labels=labels,
        sample_ids=np.full(len(labels), NO_SAMPLE_ID),
        shard_rows=choose_shard_rows({key: folder.shapes}, len(labels), MEMORY_BYTES),
    )
    with writer:
        if not writer.missing:
            return
        start = 0
        for batch in read_arrays(path):
            rows = _as_rows(batch, path, folder.shapes[layer])
            if start + len(rows) > len(labels):
                raise CorruptError(
                    f"{path} has more images than the {len(labels)} labels of {split}-labels.p"
                )
            writer.append({key: {layer: rows}}, start)
            start += len(rows)
        if start < len(labels):
            raise CorruptError(
                f"{path} has {start} images; there are {len(labels)} labels in {split}-labels.p"
            )
    for problem in writer.problems:
        run.warn("import", problem.describe(split))


def _as_rows(batch: NDArray[Any], path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    if batch.ndim < 2 or batch.dtype.kind != "f" or math.prod(batch.shape[1:]) != math.prod(shape):
        raise CorruptError(
            f"{path} has a batch of {batch.dtype} of shape {batch.shape} beside others of {shape}"
        )
    return batch.reshape(len(batch), *shape)


def record_dataset(run: Run, folder: LatentFolder) -> None:
    """Record the maps' sizes, and, unless the manifest has a dataset, what labels tell of it."""
    whole = folder.shapes if folder.key.pooling == "full" else {}

    def change(manifest: Manifest) -> None:
        for record in manifest.layers:
            shape = whole.get(record.layer, ())
            if len(shape) > 1 and 0 in record.output_shape:
                record.output_shape = list(shape)
        if manifest.dataset is not None:
            return
        labels = folder.labels
        last = manifest.layers[-1].n_features if manifest.layers[-1].kind == "Linear" else 0
        n_classes = max(last, *(int(found.max()) + 1 for found in labels.values()))
        manifest.dataset = DatasetRecord(
            name=str(manifest.config["dataset"]),
            n_train=len(labels.get("train", ())),
            n_eval=len(labels.get("eval", ())),
            classes=[str(number) for number in range(n_classes)],
            fingerprint="",
            labels_sha256={
                split: digest_labels(found, np.full(len(found), NO_SAMPLE_ID))
                for split, found in labels.items()
            },
        )

    run.commit(change=change)


def _example_name(layers: Sequence[LayerRecord]) -> str:
    return layers[0].layer.replace(".", "-") if layers else "features-0"


def _join_names(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
