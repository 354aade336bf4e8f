"""The shared check of every registered model, and the table of names itself."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kinds
import pytest
import torch
import torchvision
from command_line import SMALL
from kinds import in_tiers
from phd_lab_counts import COUNTS
from torch import nn

from satstore.config.grid import read_config
from satstore.errors import ConfigError, UnknownNameError
from satstore.models import ROWS
from satstore.models.build import build_model, resolution_step, smallest_resolution, takes_resolution
from satstore.models.catalogue import ALIASES
from satstore.models.details import inspect_model
from satstore.models.plan import plan_model
from satstore.registry import MODELS
from satstore.stages.pipeline import run_experiments

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
vgg13PCA vgg13PCA_centered vgg13PCA98 vgg13PCA97 vgg13PCA96 vgg13PCA95 vgg13PCA94 vgg13PCA93 vgg13PCA92
vgg13PCA91 vgg13PCA90 vgg13PCA80 vgg13PCA70 vgg13PCA60 vgg13PCA50 vgg13PCA40 vgg13PCA30 vgg13PCA20
alexnet squeezenet10 squeezenet11 densenet121 densenet161 densenet169 densenet201 mobilenetV2
mnasnet05 mnasnet075 mnasnet10 mnasnet13 inceptionv3 efficentnet_b0 efficientnet_b0
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


TORCHVISIONS = [row for row in ROWS if "torchvision" in str(row.target) and "name" in row.arguments]
OWN = [row.name for row in ROWS if row not in TORCHVISIONS]

# Those whose passes with values take seconds or gigabytes are run without.
LIGHT = """
alexnet efficientnet_b0 googlenet mnasnet0_5 mnasnet1_3 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large
regnet_x_400mf regnet_y_800mf shufflenet_v2_x0_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 densenet121
inception_v3 swin_t convnext_tiny
""".split()  # noqa: SIM905

NARROW = [
    name for name in OWN if name.rpartition("_")[2] in ("S", "XS", "XXS", "XXXS") and "_PC_" not in name
]
"""Passes of these with values cost less than others' without."""

QUICK = """
vgg5 vgg6 vgg7 vgg13_thin vgg13_strides vgg13PCA vgg13PCA_centered
resnet18_dspl2 resnet18_dspl3 resnet18_late resnet18_thin resnet18_nr3_123 resnet18nodownsample
resnet18highway resnet18_bottleneck resnet18noskip_dp00_dspl2
shufflenet_v2_x0_5 squeezenet1_1 regnet_x_400mf mnasnet0_5 efficientnet_b0 mobilenet_v3_small
""".split()  # noqa: SIM905
"""Of other kinds those whose passes with values are in the quick tier."""

QUICK_BLANK = """
alexnet convnext_tiny densenet121 googlenet resnext50_32x4d swin_t torchvision_vgg11 vgg11_bn vit_b_32
wide_resnet50_2
""".split()  # noqa: SIM905
"""Of other families, whose passes with values take long, those that are run without in the quick tier."""

BLANK = [row.name for row in TORCHVISIONS if row.name not in LIGHT or row.name in QUICK_BLANK]


WIDE = [name for name in OWN if COUNTS.get(name, 0) > 3e7]
"""Passes of these with values take gigabytes."""


def train_once(name: str, resolution: int) -> None:
    """Run a model forward and backward on two images, and check logits and gradients."""
    model = build_model(name, 3, resolution)
    assert isinstance(model, nn.Module)
    logits = model(torch.randn(2, 3, resolution, resolution))
    assert logits.shape == (2, 3)
    assert logits.is_meta or torch.isfinite(logits).all()
    logits.square().sum().backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    for gradient in gradients.values():
        assert gradient is not None
        assert gradient.is_meta or torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", in_tiers(OWN, [*NARROW, *QUICK]))
def test_model__maps_images_to_logits_and_trains_every_parameter(name: str) -> None:
    with torch.device("meta" if name in WIDE else "cpu"):
        train_once(name, 32)


@pytest.mark.parametrize("name", in_tiers(LIGHT, QUICK))
def test_torchvisions_model__trains_every_parameter_with_values(name: str) -> None:
    smallest = smallest_resolution(name)
    assert smallest is not None
    train_once(name, max(32, smallest))


@pytest.mark.parametrize("name", in_tiers(BLANK, QUICK_BLANK))
def test_torchvisions_model__trains_every_parameter(name: str) -> None:
    step = resolution_step(name)
    with torch.device("meta"):
        train_once(name, -(-75 // step) * step)


def reached(logits: torch.Tensor) -> set[torch.Tensor]:
    """Return what a backward pass from logits would reach, without the pass."""
    found, seen, ahead = set(), set(), [logits.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.update([node.variable] if hasattr(node, "variable") else [])
        ahead.extend(following for following, _ in node.next_functions)
    return found


@pytest.mark.parametrize("name", in_tiers(OWN, [*NARROW, *QUICK, *kinds.OWN]))
def test_model__takes_other_resolutions_and_its_logits_depend_on_every_parameter(name: str) -> None:
    device = "cpu" if name in NARROW else "meta"
    with torch.device(device):
        model = MODELS[name]()
    logits = model(torch.ones(2, 3, 33, 47, device=device))
    assert logits.shape == (2, 1000)
    used = reached(logits)
    assert [key for key, parameter in model.named_parameters() if parameter not in used] == []


@pytest.mark.parametrize("broken", [False, True])
def test_reached__is_what_a_backward_pass_gives_gradients(broken: bool) -> None:
    model = build_model("resnet18_XXS", 3, 32)
    logits = model(torch.randn(2, 3, 32, 32))
    if broken:
        logits = model.fc(logits.new_ones(2, 64))
    logits.sum().backward()
    used = reached(logits)
    trained = {parameter for parameter in model.parameters() if parameter.grad is not None}
    assert used == trained
    assert broken == (len(trained) < len(list(model.parameters())))


def test_torchvisions_models__are_all_there() -> None:
    """Under their own names, but for the plain VGGs, whose names the paper's have taken."""
    theirs = set(torchvision.models.list_models(module=torchvision.models))
    assert theirs <= set(MODELS)
    named = {row.arguments["name"] for row in TORCHVISIONS}
    assert theirs - named == {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}, "satstore's own"


@pytest.mark.parametrize("known_as", in_tiers([row.name for row in TORCHVISIONS], kinds.TORCHVISIONS))
def test_torchvisions_model__has_the_published_parameters_under_torchvisions_names(known_as: str) -> None:
    [row] = [row for row in TORCHVISIONS if row.name == known_as]
    name = row.arguments["name"]
    weights = min(torchvision.models.get_model_weights(name), key=lambda w: w.meta["min_size"])
    published = weights.meta["num_params"]
    with torch.device("meta"):
        model = MODELS[row.name]()
    if name == "inception_v3":  # published with the auxiliary classifier
        with torch.device("meta"):
            whole = torchvision.models.inception_v3(init_weights=False)
        published -= sum(p.numel() for p in whole.AuxLogits.parameters())
        assert set(model.state_dict()) == {k for k in whole.state_dict() if not k.startswith("AuxLogits")}
    assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize(
    ("name", "resolution", "message"),
    [
        ("alexnet", 62, "alexnet can't take 62 px: the smallest resolution that it takes is 63 px"),
        pytest.param(
            *(
                "inceptionv3",
                32,
                "inceptionv3 can't take 32 px: the smallest resolution that it takes is 75 px",
            ),
            marks=pytest.mark.long,
        ),
        ("vgg16", 31, "vgg16 can't take 31 px: the smallest resolution that it takes is 32 px"),
        ("vit_b_16", 33, "vit_b_16 can't take 33 px: it takes multiples of 16; the nearest are 32 or 48 px"),
        ("maxvit_t", 32, "maxvit_t can't take 32 px: it takes multiples of 224; the nearest are 224 px"),
    ],
)
def test_models__say_which_resolution_they_take(name: str, resolution: int, message: str) -> None:
    [config] = read_config({"model": name, "resolution": resolution, "dataset": "Digits"})
    with pytest.raises(ConfigError) as caught:
        plan_model(config, 10)
    assert str(caught.value) == message


def test_train__refuses_a_resolution_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^vgg11 can't take 16 px: the smallest resolution that it takes is 32"
    ):
        run_experiments({**SMALL, "model": "vgg11", "resolution": 16}, "res", ["train"], logs_dir=tmp_path)


def test_smallest_resolution__is_the_smallest() -> None:
    for name in ("vgg5", "vgg16", "resnet18", "squeezenet1_1", "vit_b_32"):
        found, step = smallest_resolution(name), resolution_step(name)
        assert found is not None
        assert takes_resolution(name, found)
        assert found == step or not takes_resolution(name, found - step)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet18", 18),
        ("resnet50", 50),
        pytest.param("densenet121", 121, marks=pytest.mark.long),
        ("vgg16", 15),
        ("torchvision_vgg16", 16),
    ],
)
def test_details__depth_is_the_number_in_the_name(name: str, depth: int) -> None:
    """VGGs here have two Linear layers, and not three."""
    assert inspect_model(name).depth == depth


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
