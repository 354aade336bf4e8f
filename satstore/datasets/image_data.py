"""The form of every dataset: an :class:`ImageData` of two :class:`ImageSplit`.

A split is a source of uint8 images, their labels, and the transforms of a batch. A new dataset is a source,
which may wrap another one, and a choice of transforms, put together by :func:`assemble`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from satstore.datasets.transforms import Transform

Batch = tuple[Tensor, Tensor]
Update = Callable[[bytes | memoryview], None]


class ImageSource(Protocol):
    """The source of a split's images; it must be picklable, for loader workers."""

    in_memory: bool

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at some indices, uint8 (B, C, H, W), in their order."""
        ...

    def identify(self, update: Update) -> None:
        """Feed a digest with what identifies the images; not with the resolution."""
        ...


class PixelSource:
    """Images held in memory.

    Parameters
    ----------
    pixels
        uint8 (n, C, H, W). Loader workers share this memory: torch moves it to shared memory when it is
        first sent to one.
    """

    in_memory = True

    def __init__(self, pixels: Tensor, folder: Path | None = None) -> None:
        self.pixels = pixels.contiguous()
        self.folder = folder

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at some indices, uint8 (B, C, H, W), in their order."""
        return self.pixels[torch.as_tensor(indices, dtype=torch.int64)]

    def identify(self, update: Update) -> None:
        """Feed a digest with the shape and every pixel."""
        update(repr(tuple(self.pixels.shape)).encode())
        update(self.pixels.numpy().data)


class ImageSplit(Dataset[Batch]):
    """The images of one split, in a fixed order, read and transformed a batch at a time.

    Parameters
    ----------
    labels
        (n,): the class index of each image.
    sample_ids
        (n,): the index of each image in the underlying dataset; by default 0, 1, 2, ….

    Attributes
    ----------
    labels, sample_ids
        int64 (n,).
    """

    def __init__(
        self,
        source: ImageSource,
        labels: npt.ArrayLike,
        sample_ids: npt.ArrayLike | None = None,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self.source = source
        self.labels = np.asarray(labels, dtype=np.int64)
        ids = np.arange(len(source)) if sample_ids is None else sample_ids
        self.sample_ids = np.asarray(ids, dtype=np.int64)
        self.transforms = tuple(transforms)

    def transformed(self, transforms: Sequence[Transform]) -> "ImageSplit":
        """Return a split of the same images with other transforms; the source is shared."""
        return ImageSplit(self.source, self.labels, self.sample_ids, transforms)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return float32 (B, 3, r, r) and int64 (B,); a DataLoader calls this once per batch."""
        images = self.source.read(indices)
        for transform in self.transforms:
            images = transform(images)
        return images.contiguous(), torch.from_numpy(self.labels[np.asarray(indices, dtype=np.int64)])


@dataclass(frozen=True)
class ImageData:
    """A dataset, ready for training and for extraction.

    Attributes
    ----------
    train_plain
        The same images in the same order, never augmented; latents are extracted from them.
    fingerprint
        Hex sha256 of class names, labels, sample ids and the source's identity (sizes and pixels in memory,
        file names and sizes in folders); the same at every resolution.
    skipped
        The names of corrupt images that were left out, by split (``train``, ``eval``).
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    train_plain: ImageSplit
    eval: ImageSplit
    fingerprint: str
    in_memory: bool
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def assemble(
    name: str,
    classes: Sequence[str],
    train: ImageSplit,
    evaluation: ImageSplit,
    *,
    augmentation: Sequence[Transform],
    preparation: Sequence[Transform],
    augment: bool,
) -> ImageData:
    """Put a dataset together from two splits that have no transforms yet.

    ``augmentation`` is applied to training images first, if ``augment``; ``preparation`` to all.
    """
    plain = train.transformed(preparation)
    return ImageData(
        name=name,
        classes=tuple(classes),
        train=train.transformed((*augmentation, *preparation)) if augment else plain,
        train_plain=plain,
        eval=evaluation.transformed(preparation),
        fingerprint=fingerprint(classes, train, evaluation),
        in_memory=train.source.in_memory and evaluation.source.in_memory,
    )


def fingerprint(classes: Sequence[str], *splits: ImageSplit) -> str:
    """Compute the hex sha256 of class names, labels, sample ids and images; see :class:`ImageData`."""
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for split in splits:
        digest.update(repr(len(split)).encode())
        digest.update(split.labels.astype("<i8").data)
        digest.update(split.sample_ids.astype("<i8").data)
        split.source.identify(digest.update)
    return digest.hexdigest()
