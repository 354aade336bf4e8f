"""Which models tests of every model take in the quick tier: of each kind one that costs little."""

from collections.abc import Iterable
from typing import Any

import pytest

TORCHVISIONS = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inceptionv3 mnasnet0_5 mnasnet05
mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1
swin_t swin_v2_t torchvision_vgg11 vgg11_bn vit_b_32 maxvit_t wide_resnet50_2
""".split()  # noqa: SIM905
"""Of each of torchvision's families one, and of those whose members differ in kind one of each."""

OWN = """
vgg5 vgg16 vgg11_d2 vgg16_5 vgg13_early vgg13_strides vgg16AlteredPooling5 vgg19r2d3 vggresnet vgg13_XXXS
vgg13PCA vgg13PCA_centered
resnet18 resnet50 resnet18_XXS resnet18noskip resnet50noskip resnet18_ep0 resnet18_ep01 resnet18_ep00
resnet18_dspl2 resnet18_dspl8 resnet18_nr1_2 resnet18highway resnet18nodownsample resnet18_bottleneck
ResNet18_PC
""".split()  # noqa: SIM905
"""Of each argument that a row of the catalogue gives to the builders one."""


def in_tiers(names: Iterable[str], quick: Iterable[str]) -> list[Any]:
    """Return names as parameters of a test: those that are not to be quick are marked as long."""
    known = set(quick)
    return [pytest.param(name, marks=() if name in known else pytest.mark.long) for name in names]
