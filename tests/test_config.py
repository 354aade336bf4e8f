"""Configs: grids against cases counted by hand, names, digests, and what is refused."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from satstore.config.experiment import NOT_TRAINING, ExperimentConfig
from satstore.config.grid import LIST_KEYS, find_config, list_configs, read_config
from satstore.config.latent_keys import LatentsKey
from satstore.config.schema import config_schema
from satstore.errors import ConfigError, NotFoundError, UnknownNameError

FIGURE1 = """{
    "model": ["vgg16"],
    "epoch": [30],
    "batch_size": 64,
    "dataset": ["Cifar10"],
    "resolution": [32],
    "optimizer": ["lrs60"],
    "metrics": ["Accuracy", "Top5Accuracy"],
    "logs_dir": "./logs/",
    "device": "cuda:0",
    "conv_method": ["channelwise"],
    "delta": [0.99],
    "data_parallel": false,
    "downsampling": [1]
}"""
"""As published."""

OTHER: dict[str, Any] = {
    "model": "vgg16",
    "epoch": 31,
    "batch_size": 64,
    "dataset": "MNIST",
    "resolution": 64,
    "optimizer": "sgd",
    "metrics": ["MCC"],
    "logs_dir": "elsewhere",
    "device": "cpu",
    "conv_method": "mean",
    "delta": 0.5,
    "data_parallel": True,
    "downsampling": 4,
    "downsampling_method": "nearest",
    "timeseries_method": "every",
    "max_samples": 1000,
    "log_interval": 3,
    "cache_dir": "/data",
    "seed": 1,
    "amp": False,
    "augment": False,
    "on_corrupt": "skip",
    "workers": 2,
    "ranks": 2,
    "stop_at_accuracy": 0.5,
    "layers": "features",
    "exclude_layers": "downsample",
    "modules": ["relu"],
    "calls": "all",
    "pooling": ["2"],
    "tokens": ["cls"],
    "latent_epochs": [0, 5],
    "stages": ["train"],
    "plugins": ["json"],
    "note": "a note",
}
"""For every key a value that is not its default."""

TRAINING = {
    "model", "epoch", "batch_size", "dataset", "resolution", "optimizer", "metrics", "conv_method",
    "data_parallel", "downsampling", "seed", "amp", "augment", "on_corrupt", "stop_at_accuracy",
    "layers", "exclude_layers", "modules", "calls", "downsampling_method", "timeseries_method", "max_samples",
    "log_interval",
}  # fmt: skip
"""What weights, metrics or spectra depend on."""

NOT = {
    "logs_dir",
    "device",
    "delta",
    "cache_dir",
    "workers",
    "ranks",
    "pooling",
    "tokens",
    "latent_epochs",
    "stages",
    "plugins",
    "note",
}


def write(folder: Path, content: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# The grid


def test_expand__lists_multiply_out_in_the_order_of_the_keys() -> None:
    content = {
        "model": ["vgg16", "resnet18"],
        "resolution": [32, 64, 128],
        "optimizer": ["lrs60", "adam"],
        "metrics": ["Accuracy", "MCC"],
    }
    found = [(c.model, c.resolution, c.optimizer) for c in read_config(content)]
    assert found == [
        ("vgg16", 32, "lrs60"),
        ("vgg16", 32, "adam"),
        ("vgg16", 64, "lrs60"),
        ("vgg16", 64, "adam"),
        ("vgg16", 128, "lrs60"),
        ("vgg16", 128, "adam"),
        ("resnet18", 32, "lrs60"),
        ("resnet18", 32, "adam"),
        ("resnet18", 64, "lrs60"),
        ("resnet18", 64, "adam"),
        ("resnet18", 128, "lrs60"),
        ("resnet18", 128, "adam"),
    ]
    assert {c.metrics for c in read_config(content)} == {("Accuracy", "MCC")}


def test_expand__the_order_of_the_keys_is_the_order_of_the_grid() -> None:
    one = read_config({"resolution": [32, 64], "model": ["vgg16", "resnet18"]})
    assert [(c.model, c.resolution) for c in one] == [
        ("vgg16", 32),
        ("resnet18", 32),
        ("vgg16", 64),
        ("resnet18", 64),
    ]


def test_expand__equal_points_come_once() -> None:
    found = read_config({"model": ["vgg16", "resnet18", "vgg16"], "delta": [0.99, 0.990]})
    assert [c.model for c in found] == ["vgg16", "resnet18"]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.lists(st.sampled_from(["vgg11", "vgg16", "resnet18", "resnet34"]), min_size=1),
            "resolution": st.lists(st.integers(1, 512), min_size=1, max_size=4),
            "seed": st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
            "delta": st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=3),
            "downsampling": st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=3),
            "augment": st.booleans(),
            "metrics": st.lists(st.sampled_from(["Accuracy", "MCC"])),
            "note": st.text(),
        },
    )
)
def test_expand__has_a_point_for_each_choice(content: dict[str, Any]) -> None:
    """As many points as the product of the numbers of different values; each agrees with the config."""
    found = read_config(content)
    lists = {k: v for k, v in content.items() if k != "metrics" and isinstance(v, list)}
    assert len(found) == math.prod(len(set(values)) for values in lists.values())
    assert len(set(found)) == len(found)
    for config in found:
        for key, value in content.items():
            mine = getattr(config, key)
            if key == "metrics":
                assert mine == tuple(value)
            else:
                assert mine in value if isinstance(value, list) else mine == value


def test_expand__changes_nothing_of_what_it_is_given() -> None:
    content = {"model": ["vgg16", "resnet18"], "pooling": [4, "full"], "plugins": []}
    before = json.dumps(content)
    read_config(content)
    assert json.dumps(content) == before


# Defaults and published configs


def test_read_config__defaults_are_those_documented() -> None:
    [config] = read_config({})
    assert config.model == "resnet18"
    assert config.epoch == 30
    assert config.batch_size == 128
    assert config.dataset == "Cifar10"
    assert config.resolution == 32
    assert config.optimizer == "adam"
    assert config.metrics == ("Accuracy", "Top5Accuracy")
    assert config.logs_dir == "./logs/"
    assert config.device is None
    assert config.conv_method == "channelwise"
    assert config.delta == 0.99
    assert config.data_parallel is False
    assert config.downsampling is None
    assert config.cache_dir is None
    assert config == ExperimentConfig()


def test_read_config__published_configs_run_unchanged(tmp_path: Path) -> None:
    [config] = read_config(write(tmp_path, FIGURE1))
    assert config.model == "vgg16"
    assert config.epoch == 30
    assert config.batch_size == 64
    assert config.optimizer == "lrs60"
    assert config.downsampling == 1
    assert config.device == "cuda:0"
    assert config.logs_dir == "./logs/"


def test_read_config__accepts_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + FIGURE1.encode())
    assert read_config(path) == read_config(json.loads(FIGURE1))


def test_read_config__takes_poolings_as_numbers_and_as_text() -> None:
    [config] = read_config({"pooling": [4, "2", "full"], "tokens": [5, "cls", "5"]})
    assert config.tokens == ("5", "cls")
    assert read_config(config.model_dump(mode="json")) == [config]
    assert read_config(ExperimentConfig().model_dump(mode="json")) == [ExperimentConfig()]
    assert config.pooling == ("4", "2", "full")
    assert [LatentsKey(p).group for p in config.pooling] == ["pool4", "pool2", "full"]


def test_data_dir__is_the_cache_dir_else_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_DATADIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ExperimentConfig().data_dir == Path("tmp")
    monkeypatch.setenv("TORCH_DATADIR", "/from/environment")
    assert ExperimentConfig().data_dir == Path("/from/environment")
    assert ExperimentConfig(cache_dir="/from/config").data_dir == Path("/from/config")
    assert ExperimentConfig(cache_dir="~/data").data_dir == tmp_path / "data"
    monkeypatch.setenv("TORCH_DATADIR", "")
    assert ExperimentConfig().data_dir == Path("tmp")


def test_read_config__finds_shipped_configs_by_name() -> None:
    assert find_config("demo").name == "demo.json"
    assert find_config("demo.json") == find_config("demo")
    assert read_config("demo") == read_config(find_config("demo"))
    [config] = read_config("demo")
    assert config.dataset == "Digits"


@pytest.mark.parametrize("name", list_configs())
def test_shipped_configs__are_valid(name: str) -> None:
    assert read_config(name)


def test_find_config__prefers_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"model": "vgg16"}, "demo")
    assert find_config("demo") == Path("demo")


# Names and digests


def test_experiment__is_readable_and_ends_with_six_digits_of_the_digest() -> None:
    [config] = read_config(json.loads(FIGURE1))
    assert re.fullmatch(r"vgg16-Cifar10-r32-bs64-e30-lrs60-[0-9a-f]{6}", config.experiment)
    assert config.experiment.endswith(config.digest[:6])
    assert re.fullmatch("[0-9a-f]{64}", config.digest)


def test_experiment__of_a_path_is_one_plain_folder_name() -> None:
    config = ExperimentConfig(dataset="ImageFolder:/mnt/data/" + "ünï/" * 60 + "cats & dogs")
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", config.experiment)
    assert "cats_dogs-r32" in config.experiment
    other = ExperimentConfig(dataset="ImageFolder:/elsewhere/" + "ünï/" * 60 + "cats & dogs")
    assert other.experiment != config.experiment


def test_digest__every_key_is_in_one_class_or_the_other() -> None:
    assert set(ExperimentConfig.model_fields) == TRAINING | NOT == set(OTHER)
    assert not TRAINING & NOT
    assert NOT_TRAINING == NOT


@pytest.mark.parametrize("key", sorted(TRAINING | NOT))
def test_digest__is_over_what_training_depends_on(key: str) -> None:
    default, other = ExperimentConfig(), ExperimentConfig(**{key: OTHER[key]})
    assert getattr(other, key) != getattr(default, key)
    assert (other.digest != default.digest) == (key in TRAINING)
    assert (other.experiment != default.experiment) == (key in TRAINING)


def test_digest__depends_on_neither_order_nor_spelling() -> None:
    one = read_config({"epoch": 5, "model": "vgg16", "stop_at_accuracy": 1})
    two = read_config({"stop_at_accuracy": 1.0, "model": ["vgg16"], "epoch": [5]})
    assert one[0].digest == two[0].digest


@pytest.mark.parametrize("content", [{}, OTHER | {"data_parallel": False}], ids=["defaults", "others"])
def test_config__its_own_json_is_a_config_that_gives_it_back(tmp_path: Path, content: dict[str, Any]) -> None:
    [config] = read_config(content)
    for text in (config.model_dump_json(), json.dumps(config.model_dump(mode="json"), indent=1)):
        assert read_config(write(tmp_path, text)) == [config]


def test_config__is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ExperimentConfig().model = "vgg16"  # type: ignore[misc]


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "{path} is not JSON: Expecting value at line 1, column 1"),
        (
            '{"model": "vgg16",\n "epoch" 3}',
            "{path} is not JSON: Expecting ':' delimiter at line 2, column 10",
        ),
        ("[]", "{path} holds a JSON list; expected an object of config keys"),
        ('"demo"', "{path} holds a JSON str; expected an object of config keys"),
        ("null", "{path} holds a JSON NoneType; expected an object of config keys"),
        ({"modle": "vgg16"}, "{path}: unknown config key 'modle'; did you mean 'model'?"),
        ({"model": "resnet81"}, "{path}: no model named 'resnet81'; did you mean 'resnet18'?"),
        ({"dataset": ["Cifar10", "cifar11"]}, "{path}: no dataset named 'cifar11'; did you mean 'Cifar10'?"),
        ({"optimizer": "adma"}, "{path}: no optimizer named 'adma'; did you mean 'adam'?"),
        ({"metrics": ["Acuracy"]}, "{path}: no metric named 'Acuracy'; did you mean 'Accuracy'?"),
        ({"stages": ["trian"]}, "{path}: no stage named 'trian'; did you mean 'train'?"),
        ({"metrics": "Accuracy"}, "{path}: 'metrics' takes a list, found 'Accuracy'"),
        ({"pooling": 4}, "{path}: 'pooling' takes a list, found 4"),
        ({"epoch": []}, "{path}: 'epoch' is an empty list; give one value at least"),
        ({"epoch": 0}, "{path}: 'epoch': input should be greater than or equal to 1, found 0"),
        ({"epoch": [1, -1]}, "{path}: 'epoch': input should be greater than or equal to 1, found -1"),
        ({"resolution": "big"}, "{path}: 'resolution': input should be a valid integer, *, found 'big'"),
        ({"delta": 1.5}, "{path}: 'delta': input should be less than or equal to 1, found 1.5"),
        ({"delta": math.nan}, "{path}: 'delta': *, found nan"),
        ({"conv_method": "chanelwise"}, "{path}: 'conv_method': *'channelwise', 'mean', *found 'chanelwise'"),
        ({"model": [["vgg16"]]}, "{path}: 'model': *, found ['vgg16']"),
        ({"pooling": ["0"]}, "{path}: 'pooling.0': *, found '0'*"),
        ({"tokens": "cls"}, "{path}: 'tokens' takes a list, found 'cls'"),
        ({"tokens": ["first"]}, "{path}: 'tokens.0': expected cls, mean, last, all, grid, or a number*"),
        ({"pooling": []}, "{path}: 'pooling' is an empty list; *"),
        ({"ranks": 0}, "{path}: 'ranks': *, found 0"),
        (
            {"plugins": ["no_such_module"]},
            "{path}: plugin 'no_such_module' can't be imported: ModuleNotFoundError: *",
        ),
        (
            {"epoch": 0, "batch_size": 0},
            "{path}: 'epoch': *, found 0; 'batch_size': *, found 0",
        ),
    ],
)
def test_read_config__refuses_in_one_line_that_names_file_key_and_value(
    tmp_path: Path, content: object, message: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    pattern = re.escape(message.replace("{path}", str(path))).replace(r"\*", ".*")
    assert re.fullmatch(pattern, str(caught.value)), str(caught.value)
    assert isinstance(caught.value, UnknownNameError) == (" named '" in message)


def test_read_config__refuses_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"note": "\xff\xfe"}')
    with pytest.raises(ConfigError, match=re.escape(f"{path} can't be read: ")):
        read_config(path)


@pytest.mark.parametrize("key", sorted(LIST_KEYS - {"modules"}))
def test_read_config__list_keys_take_one_list(key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' takes a list, found 'x'"):
        read_config({key: "x"})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("demmo", "did you mean 'demo'?"),
        ("no/such/folder/config.json", "and no shipped config of that name"),
        ("x" * 300, "and no shipped config of that name"),
        (".", "and no shipped config of that name"),
    ],
)
def test_read_config__names_the_file_that_is_missing(name: str, hint: str) -> None:
    with pytest.raises(NotFoundError, match=re.escape(f"no config file {name!r}")) as caught:
        read_config(name)
    assert hint in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_digest__stays_what_it_was() -> None:
    """An experiment's folder has to be found again by later versions, whatever keys they add."""
    assert ExperimentConfig().digest.startswith("44136f")
    figure1 = ExperimentConfig(model="vgg16", batch_size=64, epoch=30, optimizer="lrs60", downsampling=1)
    assert figure1.experiment == "vgg16-Cifar10-r32-bs64-e30-lrs60-6cf387"


# The schema for editors


def test_schema__accepts_every_shipped_config_and_refuses_what_reading_does() -> None:
    schema = Draft202012Validator(config_schema())
    Draft202012Validator.check_schema(config_schema())
    for path in list_configs().values():
        assert list(schema.iter_errors(json.loads(path.read_text()))) == [], path
    assert schema.is_valid({"dataset": "ImageFolder:/data", "plugins": ["mine"], "model": "of_a_plugin"})
    assert schema.is_valid(
        {"pooling": [4, "full"], "epoch": [10, 20], "downsampling": None, "$schema": "x.json"}
    )
    for wrong in (
        {"modle": "vgg16"},
        {"epoch": 0},
        {"epoch": []},
        {"pooling": "4"},
        {"delta": 2},
        {"amp": "no"},
    ):
        assert not schema.is_valid(wrong), wrong


def test_schema__documents_every_key_and_suggests_names() -> None:
    properties = config_schema()["properties"]
    assert set(properties) == {*ExperimentConfig.model_fields, "$schema"}
    assert "resnet18" in json.dumps(properties["model"])
    assert properties["delta"]["default"] == 0.99


def test_expand__passes_over_the_schema_that_an_editor_goes_by() -> None:
    assert read_config({"$schema": "x.json", "epoch": 3}) == read_config({"epoch": 3})
