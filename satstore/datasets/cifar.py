"""The datasets Cifar10 and Cifar100.

Expected below the data folder, as the archives of https://www.cs.toronto.edu/~kriz/cifar.html unpack:
``cifar-10-batches-py/`` (``data_batch_1`` to ``5``, ``test_batch``, ``batches.meta``), ``cifar-100-python/``
(``train``, ``test``, ``meta``). An archive that lies there (``cifar-10-python.tar.gz``) is unpacked; missing
files are downloaded by torchvision. Their content is checked; the log warns if their checksums are not those
of the published files. They are read without running anything that a pickle names.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets

from satstore.datasets.canvas_placement import Canvas, check_room, place_randomly
from satstore.datasets.downloads import DatasetFiles, locate_or_download
from satstore.datasets.image_data import ImageData, ImageSplit, PixelSource, assemble
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
from satstore.errors import CorruptError
from satstore.storage.safe_pickles import read_pickle

logger = logging.getLogger(__name__)

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class FileLayout:
    """The files of a dataset, and the keys of their labels and class names."""

    name: str
    folder: str
    archive: str
    n_classes: int
    train: Sequence[str]
    eval: Sequence[str]
    meta: str
    labels_key: str
    names_key: str

    @property
    def files(self) -> DatasetFiles:
        """The files and where to get them."""
        names = [*self.train, *self.eval, self.meta]
        return DatasetFiles(self.name, self.folder, names, PAGE, archive=self.archive)


CIFAR10 = FileLayout(
    "Cifar10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    10,
    [f"data_batch_{n}" for n in range(1, 6)],
    ["test_batch"],
    "batches.meta",
    "labels",
    "label_names",
)
CIFAR100 = FileLayout(
    "Cifar100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    100,
    ["train"],
    ["test"],
    "meta",
    "fine_labels",
    "fine_label_names",
)


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
    border
        Centre the images and pad them, instead of resizing; the random crop is padded in the same way, but
        with black for ``reflect``.
    canvas
        Place them at random, instead of cropping and resizing; see :mod:`.canvas_placement`.
    """
    layout = CIFAR100 if "Cifar100" in name else CIFAR10
    Resize(resolution)  # for its check of the resolution, before anything is read
    classes, train, evaluation = _read(layout, data_dir)
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


def _read(layout: FileLayout, data_dir: str | os.PathLike[str]) -> tuple[list[str], ImageSplit, ImageSplit]:
    """Return the classes, the training and the evaluation images."""
    folder = locate_or_download(layout.files, data_dir, lambda waiting: _download(layout, waiting))
    train, evaluation = (_read_split(layout, folder, names) for names in (layout.train, layout.eval))
    return _read_classes(layout, folder), train, evaluation


def _download(layout: FileLayout, waiting: Path) -> None:
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 call the dtypes in pickles as old as these deprecated (numpy/numpy#31177).
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        _torchvision(layout)(waiting, download=True)


def _torchvision(layout: FileLayout) -> Any:
    return torchvision.datasets.CIFAR100 if layout is CIFAR100 else torchvision.datasets.CIFAR10


def _read_classes(layout: FileLayout, folder: Path) -> list[str]:
    path = folder / layout.meta
    found = read_pickle(path)
    names = found.get(layout.names_key) if isinstance(found, dict) else None
    if not isinstance(names, list) or len(names) != layout.n_classes:
        raise CorruptError(
            f"{path} does not name {layout.n_classes} classes as {layout.names_key}; get it again from {PAGE}"
        )
    return [str(name) for name in names]


def _read_split(layout: FileLayout, folder: Path, names: Sequence[str]) -> ImageSplit:
    """Read the images of some files, in their order."""
    pixels, labels = [], []
    kind = _torchvision(layout)
    published = dict([*kind.train_list, *kind.test_list])
    for name in names:
        if hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest() != published[name]:
            logger.warning("%s is not the published file, by its MD5; used as it is", folder / name)
        found = read_pickle(folder / name)
        try:
            pixels.append(np.asarray(found["data"]).reshape(-1, *SHAPE))
            labels.append(np.asarray(found[layout.labels_key]))
            is_whole = (
                pixels[-1].dtype == np.uint8
                and labels[-1].shape == (len(pixels[-1]),)
                and set(labels[-1].tolist()) <= set(range(layout.n_classes))
            )
        except (LookupError, TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise CorruptError(
                f"{folder / name} does not hold bytes of 3 x 32 x 32 px as data and a label from 0 to "
                f"{layout.n_classes - 1} for each as {layout.labels_key}; get it again from {PAGE}"
            )
    source = PixelSource(torch.from_numpy(np.concatenate(pixels)), folder)
    return ImageSplit(source, np.concatenate(labels))
