"""The table of datasets: a file per source, a row per name.

``DATASETS[name](resolution=32, data_dir="tmp", augment=True, seed=0)`` returns an
:class:`~satstore.datasets.image_data.ImageData`. Factories look for files below ``data_dir``; they raise a
NotFoundError if some are missing, a CorruptError if one can't be read, and a ConfigError for a resolution
that they can't give. ``seed`` is that of positions on a canvas. This module holds only the rows and imports
nothing slow.
"""

from typing import Any

from satstore.registry import Entry


def _row(name: str, factory: str, family: str, description: str, **arguments: Any) -> Entry:
    """Make the row of a factory that takes the dataset's name."""
    return Entry(name, f"satstore.datasets.{factory}", {"name": name, **arguments}, family, description)


ROWS = (
    Entry(
        "Digits",
        "satstore.datasets.digits:digits",
        family="embedded",
        description="scikit-learn's 1,797 handwritten digits, 8 px, 10 classes; no download",
    ),
    _row("Cifar10", "cifar:cifar", "downloaded", "60,000 photos, 32 px, 10 classes"),
    _row("Cifar100", "cifar:cifar", "downloaded", "60,000 photos, 32 px, 100 classes"),
    _row("MNIST", "mnist:mnist", "downloaded", "70,000 handwritten digits, 28 px, grey, 10 classes"),
    _row("FashionMNIST", "mnist:mnist", "downloaded", "70,000 pieces of clothing, 28 px, grey, 10 classes"),
    _row(
        "Cifar10SmallRandomPositioning",
        "cifar:cifar",
        "placed",
        "Cifar10 unscaled, at a random place of a black canvas",
        canvas="black",
    ),
    _row(
        "Cifar10SmallRandomPositioningNoise",
        "cifar:cifar",
        "placed",
        "Cifar10 unscaled, at a random place of uniform noise",
        canvas="noise",
    ),
    _row(
        "MNISTSmallRandomPositioning",
        "mnist:mnist",
        "placed",
        "MNIST unscaled, at a random place of a black canvas",
        canvas="black",
    ),
    _row(
        "BlackBorderCifar10",
        "cifar:cifar",
        "placed",
        "Cifar10 unscaled, in the middle of a black canvas",
        border="black",
    ),
    _row(
        "ReflectBorderCifar10",
        "cifar:cifar",
        "placed",
        "Cifar10 unscaled, in the middle, mirrored up to the edges",
        border="reflect",
    ),
    _row(
        "EdgePaddingCifar10",
        "cifar:cifar",
        "placed",
        "Cifar10 unscaled, in the middle, its outermost pixels repeated",
        border="edge",
    ),
    Entry(
        "TinyImageNet",
        "satstore.datasets.tiny_imagenet:tiny_imagenet",
        family="folder",
        description="110,000 photos, 64 px, 200 classes; as shipped, or sorted by class",
    ),
    _row("ImageNet", "photos:photos", "folder", "1.3 million photos, 1,000 classes; ILSVRC2012"),
    _row("iNaturalist", "photos:photos", "folder", "photos of species"),
    _row("Food101", "photos:photos", "folder", "101,000 photos of dishes, 101 classes"),
    _row("Malaria", "photos:photos", "folder", "photos of cells, 2 classes"),
    _row(
        "ImageNette",
        "photos:photos",
        "folder",
        "13,394 photos, 10 easy classes of ImageNet, cropped at random for training",
    ),
    _row(
        "ImageWoof",
        "photos:photos",
        "folder",
        "12,954 photos, 10 breeds of dogs of ImageNet, cropped at random for training",
    ),
    _row("EuroSat", "photos:photos", "folder", "27,000 satellite images, 10 classes"),
    _row("ResizedImageNet", "photos:photos", "folder", "ImageNet scaled down to 32 px first", small=True),
    _row(
        "ResizediNaturalist", "photos:photos", "folder", "iNaturalist scaled down to 32 px first", small=True
    ),
    _row("ResizedMalaria", "photos:photos", "folder", "Malaria scaled down to 32 px first", small=True),
    _row("ResizedFood101", "photos:photos", "folder", "Food101 scaled down to 32 px first", small=True),
    _row("TinyResizedFood101", "photos:photos", "folder", "another name of ResizedFood101", small=True),
    Entry(
        "ImageFolder",
        "satstore.datasets.image_folder:image_folder",
        family="folder",
        description="a folder of class folders, with train/ and val/ (or test/)",
        argument="path",
    ),
)

_OWN_FOLDERS = (
    'satstore doesn\'t know where its images lie; "dataset": "ImageFolder:PATH" reads class folders, '
    "train/ and val/ (or test/)"
)

ABSENT = {
    r"Cifar10A": '"dataset": "Cifar10" with "augment": false is the same',
    r"AMNIST": '"dataset": "MNIST" with "augment": false is the same but for the normalisation',
    r"Cifar10AA": "satstore has no automatic augmentation; Cifar10 has shifts and flips",
    r"Cifar10RC": "satstore's Cifar10 has shifts and flips, and no crops of random size",
    r"ResizedImageNet16|AgeFace(V2|V3)?|ZIEL_U?C|UrbanSounds": _OWN_FOLDERS,
}
"""Datasets that phd-lab's configs name and satstore lacks: a pattern of names to what it has instead."""
