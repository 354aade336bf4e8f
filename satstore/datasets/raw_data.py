"""Images and texts as they are stored, before any model's recipe prepares them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from satstore.datasets.foreign_loaders import takes_loaders
from satstore.datasets.image_data import ImageSplit, PixelSource
from satstore.datasets.image_folder import FileSource, read_image
from satstore.errors import ConfigError, CorruptError
from satstore.registry import DATASETS

RawKind = Literal["image", "text"]


@dataclass(frozen=True)
class RawFiles:
    """Images or texts in files, POSIX paths below a folder."""

    folder: Path
    names: Sequence[str]
    kind: RawKind

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image | str:
        """Return an image as RGB at its full size, or a text; CorruptError if it can't be decoded."""
        path = self.folder / self.names[index]
        return read_image(path) if self.kind == "image" else read_text(path)

    def name_of(self, index: int) -> str:
        """Return what a message calls a sample."""
        return str(self.folder / self.names[index])


@dataclass(frozen=True)
class RawPixels:
    """Images in memory, uint8 (n, C, H, W), of one channel or three."""

    pixels: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Image.Image:
        """Return an image as RGB at its full size."""
        image = self.pixels[index].numpy()
        return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).convert("RGB")

    def name_of(self, index: int) -> str:
        """Return what a message calls a sample."""
        return f"image {index} of {self.name}"


@dataclass(frozen=True)
class RawSplit:
    """The samples of one split, in a fixed order.

    Attributes
    ----------
    labels
        int64 (n,), the class index of each; None where they have none.
    sample_ids
        int64 (n,), the index of each in the underlying dataset.
    """

    samples: RawFiles | RawPixels
    labels: NDArray[np.int64] | None
    sample_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class RawData:
    """A dataset or folder, before any recipe.

    Attributes
    ----------
    classes
        Their names, sorted as the labels count them; empty without labels.
    eval
        None where there is one split alone.
    """

    name: str
    kind: RawKind
    classes: tuple[str, ...]
    train: RawSplit
    eval: RawSplit | None


def read_text(path: Path) -> str:
    """Read a text in UTF-8, with or without a byte order mark; CorruptError if it is none."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptError(
            f"{path} is no text in UTF-8: its byte {error.start} is 0x{error.object[error.start]:02x}; save "
            "it as UTF-8, or remove it"
        ) from error
    except OSError as error:
        raise CorruptError(f"{path} can't be read: {error.strerror or error}") from error


def read_dataset(name: str, data_dir: str | os.PathLike[str]) -> RawData:
    """Return the images of a dataset's name as they are stored, without its transforms.

    Raises
    ------
    ConfigError
        If the dataset makes its images by the resolution of a config, such as those on a canvas, or comes as
        loaders, or in a form of its own.
    """
    entry = DATASETS.entry(name)
    changes = sorted(set(entry.arguments) - {"name", entry.argument})
    if entry.is_own and changes:
        raise ConfigError(
            f"{name} makes images of its own for the resolution of a config ({changes[0]}); record takes "
            "images as they are stored: give the dataset that it is made from, or a folder"
        )
    factory = DATASETS[name]
    if takes_loaders(factory):
        raise ConfigError(_explain_prepared(name))
    data = factory(**_WANTED, data_dir=data_dir)
    train, evaluation = (_read_split(name, split) for split in (data.train_plain, data.eval))
    return RawData(name, "image", tuple(data.classes), train, evaluation)


_WANTED = {"resolution": 32, "augment": False, "seed": 0}
"""What a dataset is asked for: the images as stored have their own size, whatever the resolution."""


def _read_split(name: str, split: ImageSplit) -> RawSplit:
    """Return a split without its transforms; ConfigError if its source has neither files nor pixels."""
    source = split.source
    if isinstance(source, FileSource):
        samples: RawFiles | RawPixels = RawFiles(source.folder, source.names, "image")
    elif isinstance(source, PixelSource):
        samples = RawPixels(source.pixels, name)
    else:
        raise ConfigError(_explain_prepared(name))
    return RawSplit(samples, split.labels, split.sample_ids)


def _explain_prepared(name: str) -> str:
    return (
        f"{name} gives its images prepared already; record takes them as they are stored, in files or as "
        "pixels: give a folder of images, or call satstore.record with a loader of your own"
    )
