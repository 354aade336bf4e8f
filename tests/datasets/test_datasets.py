"""The datasets, read with their real loaders from small files in the real formats."""

import gzip
import hashlib
import json
import logging
import pickle
import re
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as vision
from PIL import Image
from sklearn.datasets import load_digits
from small_data import (
    idx,
    mnist_files,
    small_data,
    write_files,
    write_folder,
    write_image,
    write_tiny_imagenet,
)
from torchvision.datasets import CIFAR10, CIFAR100

from satstore.datasets import mnist
from satstore.datasets.corrupt_images import skip_corrupt
from satstore.datasets.downloads import locate_or_download, without_downloads
from satstore.datasets.image_data import ImageData, ImageSplit, PixelSource, fingerprint
from satstore.datasets.image_folder import decode, image_folder
from satstore.datasets.in_memory import hold_in_memory
from satstore.datasets.loaders import make_loader
from satstore.datasets.transforms import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ColorJitter,
    Lighting,
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
)
from satstore.errors import ConfigError, CorruptError, NotFoundError
from satstore.registry import DATASETS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_data(tmp_path_factory.mktemp("data")) as folder:
        yield folder


PLACED = {name for name in DATASETS if name.endswith(("Positioning", "Noise")) or name[-7:] == "Cifar10"} - {
    "Cifar10"
}
"""Whose images are not resized, so that their canvas has to be as large."""


def build(name: str, data_dir: Path, **keywords: Any) -> ImageData:
    data = DATASETS[f"{name}:insects" if name == "ImageFolder" else name](data_dir=data_dir, **keywords)
    assert isinstance(data, ImageData)
    return data


def everything(split: ImageSplit) -> tuple[torch.Tensor, torch.Tensor]:
    return split.__getitems__(range(len(split)))


# ---- the check that every dataset passes


@pytest.mark.parametrize("name", DATASETS)
def test_dataset__is_described(name: str) -> None:
    [entry] = [entry for entry in DATASETS.entries() if entry.name == name]
    assert entry.family
    assert entry.description


@pytest.mark.parametrize("name", DATASETS)
def test_dataset__splits_are_consistent(name: str, data_dir: Path) -> None:
    data = build(name, data_dir)
    assert data.name.partition(":")[0] == name
    assert len(set(data.classes)) == len(data.classes) >= 2
    for split in (data.train, data.train_plain, data.eval):
        n_images = len(split)
        assert split.labels.dtype == split.sample_ids.dtype == np.int64
        assert split.labels.shape == split.sample_ids.shape == (n_images,)
        assert split.labels.min() >= 0
        assert split.labels.max() < len(data.classes)
        assert len(set(split.sample_ids.tolist())) == n_images
        assert split.source.in_memory == data.in_memory
    np.testing.assert_array_equal(data.train.labels, data.train_plain.labels)
    np.testing.assert_array_equal(data.train.sample_ids, data.train_plain.sample_ids)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("resolution", [24, 32])
def test_dataset__batches_are_normalized_squares(name: str, resolution: int, data_dir: Path) -> None:
    if name in PLACED and not name.startswith("MNIST") and resolution < 32:
        with pytest.raises(ConfigError, match=f"resolution 24 can't be used with {name}: its images of 32"):
            build(name, data_dir, resolution=resolution)
        return
    data = build(name, data_dir, resolution=max(28, resolution) if name in PLACED else resolution)
    resolution = data.eval[0][0].shape[-1]
    for split in (data.train, data.train_plain, data.eval):
        images, labels = split.__getitems__([2, 0, 3])
        assert images.shape == (3, 3, resolution, resolution)
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        # Black and white are some 2 to 3 standard deviations from the mean.
        assert float(images.abs().max()) < 3.0
        assert labels.dtype == torch.int64
        assert labels.tolist() == split.labels[[2, 0, 3]].tolist()


@pytest.mark.parametrize("name", DATASETS)
def test_dataset__plain_images_depend_on_nothing_but_the_index(name: str, data_dir: Path) -> None:
    data, without = build(name, data_dir), build(name, data_dir, augment=False)
    for split, again in (
        (data.train_plain, without.train_plain),
        (data.train_plain, without.train),
        (data.eval, without.eval),
    ):
        state = torch.get_rng_state()
        images, labels = everything(split)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(5)
        image, label = again[3]
        assert torch.equal(image, images[3])
        assert int(label) == int(labels[3])
        reverse, _ = again.__getitems__(range(len(again) - 1, -1, -1))
        assert torch.equal(reverse.flip(0), images)


@pytest.mark.parametrize("name", DATASETS)
def test_dataset__augmentation_repeats_with_the_generator(name: str, data_dir: Path) -> None:
    data = build(name, data_dir)
    torch.manual_seed(1)
    first, labels = everything(data.train)
    plain, plain_labels = everything(data.train_plain)
    assert not torch.equal(first, plain)
    assert torch.equal(labels, plain_labels)
    assert not torch.equal(everything(data.train)[0], first)
    torch.manual_seed(1)
    assert torch.equal(everything(data.train)[0], first)


@pytest.mark.parametrize("name", DATASETS)
def test_dataset__fingerprint_identifies_the_data_alone(name: str, data_dir: Path) -> None:
    first = build(name, data_dir)
    assert len(bytes.fromhex(first.fingerprint)) == 32
    assert build(name, data_dir, augment=False).fingerprint == first.fingerprint
    other = build(name, data_dir, resolution=48, seed=7)
    assert other.fingerprint == first.fingerprint


@pytest.mark.parametrize("name", DATASETS)
def test_dataset__survives_pickling(name: str, data_dir: Path) -> None:
    data = build(name, data_dir)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.fingerprint == data.fingerprint
    assert torch.equal(everything(copy.eval)[0], everything(data.eval)[0])


@pytest.mark.parametrize("name", DATASETS)
def test_dataset__refuses_a_resolution_below_one(name: str, data_dir: Path) -> None:
    build(name, data_dir)
    with pytest.raises(ConfigError, match="resolution 0"):
        build(name, data_dir, resolution=0)


def test_fingerprints__differ_between_datasets(data_dir: Path) -> None:
    names = ("Digits", "Cifar10", "Cifar100", "MNIST", "FashionMNIST", "ImageFolder", "TinyImageNet")
    assert len({build(name, data_dir).fingerprint for name in names}) == len(names)


# ---- TinyImageNet, and photos where the experiments keep them


def test_tiny_imagenet__is_the_same_data_however_it_is_sorted(tmp_path: Path) -> None:
    found = []
    for layout in ("shipped", "ds", "sorted"):
        write_tiny_imagenet(tmp_path / layout / "tiny-imagenet-200", layout)
        found.append(DATASETS["TinyImageNet"](data_dir=tmp_path / layout, resolution=64))
    assert found[0].classes == ("n01", "n02", "n03")
    # Of val_0 to val_8, classes go n02, n03, n01, …; sorted by class, then by name.
    assert found[0].eval.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    images, _ = everything(found[0].eval)
    raw = tmp_path / "shipped" / "tiny-imagenet-200" / "val" / "images"
    for place, number in enumerate((2, 5, 8, 0, 3, 6, 1, 4, 7)):
        expected = compose(64, CIFAR_MEAN, CIFAR_STD)(Image.open(raw / f"val_{number}.JPEG"))
        torch.testing.assert_close(images[place], expected)
    for other in found[1:]:
        assert other.fingerprint == found[0].fingerprint
        assert torch.equal(everything(other.eval)[0], images)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_99.JPEG\tn01", "line 10, names image 'val_99.JPEG', which is not there"),
        ("val_1.JPEG\tn99", "line 10, names class 'n99', which train/ lacks"),
        ("nonsense", "line 10, names image 'nonsense', which is not there"),
    ],
)
def test_tiny_imagenet__annotations_that_are_wrong_are_named(line: str, message: str, tmp_path: Path) -> None:
    root = write_tiny_imagenet(tmp_path / "tiny-imagenet-200", "shipped")
    with (root / "val" / "val_annotations.txt").open("a") as file:
        file.write(line)
    with pytest.raises(CorruptError, match=re.escape(message)):
        DATASETS["TinyImageNet"](data_dir=tmp_path)


def test_tiny_imagenet__a_class_without_images_is_named(tmp_path: Path) -> None:
    root = write_tiny_imagenet(tmp_path / "tiny-imagenet-200", "ds")
    for image in (root / "val" / "ds" / "n02").iterdir():
        image.unlink()
    with pytest.raises(NotFoundError, match="has no images of class n02"):
        DATASETS["TinyImageNet"](data_dir=tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "TinyImageNet",
        "ImageNet",
        "iNaturalist",
        "Food101",
        "ResizedMalaria",
        "ImageNette",
        "ImageWoof",
        "EuroSat",
    ],
)
def test_folders__that_are_not_there_say_what_is_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"is not in .*; expected .*train/.* cache_dir .*TORCH_DATADIR$"):
        DATASETS[name](data_dir=tmp_path)


def test_imagenet__is_prepared_as_in_the_experiments(data_dir: Path) -> None:
    data = DATASETS["ImageNet"](data_dir=data_dir, resolution=24)
    normalize = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize])
    path = data_dir / "ImageNet" / "val" / "ant" / "0.png"
    pipeline = v2.Compose([v2.Resize(int(1.14 * 24)), v2.CenterCrop(24), to_tensor])
    expected = pipeline(Image.open(path).convert("RGB"))
    assert float((data.eval[0][0] - expected).abs().max()) < 0.1
    train = v2.Compose([v2.Resize(24), v2.CenterCrop(24), to_tensor])
    plain = train(Image.open(data_dir / "ImageNet" / "train" / "ant" / "0.png").convert("RGB"))
    assert float((data.train_plain[0][0] - plain).abs().max()) < 0.1


def test_random_resized_crop__is_torchvisions_of_each_image() -> None:
    images = torch.randint(256, (3, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = []
    for crop in (RandomResizedCrop(8), v2.RandomResizedCrop(8, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))):
        torch.manual_seed(1)
        found.append(
            crop(images) if isinstance(crop, RandomResizedCrop) else torch.stack([*map(crop, images)])
        )
    assert torch.equal(*found)
    assert found[0].shape == (3, 3, 8, 8)


def test_imagenette__is_cropped_at_random_for_training_alone(data_dir: Path) -> None:
    data = DATASETS["ImageNette"](data_dir=data_dir, resolution=24)
    torch.manual_seed(0)
    first, second = (data.train.__getitems__([0])[0] for _ in range(2))
    assert not torch.equal(first, second)
    normalize = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    pipeline = v2.Compose(
        [v2.Resize(27), v2.CenterCrop(24), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize]
    )
    expected = pipeline(Image.open(data_dir / "imagenette2" / "val" / "ant" / "0.png").convert("RGB"))
    assert float((data.eval[0][0] - expected).abs().max()) < 0.1


def test_resized__images_hold_no_more_than_32_px(data_dir: Path) -> None:
    sharp, small = (
        DATASETS[name](data_dir=data_dir, resolution=96) for name in ("Food101", "ResizedFood101")
    )
    [wide] = [everything(split)[0] for split in (small.train_plain,)]
    again = torch.nn.functional.interpolate(wide, 32, mode="bilinear", antialias=True)
    back = torch.nn.functional.interpolate(again, 96, mode="bilinear", antialias=True)
    assert float((back - wide).abs().mean()) < 0.05
    assert sharp.fingerprint == small.fingerprint
    assert small.eval.source.read([0]).shape[-1] == 32


def test_food101__is_read_as_its_archive_unpacks(tmp_path: Path) -> None:
    root = tmp_path / "Food_101_Dataset" / "food-101"
    for name in ("ramen", "pho"):
        for image in range(3):
            write_image(root / "images" / name / f"{image}.jpg", image)
    (root / "meta").mkdir()
    for split, numbers in (("train", (0, 2)), ("test", (1,))):
        listed = {name: [f"{name}/{n}" for n in numbers] for name in ("pho", "ramen")}
        (root / "meta" / f"{split}.json").write_text(json.dumps(listed))
    data = DATASETS["Food101"](data_dir=tmp_path, resolution=32)
    assert data.classes == ("pho", "ramen")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.eval.source.names == ("images/pho/1.jpg", "images/ramen/1.jpg")  # type: ignore[attr-defined]


def test_imagenet__in_class_folders_needs_nothing_that_was_shipped(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "ImageNet")
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"packed anew")
    data = DATASETS["ImageNet"](data_dir=tmp_path, resolution=32)
    assert data.classes == ("ant", "bee", "cat")
    assert data.fingerprint == image_folder(path=str(root), data_dir=tmp_path).fingerprint


def pack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


def test_imagenet__archives_are_unpacked_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_folder(tmp_path / "made")
    root, waiting = tmp_path / "data" / "ImageNet", tmp_path / "waiting"
    for folder in (root, waiting / "train", waiting / "val"):
        folder.mkdir(parents=True)
    val_ids = []
    for folder in sorted((made / "train").iterdir()):
        pack(waiting / "train" / f"{folder.name}.tar", folder)
    for number, path in enumerate(sorted((made / "val").rglob("*.*"))):
        val_ids.append(path.parent.name)
        path.rename(waiting / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    for split in ("train", "val"):
        archive = root / f"ILSVRC2012_img_{split}.tar"
        pack(archive, waiting / split)
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(torchvision.datasets.imagenet.ARCHIVE_META, split, (archive.name, md5))
    ids = {"ant": ("ant", "pismire"), "bee": ("bee",), "cat": ("cat",)}
    torch.save((ids, val_ids), root / "meta.bin")
    data = DATASETS["ImageNet"](data_dir=tmp_path / "data", resolution=32)
    assert data.classes == ("ant", "bee", "cat")
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.eval.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3


# ---- small images on a canvas


@pytest.mark.parametrize(("name", "size"), [("Cifar10", 32), ("MNIST", 28)])
def test_placed__every_place_occurs_and_the_image_is_whole(name: str, size: int, data_dir: Path) -> None:
    data = build(f"{name}SmallRandomPositioning", data_dir, resolution=size + 2, augment=True)
    plain = build(name, data_dir, resolution=size, augment=False)
    image = plain.train[1][0]
    found = set()
    torch.manual_seed(0)
    for _ in range(200):
        canvas = data.train[1][0]
        for flipped in (image, image.flip(-1)):
            for top in range(3):
                for left in range(3):
                    if torch.equal(canvas[:, top : top + size, left : left + size], flipped):
                        found.add((top, left))
    assert len(found) == 9


def test_placed__test_places_are_fixed_by_the_seed(data_dir: Path) -> None:
    one, same, other = (
        build("Cifar10SmallRandomPositioning", data_dir, resolution=64, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(everything(one.eval)[0], everything(same.eval)[0])
    assert not torch.equal(everything(one.eval)[0], everything(other.eval)[0])
    assert torch.equal(one.eval.__getitems__([5, 2])[0], everything(one.eval)[0][[5, 2]])
    places = one.eval.source.tops.tolist()  # type: ignore[attr-defined]
    assert len(set(places)) > 3
    black = (0 - torch.tensor(CIFAR_MEAN)) / torch.tensor(CIFAR_STD)
    canvas = everything(one.eval)[0]
    assert int((canvas - black[:, None, None]).abs().lt(1e-5).all(1).sum((1, 2)).min()) >= 64**2 - 32**2


def test_placed__at_its_own_size_is_the_image(data_dir: Path) -> None:
    placed = build("Cifar10SmallRandomPositioning", data_dir, resolution=32)
    plain = build("Cifar10", data_dir, resolution=32)
    assert torch.equal(everything(placed.eval)[0], everything(plain.eval)[0])


def test_placed__noise_is_uniform_and_fixed_for_the_test_images(data_dir: Path) -> None:
    data = build("Cifar10SmallRandomPositioningNoise", data_dir, resolution=160)
    pixels = data.eval.source.read([0, 1])
    assert torch.equal(pixels, data.eval.source.read([1, 0]).flip(0))
    counts = torch.bincount(pixels.flatten().long(), minlength=256) / pixels.numel()
    assert float(counts.min()) > 0.5 / 256
    assert not torch.equal(data.train[0][0], data.train[0][0])


@pytest.mark.parametrize(
    ("name", "mode"), [("BlackBorder", "constant"), ("ReflectBorder", "reflect"), ("EdgePadding", "edge")]
)
@pytest.mark.parametrize("resolution", [32, 45, 160])
def test_borders__are_numpys(name: str, mode: Any, resolution: int, data_dir: Path) -> None:
    data = build(f"{name}Cifar10", data_dir, resolution=resolution)
    raw = build("Cifar10", data_dir).eval.source.read([0])[0].numpy()
    before, after = (resolution - 32) // 2, resolution - 32 - (resolution - 32) // 2
    padded = np.pad(raw, ((0, 0), (before, after), (before, after)), mode=mode)
    expected = Normalize(CIFAR_MEAN, CIFAR_STD)(torch.from_numpy(padded[None]))[0]
    torch.testing.assert_close(data.eval[0][0], expected)


# ---- corrupt images, and images held in memory


def test_skip__leaves_corrupt_images_out_and_keeps_the_ids_of_the_others(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "insects")
    whole = image_folder(path=str(root), data_dir=tmp_path)
    truncate(root / "train" / "bee" / "1.jpg")
    (root / "val" / "cat" / "0.png").write_text("no image")
    data = skip_corrupt(image_folder(path=str(root), data_dir=tmp_path))
    assert data.skipped == {"train": ("bee/1.jpg",), "eval": ("cat/0.png",)}
    kept = [index for index in range(15) if index != 6]
    assert data.train.sample_ids.tolist() == data.train_plain.sample_ids.tolist() == kept
    assert data.train.labels.tolist() == whole.train.labels[kept].tolist()
    assert everything(data.eval)[0].shape[0] == len(data.eval) == 8
    assert data.fingerprint != whole.fingerprint
    again = skip_corrupt(image_folder(path=str(root), data_dir=tmp_path), data.skipped)
    assert again.fingerprint == data.fingerprint


def test_skip__refuses_a_class_of_which_nothing_is_left(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "insects")
    for path in (root / "val" / "ant").iterdir():
        path.write_text("no image")
    with pytest.raises(NotFoundError, match="no eval image of class 'ant' can be decoded"):
        skip_corrupt(image_folder(path=str(root), data_dir=tmp_path))


def test_hold__gives_the_same_images_from_memory(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build("ImageFolder", data_dir, resolution=24)
    held = hold_in_memory(data)
    assert held.in_memory
    assert held.train.source is held.train_plain.source
    assert held.fingerprint == fingerprint(held.classes, held.train_plain, held.eval)
    for one, other in ((data.train_plain, held.train_plain), (data.eval, held.eval)):
        assert torch.equal(everything(one)[0], everything(other)[0])
    monkeypatch.setattr("satstore.datasets.in_memory.available_memory", lambda: 4 * 3 * 24 * 24 * 24 - 1)
    assert hold_in_memory(data) is data, "24 images need a quarter of what is free, and one byte"


# ---- colours


def test_color_jitter__is_torchvisions_by_image() -> None:
    torch.manual_seed(3)
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    state = torch.get_rng_state()
    found = ColorJitter(0.4)(images)
    torch.set_rng_state(state)
    factors, order = 1 + 0.4 * (2 * torch.rand(3, 4, 1, 1, 1) - 1), torch.randperm(3).tolist()
    changes = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation)
    for index, image in enumerate(images):
        expected = image / 255
        for change in order:
            expected = changes[change](expected, float(factors[change, index]))
        torch.testing.assert_close(found[index] / 255, expected, atol=1e-5, rtol=1e-5)


def test_lighting__colours_have_the_published_covariance() -> None:
    torch.manual_seed(0)
    colours = Lighting(0.1)(torch.zeros(20000, 3, 1, 1))[:, :, 0, 0] / 255
    axes = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = axes @ np.diag(np.square(0.1 * np.array([0.2175, 0.0188, 0.0045]))) @ axes.T
    np.testing.assert_allclose(np.cov(colours.T.numpy()), expected, rtol=0.05, atol=2e-6)


# ---- Digits


def test_digits__split_is_stratified_and_fixed() -> None:
    data, other = DATASETS["Digits"](), DATASETS["Digits"](seed=3)
    assert (len(data.train), len(data.eval)) == (1437, 360)
    ids = np.concatenate([data.train.sample_ids, data.eval.sample_ids])
    assert sorted(ids.tolist()) == list(range(1797))
    for split in (data.train, data.eval):
        assert (np.diff(split.sample_ids) > 0).all()
        np.testing.assert_array_equal(split.labels, load_digits().target[split.sample_ids])
        share = np.bincount(split.labels) / len(split)
        np.testing.assert_allclose(share, np.bincount(load_digits().target) / 1797, atol=1 / len(split))
    # The split has to be the same on every machine and with every version of scikit-learn.
    assert data.eval.sample_ids[:8].tolist() == [21, 24, 28, 34, 35, 37, 39, 42]
    digest = "ffb9501f2f26c50c7086b700b48a0cdf22ccc84edbd872829c80cd804447202e"
    assert data.fingerprint == other.fingerprint == digest


def test_digits__pixels_are_the_original_grey_levels() -> None:
    data = DATASETS["Digits"](resolution=8, augment=False)
    images, _ = everything(data.eval)
    levels = torch.from_numpy(load_digits().images[data.eval.sample_ids])[:, None] / 16
    expected = (levels - torch.tensor(CIFAR_MEAN)[:, None, None]) / torch.tensor(CIFAR_STD)[:, None, None]
    # Half of a level of 255, over the smallest standard deviation.
    torch.testing.assert_close(images, expected.float(), rtol=0, atol=0.5 / 255 / 0.199 + 1e-5)
    raw = data.eval.source.read(range(360))
    assert raw.unique().tolist() == [round(level * 255 / 16 + 1e-9) for level in range(17)]


def test_digits__are_cropped_and_not_flipped() -> None:
    data = DATASETS["Digits"]()
    assert data.train.transforms[0] == RandomCrop(8, padding=1)
    assert not any(isinstance(transform, RandomFlip) for transform in data.train.transforms)


# ---- torchvision's


def compose(resolution: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], torch.Tensor]:
    """Return torchvision's own pipeline for one PIL image."""
    pipeline: Callable[[Any], torch.Tensor] = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize((resolution, resolution), antialias=True),
            v2.RGB(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    return pipeline


@pytest.mark.parametrize("resolution", [28, 32, 45])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Cifar10", torchvision.datasets.CIFAR10),
        ("Cifar100", torchvision.datasets.CIFAR100),
        ("MNIST", torchvision.datasets.MNIST),
        ("FashionMNIST", torchvision.datasets.FashionMNIST),
    ],
)
def test_downloaded__equals_torchvision(name: str, kind: Any, resolution: int, data_dir: Path) -> None:
    data = DATASETS[name](resolution=resolution, data_dir=data_dir)
    pipeline = compose(resolution, CIFAR_MEAN, CIFAR_STD)
    for split, is_train in ((data.train_plain, True), (data.eval, False)):
        original = kind(data_dir, train=is_train)
        images, labels = everything(split)
        expected = [pipeline(image) for image, _ in original]
        torch.testing.assert_close(images, torch.stack(expected), rtol=0, atol=1e-5)
        assert labels.tolist() == [label for _, label in original]
        assert split.sample_ids.tolist() == list(range(len(original)))
        assert data.classes == tuple(original.classes)
    assert data.in_memory


def test_downloaded__augmentations_are_those_of_the_experiments(data_dir: Path) -> None:
    for name, crop in (("Cifar10", RandomCrop(32, 4)), ("MNIST", RandomCrop(28, 3))):
        data = DATASETS[name](data_dir=data_dir)
        assert data.train.transforms[:2] == (crop, RandomFlip())
        assert data.train.transforms[2:] == data.train_plain.transforms == data.eval.transforms


def test_downloaded__fingerprint_changes_with_a_pixel_and_with_a_label(tmp_path: Path) -> None:
    files = mnist_files(1)
    fingerprints = set()
    for n, (name, place) in enumerate(
        [("t10k-images-idx3-ubyte", -1), ("train-labels-idx1-ubyte", -1), ("", 0)]
    ):
        changed = dict(files)
        if name:
            data = bytearray(files[name])
            data[place] = (data[place] + 1) % 10
            changed[name] = bytes(data)
        write_files(tmp_path / str(n) / "MNIST" / "raw", changed)
        fingerprints.add(DATASETS["MNIST"](data_dir=tmp_path / str(n)).fingerprint)
    assert len(fingerprints) == 3


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist__files_packed_anew_are_the_same_images(name: str, tmp_path: Path, data_dir: Path) -> None:
    folder = data_dir / name / "raw"
    packed = {f"{path.name}.gz": gzip.compress(path.read_bytes(), 1) for path in folder.iterdir()}
    write_files(tmp_path / name / "raw", packed)
    data = DATASETS[name](data_dir=tmp_path)
    assert data.fingerprint == build(name, data_dir).fingerprint
    assert sorted(path.name for path in (tmp_path / name / "raw").iterdir()) == sorted(packed), "as it was"


def test_fashion_mnist__is_found_where_debian_installs_it(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = replace(mnist.FILES["FashionMNIST"], elsewhere=[data_dir / "FashionMNIST" / "raw"])
    monkeypatch.setitem(mnist.FILES, "FashionMNIST", installed)
    data = DATASETS["FashionMNIST"](data_dir=tmp_path / "empty")
    assert data.fingerprint == build("FashionMNIST", data_dir).fingerprint
    assert not (tmp_path / "empty").exists(), "nothing was downloaded"


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, lambda data: data[:-1], "7,055 bytes of values; its header says 7,056"),
        (IMAGES, lambda data: idx(np.zeros((9, 28, 27), np.uint8)), "expected an idx file of n x 28 x 28"),
        (IMAGES, lambda data: idx(np.zeros((8, 28, 28), np.uint8)), "has 8 images, .* 9 labels"),
        (IMAGES, lambda data: idx(np.zeros((0, 28, 28), np.uint8)), "expected an idx file"),
        (IMAGES, lambda data: data[:2] + b"\x0d" + data[3:], "begins with 00000d03"),
        (IMAGES, lambda data: b"", "expected an idx file"),
        (LABELS, lambda data: data[:-1] + b"\x0a", "has a label 10; expected 0 to 9"),
        (LABELS + ".gz", lambda data: gzip.compress(data)[:-9], "can't be read"),
        (LABELS + ".gz", lambda data: b"not packed", "can't be read"),
    ],
)
def test_mnist__damaged_files_are_refused_and_left(
    name: str, content: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    files = mnist_files(1)
    files[name] = content(files.pop(name.removesuffix(".gz")))
    write_files(tmp_path / "MNIST" / "raw", files)
    with pytest.raises(CorruptError, match=message) as caught:
        DATASETS["MNIST"](data_dir=tmp_path)
    assert str(tmp_path / "MNIST" / "raw" / name) in str(caught.value)
    assert (tmp_path / "MNIST" / "raw" / name).read_bytes() == files[name]


@pytest.mark.parametrize(("name", "kind"), [("Cifar10", CIFAR10), ("Cifar100", CIFAR100)])
def test_cifar__an_archive_packed_anew_is_unpacked(
    name: str, kind: Any, tmp_path: Path, data_dir: Path
) -> None:
    with tarfile.open(tmp_path / kind.filename, "w:gz", compresslevel=1) as tar:
        tar.add(data_dir / kind.base_folder, kind.base_folder)
    assert DATASETS[name](data_dir=tmp_path).fingerprint == build(name, data_dir).fingerprint


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cifar__batches_pickled_anew_are_the_same_images_and_this_is_said(
    protocol: int, tmp_path: Path, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {path.name: path.read_bytes() for path in (data_dir / CIFAR100.base_folder).iterdir()}
    found = pickle.loads(files["test"])
    found["fine_labels"] = np.array(found["fine_labels"])
    files["test"] = pickle.dumps(found, protocol)
    write_files(tmp_path / CIFAR100.base_folder, files)
    assert DATASETS["Cifar100"](data_dir=tmp_path).fingerprint == build("Cifar100", data_dir).fingerprint
    path = tmp_path / CIFAR100.base_folder / "test"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is not the published file, by its MD5; used as it is"
    ]


def test_cifar10__downloads_what_is_missing_and_says_so(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kind = torchvision.datasets.CIFAR10
    served = tmp_path / "served"
    served.mkdir()
    archive = served / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(data_dir / kind.base_folder, kind.base_folder)
    handler = partial(_QuietHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{kind.filename}")
        monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        with caplog.at_level(logging.INFO):
            data = DATASETS["Cifar10"](data_dir=tmp_path / "new")
        server.shutdown()
        thread.join()
    assert data.fingerprint == build("Cifar10", data_dir).fingerprint
    assert [record.getMessage() for record in caplog.records if "downloading" in record.getMessage()] == [
        f"Cifar10 is not in {tmp_path / 'new'}; downloading it (https://www.cs.toronto.edu/~kriz/cifar.html)"
    ]


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "layout", "page"),
    [
        ("Cifar10", "cifar-10-batches-py/", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        ("Cifar100", "cifar-100-python/", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        ("MNIST", "MNIST/raw/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        ("FashionMNIST", "FashionMNIST/raw/", "https://github.com/zalandoresearch/fashion-mnist"),
    ],
)
def test_downloaded__missing_without_network_is_one_line(
    name: str, layout: str, page: str, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])
    for base, files in mnist.FILES.items():
        monkeypatch.setitem(mnist.FILES, base, replace(files, elsewhere=()))
    with pytest.raises(NotFoundError) as caught:
        DATASETS[name](data_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (name, str(tmp_path), layout, page):
        assert part in message


def test_downloaded__what_a_download_leaves_out_is_not_left_in_halves(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    kept = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    write_files(kept.parent, {kept.name: b"the user's"})
    for _ in range(2):
        with pytest.raises(NotFoundError, match=re.escape("can't be downloaded")):
            DATASETS["MNIST"](data_dir=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == [kept]
    assert kept.read_bytes() == b"the user's"
    with pytest.raises(NotFoundError, match="FashionMNIST"):
        locate_or_download(
            replace(mnist.FILES["FashionMNIST"], elsewhere=()),
            tmp_path,
            lambda waiting: Path("/").read_text(),
        )
    assert not (tmp_path / "FashionMNIST").exists()


def test_downloaded__nothing_is_downloaded_without_being_asked(tmp_path: Path) -> None:
    with without_downloads(), pytest.raises(NotFoundError, match="satstore dataset check Cifar10 --download"):
        DATASETS["Cifar10"](data_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


WRONG = {
    "labels": [0] * 7,
    "labels of no class": [0] * 7 + [10],
    "labels below": [0] * 7 + [-1],
    "no numbers": ["a"] * 8,
    "fractions": [0.5] * 8,
}


@pytest.mark.parametrize("labels", WRONG.values(), ids=WRONG)
def test_cifar10__wrong_labels_are_refused(labels: list[Any], data_dir: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in (data_dir / CIFAR10.base_folder).iterdir()}
    found = pickle.loads(files["data_batch_3"])
    write_files(
        tmp_path / CIFAR10.base_folder, files | {"data_batch_3": pickle.dumps(found | {"labels": labels})}
    )
    with pytest.raises(CorruptError, match=r"data_batch_3 does not hold .* a label from 0 to 9"):
        DATASETS["Cifar10"](data_dir=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: pickle.dumps(found)[:-50],
        lambda found: pickle.dumps(found | {"data": found["data"][:, :-1]}),
        lambda found: pickle.dumps(found | {"data": found["data"].astype(np.float32)}),
        lambda found: pickle.dumps({"labels": found["labels"]}),
        lambda found: pickle.dumps([1, 2]),
        lambda found: pickle.dumps(Path("/")),
        lambda found: b"",
    ],
)
def test_cifar10__damaged_files_are_refused(
    change: Callable[[dict[str, Any]], bytes], data_dir: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in (data_dir / CIFAR10.base_folder).iterdir()}
    write_files(
        tmp_path / CIFAR10.base_folder,
        files | {"data_batch_3": change(pickle.loads(files["data_batch_3"]))},
    )
    with pytest.raises(CorruptError, match="data_batch_3"):
        DATASETS["Cifar10"](data_dir=tmp_path)


# ---- ImageFolder


def test_image_folder__classes_and_files_are_sorted(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split in ("train", "val"):
        for name in ("b", "a", "B"):
            for file in ("2.png", "10.png", "sub/1.png", "é.png"):
                write_image(root / split / name / file, seed=0)
        write_image(root / split / ".cache" / "x.png", seed=0)
        write_image(root / split / "a" / "._2.png", seed=0)
        (root / split / "a" / "notes.txt").write_text("no image")
    data = DATASETS[f"ImageFolder:{root}"]()
    files = ["10.png", "2.png", "sub/1.png", "é.png"]
    assert data.classes == ("B", "a", "b")
    assert data.train.source.names == tuple(f"{name}/{file}" for name in ("B", "a", "b") for file in files)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.train.sample_ids.tolist() == list(range(12))
    assert not data.in_memory


@pytest.mark.parametrize("resolution", [16, 30, 50])
def test_image_folder__equals_torchvision(resolution: int, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    for path in sorted(root.rglob("*.*")):
        if path.suffix != ".png":
            path.unlink()  # JPEG is decoded at a reduced size; its own test has a tolerance
    data = DATASETS[f"ImageFolder:{root}"](resolution=resolution)
    pipeline = v2.Compose(
        [
            v2.Resize(resolution),
            v2.CenterCrop(resolution),
            compose(resolution, IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    for split, folder in ((data.train_plain, "train"), (data.eval, "val")):
        original = torchvision.datasets.ImageFolder(root / folder, transform=pipeline)
        images, labels = everything(split)
        assert labels.tolist() == original.targets
        assert data.classes == tuple(original.classes)
        torch.testing.assert_close(images, torch.stack([image for image, _ in original]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("resolution", [24, 64, 300])
def test_decode__reduced_jpeg_is_close_to_the_whole(resolution: int, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    write_image(path, seed=3, size=(500, 400))
    with Image.open(path) as image:
        whole = v2.Compose([v2.Resize(resolution), v2.CenterCrop(resolution)])(image.convert("RGB"))
    difference = np.abs(decode(path, resolution).astype(int) - np.asarray(whole).astype(int))
    assert difference.mean() < 1
    assert difference.max() < 5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_decode__any_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    write_image(path, seed=1, mode="L" if mode == "LA" else mode)
    if mode == "LA":
        with Image.open(path) as image:
            image.convert("LA").save(path)
    pixels = decode(path, 20)
    assert pixels.shape == (20, 20, 3)
    assert pixels.dtype == np.uint8
    assert np.ptp(pixels) > 50


def test_decode__palette_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 22, mode=None).convert("P")
    image.putpalette([200, 10, 20, 30, 220, 40, 50, 60, 240])
    image.save(path, transparency=bytes([0, 128, 255]))
    assert decode(path, 8)[0, 0].tolist() == [200, 10, 20]
    assert decode(path, 8)[-1, -1].tolist() == [50, 60, 240]


def test_decode__sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 256 + 17).save(path)
    np.testing.assert_array_equal(decode(path, 16), np.repeat(levels[:, :, None], 3, axis=2))


@pytest.mark.parametrize("size", [(100, 10), (10, 100), (33, 32), (1, 7)])
def test_decode__cuts_the_middle(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    write_image(path, seed=0, size=size)
    with Image.open(path) as image:
        expected = v2.Compose([v2.Resize(8), v2.CenterCrop(8)])(image)
    np.testing.assert_allclose(decode(path, 8).astype(int), np.asarray(expected).astype(int), atol=1)


def test_image_folder__finds_the_folder_in_cwd_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "here" / "set")
    write_folder(tmp_path / "data" / "set", evaluation="test")
    write_folder(tmp_path / "data" / "other", evaluation="test")
    monkeypatch.chdir(tmp_path / "here")
    names = {
        name: DATASETS[f"ImageFolder:{name}"](data_dir=tmp_path / "data").eval.source.folder
        for name in ("set", "other")
    }
    assert names == {
        "set": tmp_path / "here" / "set" / "val",
        "other": tmp_path / "data" / "other" / "test",
    }


def test_image_folder__fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    first = DATASETS[f"ImageFolder:{write_folder(tmp_path / 'a')}"]().fingerprint
    copy = write_folder(tmp_path / "b")
    assert DATASETS[f"ImageFolder:{copy}"]().fingerprint == first
    file = copy / "val" / "cat" / "0.png"
    file.rename(file.with_name("00.png"))
    renamed = DATASETS[f"ImageFolder:{copy}"]().fingerprint
    assert renamed != first
    with file.with_name("00.png").open("ab") as end:
        end.write(b"x")
    assert DATASETS[f"ImageFolder:{copy}"]().fingerprint not in (first, renamed)


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (".", "no folder .*set or .*data/set"),
        ("train", "only val/; expected train/ and val/"),
        ("val", "only train/; expected train/ and val/"),
        ("val/bee", r"class 'bee' is in .*/train but not in .*/val"),
        ("train/bee", r"class 'bee' is in .*/val but not in .*/train"),
        ("train/*", "has no class folders"),
        ("val/bee/*", "val/bee has no images"),
    ],
)
def test_image_folder__says_what_is_missing(missing: str, expected: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    for path in [root] if missing == "." else sorted(root.glob(missing)):
        remove(path) if path.is_dir() else path.unlink()
    with pytest.raises(NotFoundError, match=expected) as caught:
        DATASETS[f"ImageFolder:{root if missing != '.' else 'set'}"](data_dir=tmp_path / "data")
    assert "\n" not in str(caught.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    "damage",
    [truncate, lambda path: path.write_bytes(b"<html>"), lambda path: path.write_bytes(b""), Path.unlink],
    ids=["truncated", "no image", "empty", "deleted"],
)
@pytest.mark.parametrize("file", ["0.png", "1.jpg"])
def test_image_folder__corrupt_image_is_named(
    damage: Callable[[Path], None], file: str, tmp_path: Path
) -> None:
    root = write_folder(tmp_path / "set")
    data = DATASETS[f"ImageFolder:{root}"]()
    damage(root / "train" / "bee" / file)
    with pytest.raises(CorruptError, match=f"bee/{file} can't be decoded") as caught:
        everything(data.train)
    assert "\n" not in str(caught.value)


# ---- the loader


def make_split(n_images: int = 50, augmented: bool = True) -> ImageSplit:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (n_images, 3, 8, 8), dtype=np.uint8))
    augmentation = (RandomCrop(8, padding=2), RandomFlip()) if augmented else ()
    transforms = (*augmentation, Normalize(CIFAR_MEAN, CIFAR_STD))
    return ImageSplit(PixelSource(pixels), np.arange(n_images), transforms=transforms)


def epoch(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_loader__keeps_order_and_the_last_partial_batch() -> None:
    split = make_split(augmented=False)
    loader = make_loader(split, 16, shuffle=False)
    assert len(loader) == 4
    assert [len(labels) for _, labels in loader] == [16, 16, 16, 2]
    images, labels = epoch(loader)
    assert torch.equal(images, everything(split)[0])
    assert labels.tolist() == list(range(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader__epochs_repeat_and_resume_from_the_saved_generators(workers: int) -> None:
    def make(generator: torch.Generator) -> Any:
        return make_loader(make_split(), 16, shuffle=True, generator=generator, workers=workers)

    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(8)
    loader = make(generator)
    first = epoch(loader)
    states = generator.get_state(), torch.get_rng_state()
    second = epoch(loader)
    assert sorted(first[1].tolist()) == sorted(second[1].tolist()) == list(range(50))
    assert first[1].tolist() != second[1].tolist() != list(range(50))

    torch.manual_seed(8)
    again = epoch(make(torch.Generator().manual_seed(4)))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    resumed_generator = torch.Generator()
    resumed_generator.set_state(states[0])
    torch.set_rng_state(states[1])
    resumed = epoch(make(resumed_generator))
    assert all(torch.equal(a, b) for a, b in zip(second, resumed, strict=True))


def test_loader__workers_give_the_same_plain_images_and_differ_in_augmentation() -> None:
    split = make_split(augmented=False)
    images, labels = epoch(make_loader(split, 16, shuffle=False, workers=2))
    assert torch.equal(images, everything(split)[0])
    assert labels.tolist() == list(range(50))
    # The same image in every place: batches of different workers must not repeat each other's draws.
    one = make_split()
    repeated = ImageSplit(PixelSource(one.source.read([0] * 64)), np.arange(64), transforms=one.transforms)
    images, _ = epoch(make_loader(repeated, 32, shuffle=False, workers=2))
    assert not torch.equal(images[:32], images[32:])


def test_loader__worker_reads_files_and_names_a_corrupt_one_in_one_line(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    data = DATASETS[f"ImageFolder:{root}"]()
    images, _ = epoch(make_loader(data.eval, 4, shuffle=False, workers=1))
    assert torch.equal(images, everything(data.eval)[0])
    (root / "val" / "cat" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptError, match=r"^/.*val/cat/1.jpg can't be decoded") as caught:
        epoch(make_loader(data.eval, 4, shuffle=False, workers=1))
    assert "\n" not in str(caught.value)


def test_loader__pins_nothing_without_a_device() -> None:
    loader = make_loader(make_split(), 16, shuffle=False, pin_memory=True)
    assert loader.pin_memory == torch.cuda.is_available()
    epoch(loader)
