"""The datasets MNIST and FashionMNIST.

Expected below the data folder: ``MNIST/raw/`` or ``FashionMNIST/raw/`` with ``train-images-idx3-ubyte``,
``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, or the same names with
``.gz``. FashionMNIST is also found where Debian's package ``dataset-fashion-mnist`` installs it. Missing
files are downloaded by torchvision. Their content is checked, not their checksums: the same images may be
compressed again.
"""

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from numpy.typing import NDArray

from satstore.datasets.canvas_placement import Canvas, place_randomly
from satstore.datasets.downloads import DatasetFiles, locate_or_download
from satstore.datasets.image_data import ImageData, ImageSplit, PixelSource, assemble
from satstore.datasets.transforms import (
    CIFAR_MEAN,
    CIFAR_STD,
    Normalize,
    RandomCrop,
    RandomFlip,
    Resize,
    ToRGB,
)
from satstore.errors import CorruptError

NAMES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
FILES = {
    "MNIST": DatasetFiles(
        "MNIST",
        "MNIST/raw",
        NAMES,
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        may_be_gzipped=True,
    ),
    "FashionMNIST": DatasetFiles(
        "FashionMNIST",
        "FashionMNIST/raw",
        NAMES,
        "https://github.com/zalandoresearch/fashion-mnist",
        may_be_gzipped=True,
        elsewhere=(Path("/usr/share/datasets/fashion-mnist"),),
    ),
}
SIDE_PX = 28


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
    canvas
        Place the images at random, instead of cropping and resizing; see :mod:`.canvas_placement`.
    """
    base = "FashionMNIST" if name.startswith("Fashion") else "MNIST"
    kind: Any = getattr(torchvision.datasets, base)
    Resize(resolution)  # for its check of the resolution, before anything is read
    files = FILES[base]
    folder = locate_or_download(files, data_dir, lambda waiting: kind(waiting, download=True))
    train, evaluation = (_read_split(files, folder, split, len(kind.classes)) for split in ("train", "t10k"))
    if canvas is not None:
        return place_randomly(
            name,
            kind.classes,
            train,
            evaluation,
            resolution=resolution,
            canvas=canvas,
            seed=seed,
            preparation=(ToRGB(), Normalize(CIFAR_MEAN, CIFAR_STD)),
            augment=augment,
        )
    return assemble(
        name,
        kind.classes,
        train,
        evaluation,
        augmentation=(RandomCrop(28, padding=3), RandomFlip()),
        preparation=(Resize(resolution), ToRGB(), Normalize(CIFAR_MEAN, CIFAR_STD)),
        augment=augment,
    )


def _read_split(files: DatasetFiles, folder: Path, split: str, n_classes: int) -> ImageSplit:
    """Read the images and labels of a split, and check that they fit together."""
    images = files.file(folder, f"{split}-images-idx3-ubyte")
    labels = files.file(folder, f"{split}-labels-idx1-ubyte")
    pixels, classes = _read_idx(images, (SIDE_PX, SIDE_PX)), _read_idx(labels, ())
    if len(pixels) != len(classes):
        raise CorruptError(
            f"{images} has {len(pixels):,} images, {labels} {len(classes):,} labels; get both again from "
            f"{files.page}"
        )
    if classes.max() >= n_classes:
        raise CorruptError(
            f"{labels} has a label {classes.max()}; expected 0 to {n_classes - 1}: get it again "
            f"from {files.page}"
        )
    return ImageSplit(PixelSource(torch.from_numpy(pixels[:, None]), folder), classes)


def _read_idx(path: Path, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Read the items of a file in the idx format: bytes of a shape, at least one item.

    The header is two zeros, 8 for bytes, the number of axes, and the length of each, big-endian.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptError(f"{path} can't be read ({error}); get it again") from error
    n_axes = 1 + len(shape)
    header, values = content[: 4 + 4 * n_axes], content[4 + 4 * n_axes :]
    lengths = np.frombuffer(header[4 : len(header) // 4 * 4], ">u4").tolist()
    if header[:4] != bytes((0, 0, 8, n_axes)) or lengths[1:] != list(shape) or not lengths[0]:
        expected = " x ".join(["n", *map(str, shape)])
        raise CorruptError(f"{path} begins with {header.hex()}; expected an idx file of {expected} bytes")
    if len(values) != math.prod(lengths):
        raise CorruptError(
            f"{path} has {len(values):,} bytes of values; its header says {math.prod(lengths):,}"
        )
    return np.frombuffer(bytearray(values), np.uint8).reshape(lengths)
