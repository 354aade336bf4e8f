"""MNIST and FashionMNIST, read by torchvision.

Expected below the data folder: ``MNIST/raw/`` or ``FashionMNIST/raw/`` with ``train-images-idx3-ubyte``,
``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``. The same names with
``.gz`` are unpacked; what is missing is downloaded.
"""

import os
from typing import Any

import torchvision.datasets

from satstore.datasets.downloads import open_or_download
from satstore.datasets.images import ImageData, ImageSplit, PixelSource, assemble
from satstore.datasets.placement import Canvas, place_randomly
from satstore.datasets.transforms import (
    CIFAR_MEAN,
    CIFAR_STD,
    Normalize,
    RandomCrop,
    RandomFlip,
    Resize,
    ToRGB,
)

PAGES = {
    "MNIST": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "FashionMNIST": "https://github.com/zalandoresearch/fashion-mnist",
}


def mnist(
    resolution: int = 32,
    data_dir: str | os.PathLike[str] = "tmp",
    augment: bool = True,
    seed: int = 0,
    *,
    name: str = "MNIST",
    canvas: Canvas | None = None,
) -> ImageData:
    """Return MNIST or FashionMNIST: 60,000 images for training, 10,000 for evaluation, as three channels.

    Augmentation is a random crop of 28 px out of 34 and a flip, before the resize to ``resolution``.

    Parameters
    ----------
    data_dir
        The folder that has, or gets, the folder ``MNIST/raw`` or ``FashionMNIST/raw``.
    seed
        Of the places on a canvas; nothing else but the augmentation is random.
    name
        ``"MNIST"`` or ``"FashionMNIST"``, and what names a variant.
    canvas
        Place the images at random, instead of cropping and resizing; see :mod:`satstore.datasets.placement`.

    Raises
    ------
    NotFoundError
        If the files are neither there nor downloadable.
    ConfigError
        If the resolution is too small for a canvas.
    """
    base = "FashionMNIST" if name.startswith("Fashion") else "MNIST"
    kind: Any = getattr(torchvision.datasets, base)
    Resize(resolution)  # for its check of the resolution, before anything is read

    def read(is_train: bool) -> ImageSplit:
        part = open_or_download(
            name,
            lambda download: kind(data_dir, train=is_train, download=download),
            data_dir=data_dir,
            layout=f"{base}/raw/ with {{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte (or .gz)",
            page=PAGES[base],
        )
        return ImageSplit(PixelSource(part.data[:, None]), part.targets)

    if canvas is not None:
        return place_randomly(
            name,
            kind.classes,
            read(True),
            read(False),
            resolution=resolution,
            canvas=canvas,
            seed=seed,
            augmentation=(RandomFlip(),),
            preparation=(ToRGB(), Normalize(CIFAR_MEAN, CIFAR_STD)),
            augment=augment,
        )
    return assemble(
        name,
        kind.classes,
        read(True),
        read(False),
        augmentation=(RandomCrop(28, padding=3), RandomFlip()),
        preparation=(Resize(resolution), ToRGB(), Normalize(CIFAR_MEAN, CIFAR_STD)),
        augment=augment,
    )
