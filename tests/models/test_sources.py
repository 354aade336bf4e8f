"""Models from outside satstore: how they are built, where their weights come from, how inputs are made."""

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from refused_sockets import refuse_sockets
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights

from satstore.config.grid import expand_grid
from satstore.datasets.image_folder import read_split
from satstore.datasets.transforms import CenterCrop, Normalize
from satstore.errors import ConfigError, CorruptError, NotFoundError, UnknownNameError, UnreachableError
from satstore.models.sources.source import open_source, parse_arguments
from satstore.models.sources.weights import digest_weights
from satstore.runs.logs_folder import make_run
from satstore.runs.run import Run
from satstore.stages.record.run_source import PrepareAsTrained, describe_source, find_source, open_run_source
from satstore.training.run_model import load_model
from satstore.training.session_data import load_data

RESNET = "torchvision:resnet18"

OWN_CODE = """
import torch
from torch import nn

__version__ = "2.5"

def alone(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def prepare(raw):
    return torch.full((3, 8, 8), float(len(raw)))

def prepared():
    return alone(), prepare

def number():
    return 3
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working folder."""
    name = "networks_of_my_own"
    (tmp_path / f"{name}.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(3)
    return torchvision.models.resnet18(num_classes=5).eval()


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    theirs = expected.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


def test_random_weights__are_those_of_the_seed_and_disturb_no_other_draws() -> None:
    torch.manual_seed(11)
    expected_draw = torch.rand(2)
    torch.manual_seed(7)
    expected = torchvision.models.resnet18(num_classes=5)

    torch.manual_seed(11)
    source = open_source(RESNET, untrained=True, seed=7, arguments={"num_classes": 5})

    torch.testing.assert_close(torch.rand(2), expected_draw, rtol=0, atol=0)
    assert_same_weights(source.model, expected)
    assert not source.model.training
    assert source.weights == "random, seed 7"
    assert source.version == f"torchvision {torchvision.__version__}"


def test_torchvision__prepares_inputs_as_its_weights_do_in_other_processes_too(photo: Image.Image) -> None:
    source = open_source(RESNET, untrained=True)
    prepare, collate = pickle.loads(pickle.dumps((source.prepare, source.collate)))

    expected = ResNet18_Weights.DEFAULT.transforms()(photo)
    torch.testing.assert_close(prepare(photo), expected, rtol=0, atol=0)
    grey = photo.convert("L")
    in_colours = ResNet18_Weights.DEFAULT.transforms()(grey.convert("RGB"))
    torch.testing.assert_close(collate([prepare(grey)])[0], in_colours, rtol=0, atol=0)
    assert "crop_size=[224]" in source.recipe
    assert "\n" not in source.recipe


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights__come_from_files(tmp_path: Path, resnet: nn.Module, suffix: str, nested: bool) -> None:
    path, state = tmp_path / f"w{suffix}", resnet.state_dict()
    if suffix == ".pt":
        parallel = {"epoch": 3, "state_dict": {f"module.{name}": t for name, t in state.items()}}
        torch.save(parallel if nested else state, path)
    else:
        save_file({f"module.{name}": t for name, t in state.items()} if nested else state, path)

    source = open_source(RESNET, weights=path, arguments={"num_classes": 5})

    assert_same_weights(source.model, resnet)
    assert source.weights == path.name
    assert digest_weights(source.model) == digest_weights(resnet)


def test_digest__changes_with_one_weight(resnet: nn.Module) -> None:
    before = digest_weights(resnet)
    bias = resnet.get_parameter("fc.bias")
    with torch.no_grad():
        kept = bias[0].clone()
        bias[0] += 1
        after = digest_weights(resnet)
        bias[0] = kept
    assert after != before == digest_weights(resnet)


def write_pickle(path: Path, state: dict[str, Any]) -> None:
    torch.save(nn.Linear(1, 1), path)


def write_text(path: Path, state: dict[str, Any]) -> None:
    path.write_text("no weights")


def write_too_few(path: Path, state: dict[str, Any]) -> None:
    torch.save({name: tensor for name, tensor in state.items() if name != "conv1.weight"}, path)


def write_too_many(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, "head.weight": torch.zeros(2)}, path)


def write_other_shape(path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, "fc.weight": torch.zeros(10, 512)}, path)


def write_others(path: Path, state: dict[str, Any]) -> None:
    torch.save({"optimizer": {"lr": 1.0}, "epoch": 3}, path)


@pytest.mark.parametrize(
    ("write", "name", "error", "text"),
    [
        (
            write_pickle,
            "w.pt",
            CorruptError,
            "is no file of weights alone, and is not loaded; save model.state",
        ),
        (write_text, "w.pt", CorruptError, "w.pt"),
        (write_text, "w.safetensors", CorruptError, "w.safetensors is no file of safetensors: "),
        (write_too_few, "w.pt", ConfigError, "is not of resnet18: it lacks conv1.weight (1 of 122 tensors)"),
        (write_too_many, "w.pt", ConfigError, "it has head.weight, which the model lacks (1 of 123 tensors)"),
        (
            write_other_shape,
            "w.pt",
            ConfigError,
            "fc.weight is (10, 512), expected (5, 512) (1 of 122 tensors)",
        ),
        (write_others, "w.pt", CorruptError, "w.pt holds optimizer, epoch; expected tensors by name"),
        (lambda *_: None, "w.pt", NotFoundError, "w.pt; expected weights"),
    ],
)
def test_weights_that_do_not_fit__are_named_in_one_line(
    tmp_path: Path,
    resnet: nn.Module,
    write: Callable[[Path, dict[str, Any]], None],
    name: str,
    error: type[Exception],
    text: str,
) -> None:
    write(tmp_path / name, resnet.state_dict())
    with pytest.raises(error, match=re.escape(text)) as caught:
        open_source(RESNET, weights=tmp_path / name, arguments={"num_classes": 5})
    assert "\n" not in str(caught.value)


def test_weights_of_a_model_that_shares_a_tensor__may_hold_it_once(tmp_path: Path, own_code: str) -> None:
    code = "def tied():\n    net = alone()\n    net.again = net[0]\n    return net, prepare\n"
    (tmp_path / f"{own_code}.py").write_text(OWN_CODE + code)
    torch.save({"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.zeros(4)}, tmp_path / "w.pt")
    source = open_source(f"{own_code}:tied", weights=tmp_path / "w.pt")
    assert bool((source.model.get_parameter("again.weight") == 1).all())


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("torchvision:vit_b16", {}, "torchvision has no model 'vit_b16'; did you mean 'vit_b_16'?"),
        (RESNET, {"num_class": 0}, "--set num_class=0: torchvision:resnet18 takes no num_class"),
        (RESNET, {"weights": "V9"}, "--set weights=V9: no weights of resnet18; known are IMAGENET1K_V1"),
        ("torchvision:r3d_18", {}, "takes more than one image (VideoClassification): record it from Python"),
        (
            "torchvison:resnet18",
            {},
            "no module 'torchvison' to import, and no library of models of that name",
        ),
        ("resnet18", {}, "'resnet18' is no source; expected torchvision:NAME, timm:NAME"),
    ],
)
def test_names_that_do_not_exist__are_told_the_nearest(
    text: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_source(text, untrained=True, arguments=arguments)


def test_no_network__is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    refuse_sockets(monkeypatch)
    message = (
        "the weights of torchvision:resnet18 can't be downloaded (no network: [Errno -2] Name or service not "
        "known); give a file (--weights FILE), or ask for random ones (--untrained)"
    )
    with pytest.raises(UnreachableError, match=re.escape(message)):
        open_source(RESNET)


@pytest.mark.parametrize(
    ("text", "package", "extra"),
    [("timm:vit_small_patch16_224", "timm", "timm"), ("hf:some/encoder", "transformers", "hf")],
)
def test_packages_that_are_missing__are_named_with_their_extra(
    monkeypatch: pytest.MonkeyPatch, text: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"{text} needs the package {package}: pip install 'satstore[{extra}]'"
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_source(text, untrained=True)


def test_choices_that_exclude_each_other__are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--weights and --untrained exclude each other"):
        open_source(RESNET, weights=tmp_path / "w.pt", untrained=True)


def test_factory__returns_a_model_alone_or_with_its_own_preparation(
    own_code: str, photo: Image.Image
) -> None:
    alone = open_source(f"{own_code}:alone", untrained=True, arguments={"width": 6})
    assert alone.model(alone.collate([alone.prepare(photo)])).shape == (1, 6)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
    torch.testing.assert_close(alone.prepare(photo), pixels, rtol=0, atol=0)
    assert (alone.kind, alone.version) == ("image", f"{own_code} 2.5")

    prepared = open_source(f"{own_code}:prepared")
    assert prepared.kind == "any"
    assert prepared.prepare("four").unique().tolist() == [4]
    assert prepared.weights == f"as {own_code}:prepared returns them"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "alone",
            {},
            "returns a model alone; give its weights (--weights FILE), or say that they are random",
        ),
        ("prepared", {"width": 3}, "--set width=3: networks_of_my_own:prepared takes no width"),
        ("number", {}, "returns int; expected a torch.nn.Module, or (model, prepare)"),
        ("alon", {}, "networks_of_my_own has no function 'alon'; did you mean 'alone'?"),
    ],
)
def test_factories_that_can_not_be_used__are_refused(
    own_code: str, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_source(f"{own_code}:{name}", arguments=arguments)


def test_arguments__are_read_as_json_or_python_or_text() -> None:
    texts = ["a=0", "b=true", "c=[2, 3]", "d=None", "e=vit", "f=1e-3", "g=x=y", "h='0'", "i={1}", "j=1e999"]
    found = parse_arguments(texts)
    assert found == {
        "a": 0,
        "b": True,
        "c": [2, 3],
        "d": None,
        "e": "vit",
        "f": 1e-3,
        "g": "x=y",
        "h": "0",
    } | {"i": "{1}", "j": "1e999"}
    for wrong in (["a"], ["=3"], ["a-b=3"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match="expected key=value"):
            parse_arguments(wrong)


def test_run__is_a_source_whose_inputs_are_those_of_its_training(demo_run: Run, demo_logs: Path) -> None:
    source = find_source(demo_run.name, logs_dir=demo_logs)
    data = load_data(demo_run.config)
    split = data.eval
    grey = split.source.read(range(4))
    images = [Image.fromarray(image[0].numpy()) for image in grey]

    batch = source.collate([source.prepare(image) for image in images])

    torch.testing.assert_close(batch, split.__getitems__(range(4))[0], rtol=0, atol=0)
    assert_same_weights(source.model, load_model(demo_run, len(data.classes), torch.device("cpu")))
    assert source.weights == f"trained in {demo_run.name}"
    with pytest.raises(ConfigError, match="is a run, with weights of its own"):
        find_source(demo_run.name, untrained=True, logs_dir=demo_logs)


def test_run_of_files__prepares_images_as_its_dataset_decodes_them(
    tmp_path: Path, photo: Image.Image
) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    photo.save(tmp_path / "train" / "a" / "photo.png")
    transforms = (CenterCrop(32), Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.3)))
    split = read_split(tmp_path / "train", ["a"], 36, 40).transformed(transforms)
    found = PrepareAsTrained(transforms, (36, 40))(photo)
    torch.testing.assert_close(found, split[0][0], rtol=0, atol=0)


def test_run_that_satstore_did_not_build__is_no_source(tmp_path: Path) -> None:
    [config] = expand_grid({"model": "TheirNet", "dataset": "Recorded", "resolution": 8})
    run = make_run(tmp_path, "theirs", config)
    with pytest.raises(ConfigError, match="records a model of another program, as satstore can't build it"):
        open_run_source(run)


def test_record_of_a_source__says_all_that_made_its_inputs() -> None:
    source = open_source(RESNET, untrained=True, arguments={"num_classes": 5})
    record = describe_source(source, data="Digits", command="satstore record torchvision:resnet18")
    again = type(record).model_validate_json(record.model_dump_json())
    assert again == record
    assert record.weights_sha256 == digest_weights(source.model)
    assert record.arguments == {"num_classes": 5}
    assert record.recipe.startswith("ImageClassification( crop_size=[224]")


def test_unknown_names__are_errors_of_names() -> None:
    with pytest.raises(UnknownNameError):
        open_source("torchvision:nothing_like_it", untrained=True)
