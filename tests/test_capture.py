import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from satstore.analysis.spectrum import eigenvalues, intrinsic_dimension, saturation
from satstore.capture.layer_samples import to_samples
from satstore.capture.layers import Layer, describe_layers, select_layers
from satstore.capture.outputs import OutputLayout
from satstore.capture.recorders import LatentRecorder, MomentRecorder, NonFinite
from satstore.errors import ConfigError

MAPS, VECTORS = OutputLayout("map", 0, 1), OutputLayout("vector")


class SmallNet(nn.Module):
    """Defined in another order than it runs in; in-place activation, batch norm, dropout; a layer unused."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(12, 10)
        self.second = nn.Conv2d(6, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.unused = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        maps = functional.relu(self.first(images), inplace=True)
        maps = functional.relu(self.norm(self.second(maps)))
        return self.classifier(self.dropout(maps.mean((2, 3))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmallNet()


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_digits().images[:600, None] / 16).float()


@pytest.fixture
def layers(model):
    return layers_of(model, exclude="unused")


def layers_of(model, shape=(1, 8, 8), **patterns):
    """Describe a model's layers by passes of zeros."""
    selected = select_layers(model, **patterns)
    return describe_layers(model, lambda n: model(torch.zeros(n, *shape)), selected).layers


def outputs_of(model, layers, images):
    """Every layer's output, by hooks of the test's own."""
    outputs = {}
    handles = [
        layer.register_forward_hook(
            lambda _m, _i, out, name=name: outputs.update({name: out.detach().clone()})
        )
        for name, layer in ((layer.name, module) for layer, module in layers.items())
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return outputs


def n_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_select_layers__finds_every_kind_under_its_pytorch_name():
    kinds = [nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv3d(2, 2, 1), nn.ConvTranspose1d(2, 2, 1)]
    kinds += [nn.ConvTranspose2d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1), nn.Linear(2, 2), nn.LSTM(2, 2)]
    model = nn.ModuleDict({"body": nn.Sequential(*kinds, nn.ReLU(), nn.BatchNorm1d(2), nn.GRU(2, 2))})
    assert list(select_layers(model)) == [f"body.{i}" for i in range(8)]


def test_select_layers__includes_and_excludes_by_pattern(model):
    assert list(select_layers(model, include="^(first|second)$")) == ["second", "first"]
    assert list(select_layers(model, exclude="class|unused")) == ["second", "first"]
    assert list(select_layers(model, include="s", exclude="^s")) == ["classifier", "first", "unused"]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("(", None, "include is '\\('"),
        (None, "[", "exclude is '\\['"),
        ("frst", None, "first"),
        (None, ".", "left"),
    ],
)
def test_select_layers__refuses_bad_patterns_and_an_empty_selection(model, include, exclude, message):
    with pytest.raises(ConfigError, match=message):
        select_layers(model, include, exclude)


def test_describe_layers__lists_forward_order_and_warns_of_layers_never_called(model):
    selected = select_layers(model)
    described = describe_layers(model, lambda n: model(torch.zeros(n, 1, 8, 8)), selected)
    assert described.left_out == {"unused": "not called"}
    assert list(described.layers) == [
        Layer("first", 0, "Conv2d", 6, (6, 8, 8), MAPS, "first"),
        Layer("second", 1, "Conv2d", 12, (12, 8, 8), MAPS, "second"),
        Layer("classifier", 2, "Linear", 10, (10,), VECTORS, "classifier"),
    ]
    assert described.warnings == ["left out: unused (not called)"]


def test_describe_layers__leaves_modes_buffers_hooks_and_random_state_alone(model, layers):
    model.train()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    whole = nn.Sequential(model, nn.RReLU())
    describe_layers(
        whole,
        lambda n: whole(torch.rand(n, 1, 8, 8, generator=torch.Generator())),
        select_layers(whole),
    )
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)
    assert n_hooks(model) == 0


def test_describe_layers__restores_modes_when_the_forward_pass_fails(model, layers):
    with pytest.raises(RuntimeError):
        layers_of(model, (7, 8, 8))
    assert model.training
    assert n_hooks(model) == 0


def test_describe_layers__takes_an_lstms_features_from_its_output():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 5, bidirectional=True)
            self.head = nn.Linear(10, 2)

        def forward(self, steps):
            return self.head(self.lstm(steps)[0])

    model = Sequences()
    described = describe_layers(model, lambda n: model(torch.zeros(7, n, 3)), select_layers(model))
    assert list(described.layers) == [
        Layer("lstm", 0, "LSTM", 10, (7, 10), OutputLayout("steps", 1), "lstm"),
        Layer("head", 1, "Linear", 2, (7, 2), OutputLayout("tokens", 1), "head"),
    ]


def record(model, layers, batches, **options):
    with MomentRecorder(layers, **options) as recorder, torch.no_grad():
        recorder.begin("train")
        for images in batches:
            recorder.next_batch()
            model(images)
    return recorder


def test_moment_recorder__gives_numpys_covariance_of_each_layers_own_output(model, layers, digits):
    model.eval()
    outputs = outputs_of(model, layers, digits)
    results = record(model, layers, digits.split(130)).results()
    assert list(results) == ["first", "second", "classifier"]
    for name, moments in results.items():
        samples = outputs[name].double().numpy()
        samples = np.moveaxis(samples, 1, -1).reshape(-1, samples.shape[1])
        oracle = np.cov(samples.T, bias=True)
        assert moments.count == len(samples)
        np.testing.assert_allclose(moments.covariance(), oracle, atol=1e-6 * np.trace(oracle))
        expected = np.maximum(np.sort(np.linalg.eigvalsh(oracle))[::-1], 0).cumsum()
        spectrum = eigenvalues(moments.covariance().numpy())
        assert intrinsic_dimension(spectrum, 0.99) == 1 + (expected < 0.99 * expected[-1]).sum()


@pytest.mark.filterwarnings("ignore")  # of the delve package and what it imports
def test_moment_recorder__agrees_with_the_delve_package(model, layers, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from delve.metrics import compute_intrinsic_dimensionality
    from delve.torch_utils import TorchCovarianceMatrix
    from delve.torchcallback import CheckLayerSat

    for split in ("train", "eval"):
        model.train(split == "train")
        tracker = CheckLayerSat(
            str(tmp_path / split),
            "npy",
            model,
            stats=["lsat", "idim", "cov"],
            device="cpu",
            sat_threshold=0.99,
        )
        # Its tracker starts a new covariance at every batch (delve 0.1.50), so it gets the pass as one batch.
        recorder = record(model, layers, [digits])
        tracker.stop()
        for name, moments in recorder.results().items():
            theirs = tracker.logs[f"{split}-covariance-matrix"][name].fix()
            spectrum = eigenvalues(moments.covariance().numpy())
            dimension = compute_intrinsic_dimensionality(theirs, 0.99)
            assert intrinsic_dimension(spectrum, 0.99, "delve") == dimension
            assert saturation(spectrum, 0.99, "delve") == dimension / len(spectrum)
            assert intrinsic_dimension(spectrum, 0.99) == dimension + 1
            np.testing.assert_allclose(moments.covariance(), theirs, atol=1e-6 * float(theirs.trace()))

    many = record(model, layers, digits.split(50)).results()
    for name, output in outputs_of(model, layers, digits).items():
        theirs = TorchCovarianceMatrix(device="cpu")
        for part in output.split(50):
            theirs.update(part.transpose(0, 1).flatten(1).T if part.ndim == 4 else part, False)
        np.testing.assert_allclose(
            many[name].covariance(), theirs.fix(), atol=1e-6 * float(theirs.fix().trace())
        )


def test_moment_recorder__records_only_while_enabled_and_forgets_at_begin(model, layers, digits):
    with MomentRecorder(layers) as recorder:
        model(digits[:9])
        assert recorder.results() == {}
        recorder.begin("train")
        model(digits[:10])
        recorder.enabled = False
        model(digits[:20])
        assert recorder.results()["classifier"].count == 10
        recorder.begin("eval")
        model(digits[:30])
        assert recorder.results()["classifier"].count == 30


@pytest.mark.parametrize(
    "kind", [lambda layers: MomentRecorder(layers), lambda layers: LatentRecorder(layers, ["1"])]
)
def test_recorders__leave_no_hooks_and_no_trace_in_the_output(model, layers, digits, kind):
    model.eval()
    expected = model(digits[:5])
    with contextlib.suppress(KeyError), kind(layers) as recorder:
        if isinstance(recorder, MomentRecorder):
            recorder.begin("train")
        assert n_hooks(model) == 3
        output = model(digits[:5])
        assert output.requires_grad
        assert torch.equal(output, expected)
        raise KeyError
    assert n_hooks(model) == 0


def test_moment_recorder__drops_a_poisoned_layer_and_leaves_the_others_undisturbed(model, layers, digits):
    class Poisoned(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.side, self.batch = model, nn.Linear(10, 4), 0

        def forward(self, images):
            logits = self.body(images)
            side = logits.detach().clone()
            if self.batch == 1:
                side[2, 3] = float("nan")
            self.batch += 1
            return logits + self.side(side).sum()

    model.eval()
    undisturbed = record(model, layers, digits.split(100)).results()
    poisoned = Poisoned()
    layers = layers_of(poisoned, exclude="unused")
    poisoned.batch = 0
    recorder = record(poisoned, layers, digits.split(100))
    assert recorder.non_finite == [NonFinite("side", "train", 1, 4)]
    results = recorder.results()
    assert list(results) == ["body.first", "body.second", "body.classifier"]
    for name, moments in undisturbed.items():
        assert torch.equal(results[f"body.{name}"].scatter, moments.scatter)

    with recorder:
        recorder.begin("eval")
        poisoned(digits[:10])
    assert recorder.non_finite == []
    assert recorder.results()["side"].count == 10


def test_moment_recorder__counts_every_call_of_a_layer_and_latents_keep_the_last():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    images = torch.rand(7, 3)
    layers = layers_of(model, (3,))
    assert record(model, layers, [images]).results()["0"].count == 14
    with LatentRecorder(layers, ["1"]) as recorder:
        output = model(images)
    assert torch.equal(recorder.pop()["1"]["0"], output)


@pytest.mark.parametrize("method", ["mean", "max", "median", "flatten"])
def test_moment_recorder__follows_the_conv_method_and_downsampling(model, layers, digits, method):
    model.eval()
    samples = to_samples(outputs_of(model, layers, digits)["second"], MAPS, method, 2).double().numpy()
    moments = record(model, layers, digits.split(200), method=method, downsampling=2).results()["second"]
    oracle = np.cov(samples.T, bias=True)
    np.testing.assert_allclose(moments.covariance(), oracle, atol=1e-6 * np.trace(oracle))


def test_moment_recorder__under_autocast_records_what_the_layer_gave(model, layers, digits):
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = outputs_of(model, layers, digits)["first"]
        moments = record(model, layers, [digits]).results()["first"]
    assert output.dtype == torch.bfloat16
    samples = output.double().transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(moments.covariance(), np.cov(samples, bias=True), rtol=0, atol=1e-6)


def test_latent_recorder__pools_all_layers_in_one_pass(model, layers, digits):
    model.eval()
    outputs = outputs_of(model, layers, digits[:20])
    with LatentRecorder(layers, ["1", "4", "full"]) as recorder, torch.no_grad():
        model(digits[:20])
        popped = recorder.pop()
        assert recorder.pop() == {"1": {}, "4": {}, "full": {}}
    assert list(popped) == ["1", "4", "full"]
    for pooling, latents in popped.items():
        assert list(latents) == ["first", "second", "classifier"]
        for name, output in outputs.items():
            # The model writes over the output of "first" in place: the copies must be older.
            expected = (
                output
                if pooling == "full" or output.ndim == 2
                else functional.adaptive_avg_pool2d(output, int(pooling))
            )
            assert torch.equal(latents[name], expected)


def test_latent_recorder__holds_no_graph_and_no_full_maps(model, layers, digits):
    with LatentRecorder(layers, ["2"]) as recorder:
        model(digits[:20])
    for latent in recorder.pop()["2"].values():
        assert not latent.requires_grad
        assert latent.untyped_storage().nbytes() == latent.numel() * 4


def test_latent_recorder__pixelwise_has_features_last_and_leaves_linears_out(model, layers, digits):
    model.eval()
    outputs = outputs_of(model, layers, digits[:20])
    with LatentRecorder(layers, ["pixelwise"]) as recorder, torch.no_grad():
        model(digits[:20])
    latents = recorder.pop()["pixelwise"]
    assert list(latents) == ["first", "second"]
    for name, latent in latents.items():
        assert torch.equal(latent, outputs[name].permute(0, 2, 3, 1))
        assert latent.is_contiguous()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -65520.0, 1e9, 10001.5, 1.5e-7])
def test_latent_recorder__keeps_the_precision_of_what_float16_can_not_hold(value):
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    with LatentRecorder(layers_of(layer, (2,)), ["1"]) as recorder, torch.no_grad():
        layer.bias.copy_(torch.tensor([value, 1.0]))
        layer(torch.zeros(3, 2))
    latent = recorder.pop()["1"][""]
    assert latent.dtype == torch.float32
    np.testing.assert_array_equal(latent[:, 0], np.float32(value))


# What is left out of a pass


def batches_of(layer: nn.Module, sizes: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(n, 3, 6, 6, generator=generator) for n in sizes]
    with torch.no_grad():
        return images, torch.cat([layer(batch) for batch in images]).double()


def covariance_of(outputs: torch.Tensor) -> np.ndarray:
    samples = outputs.movedim(1, -1).reshape(-1, outputs.shape[1]).numpy()
    return np.cov(samples.T, bias=True)


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"max_samples": 7}, slice(0, 7)),
        ({"max_samples": 4}, slice(0, 4)),
        ({"max_samples": 100}, slice(0, 12)),
        ({"log_interval": 2}, [0, 1, 2, 3, 8, 9, 10, 11]),
        ({"log_interval": 3}, slice(0, 4)),
        ({"log_interval": 2, "max_samples": 6}, [0, 1, 2, 3, 8, 9]),
    ],
)
def test_moment_recorder__takes_the_batches_and_images_that_it_is_told_to(options: Any, taken: Any) -> None:
    layer = nn.Conv2d(3, 5, 3)
    images, outputs = batches_of(layer, (4, 4, 4))
    with MomentRecorder(layers_of(layer, (3, 6, 6)), **options) as recorder, torch.no_grad():
        for _ in range(2):  # each pass begins anew
            recorder.begin("train")
            for batch in images:
                recorder.next_batch()
                layer(batch)
            found = recorder.results()[""].covariance().numpy()
            np.testing.assert_allclose(found, covariance_of(outputs[taken]), rtol=1e-4, atol=1e-6)


def test_moment_recorder__parts_of_two_add_up_to_the_whole() -> None:
    layer = nn.Conv2d(3, 5, 3)
    images, outputs = batches_of(layer, (4, 3, 5))
    one, two = (MomentRecorder(layers_of(layer, (3, 6, 6))) for _ in range(2))
    for recorder, part in ((one, images[:1]), (two, images[1:])):
        with recorder, torch.no_grad():
            recorder.begin("train")
            for batch in part:
                recorder.next_batch()
                layer(batch)
    one.absorb(two.part())
    moments = one.results()[""]
    np.testing.assert_allclose(moments.covariance().numpy(), covariance_of(outputs), rtol=1e-4, atol=1e-6)
    assert moments.count == 12 * 16
    with two, torch.no_grad():
        two.begin("train")
        two.next_batch()
        layer(torch.full((1, 3, 6, 6), float("nan")))
    one.absorb(two.part())
    assert "" not in one.results(), "a layer that failed anywhere has no moments"
