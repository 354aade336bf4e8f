"""What is done with files of images before they are used: corrupt ones left out, others held in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from satstore.datasets.image_folder import FileSource, decode
from satstore.datasets.images import ImageData, ImageSplit, PixelSource, Update, fingerprint
from satstore.errors import CorruptError, NotFoundError
from satstore.system.cores import count_cores
from satstore.system.limits import available_memory

T = TypeVar("T")

N_TOGETHER = 256
"""Images that a thread decodes at a time."""

Progress = Callable[[int, int], None]
"""Called with the number of images read so far, and of all."""


def find_corrupt(source: FileSource, progress: Progress | None = None) -> dict[int, str]:
    """Decode every image, and return the index of each that can't be, with the reason."""

    def check(indices: range) -> dict[int, str]:
        found = {}
        for index in indices:
            try:
                decode(source.folder / source.names[index], source.resolution, source.scaled_to)
            except CorruptError as error:
                found[index] = str(error)
        return found

    corrupt: dict[int, str] = {}
    for done, found in _in_threads(check, len(source)):
        corrupt |= found
        if progress:
            progress(done, len(source))
    return corrupt


def skip_corrupt(data: ImageData, known: Mapping[str, Sequence[str]] | None = None) -> ImageData:
    """Leave the images out that can't be decoded, and note their names; sample ids stay what they were.

    Parameters
    ----------
    known
        The names that were left out before, by split, so that the files need not be read again; a file that
        got corrupt since then is an error when it is read.

    Raises
    ------
    NotFoundError
        If no image of a class is left.
    """
    splits = {"train": data.train, "train_plain": data.train_plain, "eval": data.eval}
    skipped: dict[str, tuple[str, ...]] = {}
    for name in ("train", "eval"):
        source = splits[name].source
        if not isinstance(source, FileSource):
            continue
        bad = set(known.get(name, ())) if known is not None else None
        corrupt = (
            set(find_corrupt(source))
            if bad is None
            else {index for index, known_as in enumerate(source.known_as) if known_as in bad}
        )
        skipped[name] = tuple(source.known_as[index] for index in sorted(corrupt))
        kept = [index for index in range(len(source)) if index not in corrupt]
        fewer = source.only(kept)
        for split in ("train", "train_plain") if name == "train" else ("eval",):
            whole = splits[split]
            splits[split] = ImageSplit(fewer, whole.labels[kept], whole.sample_ids[kept], whole.transforms)
            for label in sorted(set(whole.labels.tolist()) - set(splits[split].labels.tolist())):
                raise NotFoundError(
                    f"{data.name}: no {name} image of class {data.classes[label]!r} can be decoded; "
                    "get its images again"
                )
    if not any(skipped.values()):
        return replace(data, skipped=skipped)
    return replace(
        data,
        train=splits["train"],
        train_plain=splits["train_plain"],
        eval=splits["eval"],
        fingerprint=fingerprint(data.classes, splits["train_plain"], splits["eval"]),
        skipped=skipped,
    )


class HeldSource(PixelSource):
    """Images of files, decoded once and held in memory.

    Parameters
    ----------
    source
        The files.
    """

    def __init__(self, source: FileSource) -> None:
        self.source = source
        pixels = torch.empty(len(source), 3, source.resolution, source.resolution, dtype=torch.uint8)

        def read(indices: range) -> Tensor:
            pixels[indices.start : indices.stop] = source.read(indices)
            return pixels

        for _ in _in_threads(read, len(source)):
            pass
        super().__init__(pixels)

    def identify(self, update: Update) -> None:
        """Feed what tells the files from others to a digest."""
        self.source.identify(update)


def hold(data: ImageData) -> ImageData:
    """Decode images in files once, and hold them in memory if all fit into a quarter of what is free.

    Raises
    ------
    CorruptError
        If a file can't be decoded.
    """
    sources = [split.source for split in (data.train, data.eval)]
    if not all(isinstance(source, FileSource) for source in sources):
        return data
    needed_bytes = sum(3 * len(s) * s.resolution**2 for s in sources if isinstance(s, FileSource))
    available = available_memory()
    if available is None or needed_bytes > available / 4:
        return data
    held = [HeldSource(source) for source in sources if isinstance(source, FileSource)]
    train, plain, evaluation = (
        ImageSplit(source, split.labels, split.sample_ids, split.transforms)
        for source, split in zip(
            (held[0], held[0], held[1]), (data.train, data.train_plain, data.eval), strict=True
        )
    )
    return replace(data, train=train, train_plain=plain, eval=evaluation, in_memory=True)


def _in_threads(work: Callable[[range], T], n_images: int) -> Iterator[tuple[int, T]]:
    """Work on ranges of images on all cores; give the number done so far, and each range's result."""
    ranges = [range(s, min(s + N_TOGETHER, n_images)) for s in range(0, n_images, N_TOGETHER)]
    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(count_cores()) as threads:
        for part, result in zip(ranges, threads.map(work, ranges), strict=True):
            yield part.stop, result
