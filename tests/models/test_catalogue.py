"""The shared check of every registered model, and the table of names itself."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from satstore.errors import UnknownNameError
from satstore.models import ROWS
from satstore.models.catalogue import ALIASES
from satstore.registry import MODELS

NAMES = set(
    """
vgg5 vgg6 vgg7 vgg8 vgg9 vgg11 vgg13 vgg16 vgg19
vgg5_S vgg6_S vgg7_S vgg8_S vgg8_XS vgg9_S vgg9_XS vgg9_XXS
vgg11_S vgg11_XS vgg11_XXS vgg11_XXXS vgg13_S vgg13_XS vgg13_XXS vgg13_XXXS
vgg16_S vgg16_XS vgg16_XXS vgg16_XXXS vgg19_S vgg19_XS vgg19_XXS vgg19_XXXS
vgg11_d2 vgg11_d3 vgg13_d2 vgg13_d3 vgg13_d4 vgg16_d1 vgg16_d2 vgg16_d3 vgg16_d4 vgg19_d2 vgg19_d3
vgg16_5 vgg16_7 vgg16_9 vgg16_11
vgg13_early vgg13_late vgg13_wide vgg13_thin vgg13_strides vgg16_p vgg16_p2
vgg16AlteredPooling1 vgg16AlteredPooling2 vgg16AlteredPooling3 vgg16AlteredPooling4 vgg16AlteredPooling5
vgg16AlteredPooling6 vgg16_ap7 vgg19p0 vgg19p1 vgg19p2
vgg19r0 vgg19r1 vgg19r2 vgg19r2d3 vgg19r3 vgg19r4 vggresnet
resnet18 resnet34 resnet50 resnet101 resnet152
resnet18_S resnet18_XS resnet18_XXS resnet34_S resnet34_XS resnet34_XXS
resnet18noskip resnet34noskip resnet50noskip
resnet18_ep0 resnet18_ep01 resnet18_ep00 resnet18_noskip_ep0 resnet18_noskip_ep01 resnet18_noskip_ep00
resnet18_dspl2 resnet18_dspl3 resnet18_dspl5 resnet18_dspl6 resnet18_dspl8
resnet18_early resnet18_late resnet18_thin resnet18_wide
ResNet18_PC ResNet34_PC ResNet50_PC
resnet18_nr1_1 resnet18_nr1_2 resnet18_nr1_3 resnet18_nr1_4
resnet18_nr2_12 resnet18_nr2_13 resnet18_nr2_14 resnet18_nr2_23 resnet18_nr2_24 resnet18_nr2_34
resnet18_nr3_123 resnet18_nr3_124 resnet18_nr3_134 resnet18_nr3_234 resnet34_nr1 resnet34_nr2
resnet18highway resnet18nodownsample resnet18_bottleneck resnet18_dp00_dspl2 resnet18noskip_dp00_dspl2
""".split()  # noqa: SIM905 - a list of words is easier to read against the paper's table
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Maps this small gain nothing from threads, and lose much to waiting for them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_catalogue__has_every_name_of_the_paper_once() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert set(names) >= NAMES


def test_catalogue__says_of_every_row_what_it_is() -> None:
    for row in ROWS:
        assert row.family, row.name
        assert row.description, row.name
        assert "\n" not in row.description, row.name


def test_catalogue__aliases_build_what_they_stand_for() -> None:
    rows = {row.name: row for row in ROWS}
    for alias, name in ALIASES.items():
        assert (rows[alias].target, rows[alias].arguments) == (rows[name].target, rows[name].arguments)


@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_model__maps_images_to_logits_and_trains_every_parameter(name: str) -> None:
    model = MODELS[name](num_classes=3)
    assert isinstance(model, nn.Module)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == []


@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_model__takes_other_resolutions(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
        assert model(torch.empty(2, 3, 33, 47)).shape == (2, 1000)


def test_model__refuses_unknown_arguments() -> None:
    with pytest.raises(TypeError, match="input_size"):
        MODELS["vgg11"](num_classes=10, input_size=32)


def test_models__names_are_listed_without_torch() -> None:
    code = (
        "import sys; from satstore.registry import MODELS; names = list(MODELS); rows = MODELS.entries();"
        "assert 'vgg16' in names and 'resnet18' in MODELS and len(rows) == len(names);"
        "print([name for name in ('torch', 'torchvision', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_models__suggest_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError) as caught:
        MODELS["resnet81"]
    assert str(caught.value) == "no model named 'resnet81'; did you mean 'resnet18'?"
