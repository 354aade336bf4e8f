"""Digits: scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, which come with the package."""

import os

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from satstore.datasets.image_data import ImageData, ImageSplit, PixelSource, assemble
from satstore.datasets.transforms import CIFAR_MEAN, CIFAR_STD, Normalize, RandomCrop, Resize, ToRGB

N_EVAL = 360


def digits(
    resolution: int = 32,
    data_dir: str | os.PathLike[str] = "tmp",
    augment: bool = True,
    seed: int = 0,
) -> ImageData:
    """Return scikit-learn's digits: 1,437 for training, 360 for evaluation, stratified.

    The split is the same for every seed. Augmentation is a random crop of 8 px out of 10, without flips,
    which would turn digits into other signs.
    """
    bunch = load_digits()
    # Grey levels 0..16 become 0..255, to the nearest integer.
    pixels = ((bunch.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[:, None]
    labels = bunch.target
    train, evaluation = train_test_split(
        np.arange(len(labels)), test_size=N_EVAL, stratify=labels, random_state=0
    )

    def split(ids: np.ndarray) -> ImageSplit:
        ids = np.sort(ids)
        return ImageSplit(PixelSource(torch.from_numpy(pixels[ids])), labels[ids], ids)

    return assemble(
        "Digits",
        [str(name) for name in bunch.target_names],
        split(train),
        split(evaluation),
        augmentation=(RandomCrop(8, padding=1),),
        preparation=(Resize(resolution), ToRGB(), Normalize(CIFAR_MEAN, CIFAR_STD)),
        augment=augment,
    )
