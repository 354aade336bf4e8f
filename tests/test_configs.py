"""The shipped configs: the paper's, by section, against its table of figures."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import satstore
from small_data import small_data, write_folder

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import list_configs, read_config, read_json_config
from satstore.models.build import build_model
from satstore.registry import STAGES
from satstore.runs.run import Run
from satstore.training.session_data import load_data

C10, SRP = "Cifar10", "Cifar10SmallRandomPositioning"
FOUR = "iNaturalist ImageNet ResizediNaturalist ResizedImageNet"

# name: (models, datasets, resolutions, epochs, stages: T train with saturation, P 4 x 4 probes, R receptive
# field, X pixelwise)
FIGURES = {
    "section2/figure1": ("vgg16", C10, "32", 30, "T P"),
    "section3.1/table1": ("resnet50", FOUR, "32 224", 60, "T"),
    "section3.1/table1_2": ("vgg16 resnet18 efficentnet_b0", FOUR, "32 224", 30, "T"),
    "section3.2/figure2": ("resnet18", C10, "32 224 1024", 30, "T P"),
    "section3.3/figure3": ("vgg16", f"{C10} {SRP}", "32 160", 30, "T P"),
    "section3.4/figure4": ("vgg11 vgg13 vgg16 vgg19", C10, "32", 30, "T P R"),
    "section3.4/figure5": ("resnet18noskip vgg19_d3", C10, "32", 30, "T P R"),
    "section3.4/figure6": ("vgg16", C10, "32", 30, "T X"),
    "section3.5/figure7": ("resnet18 resnet34", C10, "32", 30, "T P R"),
    "section3.5/figure8": ("ResNet18_PC ResNet34_PC", C10, "32", 30, "T P R"),
    "appendix/figure9": ("vgg16", C10, "32 160 1024", 30, "T P"),
    "appendix/figure10": ("resnet18", C10, "64 1024", 30, "T P"),
    "appendix/figure11": ("resnet50", C10, "32 160 1024", 60, "T P"),
    "appendix/figure12": ("resnet18", f"{C10} {SRP}", "32 160", 30, "T P"),
    "appendix/figure13": ("resnet18", "MNIST MNISTSmallRandomPositioning", "32 160", 30, "T P"),
    "appendix/figure14": ("resnet50", f"{C10} {SRP}", "32 160", 60, "T P"),
    "appendix/figure15": ("vgg11 vgg13 vgg16", "TinyImageNet", "32", 30, "T P R"),
    "appendix/figure16": ("vgg11 vgg13 vgg16 vgg19", "MNIST", "32", 30, "T P R"),
    "appendix/figure17": ("vgg16", C10, "32", 30, "T P X"),
    "appendix/figure18": ("resnet18", C10, "32", 30, "T P X"),
    "appendix/figure19": ("ResNet18_PC", C10, "32", 30, "T P X R"),
}

PUBLISHED = {
    "batch_size": 64,
    "optimizer": "lrs60",
    "metrics": ("Accuracy", "Top5Accuracy"),
    "conv_method": "channelwise",
    "delta": 0.99,
    "data_parallel": False,
    "downsampling": 1,
}
"""What every one of them has."""


def expected_stages(letters: str) -> set[str]:
    stages = {"train", "saturation"}
    if set(letters) & set("PX"):
        stages |= {"extract", "probe"}
    return stages | ({"receptive-field"} if "R" in letters else set())


def test_configs__are_those_of_the_table_and_the_demo() -> None:
    assert set(list_configs()) == {*FIGURES, "demo"}


@pytest.mark.parametrize("name", FIGURES)
def test_config__is_what_the_table_says(name: str) -> None:
    models, datasets, resolutions, epochs, letters = FIGURES[name]
    axes = models.split(), datasets.split(), [int(r) for r in resolutions.split()]
    configs = read_config(name)
    assert len(configs) == math.prod(map(len, axes))
    found = ({c.model for c in configs}, {c.dataset for c in configs}, {c.resolution for c in configs})
    assert found == tuple(map(set, axes))
    for config in configs:
        assert config.epoch == epochs
        assert {key: getattr(config, key) for key in PUBLISHED} == PUBLISHED
        assert set(config.stages) == expected_stages(letters)
        assert [stage for stage in STAGES if stage in config.stages] == list(config.stages), "in order"
        if "P" in letters or "X" in letters:
            pooled = "2" if config.dataset == "TinyImageNet" else "4"
            assert set(config.pooling) == {
                *([pooled] if "P" in letters else []),
                *(["pixelwise"] * ("X" in letters)),
            }


@pytest.mark.parametrize("name", FIGURES)
def test_config__keeps_the_published_keys_and_says_what_it_shows(name: str) -> None:
    content = read_json_config(list_configs()[name])
    assert {
        "model",
        "epoch",
        "batch_size",
        "dataset",
        "resolution",
        "optimizer",
        "metrics",
        "logs_dir",
    } <= set(content)
    assert content["note"]
    assert set(content) <= set(ExperimentConfig.model_fields)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_data(tmp_path_factory.mktemp("data")) as folder:
        yield folder


def product_of(*columns: int) -> list[tuple[str, ...]]:
    """Return the settings that the table has in some of its columns, each once."""
    rows = [[column.split() for column in row[:3]] for row in FIGURES.values()]
    found = (settings for row in rows for settings in itertools.product(*(row[n] for n in columns)))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("dataset", "resolution"), product_of(1, 2))
def test_dataset__is_built_at_the_resolution(dataset: str, resolution: str, data_dir: Path) -> None:
    size = int(resolution)
    data = load_data(ExperimentConfig(dataset=dataset, resolution=size, cache_dir=str(data_dir)))
    images, _ = data.train.__getitems__([0, 1])
    assert images.shape == (2, 3, size, size)
    assert data.eval[0][0].shape == images.shape[1:]
    assert len(data.classes) > 1


@pytest.mark.parametrize(("model", "resolution"), product_of(0, 2))
def test_model__is_built_at_the_resolution(model: str, resolution: str) -> None:
    with torch.device("meta"):
        logits = build_model(model, 7, int(resolution))(torch.empty(2, 3, int(resolution), int(resolution)))
    assert logits.shape == (2, 7)


@pytest.mark.long
@pytest.mark.parametrize("name", FIGURES)
def test_config__builds_each_model_and_dataset(name: str, data_dir: Path) -> None:
    for config in read_config(name):
        data = load_data(config.model_copy(update={"cache_dir": str(data_dir)}))
        images, _ = data.train.__getitems__([0, 1])
        assert images.shape == (2, 3, config.resolution, config.resolution)
        assert data.eval[0][0].shape == images.shape[1:]
        with torch.device("meta"):
            model = build_model(config.model, len(data.classes), config.resolution)
            logits = model(torch.empty(images.shape))
        assert logits.shape == (2, len(data.classes))


def run_pixelwise(folder: Path, sizes: list[int], **changes: object) -> tuple[pd.DataFrame, list[str]]:
    """Run the config of the pixelwise figure, but for changes, and check that each place has a probe.

    Parameters
    ----------
    sizes
        The height and width of what each conv puts out.

    Returns
    -------
    table, convs
        The probes, and the convs' names.
    """
    content = read_json_config(list_configs()["section3.4/figure6"]) | {"epoch": 1, **changes}
    (folder / "config.json").write_text(json.dumps(content))
    words = ["run", "--config", "config.json", "--run-id", "res", "--device", "cpu", "--max-iter", "30"]
    result = satstore(*words, cwd=folder)
    assert result.returncode == 0, result.stderr
    [manifest] = folder.glob("logs/res/*/manifest.json")
    run = Run(manifest.parent)
    table = run.table("probe-pixelwise")
    convs = [layer for layer in run.layers if layer.startswith("features")]
    assert table.groupby("layer", sort=False).size().to_dict() == {
        layer: size**2 for layer, size in zip(convs, sizes, strict=True)
    }
    assert table["eval_accuracy"].between(0, 1).all()
    return table, convs


def test_pixelwise_config__runs_end_to_end_on_a_few_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "insects")
    images = {"dataset": "ImageFolder:insects", "cache_dir": ".", "workers": 0}
    run_pixelwise(tmp_path, [8, 4, 2], **images, model="vgg7_S", resolution=8)


@pytest.mark.long
def test_pixelwise_config__runs_end_to_end_on_digits(tmp_path: Path) -> None:
    sizes = [32] * 2 + [16] * 2 + [8] * 3 + [4] * 3 + [2] * 3
    table, convs = run_pixelwise(tmp_path, sizes, dataset="Digits", model="vgg16_XXXS")
    # Digits lie in the middle: what a first conv sees there says more than what it sees in a corner.
    first = table[table["layer"] == convs[0]].set_index(["y", "x"])["eval_accuracy"]
    assert first[16, 16] > first[0, 0] + 0.1
