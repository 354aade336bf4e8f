"""ResNets against torchvision's, and against counts and receptive fields written down by hand."""

import operator
import pickle
import re

import pytest
import torch
import torchvision
from phd_lab_counts import COUNTS
from torch import nn

from satstore.models.resnet import ResNet
from satstore.registry import MODELS

RESNET18 = [2, 2, 2, 2]

RECEPTIVE_FIELDS = {
    "resnet18noskip": [7, 19, 27, 35, 43, 51, 67, 83, 99, 115, 147, 179, 211, 243, 307, 371, 435],
    "ResNet18_PC": [3, 5, 7, 9, 11, 13, 17, 21, 25, 29, 37, 45, 53, 61, 77, 93, 109],
}


def build(name: str, num_classes: int = 10) -> ResNet:
    with torch.device("meta"):
        model = MODELS[name](num_classes=num_classes)
    assert isinstance(model, ResNet)
    return model


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def count(
    n_blocks: list[int], widths: list[int], stem: int = 7, downsample: str = "where the shape changes"
) -> int:
    """Parameters of a ResNet of basic blocks with 10 classes, summed by hand."""

    def conv(n_in: int, n_out: int, size: int) -> int:
        return size * size * n_in * n_out + 2 * n_out

    total, n_in = conv(3, widths[0], stem), widths[0]
    for stage, (n, width) in enumerate(zip(n_blocks, widths, strict=True)):
        for i in range(n):
            total += conv(n_in, width, 3) + conv(width, width, 3)
            if downsample == "always" or (downsample != "never" and i == 0 and stage > 0):
                total += conv(n_in, width, 1)
            n_in = width
    return total + n_in * 10 + 10


def count_bottlenecks(n_blocks: list[int], stem: int = 7, downsample: bool = True) -> int:
    """Parameters of a ResNet of bottleneck blocks with 10 classes, summed by hand."""
    total, n_in = 3 * 64 * stem**2 + 2 * 64, 64
    for stage, n in enumerate(n_blocks):
        width = 64 * 2**stage
        for i in range(n):
            total += n_in * width + 9 * width**2 + 4 * width**2 + 2 * (width + width + 4 * width)
            if downsample and i == 0:
                total += n_in * 4 * width + 8 * width
            n_in = 4 * width
    return total + n_in * 10 + 10


# What a 1 x 1 conv and its norm on the skip into each stage take.
SKIPS = {2: 64 * 128 + 256, 3: 128 * 256 + 512, 4: 256 * 512 + 1024}
WIDTHS = [64, 128, 256, 512]


@pytest.mark.parametrize(
    "name",
    [
        row.name
        for row in MODELS.entries()
        if row.target == "satstore.models.resnet:ResNet" and row.name not in COUNTS
    ],
)
def test_resnet__every_name_has_the_parameters_that_were_counted(name: str) -> None:
    depth = int(re.search(r"resnet(\d+)", name.casefold())[1]) if name != "dp00_dspl2" else 18  # type: ignore[index]
    noskip, stem = "noskip" in name, 3 if "_PC" in name else 7
    n_blocks = {18: RESNET18, 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}[
        depth
    ]
    widths = [w // {"S": 2, "XS": 4, "XXS": 8}.get(name.rpartition("_")[2], 1) for w in WIDTHS]
    special = {
        "dspl2": ([4, 4], [64, 128]),
        "dspl3": ([2, 3, 3], [64, 128, 256]),
        "dspl5": ([1, 1, 2, 2, 2], [64, 128, 256, 512, 512]),
        "dspl6": ([1, 1, 1, 1, 2, 2], [64, 128, 256, 512, 512, 512]),
        "dspl8": ([1] * 8, [64, 128, 256, *[512] * 5]),
        "early": ([1, 1, 1, 5], WIDTHS),
        "late": ([5, 1, 1, 1], WIDTHS),
        "thin": ([4] * 4, [32, 64, 128, 256]),
        "wide": ([1] * 4, [128, 256, 512, 1024]),
    }
    n_blocks, widths = special.get(name.rpartition("_")[2], (n_blocks, widths))
    if depth >= 50 or "bottleneck" in name:
        expected = count_bottlenecks(n_blocks, stem, downsample=not noskip)
    else:
        kind = "never" if noskip or "nodownsample" in name else "always" if "highway" in name else "usual"
        expected = count(n_blocks, widths, stem, kind)
    plain = {"resnet34_nr1": "1", "resnet34_nr2": "12"}.get(name) or (
        re.findall(r"_nr\d_(\d+)", name) or [""]
    )[0]
    expected -= sum(SKIPS.get(int(stage), 0) for stage in plain)
    assert n_parameters(build(name)) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_resnet__has_torchvisions_names_shapes_and_order(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
    ours = build(name, 1000)
    assert [(k, p.shape) for k, p in ours.named_parameters()] == [
        (k, p.shape) for k, p in theirs.named_parameters()
    ]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert n_parameters(ours) == n_parameters(theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet__loads_torchvisions_state_dict_and_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh statistics would hide a norm that was left out
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = MODELS[name]()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18_S", count(RESNET18, [32, 64, 128, 256])),
        ("resnet18_XXS", count(RESNET18, [8, 16, 32, 64])),
        ("resnet34_XS", count([3, 4, 6, 3], [16, 32, 64, 128])),
        ("resnet18noskip", count(RESNET18, [64, 128, 256, 512], downsample="never")),
        ("resnet18nodownsample", count(RESNET18, [64, 128, 256, 512], downsample="never")),
        ("resnet18highway", count(RESNET18, [64, 128, 256, 512], downsample="always")),
        ("resnet18_ep00", count(RESNET18, [64, 128, 256, 512])),
        ("ResNet18_PC", count(RESNET18, [64, 128, 256, 512], stem=3)),
        ("resnet18_dspl2", count([4, 4], [64, 128])),
        ("resnet18_dspl3", count([2, 3, 3], [64, 128, 256])),
        ("resnet18_dspl5", count([1, 1, 2, 2, 2], [64, 128, 256, 512, 512])),
        ("resnet18_dspl6", count([1, 1, 1, 1, 2, 2], [64, 128, 256, 512, 512, 512])),
        ("resnet18_dspl8", count([1] * 8, [64, 128, 256, 512, 512, 512, 512, 512])),
        ("resnet18_early", count([1, 1, 1, 5], [64, 128, 256, 512])),
        ("resnet18_late", count([5, 1, 1, 1], [64, 128, 256, 512])),
        ("resnet18_thin", count([4, 4, 4, 4], [32, 64, 128, 256])),
        ("resnet18_wide", count([1, 1, 1, 1], [128, 256, 512, 1024])),
    ],
)
def test_resnet__has_the_parameters_of_its_widths(name: str, expected: int) -> None:
    assert n_parameters(build(name)) == expected


@pytest.mark.parametrize(
    ("name", "n_skips", "n_convs_on_skips"),
    [
        ("resnet18", 8, 3),
        ("resnet18noskip", 0, 0),
        ("resnet34noskip", 0, 0),
        ("resnet50noskip", 0, 0),
        ("resnet18_noskip_ep00", 0, 0),
        ("resnet18noskip_dp00_dspl2", 0, 0),
        ("resnet18_nr1_1", 6, 3),
        ("resnet18_nr1_4", 6, 2),
        ("resnet18_nr2_13", 4, 2),
        ("resnet18_nr3_234", 2, 0),
        ("resnet34_nr1", 13, 3),
        ("resnet34_nr2", 9, 2),
        ("resnet18highway", 8, 8),
        ("resnet18nodownsample", 5, 0),
        ("resnet18_bottleneck", 8, 4),
        ("resnet18_dp00_dspl2", 8, 1),
        ("ResNet18_PC", 8, 3),
        ("ResNet50_PC", 16, 4),
    ],
)
def test_resnet__has_the_skips_of_its_name(name: str, n_skips: int, n_convs_on_skips: int) -> None:
    graph = torch.fx.symbolic_trace(build(name)).graph
    additions = [node for node in graph.nodes if node.target in (operator.add, operator.iadd, torch.add)]
    assert len(additions) == n_skips
    on_skips = [
        node for node in graph.nodes if node.op == "call_module" and node.target.endswith("downsample.0")
    ]
    assert len(on_skips) == n_convs_on_skips


@pytest.mark.parametrize(
    ("name", "plain"),
    [("resnet18_nr1_2", {"layer2"}), ("resnet18_nr2_14", {"layer1", "layer4"}), ("resnet18", set())],
)
def test_resnet__takes_the_skips_from_the_stages_of_its_name(name: str, plain: set[str]) -> None:
    blocks = dict(build(name).named_modules())
    found = {stage for stage in ("layer1", "layer2", "layer3", "layer4") if not blocks[f"{stage}.1"].skip}
    assert found == plain


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18", [16, 8, 4, 2, 1]),
        ("resnet18_ep0", [16, 16, 8, 4, 2]),
        ("resnet18_ep01", [32, 16, 8, 4, 2]),
        ("resnet18_ep00", [32, 32, 16, 8, 4]),
        ("resnet18_noskip_ep01", [32, 16, 8, 4, 2]),
        ("resnet18_dp00_dspl2", [32, 32, 16]),
        ("ResNet34_PC", [32, 32, 16, 8, 4]),
    ],
)
def test_resnet__maps_have_the_sizes_of_its_stem(name: str, sizes: list[int]) -> None:
    model = build(name)
    found: list[int] = []
    for child, module in model.named_children():
        if child == "conv1" or child.startswith("layer"):
            module.register_forward_hook(lambda *call: found.append(call[2].shape[-1]))
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert found == sizes


@pytest.mark.parametrize("name", RECEPTIVE_FIELDS)
def test_resnet__has_the_published_receptive_fields(name: str) -> None:
    model = build(name)
    found: list[int] = []
    state = {"field": 1, "jump": 1}

    def grow(layer: nn.Module, *_: object) -> None:
        def first(value: int | tuple[int, ...]) -> int:
            return value if isinstance(value, int) else value[0]

        assert isinstance(layer, (nn.Conv2d, nn.MaxPool2d))
        state["field"] += (first(layer.kernel_size) - 1) * state["jump"]
        state["jump"] *= first(layer.stride)
        if isinstance(layer, nn.Conv2d):
            found.append(state["field"])

    for key, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)) and "downsample" not in key:
            layer.register_forward_hook(grow)
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert found == RECEPTIVE_FIELDS[name]


def test_resnet_pc__loads_the_state_dict_of_the_original() -> None:
    ours = build("ResNet18_PC")
    original = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): value
        for key, value in ours.state_dict().items()
    }
    assert {"linear.bias", "layer2.0.shortcut.1.running_var"} <= set(original)
    assert MODELS["ResNet18_PC"](num_classes=10).to("meta").load_state_dict(original, strict=True)
    assert "linear.bias" in original  # a caller's state dict stays as it was


def test_resnet__survives_pickling() -> None:
    model = MODELS["resnet18_XXS"](num_classes=2).eval()
    images = torch.randn(1, 3, 32, 32)
    copy = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(copy(images), model(images))
