"""Receptive fields: published numbers, hand-computed ones, and the truth, which gradients tell."""

import warnings
from typing import Any

import kinds
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kinds import in_tiers
from torch import Tensor, nn

import satstore
from satstore.analysis.receptive_field.table import receptive_field
from satstore.errors import ConfigError
from satstore.models.build import build_model, resolution_step
from satstore.registry import MODELS

# The main path's convs, largest field, and the border layer (counted from 1) at 32 px, as published.
PUBLISHED = {
    "vgg11": ([3, 8, 18, 26, 46, 62, 102, 134], 6),
    "vgg13": ([3, 5, 10, 14, 24, 32, 52, 68, 108, 140], None),
    "vgg16": ([3, 5, 10, 14, 24, 32, 40, 60, 76, 92, 132, 164, 196], 8),
    "resnet18noskip": ([7, 19, 27, 35, 43, 51, 67, 83, 99, 115, 147, 179, 211, 243, 307, 371, 435], 5),
    "ResNet18_PC": ([3, 5, 7, 9, 11, 13, 17, 21, 25, 29, 37, 45, 53, 61, 77, 93, 109], 12),
}


def main_path(table: pd.DataFrame) -> pd.DataFrame:
    found = table[(table["kind"] == "Conv2d") & ~table["layer"].str.contains("downsample")]
    return found.reset_index(drop=True)


def build(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = MODELS[name](num_classes=10)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_receptive_field__is_what_was_published(name: str) -> None:
    sizes, border = PUBLISHED[name]
    table = main_path(receptive_field(build(name), 32))
    assert list(table["receptive_field_max"]) == sizes
    if border is not None:
        assert list(table.index[table["border"]] + 1) == [border]


def test_receptive_field__skips_leave_a_smaller_one() -> None:
    table = main_path(receptive_field(build("resnet18"), 32))
    assert list(table["receptive_field_max"]) == PUBLISHED["resnet18noskip"][0]
    # By hand: stem and pool see 11; each basic block's skip passes them on; a strided block's 1x1 conv too.
    assert list(table["receptive_field_min"])[:5] == [7, 19, 27, 19, 27]
    assert (table["receptive_field_min"] <= table["receptive_field_max"]).all()
    pc = receptive_field(build("ResNet18_PC"), 32)
    assert not pc["strict_border"].any(), "some path never sees more than the image"
    assert list(receptive_field(build("vgg16"), 32)["border"]) == list(
        receptive_field(build("vgg16"), 32)["strict_border"]
    ), "without skips there is one path"


def test_receptive_field__columns_are_those_documented() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 5, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2)
    )
    net(torch.zeros(1, 3, 16, 16))
    table = satstore.receptive_field(net, 16)
    # Maps: 7, then 5. The first conv's position 0 sees pixels -1 to 3, the second's -1 to 7.
    assert table.to_dict("list") == {
        "layer": ["0", "2", "4"],
        "kind": ["Conv2d", "Conv2d", "Linear"],
        "receptive_field_min": [5, 9, 17],
        "receptive_field_max": [5, 9, 17],
        "jump": [2, 2, 2],
        "start": [1.5, 3.5, 7.5],
        "map_size": [7, 5, 1],
        "border": [False, False, False],
        "strict_border": [False, False, False],
    }


IN_DETAIL = ("densenet121", "mobilenet_v3_small", "swin_t", "vit_b_32")
"""Of torchvision's models, those whose operators differ in kind."""


@pytest.mark.parametrize("name", in_tiers(MODELS, [*kinds.OWN, *IN_DETAIL]))
def test_receptive_field__of_every_model_is_found(name: str) -> None:
    step = resolution_step(name)
    resolution = -(-75 // step) * step
    with torch.device("meta"):
        model = build_model(name, 10, resolution)
    table = receptive_field(model, resolution)
    assert (table["receptive_field_min"] >= 1).all()
    assert (table["receptive_field_min"] <= table["receptive_field_max"]).all()
    assert table["border"].sum() <= 1
    called = [m for m in model.modules() if type(m) in (nn.Conv2d, nn.Linear)]
    if not name.startswith("swin"):  # whose attention takes the weights of its Linear layers, not the layers
        assert len(table) == len(called)


def test_receptive_field__leaves_the_model_as_it_is() -> None:
    model = build("vgg5").train()
    calls: list[int] = []
    model.features[0].register_forward_hook(lambda *_: calls.append(1))
    receptive_field(model, 32)
    assert model.training
    assert not calls
    assert len(model.features[0]._forward_hooks) == 1


class Sees(nn.Module):
    """Wraps a function of maps into a model with a conv before and after."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.before, self.function, self.after = nn.Conv2d(3, 4, 3, padding=1), function, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@pytest.mark.parametrize(
    ("function", "size", "jump"),
    [
        (shuffle, 3, 1),
        (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 3, 1),
        (lambda x: x[:, :, 1::2, 1::2], 3, 2),
        (lambda x: nn.functional.pad(x, (2, 2, 2, 2)), 3, 1),
        (lambda x: nn.functional.max_pool2d(x, 2), 4, 2),
        (lambda x: nn.functional.avg_pool2d(x, 3, 2, 1), 5, 2),
        (lambda x: nn.functional.interpolate(x, scale_factor=2), 3, 0.5),
        (lambda x: nn.functional.adaptive_avg_pool2d(x, 4), 6, 4),
        (lambda x: torch.cat((x[:, :2], x.chunk(2, 1)[1]), 1), 3, 1),
        (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), 18, 1),
        (lambda x: torch.relu_(x) + 1, 3, 1),
    ],
)
def test_receptive_field__follows_functions(function: Any, size: int, jump: float) -> None:
    table = receptive_field(Sees(function), 16)
    assert table["receptive_field_max"].iloc[-1] == size
    assert table["jump"].iloc[-1] == jump


class Gate(nn.Module):
    """Squeeze and excitation, whose convs see all positions together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.after(x * self.gate(nn.functional.adaptive_avg_pool2d(x, 1)))


def test_receptive_field__a_gate_is_no_border_layer() -> None:
    table = receptive_field(Gate(), 8).set_index("layer")
    assert list(table["receptive_field_max"]) == [3, 8, 10]
    assert not table["border"].any(), "the gate sees the 8 px of the image"
    table = receptive_field(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Gate()), 8).set_index("layer")
    assert list(table.index[table["border"]]) == ["1.after"], "the gate itself is passed over"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_receptive_field__names_the_module_that_cant_be_traced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Branches()))
    with pytest.raises(ConfigError, match=r"^module '1.0' \(Branches\) can't be traced: .*must not branch"):
        receptive_field(model, 8)


def test_receptive_field__names_the_layer_whose_map_is_too_small() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 7))
    with pytest.raises(ConfigError, match=r"^module '1' \(Conv2d\) can't be followed: .*Kernel size.*[^\n]$"):
        receptive_field(model, 8)
    with pytest.raises(ConfigError, match="resolution 0 can't be used"):
        receptive_field(model, 0)


# The truth: an output position's gradient is non-zero where it sees the input.


class Merge(nn.Module):
    """Two branches that keep the map's size, added or concatenated."""

    def __init__(self, one: nn.Module, two: nn.Module, add: bool) -> None:
        super().__init__()
        self.one, self.two, self.add = one, two, add
        self.conv = nn.Conv2d(1 if add else 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        return self.conv(one + two if self.add else torch.cat((one, two), 1))


def keeping(kernel_size: int, dilation: int) -> nn.Module:
    return nn.Conv2d(1, 1, kernel_size, 1, dilation * (kernel_size - 1) // 2, dilation)


branches = st.one_of(
    st.builds(nn.Identity),
    st.builds(keeping, st.sampled_from([1, 3, 5]), st.integers(1, 3)),
    st.builds(
        lambda k, d: nn.Sequential(keeping(3, 1), keeping(k, d)), st.sampled_from([3, 5]), st.integers(1, 2)
    ),
)
blocks = st.one_of(
    st.builds(
        lambda k, s, d, p: nn.Conv2d(1, 1, k, s, min(p, d * (k - 1)), d),
        st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4),
    ),
    st.builds(lambda k, s: nn.AvgPool2d(k, s), st.integers(1, 4), st.integers(1, 3)),
    st.builds(
        lambda k, s, d, p: nn.ConvTranspose2d(1, 1, k, s, min(p, d * (k - 1)), dilation=d),
        st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 3),
    ),
    st.builds(Merge, branches, branches, st.booleans()),
    st.builds(lambda: nn.BatchNorm2d(1)),
)  # fmt: skip


def seen(model: nn.Module, image: Tensor, position: int) -> tuple[int, int] | None:
    """Return the first and last row that the gradient of one output position reaches."""
    [gradient] = torch.autograd.grad(model(image)[0, 0, position, position], image)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    return (rows[0], rows[-1]) if rows else None


@settings(max_examples=60)
@given(st.lists(blocks, min_size=1, max_size=4))
def test_receptive_field__is_the_bounding_box_of_the_gradient(layers: list[nn.Module]) -> None:
    resolution = 64
    model = nn.Sequential(nn.Conv2d(3, 1, 1), *layers, nn.Conv2d(1, 1, 1)).double().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    image = torch.rand(1, 3, resolution, resolution, dtype=torch.float64, requires_grad=True)
    try:
        n_positions = model(image).shape[-1]
    except RuntimeError:  # the map got smaller than a kernel
        assume(False)
    last = receptive_field(model, resolution).iloc[-1]
    size, jump, start = last["receptive_field_max"], last["jump"], last["start"]
    # A period of any of these nets' transposed convolutions is at most 3 ** 4; most are 1 to 9.
    middle = n_positions // 2
    inner = [
        position
        for position in range(max(0, middle - 6), min(n_positions, middle + 6))
        if start + jump * position - size > 0 and start + jump * position + size < resolution
    ]
    assume(len(inner) == 12)
    boxes = {position: seen(model, image, position) for position in inner}
    sizes = {high - low + 1 for low, high in filter(None, boxes.values())}
    if not any(isinstance(m, nn.ConvTranspose2d) for m in model.modules()):
        assert sizes == {size}
        for position, box in boxes.items():
            assert box is not None
            assert (box[0] + box[1] + 1) / 2 == start + jump * position
    elif max(sizes, default=0) != size:
        assert max(sizes, default=0) < size
        assert _period(model) > len(inner), "every remainder was seen"


def _period(model: nn.Module) -> int:
    period = 1
    for module in model.modules():
        if isinstance(module, nn.ConvTranspose2d):
            period *= module.stride[0]
    return period


def test_receptive_field__of_a_compiled_model_is_that_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2))
    compiled = torch.compile(model, backend="eager")
    assert receptive_field(compiled, 16).equals(receptive_field(model, 16))  # type: ignore[arg-type]


def test_receptive_field__of_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        script = torch.jit.trace(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="is TorchScript"):
        receptive_field(script, 16)
