"""VGGs against conv lists, parameter counts and receptive fields written down by hand."""

import math

import pytest
import torch
from phd_lab_counts import COUNTS
from torch import nn

from satstore.errors import ConfigError
from satstore.models.vgg import VGG, vgg
from satstore.registry import MODELS

# name: (channels conv by conv, kernel sizes other than 3 by position)
PLANS = {
    "vgg5": [64],
    "vgg8": [64, 128, 256, 512],
    "vgg8_XS": [16, 32, 64, 128],
    "vgg9_XXS": [8, 16, 32, 64, 64],
    "vgg11": [64, 128, 256, 256, 512, 512, 512, 512],
    "vgg11_S": [32, 64, 128, 128, 256, 256, 256, 256],
    "vgg13_XXXS": [4, 4, 8, 8, 16, 16, 32, 32, 32, 32],
    "vgg16": [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    "vgg16_d4": [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    "vgg19_XS": [16, 16, 32, 32, 64, 64, 64, 64, 128, 128, 128, 128, 128, 128, 128, 128],
    "vgg13_wide": [128, 256, 512, 1024, 1024],
    "vgg13_thin": [*[32] * 4, *[64] * 4, *[128] * 4, *[256] * 8],
    "vgg13_strides": [64, 64, 128, 128, 256, 256, 512, 512, 512, 512],
    "vgg16_p2": [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    "vgg19r1": [*[128] * 6, *[256] * 5, *[512] * 5],
    "vgg19r2d3": [*[256] * 8, *[512] * 8],
}

# name: where the pools are, as the size of the map that each conv writes at 32 px
SIZES = {
    "vgg16": [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2],
    "vgg13_d4": [32, 32, 16, 16, 8, 8, 4, 4, 2, 2],
    "vgg19_d3": [32, 32, 16, 16, 8, 8, 8, 8, 4, 4, 4, 4, 2, 2, 2, 2],
    "vgg16_11": [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2],
    "vgg19r2d3": [*[32] * 8, *[16] * 8],
    "vgg13_early": [*[32] * 6, 16, 8, 4, 2],
    "vgg13_late": [32, 16, 8, 4, *[2] * 6],
    "vgg13_strides": [32, 16, 16, 8, 8, 4, 4, 2, 2, 1],
    "vgg16_p": [32, 32, 16, 16, 8, 8, 4, 4, *[2] * 5],
    "vgg16_p2": [32, 16, 8, 4, *[2] * 9],
    "vgg16AlteredPooling1": [32, 32, 16, 16, 8, 8, 8, *[4] * 6],
    "vgg16AlteredPooling2": [*[32] * 4, *[16] * 3, *[8] * 3, *[4] * 3],
    "vgg16AlteredPooling3": [*[32] * 7, *[16] * 3, *[8] * 3],
    "vgg16AlteredPooling4": [*[32] * 10, *[16] * 3],
    "vgg16AlteredPooling5": [32] * 13,
    "vgg16AlteredPooling6": [*[32] * 4, *[16] * 6, *[8] * 3],
    "vgg16_ap7": [*[32] * 4, *[16] * 3, *[8] * 3, *[4] * 3],
    "vgg19p0": [*[32] * 3, *[16] * 3, *[8] * 3, *[4] * 3, *[2] * 3],
    "vgg19p1": [*[32] * 3, *[16] * 4, *[8] * 4, *[4] * 4],
    "vgg19p2": [*[32] * 5, *[16] * 5, *[8] * 5],
    "vgg19r0": [*[32] * 4, *[16] * 4, *[8] * 4, *[4] * 4],
    "vgg19r3": [32, 32, 16, 16, *[8] * 3, *[4] * 3, *[2] * 3, *[1] * 3],
    "vgg19r4": [32, 32, 16, 16, 8, 8, *[4] * 4, *[2] * 3, *[1] * 3],
    "vggresnet": [16, *[8] * 4, *[4] * 4, *[2] * 4, *[1] * 4],
}

RECEPTIVE_FIELDS = {
    "vgg11": [3, 8, 18, 26, 46, 62, 102, 134],
    "vgg13": [3, 5, 10, 14, 24, 32, 52, 68, 108, 140],
    "vgg16": [3, 5, 10, 14, 24, 32, 40, 60, 76, 92, 132, 164, 196],
}


def convs(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def build(name: str, num_classes: int = 10) -> VGG:
    with torch.device("meta"):
        model = MODELS[name](num_classes=num_classes)
    assert isinstance(model, VGG)
    return model


def count(channels: list[int], num_classes: int, kernel_size: int = 3) -> int:
    """Parameters of convs with bias, batch norms and the classifier, summed by hand."""
    total = 0
    for n_in, n_out in zip([3, *channels], channels, strict=False):
        total += kernel_size**2 * n_in * n_out + n_out + 2 * n_out
    n_features, n_hidden = channels[-1], channels[-1] // 2
    total += 2 * n_features + (n_features * n_hidden + n_hidden)
    return total + 2 * n_hidden + (n_hidden * num_classes + num_classes)


# Variants of a name mostly move its pools, which have no parameters.
CHANNELS = {
    "vgg5": [64],
    "vgg6": [64, 128],
    "vgg7": [64, 128, 256],
    "vgg8": [64, 128, 256, 512],
    "vgg9": [64, 128, 256, 512, 512],
    "vgg11": PLANS["vgg11"],
    "vgg13": [64, 64, 128, 128, 256, 256, 512, 512, 512, 512],
    "vgg16": PLANS["vgg16"],
    "vgg19": [64, 64, 128, 128, *[256] * 4, *[512] * 8],
    "vgg13_wide": PLANS["vgg13_wide"],
    "vgg13_thin": PLANS["vgg13_thin"],
    "vgg19p": [*[64] * 3, *[128] * 3, *[256] * 3, *[512] * 6],
    "vgg19r0": [*[64] * 4, *[128] * 4, *[256] * 4, *[512] * 4],
    "vgg19r1": PLANS["vgg19r1"],
    "vgg19r2": PLANS["vgg19r2d3"],
    "vgg19r": [64, 64, 128, 128, *[256] * 3, *[512] * 9],
    "vggresnet": [64, *[128] * 4, *[256] * 4, *[512] * 8],
}
VGG_TARGETS = ("satstore.models.vgg:vgg", "satstore.models.pca:vgg_pca")
WIDTHS = {"S": 2, "XS": 4, "XXS": 8, "XXXS": 16}


@pytest.mark.parametrize(
    "name", [row.name for row in MODELS.entries() if row.target in VGG_TARGETS and row.name not in COUNTS]
)
def test_vgg__every_name_has_the_parameters_that_were_counted(name: str) -> None:
    base = max((known for known in CHANNELS if name.startswith(known)), key=len)
    suffix = "" if "PCA" in name else name.removeprefix(base).removeprefix("_")
    channels = [n // WIDTHS.get(suffix, 1) for n in CHANNELS[base]]
    expected = count(channels, 7, int(suffix) if base == "vgg16" and suffix.isdecimal() else 3)
    if name == "vggresnet":
        expected += (7**2 - 3**2) * 3 * 64
    assert sum(p.numel() for p in build(name, num_classes=7).parameters()) == expected


@pytest.mark.parametrize("name", PLANS)
def test_vgg__has_the_listed_convs_and_parameters(name: str) -> None:
    model = build(name, num_classes=7)
    assert [conv.out_channels for conv in convs(model)] == PLANS[name]
    assert sum(p.numel() for p in model.parameters()) == count(PLANS[name], 7)


@pytest.mark.parametrize("size", [5, 7, 9, 11])
def test_vgg__has_the_kernel_size_of_its_name(size: int) -> None:
    model = build(f"vgg16_{size}")
    assert {conv.kernel_size for conv in convs(model)} == {(size, size)}
    assert sum(p.numel() for p in model.parameters()) == count(PLANS["vgg16"], 10, size)


@pytest.mark.parametrize(
    ("name", "dilation"),
    [("vgg11_d2", 2), ("vgg13_d4", 4), ("vgg16_d1", 1), ("vgg19_d3", 3), ("vgg19r2d3", 3)],
)
def test_vgg__dilates_every_conv(name: str, dilation: int) -> None:
    assert {conv.dilation for conv in convs(build(name))} == {(dilation, dilation)}


@pytest.mark.parametrize("name", SIZES)
def test_vgg__maps_have_the_sizes_that_its_pools_leave(name: str) -> None:
    model = build(name)
    sizes: list[int] = []
    for conv in convs(model):
        conv.register_forward_hook(lambda *call: sizes.append(call[2].shape[-1]))
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert sizes == SIZES[name]


@pytest.mark.parametrize("name", RECEPTIVE_FIELDS)
def test_vgg__has_the_published_receptive_fields(name: str) -> None:
    found, field, jump = [], 1, 1
    for layer in build(name).features:
        if isinstance(layer, nn.Conv2d):
            field += (layer.kernel_size[0] - 1) * layer.dilation[0] * jump
            jump *= layer.stride[0]
            found.append(field)
        elif isinstance(layer, nn.MaxPool2d):
            field += jump
            jump *= 2
    assert found == RECEPTIVE_FIELDS[name]


def test_vgg__has_the_module_names_of_existing_checkpoints() -> None:
    keys = set(build("vgg5").state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {
        f"{layer}.{key}" for layer in ("features.0", "classifier.2", "classifier.6") for key in norm[:2]
    }
    expected |= {f"{layer}.{key}" for layer in ("features.1", "classifier.0", "classifier.4") for key in norm}
    assert keys == expected
    layers = dict(build("vgg13").named_modules())
    assert isinstance(layers["features.3"], nn.Conv2d)
    assert isinstance(layers["features.6"], nn.MaxPool2d)
    assert [type(layer).__name__ for layer in layers["classifier"].children()] == [
        *("BatchNorm1d", "Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear")
    ]
    assert {layer.p for layer in layers.values() if isinstance(layer, nn.Dropout)} == {0.25}


def test_vgg__draws_its_weights_as_the_paper_says() -> None:
    torch.manual_seed(0)
    model = vgg("64 256", num_classes=10)
    conv, linear = model.features[3], model.classifier[2]
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not conv.bias.any()
    assert not linear.bias.any()


def test_vgg__leaves_what_a_hook_took_from_a_layer_as_it_was() -> None:
    model = MODELS["vgg5_S"](num_classes=3)
    taken: dict[str, torch.Tensor] = {}
    copies: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):

            def take(_: nn.Module, __: object, out: torch.Tensor, name: str = name) -> None:
                taken[name], copies[name] = out.detach(), out.detach().clone()

            layer.register_forward_hook(take)
    model(torch.randn(8, 3, 32, 32))
    assert list(taken) == ["features.0", "classifier.2", "classifier.6"]
    for name in taken:
        torch.testing.assert_close(taken[name], copies[name], rtol=0, atol=0)


@pytest.mark.parametrize("plan", ["64 P", "64*0", "-64", "64x4", "64/2@7"])
def test_vgg__refuses_a_plan_it_cannot_read(plan: str) -> None:
    with pytest.raises(ConfigError, match="neither 'M' nor a conv"):
        vgg(plan)


def test_vgg__refuses_an_even_kernel() -> None:
    with pytest.raises(ConfigError, match="a kernel of 4"):
        vgg("64 M", kernel_size=4)
