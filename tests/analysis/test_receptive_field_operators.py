"""Receptive fields of operators, beside the truth: which outputs differ once a row of the image does."""

from collections.abc import Callable
from typing import Any

import kinds
import pytest
import torch
from kinds import in_tiers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from satstore.analysis.graph import trace_on_meta
from satstore.analysis.receptive_field.table import receptive_field
from satstore.errors import ConfigError
from satstore.models.build import build_model, resolution_step, smallest_resolution
from satstore.models.details import measure_depth

SIDE = 12


class Between(nn.Module):
    """An operator between a convolution and a layer that looks at each position alone."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 4) -> None:
        super().__init__()
        self.before, self.function = nn.Conv2d(2, 4, 3, padding=1), function
        self.after = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


def positive(model: nn.Module) -> nn.Module:
    """Return a model in double precision whose weights are random and positive."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.1
    return model.double().eval()


def largest(model: nn.Module, side: int = SIDE) -> int:
    """Return the largest extent of what an output depends on: what differs once a row or a column does."""
    random = torch.Generator().manual_seed(1)
    image = torch.rand(1, 2, side, side, generator=random, dtype=torch.float64) + 0.5
    found = 0
    with torch.no_grad():
        model = positive(model)
        base = model(image)
        for axis in (2, 3):
            first = torch.full(base.shape, side)
            last = torch.full(base.shape, -1)
            for i in range(side):
                changed = image.clone()
                line = changed.select(axis, i)
                line += torch.rand(line.shape, generator=random, dtype=torch.float64) + 1
                differs = model(changed) != base
                first[differs] = first[differs].clamp(max=i)
                last[differs] = i
            found = max(found, int((last - first).max()) + 1)
    return found


def reported(model: nn.Module, side: int = SIDE) -> Any:
    return receptive_field(model, side, 2).iloc[-1]


def weight(x: Tensor, *shape: int) -> Tensor:
    """Return a constant kernel of the tensor's type and device."""
    return torch.ones(*shape, dtype=x.dtype, device=x.device)


def flattened_lines(x: Tensor) -> Tensor:
    return F.conv1d(x.flatten(2), weight(x, 4, 4, 3), padding=1).view_as(x)


def conv_of_lines(x: Tensor) -> Tensor:
    return F.conv1d(x[0].transpose(0, 1), weight(x, 4, 4, 3)).transpose(0, 1)[None]


def zero_rows(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, :2] = 0.0
    return x


def gather_rows(x: Tensor) -> Tensor:
    return x.gather(2, torch.tensor([0, 9]).view(1, 1, 2, 1).expand(1, 4, 2, 12))


def tokens(x: Tensor) -> Tensor:
    return F.relu(x.flatten(2).transpose(1, 2) + 1).transpose(1, 2).reshape(x.shape)


def shift_by_copy(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2, 1:] = x[:, :2, :-1]
    out[:, 2:] = x[:, 2:]
    return out


def add_in_place(x: Tensor) -> Tensor:
    x = x * 1
    x[:, :, 2:] += x[:, :, :-2].clone()
    return x


LOCAL: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "zero_pad": (nn.ZeroPad2d(2), 4),
    "reflection_pad": (nn.ReflectionPad2d((1, 2, 3, 0)), 4),
    "replication_pad": (nn.ReplicationPad2d(1), 4),
    "constant_pad": (nn.ConstantPad2d(1, 0.5), 4),
    "pixel_shuffle": (nn.PixelShuffle(2), 1),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), 16),
    "channel_shuffle": (nn.ChannelShuffle(2), 4),
    "fold_of_unfold": (lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1), 4),
    "unfold": (lambda x: F.unfold(x, 3, padding=1).view(1, 36, *x.shape[2:]), 36),
    "unfold_method": (lambda x: x.unfold(2, 3, 2).unfold(3, 3, 2).sum((4, 5)), 4),
    "conv2d": (lambda x: F.conv2d(x, weight(x, 4, 4, 3, 5), padding=(1, 2)), 4),
    "torch_conv2d": (lambda x: torch.conv2d(x, weight(x, 4, 4, 3, 3), stride=2, dilation=2), 4),
    "conv2d_same": (lambda x: F.conv2d(x, weight(x, 4, 4, 3, 5), padding="same"), 4),
    "conv_transpose2d": (lambda x: F.conv_transpose2d(x, weight(x, 4, 4, 4, 4), stride=2, padding=1), 4),
    "conv1d_of_lines": (conv_of_lines, 4),
    "conv1d_of_flattened": (flattened_lines, 4),
    "conv3d": (lambda x: F.conv3d(x[:, None], weight(x, 1, 1, 1, 3, 3))[:, 0], 4),
    "first_channel": (lambda x: x[:, 0][:, None], 1),
    "some_channels": (lambda x: x[:, [0, 2]], 2),
    "index_select": (lambda x: x.index_select(1, torch.tensor([3, 1])), 2),
    "einsum_of_channels": (lambda x: torch.einsum("bchw,kc->bkhw", x, weight(x, 5, 4)), 5),
    "matmul_of_channels": (lambda x: (x.permute(0, 2, 3, 1) @ weight(x, 4, 3)).permute(0, 3, 1, 2), 3),
    "matmul_of_flattened": (lambda x: (weight(x, 3, 4) @ x.flatten(2)).view(1, 3, *x.shape[2:]), 3),
    "tokens": (tokens, 4),
    "groups_of_means": (lambda x: x.view(1, 4, 6, 2, 6, 2).mean((3, 5)), 4),
    "slices_as_channels": (lambda x: torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1), 16),
    "slices_added": (lambda x: x[:, :, 1:, 2:] + x[:, :, :-1, :-2], 4),
    "copied_part": (shift_by_copy, 4),
    "added_in_place": (add_in_place, 4),
    "relu_in_place": (lambda x: F.relu(x[:, :2], inplace=True), 2),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), 4),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 4),
    "bilinear_corners": (lambda x: F.interpolate(x, size=23, mode="bilinear", align_corners=True), 4),
    "bilinear_by_three": (lambda x: F.interpolate(x, scale_factor=3, mode="bilinear"), 4),
    "bilinear_one_and_a_half": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), 4),
    "bilinear_to_a_half": (lambda x: F.interpolate(x, size=6, mode="bilinear"), 4),
    "antialiased_to_a_half": (lambda x: F.interpolate(x, size=6, mode="bilinear", antialias=True), 4),
    "antialiased_bicubic_to_a_half": (lambda x: F.interpolate(x, size=6, mode="bicubic", antialias=True), 4),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), 4),
    "nearest_exact_to_two_thirds": (lambda x: F.interpolate(x, size=8, mode="nearest-exact"), 4),
    "area": (lambda x: F.interpolate(x, size=4, mode="area"), 4),
    "linear": (lambda x: F.interpolate(x.flatten(1, 2), scale_factor=2, mode="linear").view(1, 4, 12, 24), 4),
    "adaptive_average_uneven": (nn.AdaptiveAvgPool2d(5), 4),
    "max_pool_padded": (nn.MaxPool2d(3, 2, 1), 4),
    "average_pool": (lambda x: F.avg_pool2d(x, 2, 1), 4),
    "lp_pool": (nn.LPPool2d(2, 3, 2), 4),
    "glu": (lambda x: F.glu(x, 1), 2),
    "flip": (lambda x: x.flip(2), 4),
    "flip_added": (lambda x: x + x.flip(3), 4),
    "transpose": (lambda x: x.transpose(2, 3), 4),
    "roll": (lambda x: x.roll(3, 2), 4),
    "roll_added": (lambda x: x + x.roll(3, 2), 4),
    "cumsum": (lambda x: x.cumsum(2), 4),
    "softmax": (lambda x: x.softmax(3), 4),
    "softmax_of_channels": (lambda x: x.softmax(1), 4),
    "log_softmax": (lambda x: F.log_softmax(x, 2), 4),
    "fft": (lambda x: torch.fft.fft(x).abs(), 4),
    "fft2": (lambda x: torch.fft.fft2(x).abs(), 4),
    "fft_there_and_back": (lambda x: torch.fft.ifft(torch.fft.fft(x, dim=2) * 2, dim=2).real, 4),
    "fourier_filter": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.linspace(0.5, 2, 7)), 4),
    "complex": (lambda x: (torch.complex(x, x.flip(2)) ** 2).imag, 4),
    "complex_parts": (lambda x: torch.view_as_complex(torch.stack([x, x], -1)).conj().real, 4),
    "gather_of_positions": (gather_rows, 4),
    "batch_norm": (nn.BatchNorm2d(4), 4),
    "batch_norm_without_statistics": (nn.BatchNorm2d(4, track_running_stats=False), 4),
    "group_norm": (nn.GroupNorm(2, 4), 4),
    "instance_norm": (nn.InstanceNorm2d(4), 4),
    "layer_norm_of_positions": (lambda x: F.layer_norm(x, x.shape[1:]), 4),
    "layer_norm_of_rows": (lambda x: F.layer_norm(x, x.shape[3:]), 4),
    "layer_norm_of_channels": (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2), 4),
    "attention": (
        lambda x: F.scaled_dot_product_attention(*[x.flatten(2).mT / 9] * 3).mT.reshape(x.shape), 4
    ),
    "attention_of_channels": (
        lambda x: F.scaled_dot_product_attention(*[x.permute(0, 2, 3, 1) / 9] * 3).permute(0, 3, 1, 2), 4
    ),
    "outer_product": (lambda x: (x.mean(3, keepdim=True) * x.mean(2, keepdim=True)), 4),
    "grid_sample": (lambda x: F.grid_sample(x, torch.ones(1, 5, 5, 2).to(x) * 0.1, align_corners=False), 4),
    "hardswish": (F.hardswish, 4),
    "circular_pad": (nn.CircularPad2d(1), 4),
    "sort": (lambda x: x.sort(2)[0], 4),
    "topk": (lambda x: x.topk(3, 2)[0], 4),
    "difference": (lambda x: x.diff(dim=2), 4),
    "repeat": (lambda x: x.repeat_interleave(2, 2), 4),
    "rows_by_mask": (lambda x: x[:, :, torch.arange(12) % 2 == 0], 4),
    "rows_by_list": (lambda x: x[:, :, [0, 3, 6, 9]], 4),
    "woven_rows": (lambda x: torch.stack([x[:, :, ::2], x[:, :, 1::2]], 3).flatten(2, 3), 4),
    "variance": (lambda x: x / x.var((2, 3), keepdim=True), 4),
    "distances_of_rows": (lambda x: torch.cdist(x, x), 4),
    "product_of_rows": (lambda x: x @ weight(x, 12, 12), 4),
    "kernel_from_the_image": (lambda x: F.conv2d(x, x[0, :, None, :3, :3], groups=4), 4),
    "zeroed_part": (zero_rows, 4),
    "argmax_of_positions": (lambda x: x * x.argmax(2, keepdim=True), 4),
    "tril": (lambda x: x.tril() + x, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCAL)
def test_receptive_field__of_an_operator_is_what_its_outputs_depend_on(name: str) -> None:
    function, channels = LOCAL[name]
    model = Between(function, channels)
    assert min(reported(model)["receptive_field_max"], SIDE) == largest(model)


@pytest.mark.parametrize("name", in_tiers(kinds.TORCHVISIONS, ["mobilenet_v3_small"]))
def test_receptive_field__of_no_layer_is_below_what_it_depends_on(name: str) -> None:
    step = resolution_step(name)
    side = -(-max(64, smallest_resolution(name) or 0) // step) * step
    torch.manual_seed(0)
    model = build_model(name, 10, side).double().eval()
    table = receptive_field(model, side).set_index("layer")
    seen: dict[str, Tensor] = {}
    for layer in table.index:
        model.get_submodule(layer).register_forward_hook(
            lambda _, inputs, output, layer=layer: seen.__setitem__(layer, output)
        )
    image = torch.rand(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        model(image)
        base = dict(seen)
        first = {layer: torch.full(value.shape, side) for layer, value in base.items()}
        last = {layer: torch.full(value.shape, -1) for layer, value in base.items()}
        for row in range(0, side, 3 if side < 100 else 16):
            changed = image.clone()
            changed[:, :, row] += 1
            model(changed)
            for layer, value in base.items():
                differs = seen[layer] != value
                first[layer][differs] = first[layer][differs].clamp(max=row)
                last[layer][differs] = row
    found = {layer: int((last[layer] - first[layer]).max()) + 1 for layer in base}
    assert {k: v for k, v in found.items() if v > table.loc[k, "receptive_field_max"]} == {}


class PadsFirst(nn.Conv2d):
    """A subclass with a forward of its own, which sees more than its kernel says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1))


class Conv(nn.Conv2d):
    pass


class Pool(nn.AvgPool2d):
    pass


class Dense(nn.Linear):
    pass


class Recurrent(nn.LSTM):
    pass


class Last(nn.Module):
    """Takes the output sequence of a recurrent layer."""

    def __init__(self, layer: nn.LSTM) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).transpose(1, 2))[0]


def test_receptive_field__finds_layers_of_subclasses() -> None:
    table = receptive_field(
        nn.Sequential(
            Conv(2, 4, 3),
            Pool(2),
            Conv(4, 4, 3),
            PadsFirst(4, 4, 1),
            Last(Recurrent(4, 3)),
            nn.Flatten(),
            Dense(12, 2),
        ),
        10,
        2,
    )  # maps of 8, 4, 2, 2 and 4 tokens
    assert list(table["kind"]) == ["Conv", "Conv", "PadsFirst", "Recurrent", "Dense"]
    assert list(table["receptive_field_max"])[:3] == [3, 8, 12]


def test_measure_depth__counts_layers_of_subclasses() -> None:
    net = nn.Sequential(Conv(2, 4, 3), PadsFirst(4, 4, 1), nn.Flatten(), Dense(12, 2))
    assert measure_depth(trace_on_meta(net)) == 3


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_receptive_field__of_reparametrised_convolutions_is_theirs(
    change: Callable[[nn.Module], nn.Module],
) -> None:
    layers = [change(nn.Conv2d(2, 4, 3)), nn.Conv2d(4, 4, 5), change(nn.Conv2d(4, 2, 3))]
    table = receptive_field(nn.Sequential(*layers), 32, 2)
    assert list(table["receptive_field_max"]) == [3, 7, 9]


@pytest.mark.parametrize("side", [1, 2, 4])
def test_receptive_field__tells_axes_apart_whatever_their_sizes(side: int) -> None:
    turned = Between(lambda x: x.transpose(2, 3))
    model = nn.Sequential(
        turned, nn.Conv2d(1, 1, (3, 1), (2, 1), (1, 0)), nn.Conv2d(1, 1, (1, 3), (1, 3), (0, 1))
    )
    table = receptive_field(model, side, 2)
    assert list(table["jump"]) == [1, 1, 1, 3], "the last one's width is the image's height"
    assert list(table["start"]) == [0.5] * 4
    assert list(table["receptive_field_max"]) == [3, 3, 5, 5]


def test_receptive_field__of_normalised_maps_has_a_path_through_all_of_it() -> None:
    table = receptive_field(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)), 16, 2
    )
    assert list(table["receptive_field_min"]) == [3, 3]
    assert list(table["receptive_field_max"]) == [3, 18]


def test_receptive_field__refuses_the_layer_behind_what_depends_on_values() -> None:
    for module, name in ((Picks(), "gather"), (Unpools(), "max_unpool2d")):
        message = rf"^module 'after' \(Conv2d\): no receptive field .* aten::{name}: .*values"
        with pytest.raises(ConfigError, match=message):
            receptive_field(Between(module), 8, 2)
    last = nn.Sequential(nn.Conv2d(2, 4, 3), Picks())
    assert list(receptive_field(last, 8, 2)["layer"]) == ["0"], "no layer is behind it"


class Unpools(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2])


class Picks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.gather(2, x.argmax(2, keepdim=True))
