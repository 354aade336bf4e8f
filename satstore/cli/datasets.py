"""``satstore dataset``: check datasets, and sort their images into class folders."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from satstore.cli.console import print_json, print_line
from satstore.cli.options import Json
from satstore.cli.progress import Bar
from satstore.config.experiment import ExperimentConfig
from satstore.datasets.archives import unpack
from satstore.datasets.class_folders import (
    Moves,
    begin_split,
    finish_split,
    move,
    plan_inaturalist,
    plan_tiny_imagenet,
)
from satstore.errors import CorruptError, NotFoundError
from satstore.registry import DATASETS
from satstore.runs.events import Event

if TYPE_CHECKING:
    from satstore.datasets.image_data import ImageData, ImageSplit
    from satstore.datasets.in_memory import ProgressCallback

Seed = Annotated[int, Parameter(help="gives the same split every time")]


def check_dataset(
    name: Annotated[str, Parameter(help="a name of: satstore list datasets")],
    *,
    data_dir: Annotated[
        Path | None, Parameter(help="the folder that holds it; by default TORCH_DATADIR, else tmp")
    ] = None,
    resolution: Annotated[int, Parameter(help="pixels that images are read at")] = 64,
    download: Annotated[bool, Parameter(negative="", help="download what isn't there")] = False,
    as_json: Json = False,
) -> None:
    """Read every image of a dataset, and print the size of its splits and classes."""
    from satstore.datasets.downloads import without_downloads

    with nullcontext() if download else without_downloads():
        data = load_plain(name, data_dir or ExperimentConfig().data_dir, resolution)
    with Bar() as bar:
        splits = {
            split: summarize_split(images, data.classes, partial(_report, bar, f"read {split}"))
            for split, images in (("train", data.train_plain), ("eval", data.eval))
        }
    report = {"dataset": name, "n_classes": len(data.classes), "splits": splits}
    if as_json:
        print_json(report)
    else:
        print_line(describe_report(report))
    n_corrupt = sum(len(split["corrupt"]) for split in splits.values())
    if n_corrupt:
        raise CorruptError(
            f"{n_corrupt} images of {name} can't be decoded; replace them, or leave them out with the config "
            'key "on_corrupt": "skip"'
        )


def load_plain(name: str, data_dir: Path, resolution: int) -> "ImageData":
    """Load a dataset without augmentation."""
    from satstore.datasets.foreign_loaders import from_loaders, takes_loaders

    factory = DATASETS[name]
    if takes_loaders(factory):
        return from_loaders(name, factory, resolution, 1, data_dir)
    data: ImageData = factory(resolution=resolution, data_dir=data_dir, augment=False, seed=0)
    return data


def summarize_split(
    images: "ImageSplit", classes: Sequence[str], report: "ProgressCallback"
) -> dict[str, Any]:
    """Return a split's entry of ``dataset check --json``; read every image to find the corrupt ones."""
    from satstore.datasets.corrupt_images import find_corrupt
    from satstore.datasets.image_folder import FileSource

    counts = Counter(images.labels.tolist())
    in_order = sorted(range(len(classes)), key=lambda label: counts[label])
    corrupt = find_corrupt(images.source, report) if isinstance(images.source, FileSource) else {}
    folder = getattr(images.source, "folder", None)  # the source of a plugin may have none
    return {
        "folder": str(folder) if folder else None,
        "n_images": len(images),
        "smallest_class": {"name": classes[in_order[0]], "n_images": counts[in_order[0]]},
        "largest_class": {"name": classes[in_order[-1]], "n_images": counts[in_order[-1]]},
        "corrupt": [corrupt[index] for index in sorted(corrupt)],
    }


def describe_report(report: dict[str, Any]) -> str:
    """Return the report of ``dataset check`` as text."""
    lines = [f"{report['dataset']}: {report['n_classes']:,} classes"]
    for split, found in report["splits"].items():
        smallest, largest = found["smallest_class"], found["largest_class"]
        where = f" in {found['folder']}" if found["folder"] else ""
        lines.append(
            f"  {split}: {found['n_images']:,} images{where}; classes of "
            f"{smallest['n_images']:,} ({smallest['name']}) to {largest['n_images']:,} ({largest['name']})"
        )
        lines += [f"    {line}" for line in found["corrupt"]]
    return "\n".join(lines)


def split_folder(
    folder: Annotated[Path, Parameter(help="a folder with a folder of images per class")],
    *,
    val: Annotated[float, Parameter(help="share of each class that goes to val/")] = 0.1,
    seed: Seed = 0,
) -> None:
    """Move the images of a folder of class folders into ``train/`` and ``val/``."""
    moves = begin_split(folder, val, seed)
    _move(moves)
    finish_split(folder)
    counts = {name: sum(1 for p in (folder / name).rglob("*") if p.is_file()) for name in ("train", "val")}
    print_line(
        f"{folder}: {counts['train']:,} images in train/, {counts['val']:,} in val/ ({len(moves):,} moved); "
        f'use it as "dataset": "ImageFolder:{folder}"'
    )


def prepare_dataset(
    what: Literal["inaturalist", "tinyimagenet"],
    path: Annotated[Path, Parameter(help="the archive as it is shipped, or the folder that it unpacks to")],
    *,
    val: Annotated[
        float, Parameter(help="share of each class for test/, where iNaturalist's own split is not there")
    ] = 0.1,
    seed: Seed = 0,
) -> None:
    """Sort a dataset's archive, or the folder that it unpacks to, into class folders."""
    folder = path if path.is_dir() else _unpack(path, what)
    if what == "tinyimagenet":
        place = folder
        moves = plan_tiny_imagenet(folder)
    else:
        place = folder.parent / "inaturalist"
        moves = plan_inaturalist(folder, place, val, seed)
    _move(moves)
    print_line(f"{place.absolute()}: {len(moves):,} images sorted by class")


def _unpack(path: Path, what: str) -> Path:
    """Unpack a dataset's archive beside it, and return the folder."""
    with Bar() as bar:
        for done in unpack(path, path.parent):
            _report(bar, f"unpack {path.name}", done, done)
    stem = path.name.split(".")[0]
    folder = path.parent / ("tiny-imagenet-200" if what == "tinyimagenet" else stem)
    if not folder.is_dir():
        raise NotFoundError(f"{path} does not unpack to {folder.name}/; it is no archive of {what}")
    return folder


def _move(moves: Moves) -> None:
    with Bar() as bar:
        for done in move(moves):
            _report(bar, "move", done, len(moves))


def _report(bar: Bar, text: str, done: int, total: int) -> None:
    bar.listen(Event("dataset", "progress", text, done=done, total=total))
