"""Datasets from factories that return torch loaders of transformed images.

Such factories are recognised by their parameter ``output_size`` (or ``output_resolution``); see
:class:`satstore.protocols.LoaderFactory`. Only the datasets of their loaders are used: order, batches and
worker processes are satstore's own, so that a run can be resumed, and its latents have the dataset's order.
"""

import copy
import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from satstore.datasets.image_data import ImageData, ImageSplit, Update, fingerprint
from satstore.errors import ConfigError

_log = logging.getLogger(__name__)

SIZES = ("output_size", "output_resolution")
"""The names of the parameter that takes the resolution; a factory that has one makes loaders."""


class ItemSource:
    """The images of a torch dataset, read item by item.

    Parameters
    ----------
    dataset
        A sized torch dataset of (image, label), the image a float tensor (3, r, r).
    """

    def __init__(self, dataset: Any, in_memory: bool) -> None:
        self.dataset = dataset
        self.in_memory = in_memory

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at some indices, float32 (B, 3, r, r), in their order."""
        return torch.stack([torch.as_tensor(self.dataset[index][0]).float() for index in indices])

    def identify(self, update: Update) -> None:
        """Feed a digest with the pixels, if the dataset has them as ``data``, or its files' names and sizes.

        A dataset with neither is identified by its number of images and its labels alone.
        """
        pixels = getattr(self.dataset, "data", None)
        if isinstance(pixels, np.ndarray | Tensor):
            update(hashlib.sha256(np.ascontiguousarray(pixels).data).digest())
        for path, *_ in getattr(self.dataset, "samples", ()):
            if isinstance(path, str | os.PathLike):
                update(f"{os.fspath(path)}\0{Path(path).stat().st_size}\0".encode(errors="surrogateescape"))


def takes_loaders(factory: Callable[..., Any]) -> bool:
    """Tell whether a factory makes loaders."""
    return any(name in inspect.signature(factory).parameters for name in SIZES)


def from_loaders(
    name: str, factory: Callable[..., Any], resolution: int, batch_size: int, data_dir: str | os.PathLike[str]
) -> ImageData:
    """Make a dataset from the loaders that a factory returns.

    For latents, the training images are transformed as the test images are, if both datasets have a
    ``transform``; otherwise they come as they are, with augmentation, and the log warns.

    Raises
    ------
    ConfigError
        If the factory returns no loaders, or loaders of datasets without a length.
    """
    size = next(key for key in SIZES if key in inspect.signature(factory).parameters)
    found = factory(**{size: resolution, "batch_size": batch_size, "cache_dir": os.fspath(data_dir)})
    if isinstance(found, tuple) and len(found) == 4:
        train, test, _, n_classes = found
    else:
        parts = (getattr(found, key, None) for key in ("train_dataset", "test_dataset", "cardinality"))
        train, test, n_classes = parts
    sets = [getattr(loader, "dataset", None) for loader in (train, test)]
    _check_sets(name, sets, n_classes, type(found).__name__)
    # A loader without workers may have a dataset that can't be sent to them.
    in_memory = not getattr(train, "num_workers", 0)
    plain = _without_augmentation(name, *sets, is_known=getattr(found, "is_plain", False))
    splits = [_split(dataset, in_memory) for dataset in (sets[0], plain, sets[1])]
    names = getattr(sets[0], "classes", ())
    classes = list(map(str, names if len(names) == n_classes else range(n_classes)))
    return ImageData(
        name=name,
        classes=tuple(classes),
        train=splits[0],
        train_plain=splits[1],
        eval=splits[2],
        fingerprint=fingerprint(classes, splits[1], splits[2]),
        in_memory=in_memory,
    )


def _check_sets(name: str, sets: Sequence[Any], n_classes: Any, returned: str) -> None:
    """Raise ConfigError unless the datasets of both loaders have a length, and the factory a cardinality."""
    streams = [dataset for dataset in sets if isinstance(dataset, IterableDataset)]
    if streams:
        raise ConfigError(
            f"dataset {name!r} has an IterableDataset ({type(streams[0]).__name__}), which can't be read by "
            "index, as order, resuming and latents need; give a dataset with __len__ and __getitem__, or "
            "record a model and loaders of your own with satstore.record"
        )
    if not all(hasattr(dataset, "__len__") for dataset in sets) or not isinstance(n_classes, int):
        raise ConfigError(
            f"dataset {name!r} returned {returned}; expected train_dataset and test_dataset, "
            "loaders of datasets with a length, and cardinality"
        )
    for split, dataset in zip(("train", "eval"), sets, strict=True):
        if not len(dataset):
            raise ConfigError(f"dataset {name!r} has no images in its {split} split; give it one at least")


def _without_augmentation(name: str, train: Any, test: Any, *, is_known: bool) -> Any:
    if not (hasattr(train, "transform") and hasattr(test, "transform")):
        if not is_known:
            _log.warning(
                "%s: its training set has no attribute 'transform', so its latents are of the images as they "
                "come, with what augmentation they have",
                name,
            )
        return train
    plain = copy.copy(train)
    plain.transform = test.transform
    if hasattr(plain, "transforms"):  # torchvision's datasets keep both, and some read the second
        plain.transforms = test.transforms
    return plain


def _split(dataset: Any, in_memory: bool) -> ImageSplit:
    labels = getattr(dataset, "targets", None)
    if labels is None or len(labels) != len(dataset):
        labels = [int(dataset[index][1]) for index in range(len(dataset))]
    return ImageSplit(ItemSource(dataset, in_memory), np.asarray([int(label) for label in labels]))
