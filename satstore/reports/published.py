"""Published values to compare a reproduction with, as fractions.

Test accuracies, and both curves of one network, read off the picture to about ±.02, from "(Input) Size
Matters for CNN Classifiers" (Richter et al., arXiv 2102.01582).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedCurves:
    """Probe accuracy and saturation of the layers that the paper draws, in forward order."""

    probe_accuracy: tuple[float, ...]
    saturation: tuple[float, ...]


Setting = tuple[str, str, int]
"""Model, dataset and resolution."""

ACCURACY: Mapping[Setting, float] = {
    ("resnet18", "Cifar10", 32): 0.8461,
    ("resnet18", "Cifar10", 224): 0.9255,
    ("resnet18", "Cifar10", 1024): 0.8677,
    ("vgg16", "Cifar10", 32): 0.9047,
    ("vgg16", "Cifar10SmallRandomPositioning", 160): 0.8515,
    ("vgg16", "Cifar10", 160): 0.9199,
    ("ResNet18_PC", "Cifar10", 32): 0.92,
    ("vgg16", "MNIST", 32): 0.9924,
    ("vgg16", "MNISTSmallRandomPositioning", 160): 0.9913,
    ("vgg16", "MNIST", 160): 0.9925,
}

CURVES: Mapping[Setting, PublishedCurves] = {
    ("vgg16", "Cifar10", 32): PublishedCurves(
        (0.38, 0.53, 0.68, 0.75, 0.81, 0.86, 0.89, 0.90, 0.91, 0.90, 0.90, 0.90, 0.90, 0.90),
        (0.12, 0.33, 0.39, 0.61, 0.51, 0.56, 0.53, 0.17, 0.09, 0.08, 0.03, 0.03, 0.03, 0.02),
    )
}
