"""Commands on datasets: what is there, and sorting what isn't sorted by class."""

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from satstore.cli.console import say
from satstore.cli.progress import Bar
from satstore.config.experiment import ExperimentConfig
from satstore.datasets.preparation import (
    Moves,
    begin_split,
    finish_split,
    move,
    plan_inaturalist,
    plan_tiny_imagenet,
    unpack,
)
from satstore.errors import CorruptError, NotFoundError
from satstore.runs.events import Event


class Counting:
    """Shows how far a piece of work is."""

    def __init__(self, bar: Bar, what: str) -> None:
        self._bar, self._what = bar, what

    def __call__(self, done: int, total: int | None = None) -> None:
        """Show a number of things done."""
        self._bar.listen(Event("dataset", "progress", self._what, done=done, total=total or done))


def check_dataset(
    name: str, data_dir: Path | None, resolution: int, may_download: bool, as_json: bool
) -> None:
    """Print what there is of a dataset, every image read; what isn't there is downloaded only if it may be.

    Raises
    ------
    NotFoundError
        If it isn't there.
    CorruptError
        If images can't be decoded.
    """
    from satstore.datasets.corrupt_images import find_corrupt
    from satstore.datasets.downloads import without_downloads
    from satstore.datasets.foreign_loaders import from_loaders, takes_loaders
    from satstore.datasets.image_data import ImageData
    from satstore.datasets.image_folder import FileSource
    from satstore.registry import DATASETS

    place = data_dir or ExperimentConfig().data_dir
    factory = DATASETS[name]
    with nullcontext() if may_download else without_downloads():
        data: ImageData = (
            from_loaders(name, factory, resolution, 1, place)
            if takes_loaders(factory)
            else factory(resolution=resolution, data_dir=place, augment=False, seed=0)
        )
    report: dict[str, Any] = {"dataset": name, "n_classes": len(data.classes), "splits": {}}
    n_corrupt = 0
    with Bar() as bar:
        for split, images in (("train", data.train_plain), ("eval", data.eval)):
            counts = Counter(images.labels.tolist())
            in_order = sorted(range(len(data.classes)), key=lambda label: counts[label])
            corrupt: list[str] = []
            where = getattr(images.source, "folder", None)  # a plugin's source need not say
            if isinstance(images.source, FileSource):
                found = find_corrupt(images.source, Counting(bar, f"read {split}"))
                corrupt = [found[index] for index in sorted(found)]
            n_corrupt += len(corrupt)
            report["splits"][split] = {
                "folder": str(where) if where else None,
                "n_images": len(images),
                "smallest_class": {"name": data.classes[in_order[0]], "n_images": counts[in_order[0]]},
                "largest_class": {"name": data.classes[in_order[-1]], "n_images": counts[in_order[-1]]},
                "corrupt": corrupt,
            }
    print(json.dumps(report, indent=1) if as_json else describe(report))  # noqa: T201
    if n_corrupt:
        raise CorruptError(
            f"{n_corrupt} images of {name} can't be decoded; replace them, or leave them out with the config "
            'key "on_corrupt": "skip"'
        )


def describe(report: dict[str, Any]) -> str:
    """Return a report in lines."""
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


def split_folder(folder: Path, val: float, seed: int) -> None:
    """Move the images of a folder of class folders into ``train/`` and ``val/``."""
    moves = begin_split(folder, val, seed)
    _move(moves)
    finish_split(folder)
    counts = {name: sum(1 for p in (folder / name).rglob("*") if p.is_file()) for name in ("train", "val")}
    say(
        f"{folder}: {counts['train']:,} images in train/, {counts['val']:,} in val/ ({len(moves):,} moved); "
        f'use it as "dataset": "ImageFolder:{folder}"'
    )


def prepare_dataset(what: str, path: Path, val: float, seed: int) -> None:
    """Sort a shipped archive, or the folder that it unpacks to, into class folders.

    Raises
    ------
    NotFoundError
        If it is not what it should be.
    """
    folder = path
    if not path.is_dir():
        with Bar() as bar:
            show = Counting(bar, f"unpack {path.name}")
            for done in unpack(path, path.parent):
                show(done)
        stem = path.name.split(".")[0]
        folder = path.parent / ("tiny-imagenet-200" if what == "tinyimagenet" else stem)
        if not folder.is_dir():
            raise NotFoundError(f"{path} does not unpack to {folder.name}/; it is no archive of {what}")
    if what == "tinyimagenet":
        place = folder
        moves = plan_tiny_imagenet(folder)
    else:
        place = folder.parent / "inaturalist"
        moves = plan_inaturalist(folder, place, val, seed)
    _move(moves)
    say(f"{place.absolute()}: {len(moves):,} images sorted by class")


def _move(moves: Moves) -> None:
    with Bar() as bar:
        show = Counting(bar, "move")
        for done in move(moves):
            show(done, len(moves))
