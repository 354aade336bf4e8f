"""Cifar10 and Cifar100, read by torchvision.

Expected below the data folder, as the archives of https://www.cs.toronto.edu/~kriz/cifar.html unpack:
``cifar-10-batches-py/`` (``data_batch_1`` to ``5``, ``test_batch``, ``batches.meta``), ``cifar-100-python/``
(``train``, ``test``, ``meta``). An archive that lies there (``cifar-10-python.tar.gz``) is unpacked; what is
missing is downloaded. torchvision checks every file's md5 before it unpickles it.
"""

import os
import warnings
from typing import Any

import torch
import torchvision.datasets

from satstore.datasets.downloads import open_or_download
from satstore.datasets.images import ImageData, ImageSplit, PixelSource, assemble
from satstore.datasets.placement import Canvas, check_room, place_randomly
from satstore.datasets.transforms import (
    CIFAR_MEAN,
    CIFAR_STD,
    Border,
    Normalize,
    Padding,
    RandomCrop,
    RandomFlip,
    Resize,
)

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def cifar(
    resolution: int = 32,
    data_dir: str | os.PathLike[str] = "tmp",
    augment: bool = True,
    seed: int = 0,
    *,
    name: str = "Cifar10",
    border: Padding | None = None,
    canvas: Canvas | None = None,
) -> ImageData:
    """Return Cifar10 or Cifar100: 50,000 images for training, 10,000 for evaluation.

    Augmentation is a random crop of 32 px out of 40 and a flip, before the resize to ``resolution``.

    Parameters
    ----------
    data_dir
        The folder that has, or gets, the folder ``cifar-10-batches-py`` or ``cifar-100-python``.
    seed
        Of the places on a canvas; nothing else but the augmentation is random.
    name
        The dataset's: what follows ``Cifar10`` or ``Cifar100``, or comes before, names a variant.
    border
        Centre the images and surround them, instead of resizing; the random crop is padded alike, but for
        ``reflect``, with black.
    canvas
        Place them at random, instead of cropping and resizing; see :mod:`satstore.datasets.placement`.

    Raises
    ------
    NotFoundError
        If the files are neither there nor downloadable.
    ConfigError
        If the resolution is too small for a border or a canvas.
    """
    kind: Any = torchvision.datasets.CIFAR100 if "Cifar100" in name else torchvision.datasets.CIFAR10
    Resize(resolution)  # for its check of the resolution, before anything is read

    def read(is_train: bool) -> tuple[ImageSplit, list[str]]:
        part = open_or_download(
            name,
            lambda download: _open(kind, data_dir, is_train, download),
            data_dir=data_dir,
            layout=f"{kind.base_folder}/ (or {kind.filename})",
            page=PAGE,
        )
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2)
        return ImageSplit(PixelSource(pixels), part.targets), part.classes

    train, classes = read(True)
    evaluation, _ = read(False)
    normalize = Normalize(CIFAR_MEAN, CIFAR_STD)
    if canvas is not None:
        return place_randomly(
            name,
            classes,
            train,
            evaluation,
            resolution=resolution,
            canvas=canvas,
            seed=seed,
            augmentation=(RandomFlip(),),
            preparation=(normalize,),
            augment=augment,
        )
    if border is not None:
        check_room(name, 32, resolution)
    crop = RandomCrop(32, padding=4, mode="edge" if border == "edge" else "black")
    fit = Resize(resolution) if border is None else Border(resolution, border)
    return assemble(
        name,
        classes,
        train,
        evaluation,
        augmentation=(crop, RandomFlip()),
        preparation=(fit, normalize),
        augment=augment,
    )


def _open(kind: Any, data_dir: str | os.PathLike[str], is_train: bool, download: bool) -> Any:
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 call the dtypes in pickles as old as these deprecated (numpy/numpy#31177).
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        return kind(data_dir, train=is_train, download=download)
