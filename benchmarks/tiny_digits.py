"""Write a TinyImageNet-shaped folder of handwritten digits: 200 classes, 64 × 64 JPEG.

    python benchmarks/tiny_digits.py --out DIR [--train 500] [--val 50] [--seed 0]

A class is an ordered pair of scikit-learn's embedded digits, plain or inverted. Each image has two digits
side by side, drawn anew for each; those of val are of digits that train never shows. The layout is that of
``ImageFolder:DIR``: DIR/train/CLASS/NUMBER.jpg and DIR/val/CLASS/NUMBER.jpg.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 64
CLASSES = tuple(f"{a}{b}-{ink}" for ink in ("plain", "inverted") for a in range(10) for b in range(10))


def write_tiny_digits(out: Path, n_train: int = 500, n_val: int = 50, seed: int = 0) -> None:
    """Write n_train and n_val images of each of the 200 classes."""
    pixels = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    train, val = split_digits(seed)
    generator = np.random.default_rng(seed)
    for split, by_digit, n_images in (("train", train, n_train), ("val", val, n_val)):
        for name in CLASSES:
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            halves = [pixels[generator.choice(by_digit[int(digit)], n_images)] for digit in name[:2]]
            images = scale(halves, generator)
            for number, image in enumerate(255 - images if name.endswith("inverted") else images):
                Image.fromarray(image).save(folder / f"{number:04}.jpg", quality=90)


def split_digits(seed: int = 0) -> list[list[NDArray[np.int64]]]:
    """Return which of scikit-learn's digits are for training and which for evaluation, by digit."""
    targets = load_digits().target
    parts = train_test_split(np.arange(len(targets)), test_size=360, stratify=targets, random_state=seed)
    return [[ids[targets[ids] == digit] for digit in range(10)] for ids in parts]


def scale(halves: list[NDArray[np.uint8]], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Put pairs of 8 × 8 digits side by side, 32 px each, at any height."""
    large = [half.repeat(4, axis=1).repeat(4, axis=2) for half in halves]
    canvas = np.zeros((len(large[0]), SIDE, SIDE), np.uint8)
    rows = np.arange(32)[:, None] + generator.integers(0, 33, (len(canvas), 1, 1))
    for place, half in enumerate(large):
        columns = np.arange(32)[None, :] + 32 * place
        canvas[np.arange(len(canvas))[:, None, None], rows, columns] = half
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=500, help="images per class")
    parser.add_argument("--val", type=int, default=50, help="images per class")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    write_tiny_digits(options.out, options.train, options.val, options.seed)
    n_images = len(CLASSES) * (options.train + options.val)
    print(f"{n_images} images of {len(CLASSES)} classes in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
