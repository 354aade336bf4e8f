"""Names of experiments that are shown side by side."""

import itertools

import pytest

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import read_config
from satstore.config.naming import name_experiments

GRID = {"model": "vgg11", "dataset": "Digits"}


def config(**changes: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate({**GRID, **changes})


def test_names__of_one_or_of_other_models_are_titles() -> None:
    assert name_experiments([config(seed=7)]) == ["vgg11 on Digits at 32 px"]
    both = [config(seed=1), config(model="vgg13", resolution=64, seed=2)]
    assert name_experiments(both) == ["vgg11 on Digits at 32 px", "vgg13 on Digits at 64 px"]


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("seed", [0, 1], ["seed 0", "seed 1"]),
        ("optimizer", ["adam", "sgd"], ["adam", "sgd"]),
        ("epoch", [1, 30], ["1 epoch", "30 epochs"]),
        ("batch_size", [64, 128], ["batch size 64", "batch size 128"]),
        ("augment", [True, False], ["augment", "no augment"]),
        ("stop_at_accuracy", [None, 0.95], ["stop at accuracy none", "stop at accuracy 0.95"]),
        ("conv_method", ["mean", "max"], ["conv method mean", "conv method max"]),
    ],
)
def test_names__say_what_differs(key: str, values: list[object], said: list[str]) -> None:
    names = name_experiments(read_config({**GRID, key: values}))
    assert names == [f"vgg11 on Digits at 32 px, {text}" for text in said]


def test_names__of_a_grid_say_all_that_differs_in_it() -> None:
    names = name_experiments(read_config({**GRID, "optimizer": ["adam", "sgd"], "seed": [0, 1]}))
    pairs = itertools.product(["adam", "sgd"], [0, 1])
    assert names == [f"vgg11 on Digits at 32 px, {optimizer}, seed {seed}" for optimizer, seed in pairs]


def test_names__differ_for_each_key_that_training_depends_on() -> None:
    others = {
        "amp": False, "metrics": ["MCC"], "data_parallel": True, "on_corrupt": "skip", "downsampling": 2,
        "downsampling_method": "average", "timeseries_method": "every", "max_samples": 10,
        "log_interval": 2, "layers": "a", "exclude_layers": "b",
    }  # fmt: skip
    for key, value in others.items():
        first, second = name_experiments([config(), config(**{key: value})])
        assert first != second, key
    long = [config(layers="x" * 200 + end) for end in "ab"]
    names = name_experiments(long)
    assert [name[-6:] for name in names] == [c.digest[:6] for c in long], "where only what was cut differs"


def test_names__of_equal_configs_are_told_apart_by_run_id_or_by_the_end_of_the_folder() -> None:
    same = [config(), config()]
    assert name_experiments(same, ["a/x-1", "b/x-1"]) == [f"{n}: vgg11 on Digits at 32 px" for n in "ab"]
    assert name_experiments(same, ["a/x-1", "a/x-2"]) == [f"vgg11 on Digits at 32 px, {n}" for n in (1, 2)]
    assert len(set(name_experiments(same, ["a/x-1", "a/y-1"]))) == 2
    three = name_experiments([config(), config(), config(seed=1)], ["a/x", "b/x", "b/y"])
    assert three == [
        "a: vgg11 on Digits at 32 px, seed 0",
        "b: vgg11 on Digits at 32 px, seed 0",
        "vgg11 on Digits at 32 px, seed 1",
    ]
    assert len(set(name_experiments(same, ["a/x", "a/x"]))) == 1, "one experiment, named twice"


def test_names__are_brief_where_all_share_the_data() -> None:
    assert name_experiments([config(), config(seed=1)], is_brief=True) == ["vgg11, seed 0", "vgg11, seed 1"]
    both = [config(), config(resolution=64)]
    assert name_experiments(both, is_brief=True) == ["vgg11 at 32 px", "vgg11 at 64 px"]


def test_names__say_a_further_key_where_it_differs() -> None:
    both = [config(delta=0.9), config(delta=0.99)]
    assert name_experiments(both, also=["delta"]) == [
        "vgg11 on Digits at 32 px, delta 0.9",
        "vgg11 on Digits at 32 px, delta 0.99",
    ]
    assert name_experiments([config()], also=["epoch"]) == ["vgg11 on Digits at 32 px, 30 epochs"]
