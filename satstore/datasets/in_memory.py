"""Hold images of files in memory as pixels, decoded once by several threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from satstore.datasets.image_data import ImageData, ImageSplit, PixelSource, Update
from satstore.datasets.image_folder import FileSource
from satstore.system.cores import count_cores
from satstore.system.memory import available_memory

T = TypeVar("T")

N_TOGETHER = 256
"""The number of images that a thread decodes at a time."""

ProgressCallback = Callable[[int, int], None]
"""Called with the number of images read so far, and of all."""


class HeldSource(PixelSource):
    """The images of files, decoded once and held in memory."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        pixels = torch.empty(len(source), 3, source.resolution, source.resolution, dtype=torch.uint8)

        def read(indices: range) -> Tensor:
            pixels[indices.start : indices.stop] = source.read(indices)
            return pixels

        for _ in run_in_threads(read, len(source)):
            pass
        super().__init__(pixels)

    def identify(self, update: Update) -> None:
        """Feed a digest with what identifies the files."""
        self.source.identify(update)


def hold_in_memory(data: ImageData) -> ImageData:
    """Decode images in files once and hold them in memory, if they fit into a quarter of the free memory.

    Raises
    ------
    CorruptError
        If a file can't be decoded.
    """
    sources = [split.source for split in (data.train, data.eval)]
    if not all(isinstance(source, FileSource) for source in sources):
        return data
    needed_bytes = sum(3 * len(s) * s.resolution**2 for s in sources if isinstance(s, FileSource))
    if needed_bytes > available_memory() / 4:
        return data
    held = [HeldSource(source) for source in sources if isinstance(source, FileSource)]
    train, plain, evaluation = (
        ImageSplit(source, split.labels, split.sample_ids, split.transforms)
        for source, split in zip(
            (held[0], held[0], held[1]), (data.train, data.train_plain, data.eval), strict=True
        )
    )
    return replace(data, train=train, train_plain=plain, eval=evaluation, in_memory=True)


def run_in_threads(work: Callable[[range], T], n_images: int) -> Iterator[tuple[int, T]]:
    """Call a function on ranges of images, on all cores; yield the number done so far, and each result."""
    ranges = [range(s, min(s + N_TOGETHER, n_images)) for s in range(0, n_images, N_TOGETHER)]
    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(count_cores()) as threads:
        for part, result in zip(ranges, threads.map(work, ranges), strict=True):
            yield part.stop, result
