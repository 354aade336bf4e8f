"""Small files of every dataset, in the real formats."""

import gzip
import hashlib
import io
import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

CLASSES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class _OldPickler(pickle.Pickler):
    """Pickles a dtype with the integer arguments that NumPy used when the CIFAR files were made."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, np.dtype):
            kind, _, state = thing.__reduce__()
            return kind, (thing.str[1:], 0, 1), state
        return NotImplemented


def pickled(entry: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    _OldPickler(buffer, protocol=2).dump(entry)
    return buffer.getvalue()


def cifar_files(n_classes: int) -> dict[str, bytes]:
    """Return the files of the CIFAR-10 or CIFAR-100 archive by name, with 8 images in each batch."""
    rng = np.random.default_rng(n_classes)

    def batch(key: str) -> bytes:
        data = rng.integers(0, 256, (8, 3072), dtype=np.uint8)
        return pickled({key: rng.integers(0, n_classes, 8).tolist(), "data": data})

    if n_classes == 10:
        names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
        return {name: batch("labels") for name in names} | {
            "batches.meta": pickled({"label_names": CLASSES10, "num_vis": 3072})
        }
    meta = {"fine_label_names": [f"fine {n:02}" for n in range(100)], "coarse_label_names": ["x"] * 20}
    return {"train": batch("fine_labels"), "test": batch("fine_labels"), "meta": pickled(meta)}


def expect_files(patch: pytest.MonkeyPatch, kind: Any, files: dict[str, bytes]) -> None:
    """Let torchvision expect the checksums of these files, and no network."""
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    patch.setattr(kind, "train_list", [[name, md5[name]] for name, _ in kind.train_list])
    patch.setattr(kind, "test_list", [[name, md5[name]] for name, _ in kind.test_list])
    patch.setattr(kind, "meta", kind.meta | {"md5": md5[kind.meta["filename"]]})
    patch.setattr(kind, "url", "http://127.0.0.1:9/nothing.tar.gz")


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def idx(array: np.ndarray) -> bytes:
    """Return an array of uint8 in MNIST's format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def read_idx(path: Path) -> np.ndarray:
    """Read an array of uint8 in MNIST's format, gzipped."""
    content = gzip.decompress(path.read_bytes())
    n_axes = content[3]
    shape = struct.unpack(f">{n_axes}I", content[4 : 4 + 4 * n_axes])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def mnist_files(seed: int) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    return {
        f"{split}-{kind}-ubyte": idx(rng.integers(0, high, (n_images, *shape), dtype=np.uint8))
        for split, n_images in (("train", 24), ("t10k", 9))
        for kind, high, shape in (("images-idx3", 256, (28, 28)), ("labels-idx1", 10, ()))
    }


def write_image(path: Path, seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)


def write_folder(root: Path, evaluation: str = "val") -> Path:
    for split, n_images in (("train", 5), (evaluation, 3)):
        for label, name in enumerate(("bee", "ant", "cat")):
            for image in range(n_images):
                suffix = ("png", "jpg", "JPEG")[image % 3]
                write_image(root / split / name / f"{image}.{suffix}", seed=10 * label + image)
    return root


def write_tiny_imagenet(root: Path, layout: str) -> Path:
    """Write TinyImageNet as it is shipped, or with the images of val sorted into ``val/ds`` or ``val``."""
    classes = ("n02", "n01", "n03")
    for label, name in enumerate(classes):
        for image in range(4):
            write_image(
                root / "train" / name / "images" / f"{name}_{image}.JPEG", label * 9 + image, (64, 64)
            )
        (root / "train" / name / f"{name}_boxes.txt").write_text("boxes")
    lines = []
    for image in range(9):
        name, file = classes[image * 2 % 3], f"val_{image}.JPEG"
        folder = {"shipped": "images", "ds": f"ds/{name}", "sorted": f"{name}/images"}[layout]
        write_image(root / "val" / folder / file, 100 + image, (64, 64))
        lines.append(f"{file}\t{name}\t0\t0\t62\t62\n")
    if layout == "shipped":
        (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@contextmanager
def small_data(folder: Path) -> Iterator[Path]:
    """Make a data folder with small files of every dataset that is read from files."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, n_classes in ((torchvision.datasets.CIFAR10, 10), (torchvision.datasets.CIFAR100, 100)):
            files = cifar_files(n_classes)
            expect_files(patch, kind, files)
            write_files(folder / kind.base_folder, files)
        write_files(folder / "MNIST" / "raw", mnist_files(1))
        write_files(folder / "FashionMNIST" / "raw", mnist_files(2))
        write_folder(folder / "insects")
        for name in ("ImageNet", "imagenette2", "imagewoof2", "eurosat"):
            write_folder(folder / name)
        write_folder(folder / "inaturalist", evaluation="test")
        write_folder(folder / "Food_101_Dataset" / "food-101", evaluation="test")
        write_folder(folder / "malaria", evaluation="test")
        write_tiny_imagenet(folder / "tiny-imagenet-200", layout="shipped")
        yield folder
