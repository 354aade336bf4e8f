"""Datasets: a file per source, a row per name.

``DATASETS[name](resolution=32, data_dir="tmp", augment=True, seed=0)`` returns an
:class:`~satstore.datasets.images.ImageData`. This module holds only the rows and imports nothing slow.
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
        "ImageFolder",
        "satstore.datasets.image_folder:image_folder",
        family="folder",
        description="a folder of class folders, with train/ and val/ (or test/)",
        argument="path",
    ),
)
