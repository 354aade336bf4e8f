"""Raw images and texts: any folder, any dataset, and what a model's recipe makes of them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_folder, write_image
from torchvision.transforms.v2 import functional as vision

from satstore.datasets.any_folder import read_any_folder
from satstore.datasets.canvas_placement import place_randomly
from satstore.datasets.image_data import ImageData
from satstore.datasets.image_folder import image_folder
from satstore.datasets.loaders import make_loader
from satstore.datasets.prepared_data import PreparedData
from satstore.datasets.random_split import split_at_random
from satstore.datasets.raw_data import read_dataset
from satstore.errors import ConfigError, CorruptError, NotFoundError
from satstore.registry import DATASETS, stand_in


def write_texts(folder: Path, *texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, text in enumerate(texts):
        (folder / f"{n}.txt").write_text(text, encoding="utf-8")


def test_any_folder__of_train_and_val_is_what_image_folder_reads(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train" / "ant" / "boxes.txt").write_text("of no concern to a model of images")
    known = image_folder(path=str(root))
    found = read_any_folder(root, "image")
    assert found.eval is not None
    assert (found.classes, found.kind) == (known.classes, "image")
    for split, expected in ((found.train, known.train_plain), (found.eval, known.eval)):
        assert split.samples.names == list(expected.source.names)  # type: ignore[union-attr]
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(split.sample_ids, expected.sample_ids)


def test_any_folder__takes_class_folders_alone_and_files_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "a", "one", "two")
    write_texts(tmp_path / "b" / "deeper", "three")
    found = read_any_folder(tmp_path, "text")
    assert found.classes == ("a", "b")
    assert found.eval is None
    assert [found.train.samples.read(n) for n in range(3)] == ["one", "two", "three"]
    np.testing.assert_array_equal(found.train.labels, [0, 0, 1])
    alone = read_any_folder(tmp_path / "a", "any")
    assert (alone.kind, alone.classes, alone.train.labels) == ("text", (), None)


def test_any_folder__draws_a_share_for_evaluation(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_texts(tmp_path / name, *"01234")
    whole = read_any_folder(tmp_path, "text").train
    found = read_any_folder(tmp_path, "text", share=0.3, seed=5)
    assert found.eval is not None
    chosen = sorted(np.random.default_rng(5).permutation(10)[:3])
    np.testing.assert_array_equal(found.eval.sample_ids, chosen)
    np.testing.assert_array_equal(found.train.sample_ids, np.setdiff1d(np.arange(10), chosen))
    for split in (found.train, found.eval):
        assert whole.labels is not None
        np.testing.assert_array_equal(split.labels, whole.labels[split.sample_ids])
        assert split.samples.names == [whole.samples.names[n] for n in split.sample_ids]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ([], NotFoundError, "has no images and no texts; expected files that end in .jpg, "),
        (["a/0.txt", "b/0.png"], ConfigError, "holds images and texts; take the ones away"),
        (
            ["a/0.txt", "b/0.md"],
            NotFoundError,
            "class folder .*b has no texts; expected files that end in .txt",
        ),
        (["a/0.txt", "0.txt"], ConfigError, "has 1 text beside the folders a; expected class folders"),
        (["val/a/0.txt"], NotFoundError, "has val/ and no train/; give .*/val, or both"),
        (["train/0.txt", "bus/0.txt"], ConfigError, "has train/ and no val/ or test/, but bus; rename"),
        (["train/a/0.txt", "test/0.txt"], ConfigError, "train has class folders and .*test has none"),
        (["train/a/0.txt", "test/b/0.txt"], NotFoundError, "class 'a' is in .*train but not in .*test"),
        (["train/0.md", "test/0.txt"], NotFoundError, "train has no texts; expected class folders of them"),
    ],
)
def test_any_folder__refuses_what_is_none_of_its_layouts(
    files: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(error, match=message):
        read_any_folder(tmp_path, "any")


def test_any_folder__refuses_what_the_model_does_not_take(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", 0)
    with pytest.raises(ConfigError, match=r"the model takes texts, and .* holds images"):
        read_any_folder(tmp_path, "text")
    with pytest.raises(NotFoundError, match=r"no folder .*nowhere; check the path"):
        read_any_folder(tmp_path / "nowhere", "text")
    root = write_folder(tmp_path / "both")
    with pytest.raises(ConfigError, match=r"--split is for folders of one split; .* has val/ already"):
        read_any_folder(root, "image", share=0.5)


@pytest.mark.parametrize(("n", "share", "message"), [(9, 1.0, "--split is 1;"), (1, 0.5, "found 1")])
def test_random_split__refuses_shares_that_leave_nothing(n: int, share: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_at_random(n, share, 0)


def test_texts__are_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_bytes("\ufeffé\r\n".encode())
    (tmp_path / "1.txt").write_bytes("né".encode("latin-1"))
    texts = read_any_folder(tmp_path, "text").train.samples
    assert texts.read(0) == "é\r\n"
    with pytest.raises(CorruptError, match=r"1.txt is no text in UTF-8: its byte 1 is 0xe9; save it"):
        texts.read(1)


def test_images__come_at_their_full_size_as_rgb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb, alpha = rng.integers(0, 256, (20, 30, 3), np.uint8), rng.integers(0, 256, (20, 30, 1), np.uint8)
    grey = rng.integers(0, 256, (20, 30), np.uint8)
    palette = Image.fromarray(rgb).quantize(16)
    Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(tmp_path / "0.png")
    Image.fromarray(grey).save(tmp_path / "1.png")
    palette.save(tmp_path / "2.png", transparency=3)
    exif = Image.Exif()
    exif[0x0112] = 6  # a reader that obeyed it would turn the image upright
    Image.fromarray(rgb).save(tmp_path / "3.png", exif=exif)
    Image.fromarray(grey.astype(np.uint16) * 256 + 7).save(tmp_path / "4.png")
    images = read_any_folder(tmp_path, "image").train.samples
    of_grey = np.repeat(grey[:, :, None], 3, axis=2)
    for n, expected in enumerate((rgb, of_grey, np.asarray(palette.convert("RGB")), rgb, of_grey)):
        np.testing.assert_array_equal(images.read(n), expected)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:100])
    with pytest.raises(CorruptError, match=r"1.png can't be decoded .*: replace it or remove it"):
        images.read(1)


def test_dataset__gives_its_images_as_stored(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    found = read_dataset("Digits", tmp_path)
    assert found.eval is not None
    assert (found.classes[3], len(found.train), len(found.eval)) == ("3", 1437, 360)
    shipped = load_digits()
    for split in (found.train, found.eval):
        image, place = np.asarray(split.samples.read(7)), split.sample_ids[7]
        assert image.shape == (8, 8, 3)
        np.testing.assert_array_equal(image[:, :, 1], np.rint(shipped.images[place] * 255 / 16))
        assert split.labels is not None
        assert split.labels[7] == shipped.target[place]


@pytest.mark.parametrize("name", ["BlackBorderCifar10", "MNISTSmallRandomPositioning", "ResizedFood101"])
def test_dataset__that_a_resolution_makes_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} makes images of its own for the resolution of a config"):
        read_dataset(name, tmp_path)


class Plugins:
    """Datasets whose images are not there as they are stored."""

    @staticmethod
    def as_loaders(output_size: int, batch_size: int, cache_dir: str) -> None:
        """Return loaders."""

    @staticmethod
    def placed(resolution: int, data_dir: Path, augment: bool, seed: int) -> ImageData:
        """Return digits on a canvas."""
        digits = DATASETS["Digits"]()
        return place_randomly(
            "placed",
            digits.classes,
            digits.train,
            digits.eval,
            resolution=resolution,
            canvas="black",
            seed=seed,
            preparation=(),
            augment=augment,
        )


@pytest.mark.parametrize("name", ["as_loaders", "placed"])
def test_dataset__that_prepares_its_images_itself_is_refused(name: str, tmp_path: Path) -> None:
    with (
        stand_in({"datasets": Plugins}),
        pytest.raises(ConfigError, match=f"{name} gives its images prepared already; .* a folder of images"),
    ):
        read_dataset(name, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_prepared_data__pairs_what_the_recipe_makes_with_labels(tmp_path: Path, workers: int) -> None:
    root = write_folder(tmp_path)
    split = read_any_folder(root, "image").train
    data = pickle.loads(pickle.dumps(PreparedData(split, vision.pil_to_tensor)))
    batches = list(make_loader(data, 4, shuffle=False, workers=workers))
    files = [Path(split.samples.name_of(n)) for n in range(len(split))]
    expected = [vision.pil_to_tensor(Image.open(path).convert("RGB")) for path in files]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), torch.stack(expected))
    assert split.labels is not None
    np.testing.assert_array_equal(torch.cat([labels for _, labels in batches]), split.labels)


def test_prepared_data__without_labels_is_inputs_alone(tmp_path: Path) -> None:
    write_texts(tmp_path, "a", "bcd", "ef")
    split = read_any_folder(tmp_path, "text").train
    [first, last] = make_loader(PreparedData(split, len, torch.tensor), 2, shuffle=False)
    assert (first.tolist(), last.tolist()) == ([1, 3], [2])


def test_prepared_data__names_the_samples_that_a_recipe_fails_on(tmp_path: Path) -> None:
    write_texts(tmp_path, "1", "x", "3")
    split = read_any_folder(tmp_path, "text").train
    with pytest.raises(ConfigError, match=r"1.txt can't be prepared for the model: ValueError: invalid lit"):
        PreparedData(split, int).__getitems__([0, 1])
    with pytest.raises(ConfigError, match=r"0.txt to .*2.txt does not make a batch .*to one size"):
        PreparedData(split, lambda text: torch.zeros(ord(text))).__getitems__([0, 1, 2])
