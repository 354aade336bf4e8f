"""Datasets of photos in class folders: ImageNet and its parts, iNaturalist and others.

Expected below the data folder: ``ImageNet/`` (as torchvision's own loader unpacks it from the archives, or
``train/`` and ``val/`` with class folders), ``inaturalist/{train,test}``,
``Food_101_Dataset/food-101/{train,test}`` (or as its archive unpacks: ``images/`` and ``meta/``) and
``malaria/{train,test}``, ``imagenette2/{train,val}``, ``imagewoof2/{train,val}`` and
``eurosat/{train,val}``. A small variant is scaled down to 32 px first, and from there up to the resolution.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torchvision.datasets

from satstore.datasets.image_data import ImageData, ImageSplit, assemble
from satstore.datasets.image_folder import FileSource, find_splits, read_split
from satstore.datasets.transforms import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    CenterCrop,
    ColorJitter,
    Lighting,
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Resize,
    Transform,
)
from satstore.errors import NotFoundError, reason_of

SMALL_PX = 32
"""The resolution that a small variant is scaled down to."""

ENLARGED = 1.14
"""The factor by which evaluation images exceed the resolution before their middle is cut out."""

Read = Callable[[str, int, int | None], ImageSplit]
"""Reads a split (``train`` or ``eval``) at a resolution, the shorter side scaled to some pixels."""


@dataclass(frozen=True)
class PhotoDataset:
    """The folder of a dataset of photos, and its preparation.

    Attributes
    ----------
    layout
        What is expected there, for error messages.
    page
        The page to get it from, for error messages.
    as_imagenet
        Whether evaluation images are scaled to more than the resolution, and cut, and ImageNet's mean and
        standard deviation are those of the pixels; otherwise Cifar10's are.
    """

    folder: str
    layout: str
    page: str
    augmentation: Callable[[int], Sequence[Transform]]
    as_imagenet: bool = False


def jittered(resolution: int) -> Sequence[Transform]:
    """Return ImageNet's augmentation."""
    return RandomFlip(), ColorJitter(0.4), Lighting(0.1)


def shifted(resolution: int) -> Sequence[Transform]:
    """Return a random crop after padding by an eighth, and a flip."""
    return RandomCrop(resolution, padding=resolution // 8), RandomFlip()


def cropped(resolution: int) -> Sequence[Transform]:
    """Return crops of random size and place, and a flip."""
    return RandomResizedCrop(resolution), RandomFlip()


def mirrored(resolution: int) -> Sequence[Transform]:
    """Return a flip."""
    return (RandomFlip(),)


def flipped(resolution: int) -> Sequence[Transform]:
    """Return flips both ways."""
    return RandomFlip(vertical=True), RandomFlip()


PHOTOS: Mapping[str, PhotoDataset] = {
    "ImageNet": PhotoDataset(
        "ImageNet",
        "train/ and val/ with class folders, or ILSVRC2012's archives",
        "https://image-net.org",
        jittered,
        as_imagenet=True,
    ),
    "iNaturalist": PhotoDataset(
        "inaturalist",
        "train/ and test/ with class folders; satstore dataset prepare inaturalist sorts its archives",
        "https://github.com/visipedia/inat_comp",
        jittered,
        as_imagenet=True,
    ),
    "Food101": PhotoDataset(
        "Food_101_Dataset/food-101",
        "train/ and test/ with class folders, or images/ and meta/ as its archive unpacks",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        shifted,
    ),
    "Malaria": PhotoDataset(
        "malaria",
        "train/ and test/ with class folders; satstore dataset split makes two of one",
        "https://lhncbc.nlm.nih.gov/LHC-research/LHC-projects/image-processing/malaria-datasheet.html",
        flipped,
    ),
    **{
        name: PhotoDataset(
            folder,
            "train/ and val/ with class folders, as its archive unpacks",
            "https://github.com/fastai/imagenette",
            cropped,
            as_imagenet=True,
        )
        for name, folder in (("ImageNette", "imagenette2"), ("ImageWoof", "imagewoof2"))
    },
    "EuroSat": PhotoDataset(
        "eurosat",
        "train/ and val/ with class folders; satstore dataset split makes two of one",
        "https://github.com/phelber/EuroSAT",
        mirrored,
    ),
}


def photos(
    resolution: int = 224,
    data_dir: str | os.PathLike[str] = "tmp",
    augment: bool = True,
    seed: int = 0,
    *,
    name: str,
    small: bool = False,
) -> ImageData:
    """Return the photos of a dataset of :data:`PHOTOS`.

    Parameters
    ----------
    small
        Scale down to 32 px first, then up to ``resolution``.
    """
    [kind] = [found for found in PHOTOS if name.endswith(found)]
    what = PHOTOS[kind]
    fit = Resize(resolution)
    root = Path(data_dir).absolute() / what.folder
    if not root.is_dir():
        raise NotFoundError(
            f"{kind} is not in {root}; expected {what.layout} there: get it from {what.page}, or name the "
            "folder that holds it with the config key cache_dir or with TORCH_DATADIR"
        )
    classes, read = _open(kind, root)
    figures = (IMAGENET_MEAN, IMAGENET_STD) if what.as_imagenet else (CIFAR_MEAN, CIFAR_STD)
    normalize = Normalize(*figures)
    enlarged = int(ENLARGED * resolution) if what.as_imagenet else resolution
    if small:
        train, evaluation = (read(split, SMALL_PX, None) for split in ("train", "eval"))
        prepared: Sequence[Transform] = (Resize(enlarged), CenterCrop(resolution), normalize)
    else:
        train, evaluation = read("train", resolution, None), read("eval", resolution, enlarged)
        prepared = (normalize,)
    data = assemble(
        name,
        classes,
        train,
        evaluation,
        augmentation=(fit, *what.augmentation(resolution)),
        preparation=(fit, normalize),
        augment=augment,
    )
    return replace(data, eval=evaluation.transformed(prepared))


def _open(kind: str, root: Path) -> tuple[list[str], Read]:
    """Return a dataset's classes, and a function that reads its splits, as shipped or in class folders."""
    is_sorted = all((root / split).is_dir() for split in ("train", "val"))
    shipped = ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz")
    if kind == "ImageNet" and not is_sorted and any((root / name).exists() for name in shipped):
        return _open_shipped(root, lambda split: _imagenet(root, {"eval": "val"}.get(split, split)))
    if kind == "Food101" and (root / "meta/train.json").is_file():
        return _open_shipped(root, lambda split: _food(root, {"eval": "test"}.get(split, split)))
    classes, folders = find_splits(root)
    places = dict(zip(("train", "eval"), folders, strict=True))
    return classes, lambda split, px, scaled_to: read_split(places[split], classes, px, scaled_to)


Listed = tuple[list[str], list[tuple[str, int]]]
"""Classes, and files with their labels."""


def _open_shipped(root: Path, list_files: Callable[[str], Listed]) -> tuple[list[str], Read]:
    found = {split: list_files(split) for split in ("train", "eval")}

    def read(split: str, px: int, scaled_to: int | None) -> ImageSplit:
        names = [Path(path).relative_to(root).as_posix() for path, _ in found[split][1]]
        known = [name.partition("/")[2] for name in names]  # by class, as if train/ had been sorted
        labels = [label for _, label in found[split][1]]
        return ImageSplit(FileSource(root, names, px, scaled_to, known), labels)

    return found["train"][0], read


def _imagenet(root: Path, split: str) -> Listed:
    try:
        part = torchvision.datasets.ImageNet(root, split=split)
    except (RuntimeError, OSError) as error:  # what torchvision raises for a missing or damaged archive
        reason = reason_of(error)
        raise NotFoundError(
            f"ImageNet in {root} can't be read: {reason}; get the archives again, or unpack them yourself to "
            "train/<class>/ and val/<class>/"
        ) from error
    return list(part.wnids), [(str(path), int(label)) for path, label in part.samples]


def _food(root: Path, split: str) -> Listed:
    part = torchvision.datasets.Food101(root.parent, split=split)
    pairs = zip(part._image_files, part._labels, strict=True)
    return list(part.classes), [(str(path), int(label)) for path, label in pairs]
