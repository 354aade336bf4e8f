"""The table of datasets: a file per source, a row per name.

``DATASETS[name](resolution=32, data_dir="tmp", augment=True, seed=0)`` returns an
:class:`~satstore.datasets.image_data.ImageData`. This module holds only the rows and imports nothing slow.
"""

from satstore.registry import Entry

ROWS = (
    Entry(
        "Digits",
        "satstore.datasets.digits:digits",
        family="embedded",
        description="scikit-learn's 1,797 handwritten digits, 8 px, 10 classes; no download",
    ),
    Entry(
        "Cifar10",
        "satstore.datasets.cifar:cifar",
        {"name": "Cifar10"},
        family="downloaded",
        description="60,000 photos, 32 px, 10 classes",
    ),
    Entry(
        "Cifar100",
        "satstore.datasets.cifar:cifar",
        {"name": "Cifar100"},
        family="downloaded",
        description="60,000 photos, 32 px, 100 classes",
    ),
    Entry(
        "MNIST",
        "satstore.datasets.mnist:mnist",
        {"name": "MNIST"},
        family="downloaded",
        description="70,000 handwritten digits, 28 px, grey, 10 classes",
    ),
    Entry(
        "FashionMNIST",
        "satstore.datasets.mnist:mnist",
        {"name": "FashionMNIST"},
        family="downloaded",
        description="70,000 pieces of clothing, 28 px, grey, 10 classes",
    ),
    Entry(
        "Cifar10SmallRandomPositioning",
        "satstore.datasets.cifar:cifar",
        {"name": "Cifar10SmallRandomPositioning", "canvas": "black"},
        family="placed",
        description="Cifar10 unscaled, at a random place of a black canvas",
    ),
    Entry(
        "Cifar10SmallRandomPositioningNoise",
        "satstore.datasets.cifar:cifar",
        {"name": "Cifar10SmallRandomPositioningNoise", "canvas": "noise"},
        family="placed",
        description="Cifar10 unscaled, at a random place of uniform noise",
    ),
    Entry(
        "MNISTSmallRandomPositioning",
        "satstore.datasets.mnist:mnist",
        {"name": "MNISTSmallRandomPositioning", "canvas": "black"},
        family="placed",
        description="MNIST unscaled, at a random place of a black canvas",
    ),
    Entry(
        "BlackBorderCifar10",
        "satstore.datasets.cifar:cifar",
        {"name": "BlackBorderCifar10", "border": "black"},
        family="placed",
        description="Cifar10 unscaled, in the middle of a black canvas",
    ),
    Entry(
        "ReflectBorderCifar10",
        "satstore.datasets.cifar:cifar",
        {"name": "ReflectBorderCifar10", "border": "reflect"},
        family="placed",
        description="Cifar10 unscaled, in the middle, mirrored up to the edges",
    ),
    Entry(
        "EdgePaddingCifar10",
        "satstore.datasets.cifar:cifar",
        {"name": "EdgePaddingCifar10", "border": "edge"},
        family="placed",
        description="Cifar10 unscaled, in the middle, its outermost pixels repeated",
    ),
    Entry(
        "TinyImageNet",
        "satstore.datasets.tiny_imagenet:tiny_imagenet",
        family="folder",
        description="110,000 photos, 64 px, 200 classes; as shipped, or sorted by class",
    ),
    Entry(
        "ImageNet",
        "satstore.datasets.photos:photos",
        {"name": "ImageNet"},
        family="folder",
        description="1.3 million photos, 1,000 classes; ILSVRC2012",
    ),
    Entry(
        "iNaturalist",
        "satstore.datasets.photos:photos",
        {"name": "iNaturalist"},
        family="folder",
        description="photos of species",
    ),
    Entry(
        "Food101",
        "satstore.datasets.photos:photos",
        {"name": "Food101"},
        family="folder",
        description="101,000 photos of dishes, 101 classes",
    ),
    Entry(
        "Malaria",
        "satstore.datasets.photos:photos",
        {"name": "Malaria"},
        family="folder",
        description="photos of cells, 2 classes",
    ),
    Entry(
        "ImageNette",
        "satstore.datasets.photos:photos",
        {"name": "ImageNette"},
        family="folder",
        description="13,394 photos, 10 easy classes of ImageNet, cropped at random for training",
    ),
    Entry(
        "ImageWoof",
        "satstore.datasets.photos:photos",
        {"name": "ImageWoof"},
        family="folder",
        description="12,954 photos, 10 breeds of dogs of ImageNet, cropped at random for training",
    ),
    Entry(
        "EuroSat",
        "satstore.datasets.photos:photos",
        {"name": "EuroSat"},
        family="folder",
        description="27,000 satellite images, 10 classes",
    ),
    Entry(
        "ResizedImageNet",
        "satstore.datasets.photos:photos",
        {"name": "ResizedImageNet", "small": True},
        family="folder",
        description="ImageNet scaled down to 32 px first",
    ),
    Entry(
        "ResizediNaturalist",
        "satstore.datasets.photos:photos",
        {"name": "ResizediNaturalist", "small": True},
        family="folder",
        description="iNaturalist scaled down to 32 px first",
    ),
    Entry(
        "ResizedMalaria",
        "satstore.datasets.photos:photos",
        {"name": "ResizedMalaria", "small": True},
        family="folder",
        description="Malaria scaled down to 32 px first",
    ),
    Entry(
        "ResizedFood101",
        "satstore.datasets.photos:photos",
        {"name": "ResizedFood101", "small": True},
        family="folder",
        description="Food101 scaled down to 32 px first",
    ),
    Entry(
        "TinyResizedFood101",
        "satstore.datasets.photos:photos",
        {"name": "TinyResizedFood101", "small": True},
        family="folder",
        description="another name of ResizedFood101",
    ),
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
