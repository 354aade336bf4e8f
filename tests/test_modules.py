"""Runs of any modules: recorded and trained, from their config to their probes."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional

import satstore
from satstore.config.experiment import ExperimentConfig, split_pattern
from satstore.config.grid import read_config
from satstore.errors import ConfigError
from satstore.registry import MODELS
from satstore.runs.manifest import Manifest
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.stages.pipeline import apply_stages
from satstore.storage.zarr import AnalysisStore
from satstore.training import run_model


class Residual(nn.Module):
    """A block as ResNet's, whose activation is called twice, on maps of other widths; a part is unused."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.conv2, self.unused = nn.Conv2d(2 * width, width, 1), nn.Linear(2, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.norm(self.conv1(x)))) + x)


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(Residual(4), Residual(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def make_loader(n_batches: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 1, 8, 8, generator=rng), torch.arange(6) % 3) for _ in range(n_batches)]


def outputs_by_hand(model: nn.Module, name: str, loader: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return what a module gave in its last call for each batch."""
    found: list[Tensor] = []
    outputs: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _m, _i, out: outputs.append(out.clone()))
    with torch.no_grad():
        for images, _ in loader:
            model(images)
            found.append(outputs[-1])
    hook.remove()
    return torch.cat(found)


def test_record__of_modules_stores_what_hooks_see(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SmallNet().eval()
    train, test = make_loader(3, 0), make_loader(2, 1)
    run = satstore.record(
        model, train, "r", test, modules=[r"^blocks\.\d$", "norm$", "relu", "unused"], layers="head",
        exclude_layers="1.norm", pooling=("2",), logs_dir=tmp_path,
    )  # fmt: skip

    records = run.manifest.layers
    assert [(r.layer, r.kind, r.form, r.block, r.n_features) for r in records] == [
        ("blocks.0.norm", "BatchNorm2d", "map", "blocks.0", 8),
        ("blocks.0", "Residual", "map", "blocks.0", 4),
        ("blocks.1", "Residual", "map", "blocks.1", 4),
        ("head", "Linear", "vector", "", 3),
    ]
    assert run.manifest.warnings[0] == (
        "extract: left out: blocks.0.relu, blocks.1.relu "
        '(its calls differ in features or axes: take calls "all"); '
        "blocks.0.unused, blocks.1.unused (not called)"
    )
    assert list(Verification(Run(run.path)).findings()) == []
    for split, loader in (("train", train), ("eval", test)):
        for name in ("blocks.0.norm", "blocks.1"):
            output = outputs_by_hand(model, name, loader)
            expected = functional.adaptive_avg_pool2d(output, 2)
            np.testing.assert_allclose(
                run.latents("pool2", split)[name].numpy(), expected, rtol=1e-3, atol=1e-6
            )
            samples = output.movedim(1, -1).flatten(0, 2).double().numpy()
            mean, covariance = AnalysisStore(run.analysis_path).moments(split, name)
            np.testing.assert_allclose(mean, samples.mean(0), atol=1e-6)
            np.testing.assert_allclose(covariance, np.cov(samples.T, bias=True), atol=1e-6)

    apply_stages(run, "probe")
    assert list(run.table("probe-pool2")["layer"]) == run.layers


def test_record__of_each_call_has_a_layer_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, train = SmallNet().eval(), make_loader(3, 0)
    run = satstore.record(
        model, train, "r", modules=r"blocks\.0(\.relu)?$", calls="all", pooling=("full",), logs_dir=tmp_path
    )
    assert run.layers == ["blocks.0.relu@0", "blocks.0.relu@1", "blocks.0"]
    assert run.config.calls == "all"
    latents = run.latents("full", "train")
    np.testing.assert_array_equal(latents["blocks.0.relu@1"].numpy(), latents["blocks.0"].numpy())
    first = functional.relu(outputs_by_hand(model, "blocks.0.norm", train))
    np.testing.assert_allclose(latents["blocks.0.relu@0"].numpy(), first, rtol=1e-3, atol=1e-6)


def test_training__records_modules_of_any_class_up_to_their_probes(tmp_path: Path) -> None:
    run = tiny.run_tiny(tmp_path, modules=["^[1-3]$"], layers="5")
    assert [(r.layer, r.kind, r.form) for r in run.manifest.layers] == [
        ("1", "ReLU", "map"),
        ("2", "AdaptiveAvgPool2d", "map"),
        ("3", "Flatten", "vector"),
        ("5", "Linear", "vector"),
    ]
    assert list(run.table("probe-pool2")["layer"]) == ["1", "2", "3", "5"]
    assert set(run.spectra("train")) == {"1", "2", "3", "5"}
    latents = run.latents("pool2", "eval")
    np.testing.assert_array_equal(latents["2"].numpy().reshape(20, -1), latents["3"].numpy())
    before = latents["1"].numpy()
    apply_stages(run, "extract", overwrite=True)
    np.testing.assert_array_equal(run.latents("pool2", "eval")["1"].numpy(), before)
    apply_stages(run, "receptive-field")


def test_projection__leaves_what_is_neither_a_convolution_nor_linear_alone(tmp_path: Path) -> None:
    run = tiny.run_tiny(tmp_path, modules=["1"], layers="5", stages=["train"])
    apply_stages(run, "project", delta=[0.9])
    assert any("layer 1 is left alone: it is neither" in text for text in run.manifest.warnings)
    run = tiny.run_tiny(tmp_path, modules=["1"], stages=["train"])
    with pytest.raises(ConfigError, match="has no convolution or Linear layer among those asked for"):
        apply_stages(run, "project", delta=[0.9])


class TokenNet(nn.Module):
    """A Linear layer that works on tokens: rows of an image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.token, self.head = nn.Linear(24, 6), nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.token(images.permute(0, 2, 1, 3).flatten(2)).mean(1))


def test_old_runs__get_the_latents_of_tokens_that_they_had(tmp_path: Path) -> None:
    """Earlier versions took tokens for a map of one axis, and their manifests have no form."""
    if "TokenNet" not in MODELS:
        MODELS.register("TokenNet", description="tokens")(TokenNet)
    run = tiny.run_tiny(tmp_path, model="TokenNet", stages=["train"])
    assert [record.form for record in run.manifest.layers] == ["tokens", "vector"]

    def forget(manifest: Manifest) -> None:
        for record in manifest.layers:
            record.form = record.block = ""

    run.commit(change=forget)
    apply_stages(run, "extract", pooling=["2"])
    images = torch.stack([image for image, _ in tiny.Images(20, 8, 1)])
    model = run_model.load_model(run, 3, torch.device("cpu")).eval()
    tokens = outputs_by_hand(model, "token", [(images, torch.zeros(20))])
    expected = functional.adaptive_avg_pool1d(tokens.transpose(1, 2), 2)
    found = run.latents("pool2", "eval")["token"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


# The config


def test_config__takes_patterns_as_one_text_or_a_list_and_its_digest_knows_them() -> None:
    [one] = read_config({"modules": r"blocks\.\d+$"})
    [many] = read_config({"modules": [r"blocks\.\d+$"], "calls": "last"})
    assert one == many
    assert one.modules == (r"blocks\.\d+$",)
    assert read_config(one.model_dump(mode="json")) == [one]
    digests = {c.digest for c in (one, ExperimentConfig(), *read_config({"calls": "all"}))}
    assert len(digests) == 3
    assert ExperimentConfig().digest == read_config({"modules": None, "calls": "last"})[0].digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"modules": "blocks.("}, r"'modules': 'blocks.\(' is no regular expression: missing \)"),
        ({"modules": ["a", "(:0"]}, r"'modules': '\(' is no regular expression"),
        ({"modules": []}, "'modules' is an empty list"),
        ({"modules": 3}, "'modules' takes a list, found 3"),
        ({"calls": "first"}, "'calls': .*'last' or 'all'"),
    ],
)
def test_config__refuses_patterns_in_one_line(content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(content)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("encoder.layer.3:hidden_states", ("encoder.layer.3", "hidden_states")),
        (r"layer\.\d+$:0", (r"layer\.\d+$", "0")),
        ("(?:attn|mlp)$", ("(?:attn|mlp)$", None)),
        (r"blocks\.\d+$", (r"blocks\.\d+$", None)),
        ("^$", ("^$", None)),
        ("", ("", None)),
    ],
)
def test_split_pattern__finds_the_part_at_the_end(text: str, parts: tuple[str, str | None]) -> None:
    assert split_pattern(text) == parts


def test_run__of_the_model_itself_is_one_layer(tmp_path: Path) -> None:
    model, train = SmallNet().eval(), make_loader(2, 0)
    run: Run = satstore.record(model, train, "r", modules="^$", logs_dir=tmp_path)
    assert run.layers == [""]
    found = run.latents("pool4", "train")[""].numpy()
    np.testing.assert_allclose(found, outputs_by_hand(model, "", train), rtol=1e-3, atol=1e-6)
