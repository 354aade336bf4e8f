"""TinyImageNet: 200 classes of ImageNet at 64 px, as it is shipped or sorted by class.

Expected below the data folder: ``tiny-imagenet-200/train/<class>/images/*.JPEG`` and either ``val/images``
with ``val/val_annotations.txt``, as shipped, or ``val/ds/<class>``, or ``val/<class>``. Images are sorted and
identified by class and name in each case, so that all three are the same data.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from satstore.datasets.image_data import ImageData, ImageSplit, assemble
from satstore.datasets.image_folder import FileSource, list_classes, list_images, read_split
from satstore.datasets.transforms import CIFAR_MEAN, CIFAR_STD, Normalize, RandomCrop, RandomFlip, Resize
from satstore.errors import CorruptError, NotFoundError

FOLDER = "tiny-imagenet-200"
IMAGE_PX = 64
PAGE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ANNOTATIONS = "val_annotations.txt"


def tiny_imagenet(
    resolution: int = 64,
    data_dir: str | os.PathLike[str] = "tmp",
    augment: bool = True,
    seed: int = 0,
) -> ImageData:
    """Return TinyImageNet: 100,000 images for training, 10,000 for evaluation.

    Augmentation is a random crop of 64 px out of 80 and a flip, before the resize to ``resolution``.
    """
    fit = Resize(resolution)
    root = Path(data_dir).absolute() / FOLDER
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise NotFoundError(
            f"TinyImageNet is not in {root}; expected train/ and val/ there: unpack {PAGE}, or name the "
            f"folder that holds {FOLDER} with the config key cache_dir or with TORCH_DATADIR"
        )
    classes = list_classes(root / "train")
    return assemble(
        "TinyImageNet",
        classes,
        read_split(root / "train", classes, IMAGE_PX),
        read_evaluation(root / "val", classes),
        augmentation=(RandomCrop(IMAGE_PX, padding=IMAGE_PX // 8), RandomFlip()),
        preparation=(fit, Normalize(CIFAR_MEAN, CIFAR_STD)),
        augment=augment,
    )


def read_evaluation(folder: Path, classes: Sequence[str]) -> ImageSplit:
    """List the images of ``val``, sorted by class and name, in whichever layout they lie there."""
    if (folder / ANNOTATIONS).is_file() and (folder / "images").is_dir():
        by_class = _annotated(folder, classes)
    else:
        sorted_in = folder / "ds" if (folder / "ds").is_dir() else folder
        by_class = {
            name: [f"{sorted_in.relative_to(folder)}/{file}" for file in list_images(sorted_in, name)]
            for name in classes
        }
    names, known, labels = [], [], []
    for label, name in enumerate(classes):
        if not by_class.get(name):
            raise NotFoundError(
                f"{folder} has no images of class {name}, which the training images have; unpack {PAGE} again"
            )
        for file in sorted(by_class[name], key=lambda path: PurePosixPath(path).name):
            names.append(file)
            known.append(f"{name}/{PurePosixPath(file).name}")
            labels.append(label)
    return ImageSplit(FileSource(folder, names, IMAGE_PX, known_as=known), labels)


def _annotated(folder: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in classes}
    there = {entry.name for entry in os.scandir(folder / "images")}
    for number, line in enumerate((folder / ANNOTATIONS).read_text().splitlines(), start=1):
        file, name, *_ = [*line.split("\t"), "", ""]
        if file not in there or name not in found:
            lost = f"image {file!r}, which is not there"
            what = lost if file not in there else f"class {name!r}, which train/ lacks"
            raise CorruptError(f"{folder / ANNOTATIONS}, line {number}, names {what}; unpack {PAGE} again")
        found[name].append(f"images/{file}")
    return found
