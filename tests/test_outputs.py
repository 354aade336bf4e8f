"""Any module's output is recorded as hooks written by hand see it, whatever its axes and its parts."""

import re
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from satstore.capture.layers import LayerDescription, describe_layers, find_block, select_layers
from satstore.capture.outputs import OutputLayout, arrange, find_layout, find_tensor, typed_layout
from satstore.capture.recorders import LatentRecorder, MomentRecorder
from satstore.errors import ConfigError

N, TOKENS, WIDTH = 4, 5, 6
"""Samples, tokens and features, all different, as the sides of maps are: 3 and 7."""


class Net(nn.Module):
    """Calls its parts by a function, given the parts and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def describe(model: nn.Module, inputs: Tensor, *modules: str, batch_axis: int = 0, **options: Any) -> Any:
    def forward(n: int) -> None:
        model(inputs.index_select(batch_axis, torch.arange(n)))

    calls = options.pop("calls", "last")
    selected = select_layers(model, modules=modules or None, **options)
    return describe_layers(model, forward, selected, calls)


def record(model: nn.Module, inputs: Tensor, described: LayerDescription) -> tuple[Any, Any]:
    """Return the layers' moments and their whole latents, each from one pass."""
    with (
        torch.no_grad(),
        MomentRecorder(described.layers, timeseries_method="every") as moments,
        LatentRecorder(described.layers, ["all", "full"]) as latents,
    ):
        moments.begin("train")
        moments.next_batch()
        latents.next_batch()
        model(inputs)
    found = latents.pop()
    return moments.results(), found["all"] | found["full"]


def outputs_by_hand(model: nn.Module, name: str, inputs: Tensor) -> list[Any]:
    """Return what each call of a module returns."""
    found: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _i, output: found.append(output))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return found


def attend(net: Any, x: Tensor) -> Any:
    return net.body(x, x, x)[0]


class Fields(nn.Module):
    """Returns a linear map of its input as a part of several kinds of values."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(WIDTH, WIDTH), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.linear(x))


@dataclass
class Hidden:
    length: int
    states: Tensor


Pair = namedtuple("Pair", ["mask", "states"])

TOKENS_FIRST = torch.randn(N, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
BATCH_SECOND = TOKENS_FIRST.transpose(0, 1)

CASES: dict[str, tuple[nn.Module, Callable[[Any, Tensor], Any], int, Callable[[Any], Tensor], str]] = {
    "attention": (nn.MultiheadAttention(WIDTH, 2, batch_first=True), attend, 0, lambda o: o[0], "tokens"),
    "attention, batch second": (
        nn.MultiheadAttention(WIDTH, 2), attend, 1, lambda o: o[0].transpose(0, 1), "tokens",
    ),
    "GRU": (nn.GRU(WIDTH, 9, batch_first=True), lambda n, x: n.body(x)[0], 0, lambda o: o[0], "steps"),
    "GRU, batch second": (
        nn.GRU(WIDTH, 9), lambda n, x: n.body(x)[0], 1, lambda o: o[0].transpose(0, 1), "steps",
    ),
    "LSTM": (
        nn.LSTM(WIDTH, 9, batch_first=True, bidirectional=True),
        lambda n, x: n.body(x)[0], 0, lambda o: o[0], "steps",
    ),
    "LSTM, batch second": (
        nn.LSTM(WIDTH, 9), lambda n, x: n.body(x)[0], 1, lambda o: o[0].transpose(0, 1), "steps",
    ),
    "LayerNorm": (nn.LayerNorm(WIDTH), lambda n, x: n.body(x), 0, lambda o: o, "tokens"),
    "Linear, batch second": (
        nn.Linear(WIDTH, 9), lambda n, x: n.body(x), 1, lambda o: o.transpose(0, 1), "tokens",
    ),
    "Linear of flattened tokens": (
        nn.Linear(WIDTH, 9), lambda n, x: n.body(x.flatten(0, 1)).unflatten(0, (-1, TOKENS)), 0,
        lambda o: o.unflatten(0, (-1, TOKENS)), "tokens",
    ),
    "Linear of vectors": (nn.Linear(WIDTH, 9), lambda n, x: n.body(x[:, 0]), 0, lambda o: o, "vector"),
    "block": (
        nn.Sequential(nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, WIDTH)),
        lambda n, x: x + n.body(x), 0, lambda o: o, "tokens",
    ),
    "tuple": (Fields(lambda x: (3, x, x + 1)), lambda n, x: n.body(x)[1], 0, lambda o: o[1], "tokens"),
    "dict": (
        Fields(lambda x: {"ids": x.long(), "states": x}),
        lambda n, x: n.body(x)["states"], 0, lambda o: o["states"], "tokens",
    ),
    "dataclass": (
        Fields(lambda x: Hidden(7, x)), lambda n, x: n.body(x).states, 0, lambda o: o.states, "tokens",
    ),
    "named tuple": (
        Fields(lambda x: Pair(x > 0, x)), lambda n, x: n.body(x).states, 0, lambda o: o.states, "tokens",
    ),
}  # fmt: skip
"""A module, how it is called, the axis of the input's samples, its output with samples first, its form."""


@pytest.mark.parametrize("name", CASES)
def test_record__takes_of_any_module_what_a_hook_sees(name: str) -> None:
    module, forward, batch_axis, by_hand, form = CASES[name]
    model, inputs = Net(forward, body=module).eval(), BATCH_SECOND if batch_axis else TOKENS_FIRST
    [output] = outputs_by_hand(model, "body", inputs)
    expected = by_hand(output)

    described = describe(model, inputs, "^body$", batch_axis=batch_axis)
    [layer] = described.layers
    assert (layer.name, layer.kind, layer.layout.form) == ("body", type(module).__name__, form)
    assert layer.n_features == expected.shape[-1]
    assert layer.output_shape == tuple(expected.shape[1:])
    assert described.warnings == []
    moments, latents = record(model, inputs, described)
    samples = expected.reshape(-1, expected.shape[-1]).double().numpy()
    assert moments["body"].count == len(samples)
    np.testing.assert_allclose(moments["body"].covariance(), np.cov(samples.T, bias=True), atol=1e-7)
    whole = {"vector": expected, "steps": expected[:, -1], "tokens": expected}[form]
    assert torch.equal(latents["body"], whole)


def test_record__takes_activations_from_what_is_around_them() -> None:
    """Of 7 × 7 × 7 a GELU's class and size say nothing: what comes before it does."""
    for before, axis in ((nn.Conv2d(2, 7, 1), 1), (nn.Linear(7, 7), -1)):
        model = nn.Sequential(before, nn.GELU())
        inputs = torch.randn(3, 2 if axis == 1 else 7, 7, 7)
        [layer] = describe(model, inputs, "1").layers
        assert (layer.layout, layer.kind) == (OutputLayout("map", 0, axis), "GELU")


def test_describe__says_when_the_axis_of_features_is_a_guess() -> None:
    model = Net(lambda net, x: net.body(x).transpose(1, 3) + net.width, body=nn.Identity())
    model.register_parameter("width", nn.Parameter(torch.zeros(7)))
    described = describe(model, torch.randn(3, 7, 4, 7), "body")
    [text] = described.warnings
    assert text.startswith("unclear: body (features taken along the first axis of 7 × 4 × 7, may be")


def test_describe__takes_the_sides_of_a_square_map_for_positions() -> None:
    """The network's width, 7, says nothing of the side of its images, 7."""
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 7, 3))
    [layer] = describe(model, torch.randn(3, 3, 7, 7), "0").layers
    assert layer.layout == OutputLayout("map", 0, 1)


def test_latent_recorder__refuses_samples_of_other_lengths_than_in_the_first_batch() -> None:
    """Tokens of all samples along one axis: how many are a sample's is known of the first batch alone."""
    model = Net(lambda net, x: net.vector(net.token(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)),
                token=nn.Linear(WIDTH, 9), vector=nn.Linear(9, 2))  # fmt: skip
    described = describe(model, TOKENS_FIRST)
    for length, message in (
        (6, r"'token' \(Linear\) returns \(24, 9\) in batch 0, where a sample has 5 places in the first"),
        (10, "layer token has 8 samples in batch 0, others have 4|layer vector has 4 .* others have 8"),
    ):

        def pass_batch(length: int = length) -> None:
            model(torch.randn(N, length, WIDTH))
            recorder.pop()

        with LatentRecorder(described.layers, ["1"]) as recorder:
            recorder.next_batch()
            with pytest.raises(ConfigError, match=message):
                pass_batch()


@settings(deadline=None, max_examples=40)
@given(order=st.permutations([0, 1, 2, 3]), n_axes=st.integers(2, 4))
def test_find_layout__finds_samples_and_features_in_any_order_of_axes(order: list[int], n_axes: int) -> None:
    """Axis 0 of those drawn has the samples, axis 1 the features, which are first or last of a sample's."""
    order = [axis for axis in order if axis < n_axes]
    sizes = {0: 2, 1: WIDTH, 2: 3, 3: 7}
    of_sample = [axis for axis in order if axis]
    if of_sample.index(1) not in (0, len(of_sample) - 1):
        return
    module = nn.Identity()
    module.register_parameter("gain", nn.Parameter(torch.ones(WIDTH)))
    shapes = tuple([n if axis == 0 else sizes[axis] for axis in order] for n in (2, 3))
    found = find_layout(nn.ModuleDict({"body": module}), "body", shapes)
    assert not isinstance(found, str)
    tensor = torch.randn(*shapes[1])
    got = arrange(tensor, found.layout)
    expected = tensor.movedim(order.index(0), 0)
    if len(of_sample) > 1 and found.layout.form == "map":
        expected = expected.movedim(1 + of_sample.index(1), 1)
    assert torch.equal(got, expected)
    assert got.data_ptr() == tensor.data_ptr()


# Calls


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.act = nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)
        self.up, self.alias, self.calls = nn.Linear(WIDTH, 9), self.shared, 2

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            x = self.act(self.shared(x))
        return self.act(self.up(x))


def test_calls__last_counts_each_call_and_stores_the_last_and_all_are_layers_of_their_own() -> None:
    torch.manual_seed(0)
    model, inputs = Twice(), torch.randn(N, WIDTH)
    first, last = (output.double().numpy() for output in outputs_by_hand(model, "shared", inputs))
    # ReLU writes over the outputs that the hooks by hand keep, after satstore's copies were taken.
    first, last = (np.asarray(model.shared(x).detach()) for x in (inputs, torch.from_numpy(first).float()))

    moments, latents = record(model, inputs, describe(model, inputs, "shared"))
    np.testing.assert_allclose(
        moments["shared"].covariance(), np.cov(np.concatenate([first, last]).T, bias=True), atol=1e-6
    )
    np.testing.assert_allclose(latents["shared"], last, rtol=1e-6)

    described = describe(model, inputs, "shared|up", calls="all")
    assert [layer.name for layer in described.layers] == ["shared@0", "shared@1", "up"]
    moments, latents = record(model, inputs, described)
    for name, expected in (("shared@0", first), ("shared@1", last)):
        np.testing.assert_allclose(moments[name].covariance(), np.cov(expected.T, bias=True), atol=1e-6)
        np.testing.assert_allclose(latents[name], expected, rtol=1e-6)


def test_calls__of_different_widths_are_left_out_unless_each_is_a_layer() -> None:
    model, inputs = Twice(), torch.randn(N, WIDTH)
    described = describe(model, inputs, "act", "up")
    assert [layer.name for layer in described.layers] == ["up"]
    assert described.warnings == ['left out: act (its calls differ in features or axes: take calls "all")']
    layers = describe(model, inputs, "act", calls="all").layers
    assert [(layer.name, layer.n_features) for layer in layers] == [("act@0", 6), ("act@1", 6), ("act@2", 9)]


@pytest.mark.parametrize(
    ("n_calls", "message"),
    [
        (
            3,
            "module 'shared' (Linear) was called 3 times in batch 1, 2 times in the first: take calls",
        ),
        (1, "module 'shared' (Linear) was not called 2 times in batch 1, as it was in the first: exclude it"),
    ],
)
def test_calls__other_than_in_the_first_batch_are_refused(n_calls: int, message: str) -> None:
    model, inputs = Twice(), torch.randn(N, WIDTH)
    described = describe(model, inputs, "shared|up", calls="all")

    def pass_batch() -> None:
        recorder.next_batch()
        model(inputs)
        recorder.pop()

    with LatentRecorder(described.layers, ["1"]) as recorder:
        pass_batch()
        model.calls = n_calls
        with pytest.raises(ConfigError, match=re.escape(message)):
            pass_batch()


def test_latent_recorder__refuses_a_batch_that_skips_a_layer() -> None:
    model = Net(lambda net, x: net.b(net.a(x)) if net.on else net.a(x), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    model.on = True
    with LatentRecorder(describe(model, torch.randn(3, 6)).layers, ["1"]) as recorder:
        recorder.next_batch()
        model.on = False
        model(torch.randn(3, 6))
        with pytest.raises(ConfigError, match=r"'b' \(Linear\) was not called in batch 0, as"):
            recorder.pop()


# Selection


def test_select__modules_replace_layers_unless_layers_are_named_too() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Sequential(nn.Linear(6, 6), nn.GELU())
    )
    assert list(select_layers(model, modules=[r"^\d$"])) == ["0", "1"]
    assert list(select_layers(model, "0.0", modules=[r"^\d$"])) == ["0.0", "0", "1"]
    assert list(select_layers(model, exclude="^1", modules=["1"])) == ["0.1"]
    assert list(select_layers(model, modules=["^$", "0.1:0"])) == ["", "0.1:0"]
    names = [layer.name for layer in describe(model, torch.randn(3, 6), r"^\d$", include="0.0").layers]
    assert names == ["0.0", "0", "1"], "in the order in which they end"


def test_select__a_shared_module_is_one_layer_under_the_name_that_is_asked_for() -> None:
    model = Twice()
    assert list(select_layers(model, modules=["shared|alias"])) == ["shared"]
    assert list(select_layers(model, modules=["alias"])) == ["alias"]
    [layer] = describe(model, torch.randn(3, WIDTH), "alias").layers
    assert (layer.name, layer.module) == ("alias", "alias")


def test_parts__of_an_output_are_layers_of_one_module() -> None:
    body = Fields(lambda x: (x, {"states": x + 1}, x.long()))
    model = Net(lambda net, x: net.body(x)[0], body=body)
    described = describe(model, TOKENS_FIRST, "body:0", "body:1")
    assert [(layer.name, layer.part) for layer in described.layers] == [("body:0", "0"), ("body:1", "1")]
    assert len(body._forward_hooks) == 0
    with LatentRecorder(described.layers, ["full"]):
        assert len(body._forward_hooks) == 1
    _, latents = record(model, TOKENS_FIRST, described)
    assert torch.equal(latents["body:0"] + 1, latents["body:1"])
    for part, message in (
        ("states", r"returns a tuple of 3 \(Tensor, dict, Tensor\), which has no part 'states'; .* 0, 1, 2"),
        ("2", "'body' .* returns no floating-point tensor, which can't be recorded: exclude it"),
    ):
        with pytest.raises(ConfigError, match=message):
            describe(model, TOKENS_FIRST, f"body:{part}")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            r"blok\.\d+$",
            r"no module of the model matches 'blok.*'; its modules are called block.1, block.0, bl",
        ),
        ("block.(", r"modules is 'block.\(', which is no regular expression"),
    ],
)
def test_select__refuses_patterns_in_one_line(pattern: str, message: str) -> None:
    model = nn.ModuleDict({"block": nn.Sequential(nn.ReLU(), nn.ReLU())})
    with pytest.raises(ConfigError, match=message):
        select_layers(model, modules=[pattern])


def test_describe__lists_what_is_left_out_and_why() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.ids, self.position = nn.ReLU(), nn.Identity(), nn.Embedding(9, 6)
            self.packed, self.per_sample, self.square = nn.LSTM(6, 6), nn.ReLU(), nn.Identity()
            self.scale, self.kept = nn.Identity(), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            self.ids(x.long())
            self.position(torch.arange(5))
            self.packed(nn.utils.rnn.pack_sequence(list(x.unsqueeze(1))))
            for sample in x:
                self.per_sample(sample)
            self.square(x @ x.T)
            self.scale(x.mean(1))
            return self.kept(x)

    described = describe(Odd(), torch.randn(3, 6), ".")
    assert [layer.name for layer in described.layers] == ["kept"]
    assert described.left_out == {
        "unused": "not called",
        "ids": "no floating-point tensor",
        "position": "no axis follows the number of samples",
        "packed": "a packed sequence",
        "per_sample": "called 2 times for 2 samples, 3 times for 3",
        "square": "more than one axis follows the number of samples, or none in proportion",
        "scale": "it has no axis of features",
    }
    alone = Net(lambda net, x: net.position(torch.arange(5)), position=nn.Embedding(9, 6), unused=nn.ReLU())
    with pytest.raises(ConfigError, match=r"nothing to record, .*: position \(no .*\); unused \(not called"):
        describe(alone, torch.randn(3, 6), "position", "unused")


def test_describe__of_a_model_with_torchscript_in_it_leaves_that_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        script = torch.jit.trace(nn.Linear(6, 6), torch.rand(1, 6))
    described = describe(nn.Sequential(nn.Linear(6, 6), script), torch.randn(3, 6), ".")
    assert [layer.name for layer in described.layers] == ["0"]
    assert described.left_out == {"1": "not called"}


def test_find_tensor__takes_the_first_with_values_and_no_packed_sequence() -> None:
    x = torch.ones(2, 3)
    packed = nn.utils.rnn.pack_sequence([x])
    assert find_tensor((None, {"ids": x.long(), "states": [x]})) is x
    assert find_tensor((packed, x)) is None
    assert find_tensor({"states": (x, 1)}, "states") is x
    assert find_tensor({"ids": None, "states": x}, "1") is x
    assert find_tensor(Pair(x > 0, x), "1") is find_tensor(Pair(x > 0, x), "states") is x
    assert find_tensor("text") is None


def test_padded_batches__of_a_transformer_encoder_are_no_nested_tensors() -> None:
    """In evaluation torch makes a nested tensor of a padded batch, whose shape can't be read."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True), 2).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5, [False] * 4 + [True]])
    model = Net(lambda net, x: net.encoder(x, src_key_padding_mask=padding[: len(x)]), encoder=encoder)
    described = describe(model, TOKENS_FIRST, r"layers\.\d$")
    assert [layer.layout.form for layer in described.layers] == ["tokens", "tokens"]
    assert encoder.use_nested_tensor


def test_find_block__is_the_nearest_listed_module_with_parts() -> None:
    from torchvision.models import resnet18, swin_t, vgg11
    from torchvision.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        models = {
            "resnet": resnet18(),
            "swin": swin_t(),
            "vgg": vgg11(),
            "vit": VisionTransformer(32, 8, 2, 2, 16, 32),
        }
    for name, layer, block in (
        ("resnet", "conv1", ""),
        ("resnet", "layer1.0.conv1", "layer1.0"),
        ("resnet", "layer2.0.downsample.0", "layer2.0"),
        ("resnet", "layer2.0", "layer2.0"),
        ("swin", "features.1.0.mlp.0", "features.1.0"),
        ("swin", "features.1.0", "features.1.0"),
        ("vgg", "features.3", ""),
        ("vit", "encoder.layers.encoder_layer_1.mlp.0", "encoder.layers.encoder_layer_1"),
        ("vit", "heads.head", ""),
    ):
        assert find_block(models[name], layer) == block, layer


# Networks


def test_modules__of_torchvisions_networks_are_what_its_feature_extraction_gives() -> None:
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(32, 8, 2, 2, 96, 192)
    for model, pattern in (
        (resnet18().eval(), r"^(maxpool|layer\d\.\d|avgpool)$"),
        (vit.eval(), r"(encoder_layer_\d(\.mlp|\.self_attention)?|\.ln)$"),
    ):
        images = torch.randn(3, 3, 32, 32)
        described = describe(model, images, pattern)
        layers = [layer.name for layer in described.layers]
        extractor = create_feature_extractor(model, {name: name for name in layers})
        with torch.no_grad():
            expected = extractor(images)
        _, latents = record(model, images, described)
        assert len(layers) > 6
        for layer in described.layers:
            output = find_tensor(expected[layer.name])
            assert output is not None
            assert torch.equal(latents[layer.name], output)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "squeezenet1_0"])
def test_layouts__of_convolutional_networks_are_those_that_runs_always_had(name: str) -> None:
    """They decide on every bit of spectra and latents: default configs must go on to write the same."""
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name)
        layers = describe(model, torch.zeros(3, 3, 224, 224)).layers
    convs = {layer.name for layer, module in layers.items() if isinstance(module, nn.Conv2d)}
    assert {layer.layout for layer in layers if layer.name in convs} == {OutputLayout("map", 0, 1)}
    assert {layer.layout for layer in layers if layer.name not in convs} <= {OutputLayout("vector", 0, -1)}
    for layer, module in layers.items():
        assert layer.layout == typed_layout(module, 1 + len(layer.output_shape))
    every = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {layer.name for layer in layers} == every


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
        "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet50",
        "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11_bn",
        "wide_resnet50_2",
    ],
)  # fmt: skip
def test_layouts__of_torchvisions_networks_have_features_on_the_axis_that_stays(
    name: str,
) -> None:
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
        small, large = (
            describe(model, torch.zeros(3, 3, size, size), ".", calls="all").layers for size in (224, 320)
        )
    checked = 0
    for layer, other in zip(small, large, strict=True):
        assert layer.name == other.name
        sizes = zip(layer.output_shape, other.output_shape, strict=True)
        same = [axis for axis, (a, b) in enumerate(sizes) if a == b]
        if len(layer.output_shape) > 1 and len(same) == 1:
            checked += 1
            assert same == [0 if layer.layout.feature_axis == 1 else len(layer.output_shape) - 1], layer
    assert checked > 9
