"""The models of phd-lab's configs against parameter counts of its own definitions, each built on its own."""

import itertools

import pytest
import torch
from kinds import in_tiers
from phd_lab_counts import COUNTS
from torch import nn

from satstore.models.attention import ChannelAttention, PositionAttention
from satstore.models.phd_lab_entries import phd_lab_entries
from satstore.registry import MODELS

QUICK = """
vgg11t vgg16_L vgg19_gx vgg19_se vggresnet3 resnet18_XL resnet18t2 resnet18_ri_hybrid ResNet18_PC_XXS
PC_ResNet34T resnet18_sesa resnet24_se_noskip resnet18_o5 mpnet18_1_4_1_7 mpnet36_8_1_3_11d2 mpnet12_2_2_3_7
squeezenet11as squeezenet11ns squeezenet11mp squeezenet11mpns squeezenet11res squeezenet11dc densenet65
""".split()  # noqa: SIM905


def build(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = MODELS[name](num_classes=10)
    return model


def test_rows__are_all_counted() -> None:
    assert [row.name for row in phd_lab_entries()] == list(COUNTS)


@pytest.mark.parametrize("name", in_tiers(COUNTS, QUICK))
def test_row__has_the_parameters_of_its_definition(name: str) -> None:
    assert sum(parameter.numel() for parameter in build(name).parameters()) == COUNTS[name]


def map_sizes(name: str, kind: type[nn.Module]) -> list[int]:
    """Return the sizes of the maps that modules of a class put out, each run of equal ones once."""
    model, sizes = build(name), []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _m, _i, output: sizes.append(output.shape[-1]))
    model(torch.empty(2, 3, 64, 64, device="meta"))
    return [size for size, _ in itertools.groupby(sizes)]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mpnet18_1_7", [64, 32, 16, 8, 4]),
        ("mpnet36_8_1_3_11d2", [64, 32, 16, 8, 4]),
        ("mpnet12_2_3", [64, 32, 16, 8]),
        ("squeezenet11mp", [31, 15, 7, 3]),
        ("resnet18t2", [32, 16]),
        ("resnet18_ri_performance", [64, 32, 16]),
        ("resnet18_ri_efficiency", [32, 16, 8]),
        ("vgg19_EuroSat_Hybrid", [64, 32, 16]),
        ("vgg19_gx", [64, 32, 16, 8, 4]),
    ],
)
def test_row__maps_have_the_sizes_of_its_strides_and_pools(name: str, sizes: list[int]) -> None:
    assert map_sizes(name, nn.Conv2d) == sizes


def test_vgg19_gx__convs_that_keep_the_width_are_depthwise() -> None:
    convs = [module for module in build("vgg19_gx").modules() if isinstance(module, nn.Conv2d)]
    assert [conv.groups == conv.out_channels for conv in convs] == [
        conv.in_channels == conv.out_channels for conv in convs
    ]
    assert [conv.groups for conv in convs if conv.in_channels != conv.out_channels] == [1] * 4


def test_vggresnet3__has_the_weights_that_torch_draws() -> None:
    torch.manual_seed(0)
    model = MODELS["vggresnet3"](num_classes=10)
    torch.manual_seed(0)
    first = nn.Conv2d(3, 64, 7, 2, 3)
    assert torch.equal(model.features[0].weight, first.weight)


def test_attention__weighs_channels_and_positions_by_what_they_hold() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 6, 5)
    channel, position = ChannelAttention(4, 2), PositionAttention()
    with torch.no_grad():
        by_channel, by_position = channel(maps) / maps, position(maps) / maps
        squeeze, excite = channel.fc[0].weight, channel.fc[2].weight
        hidden = (maps.mean((2, 3)) @ squeeze.T).clamp(min=0)
        expected = torch.sigmoid(hidden @ excite.T)
    torch.testing.assert_close(by_channel, expected[:, :, None, None].expand_as(maps), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_position, by_position[:, :1].expand_as(maps), atol=1e-4, rtol=1e-4)


def test_resnet_with_attention__loads_the_state_dict_of_the_original() -> None:
    model = build("resnet18_sesa")
    original = {key.replace(".attention.", "."): value for key, value in model.state_dict().items()}
    assert "layer1.0.se.fc.0.weight" in original
    assert model.load_state_dict(original, strict=True, assign=True)
