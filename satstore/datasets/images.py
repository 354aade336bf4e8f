"""What every dataset returns: an :class:`ImageData` of two :class:`ImageSplit`, and the loader over a split.

A split is a source of uint8 images, their labels, and the transforms of a batch. A new dataset is a source
(or one around another: it sees the indices) and a choice of transforms, put together by :func:`assemble`.
"""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from satstore.datasets.transforms import Transform
from satstore.errors import SatstoreError
from satstore.system.process_group import ALONE, Ranks
from satstore.system.signals import deaf_children, follow_main_process

Batch = tuple[Tensor, Tensor]
Update = Callable[[bytes | memoryview], None]


class ImageSource(Protocol):
    """Where a split's images come from; it must be picklable, for loader workers."""

    in_memory: bool

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at some indices, uint8 (B, C, H, W), in their order."""
        ...

    def identify(self, update: Update) -> None:
        """Feed what tells these images from others to a digest; the resolution is no part of it."""
        ...


class PixelSource:
    """Images held in memory.

    Parameters
    ----------
    pixels
        uint8 (n, C, H, W). Loader workers share this memory: torch moves it to shared memory when it is
        first sent to one.
    folder
        Where they were read from; None if they come with a library.
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
        """Feed the shape and every pixel to a digest."""
        update(repr(tuple(self.pixels.shape)).encode())
        update(self.pixels.numpy().data)


class ImageSplit(Dataset[Batch]):
    """The images of one split, in a fixed order, read and transformed a batch at a time.

    Parameters
    ----------
    source
        The images.
    labels
        (n,): the class index of each image.
    sample_ids
        (n,): the index of each image in the underlying dataset; by default 0, 1, 2, ….
    transforms
        Applied to each batch one after the other.

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
        """Return the same images with other transforms; the source is shared."""
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
    name
        The name that configs use.
    classes
        The class names, in the order of the labels.
    train
        The training images, augmented if that was asked for.
    train_plain
        The same images in the same order, never augmented: what latents are extracted from.
    eval
        The evaluation images, never augmented.
    fingerprint
        Hex sha256 of what identifies the data: class names, labels, sample ids and what the source gives
        (sizes and pixels in memory, file names and sizes in folders); the same at every resolution.
    in_memory
        Whether the images are held in memory, so that loader workers gain little.
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

    Parameters
    ----------
    augmentation
        Applied to training images first, if ``augment``.
    preparation
        Applied to all images, up to :class:`~satstore.datasets.transforms.Normalize`.
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
    """Return the hex sha256 of class names, labels, sample ids and images; see :class:`ImageData`."""
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for split in splits:
        digest.update(repr(len(split)).encode())
        digest.update(split.labels.astype("<i8").data)
        digest.update(split.sample_ids.astype("<i8").data)
        split.source.identify(digest.update)
    return digest.hexdigest()


def make_loader(
    split: Dataset[Batch],
    batch_size: int,
    *,
    shuffle: bool,
    generator: torch.Generator | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    ranks: Ranks = ALONE,
) -> DataLoader[Batch]:
    """Return a loader over a split, its last batch as small as it falls out.

    The order of a shuffled epoch and the seeds of its workers are drawn from ``generator`` when the epoch
    starts. The same generator state, number of workers and, without workers, global RNG state give the same
    batches bit for bit.

    Parameters
    ----------
    split
        An :class:`ImageSplit`, or a ``Subset`` of one.
    generator
        By default torch's global generator.
    workers
        Processes that read ahead; 0 reads in this process. They start anew each epoch, which is what makes
        an epoch repeatable, and share the pixels of in-memory datasets through ``/dev/shm``. Such datasets
        gain nothing from them at 32 px: 50,000 augmented images take 0.3 s in this process, 1.1 s with two.
    pin_memory
        Copy batches to page-locked memory; without effect where there is no CUDA device.
    ranks
        Give this rank's share of every batch: together, they are the batches of a single process.
    """
    context = None
    if workers:
        # Not fork, which copies locks that threads (OpenMP, CUDA, zarr) hold; not spawn, which imports torch
        # in every worker: a wait of 4.5 s for each epoch's first batch (2 workers, 2 cores). The fork server
        # imports it once: 3.2 s in the first epoch, 0.05 s in the others, as with fork.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with deaf_children():
            forkserver.ensure_running()
    order: Sampler[int] = RandomSampler(split, generator=generator) if shuffle else SequentialSampler(split)  # type: ignore[arg-type]
    batches = BatchSampler(order, batch_size, drop_last=False)
    return _Loader(
        split,
        batch_sampler=_Shares(batches, ranks),
        generator=generator,
        num_workers=workers,
        collate_fn=_as_is,
        multiprocessing_context=context,
        worker_init_fn=partial(_begin_worker, ranks.rank) if workers else None,
        pin_memory=pin_memory and torch.cuda.is_available(),
    )


class _Shares(Sampler[list[int]]):
    """A rank's share of every batch."""

    def __init__(self, batches: BatchSampler, ranks: Ranks) -> None:
        self._batches, self._ranks = batches, ranks

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield list(self._ranks.share(batch))


def _begin_worker(rank: int, number: int) -> None:
    """Set a loader's worker up; those of other ranks would draw the same augmentations for other images."""
    follow_main_process(number)
    if rank:
        torch.manual_seed(torch.initial_seed() + (rank << 32))


def _as_is(batch: Any) -> Any:
    """Pass on what ``__getitems__`` made; a module's function, so that workers can unpickle it."""
    return batch


class _Loader(DataLoader[Batch]):
    """A DataLoader whose workers' errors keep to one line; torch puts the traceback into their text."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator does for a loop
        try:
            yield from super().__iter__()
        except SatstoreError as error:
            if not self.num_workers:
                raise
            last = str(error).strip().splitlines()[-1]
            kind = f"{type(error).__module__}.{type(error).__qualname__}: "
            raise type(error)(last.removeprefix(kind)) from error
