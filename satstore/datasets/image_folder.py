"""The dataset ``ImageFolder:PATH``: any folder of class folders.

``PATH/train/CLASS/…`` and ``PATH/val/CLASS/…`` (or ``PATH/test/…``), PATH relative to the working directory,
else to the data folder. Classes are sorted by name, images by their path below the class folder; hidden files
and folders are passed over. An image is decoded when it is asked for, scaled so that its shorter side is the
resolution, and cut to the square in its middle. Pixels are taken as stored: no EXIF orientation is applied.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from satstore.datasets.class_folders import IMAGE_SUFFIXES
from satstore.datasets.image_data import ImageData, ImageSplit, Update, assemble
from satstore.datasets.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    RandomCrop,
    RandomFlip,
    Resize,
)
from satstore.errors import CorruptError, NotFoundError


class FileSource:
    """Images in files, POSIX paths below a folder, decoded when they are read, all to one size.

    Parameters
    ----------
    scaled_to
        Pixels that the shorter side is scaled to before the middle is cut out; by default the resolution.
    known_as
        Names that identify the files wherever they lie; by default ``names``.
    """

    in_memory = False

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        resolution: int,
        scaled_to: int | None = None,
        known_as: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.names = tuple(names)
        self.resolution = resolution
        self.scaled_to = scaled_to or resolution
        self.known_as = self.names if known_as is None else tuple(known_as)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at some indices, uint8 (B, 3, r, r), in their order."""
        images = [
            decode(self.folder / self.names[index], self.resolution, self.scaled_to) for index in indices
        ]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    def identify(self, update: Update) -> None:
        """Feed a digest with the names that identify the files, and their sizes in bytes."""
        for name, known in zip(self.names, self.known_as, strict=True):
            update(f"{known}\0{(self.folder / name).stat().st_size}\0".encode(errors="surrogateescape"))

    def only(self, kept: Sequence[int]) -> "FileSource":
        """Return a source of some of the files, by their indices."""
        names, known = ([part[index] for index in kept] for part in (self.names, self.known_as))
        return FileSource(self.folder, names, self.resolution, self.scaled_to, known)


def decode(path: Path, resolution: int, scaled_to: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode the middle of an image as RGB, (resolution, resolution, 3).

    Its shorter side is first scaled to the resolution, or to ``scaled_to`` pixels.

    Raises
    ------
    CorruptError
        If the file is not an image of 8 or 16 bits that Pillow reads.
    """
    with _explaining_damage(path):
        with Image.open(path) as image:
            width, height = _scaled(image.size, scaled_to or resolution)
            # A JPEG can be decoded at a fraction of its size; at twice the target or more the pixels differ
            # by less than one level of 256 in the mean, and a photo for 32 px takes a quarter of the time.
            drafted = image.draft(None, (2 * width, 2 * height))
            rgb = _to_rgb(image)
        scaled = rgb.resize((width, height), Image.Resampling.BILINEAR, box=drafted[1] if drafted else None)
        left, top = round((width - resolution) / 2), round((height - resolution) / 2)
        return np.asarray(scaled.crop((left, top, left + resolution, top + resolution)))


def read_image(path: Path) -> Image.Image:
    """Decode an image at its full size, as RGB; CorruptError as :func:`decode`."""
    with _explaining_damage(path), Image.open(path) as image:
        return _to_rgb(image)


@contextmanager
def _explaining_damage(path: Path) -> Iterator[None]:
    """Turn what Pillow raises for a file that is no image into a CorruptError."""
    try:
        yield
    # Pillow's readers raise all of these for damaged files, SyntaxError for a broken PNG.
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).split("\n")[0]
        raise CorruptError(
            f"{path} can't be decoded ({reason}); expected an image: replace it or remove it"
        ) from error


def _scaled(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Scale width and height so that the shorter side has some pixels; round as torchvision does."""
    width, height = size
    return (shorter, shorter * height // width) if width <= height else (shorter * width // height, shorter)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 255, which turns nearly all of the image white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits, mode {image.mode}")
    if "transparency" in image.info:
        # Pillow warns where a palette holds transparencies, unless it is expanded first.
        image = image.convert("RGBA")
    return image.convert("RGB")


def image_folder(
    resolution: int = 32,
    data_dir: str | os.PathLike[str] = "tmp",
    augment: bool = True,
    seed: int = 0,
    *,
    path: str,
) -> ImageData:
    """Return the images of a folder with ``train/`` and ``val/`` (or ``test/``), each with class folders.

    Augmentation is a random crop after padding by an eighth of the resolution, as Cifar10 and TinyImageNet
    have it, and a flip. Mean and standard deviation are ImageNet's.
    """
    root = find_folder(path, data_dir)
    classes, splits = find_splits(root)
    train, evaluation = (read_split(split, classes, resolution) for split in splits)
    return assemble(
        f"ImageFolder:{path}",
        classes,
        train,
        evaluation,
        augmentation=(RandomCrop(resolution, padding=resolution // 8), RandomFlip()),
        # The images are read at this size already; the resize is for its check of the resolution.
        preparation=(Resize(resolution), Normalize(IMAGENET_MEAN, IMAGENET_STD)),
        augment=augment,
    )


def find_splits(root: Path) -> tuple[list[str], tuple[Path, Path]]:
    """Find the classes of a folder, and the folders of its two splits."""
    names = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if "train" not in names or len(names) < 2:
        found = f"only {names[0]}/" if names else "neither"
        raise NotFoundError(
            f"{root} has {found}; expected train/ and val/ (or test/), each with one folder per class"
        )
    splits = root / "train", root / names[1]
    return find_common_classes(*splits), splits


def find_common_classes(train: Path, evaluation: Path) -> list[str]:
    """List the classes of two splits; NotFoundError names one that only one of them has."""
    classes = list_classes(train)
    for name in sorted(set(classes) ^ set(list_classes(evaluation))):
        has, lacks = (train, evaluation) if name in classes else (evaluation, train)
        raise NotFoundError(
            f"class {name!r} is in {has} but not in {lacks}; give both the same class folders"
        )
    return classes


def find_folder(path: str, data_dir: str | os.PathLike[str]) -> Path:
    """Find a folder in the working directory, or else in the data folder; return its absolute path."""
    places = [Path(path).expanduser().absolute(), Path(data_dir).absolute() / path]
    for place in places:
        if place.is_dir():
            return place
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise NotFoundError(f"no folder {looked}; expected one with train/ and val/ (or test/): check the path")


def list_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted; hidden ones are passed over."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and _is_visible(entry.name))


def list_classes(split: Path) -> list[str]:
    """List the names of the class folders of a split, sorted."""
    names = list_folders(split)
    if not names:
        raise NotFoundError(f"{split} has no class folders; expected one folder of images per class")
    return names


def read_split(
    split: Path, classes: Sequence[str], resolution: int, scaled_to: int | None = None
) -> ImageSplit:
    """List the images below the class folders of a split, class by class."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list_images(split, name)
        if not found:
            raise NotFoundError(
                f"{split / name} has no images; expected files that end in {', '.join(IMAGE_SUFFIXES)}: "
                "add some or remove the folder from every split"
            )
        names += found
        labels += [label] * len(found)
    return ImageSplit(FileSource(split, names, resolution, scaled_to), labels)


def list_images(split: Path, name: str) -> list[str]:
    """List the images of a class folder as POSIX paths relative to the split's folder, sorted."""
    return list_files(split, name, IMAGE_SUFFIXES)


def list_files(split: Path, name: str, suffixes: tuple[str, ...]) -> list[str]:
    """List the files of some suffixes, in any case, as :func:`list_images` does."""
    return sorted(iterate_files(split, split / name, suffixes))


def iterate_files(root: Path, folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the files of some suffixes below a folder, as POSIX paths relative to the root, unsorted."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = filter(_is_visible, folders)
        for file in files:
            if _is_visible(file) and file.lower().endswith(suffixes):
                yield (Path(parent) / file).relative_to(root).as_posix()


def _is_visible(name: str) -> bool:
    return not name.startswith(".")
