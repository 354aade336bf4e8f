"""What others bring: the documentation's examples, a package that is installed, and registries by hand."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import SMALL, WORKS_S, call, satstore
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from satstore.cli.app import add_stages
from satstore.datasets.foreign_loaders import from_loaders, takes_loaders
from satstore.errors import ConfigError, UnknownNameError
from satstore.registry import DATASETS, METRICS, MODELS, OPTIMIZERS, STAGES, stand_in
from satstore.runs.run import Run
from satstore.stages.pipeline import run_experiments
from satstore.stages.stage import stage
from satstore.training.metrics import start_metrics
from satstore.training.optimizers import make_optimizer
from satstore.training.run_model import load_model
from satstore.training.session_data import load_data

ROOT = Path(__file__).parents[1]


def write_examples(folder: Path) -> None:
    """Write the files that the documentation shows."""
    text = (ROOT / "docs/extending.md").read_text()
    for name, more, content in re.findall(
        r"^`([\w.]+)`(, continued)?:\n\n```\w+\n(.*?)^```", text, re.M | re.S
    ):
        with (folder / name).open("a" if more else "x") as file:
            file.write(content)


def only_run(folder: Path) -> Run:
    [manifest] = folder.glob("*/manifest.json")
    return Run(manifest.parent)


def test_docs__examples_of_every_kind_run_from_a_config(tmp_path: Path) -> None:
    write_examples(tmp_path)
    result = satstore("run", "--config", "stripes.json", "--run-id", "mine", "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "logs/mine")
    metrics = run.table("metrics")
    assert {"eval_accuracy", "train_confidence", "eval_confidence"} <= set(metrics.columns)
    assert metrics["eval_confidence"].between(0.5, 1).all()
    assert metrics["lr"].is_monotonic_decreasing
    assert run.manifest.dataset is not None
    assert run.manifest.dataset.classes == ["row", "column"]
    norms = run.table("weight_norms").set_index("layer")["norm"]
    weights = torch.load(run.path / "checkpoint.pt", weights_only=True)["model"]
    assert norms["conv"] == pytest.approx(float(weights["conv.weight"].square().sum().sqrt()))
    assert run.statuses()["weight_norms"] == "done"

    words = ["run", "--run", "mine", "--stages", "weight-norms"]
    assert "weight-norms: found done" in satstore(*words, cwd=tmp_path).stderr
    assert "weight-norms: done" in satstore(*words, "--overwrite", cwd=tmp_path).stderr
    assert "weight-norms" in satstore("show", "mine", cwd=tmp_path).stdout
    own = satstore("weight-norms", "--run", "mine", "--order", "1", "--overwrite", cwd=tmp_path)
    assert own.returncode == 0, own.stderr
    norms = run.table("weight_norms").set_index("layer")["norm"]
    assert norms["conv"] == pytest.approx(float(weights["conv.weight"].abs().sum()))


@pytest.mark.long
def test_package__that_is_installed_brings_a_model_and_a_command(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    write_examples(source)
    for name in ("my_lab.py", "stripes.json"):
        (source / name).unlink()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    installed = subprocess.run(
        [*pip, "--disable-pip-version-check", "--target", site, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    config = {**SMALL, "model": "TinyFromAPackage", "stages": ["train"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "satstore", "count-weights", "--config", "config.json", "--run-id", "a"]
    places = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": ":".join(places)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WORKS_S, check=False
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "logs/a")
    assert list(run.table("n_weights")["n_weights"]) == [3 * 8 * 9 + 8 + 8 * 10 + 10]
    assert run.layers == ["0", "3"]

    without = satstore("extract", "--run", "a", cwd=tmp_path)
    assert without.returncode == 1
    assert "no model named 'TinyFromAPackage'" in without.stderr


# Registries by hand, with the signatures of phd-lab


class Squares(Dataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's datasets have them: ``data``, ``targets`` and ``transform``."""

    def __init__(self, n: int, transform: Any) -> None:
        generator = np.random.default_rng(n)
        self.targets = [int(label) for label in generator.integers(3, size=n)]
        self.data = generator.random((n, 3, 8, 8), dtype=np.float32)
        self.data += np.asarray(self.targets, dtype=np.float32)[:, None, None, None]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(torch.from_numpy(self.data[index])), self.targets[index]


class Grow:
    """Enlarges an image, and darkens it when it augments."""

    def __init__(self, size: int, factor: float = 1.0) -> None:
        self.size, self.factor = size, factor

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(image[None], self.size)[0] * self.factor


def squares(batch_size: int = 12, output_size: int = 32, cache_dir: str = "tmp") -> SimpleNamespace:
    train, test = Squares(96, Grow(output_size, 0.5)), Squares(48, Grow(output_size))
    return SimpleNamespace(
        dataset_name="Squares",
        train_dataset=DataLoader(train, batch_size, shuffle=True),
        test_dataset=DataLoader(test, batch_size),
        cardinality=3,
    )


def squares_as_tuple(batch_size: int = 12, output_size: int = 32, cache_dir: str = "tmp") -> tuple[Any, ...]:
    bundle = squares(batch_size, output_size, cache_dir)
    return bundle.train_dataset, bundle.test_dataset, (output_size, output_size), 3


def small_net(num_classes: int = 10, **kwargs: Any) -> nn.Module:
    assert not kwargs
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(16, num_classes))


def by_bundle(model: nn.Module, lr: float = 0.1, **kwargs: Any) -> SimpleNamespace:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return SimpleNamespace(optimizer=optimizer, scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1))


class Percent:
    """An accuracy in percent, which has no value before the first batch."""

    name = "top1-percent"

    def __init__(self) -> None:
        self.n_correct = self.n_samples = 0

    @property
    def value(self) -> float:
        return 100 * self.n_correct / self.n_samples

    def update(self, y_true: torch.Tensor, y_pred: torch.Tensor) -> None:
        self.n_correct += int((y_pred.argmax(1) == y_true).sum())
        self.n_samples += len(y_true)


class InDisguise(Percent):
    name = "accuracy"


MODULE = SimpleNamespace(SmallNet=small_net, _hidden=small_net, number=3)
BY_HAND = {
    "models": MODULE,
    "datasets": SimpleNamespace(Squares=squares, SquaresTuple=squares_as_tuple),
    "optimizers": SimpleNamespace(steps=by_bundle),
    "metrics": SimpleNamespace(Percent=Percent, InDisguise=InDisguise),
}
CONFIG = {
    **SMALL,
    "model": "SmallNet",
    "dataset": "Squares",
    "batch_size": 32,
    "optimizer": "steps",
    "epoch": 2,
    "metrics": ["Percent", "InDisguise", "MCC"],
}


def test_registries__by_hand_train_and_extract(tmp_path: Path) -> None:
    stages = ["train", "extract", "saturation", "probe"]
    [run] = run_experiments(CONFIG, "res", stages, logs_dir=tmp_path, pooling=["full"], registries=BY_HAND)
    run.reload()
    metrics = run.table("metrics")
    assert list(metrics["lr"]) == pytest.approx([0.1, 0.01])
    assert list(metrics["eval_top1_percent"]) == pytest.approx(list(100 * metrics["eval_accuracy"]))
    assert (metrics["eval_accuracy"] <= 1).all(), "accuracy is satstore's own, a fraction"
    assert run.manifest.dataset is not None
    assert (run.manifest.dataset.n_train, run.manifest.dataset.n_eval) == (96, 48)

    # Latents are of the training images in their order, transformed as the test images are.
    with stand_in(BY_HAND):
        model = load_model(run, 3, torch.device("cpu"))
    train = Squares(96, Grow(32))
    expected = model[0](torch.stack([train[index][0] for index in range(96)])).detach().numpy()
    latents = run.latents("full", "train")
    np.testing.assert_allclose(latents["0"].numpy(), expected, rtol=2e-3, atol=2e-3)
    assert list(latents.labels) == train.targets

    assert "SmallNet" not in MODELS, "a stand-in is gone after the call"
    with pytest.raises(UnknownNameError, match="no model named 'SmallNet'"):
        load_model(run, 3, torch.device("cpu"))


def test_registries__another_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "epoch": 1, "metrics": []}
    run_experiments(config, "res", ["train"], logs_dir=tmp_path, latents=False, registries=BY_HAND)
    other = {**BY_HAND, "models": SimpleNamespace(SmallNet=lambda num_classes: small_net(num_classes))}
    with pytest.raises(
        ConfigError, match=r"was trained with the model 'SmallNet' of .*:small_net, which is now"
    ):
        run_experiments(config, "res", ["extract"], logs_dir=tmp_path, registries=other)


def test_registries__names_that_stand_in_come_first_and_the_others_stay() -> None:
    with stand_in({"models": SimpleNamespace(resnet18=small_net)}):
        assert MODELS["resnet18"] is small_net
        assert "vgg16" in MODELS
        assert len(list(MODELS)) == len(set(MODELS))
    assert MODELS["resnet18"] is not small_net


@pytest.mark.parametrize(
    ("owners", "found"),
    [
        ({"model": MODULE}, "no registry named 'model'; did you mean 'models'?"),
        ({"models": 3}, "'int' can't stand in for the registry of models"),
        ({"models": SimpleNamespace(number=3)}, "can't stand in for the registry of models"),
    ],
)
def test_registries__refuse_what_holds_no_factories(owners: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(found)), stand_in(owners):
        pass


@pytest.mark.parametrize("factory", [squares, squares_as_tuple])
def test_loaders__both_forms_are_read_alike(factory: Any) -> None:
    data = from_loaders("Squares", factory, 16, 8, "tmp")
    images, labels = data.train.__getitems__([5, 2])
    plain, _ = data.train_plain.__getitems__([5, 2])
    raw = Squares(96, Grow(16))
    torch.testing.assert_close(plain, torch.stack([raw[5][0], raw[2][0]]))
    torch.testing.assert_close(images, 0.5 * plain)
    assert labels.tolist() == [raw.targets[5], raw.targets[2]]
    assert data.classes == ("0", "1", "2")
    assert data.fingerprint == from_loaders("Squares", factory, 32, 8, "tmp").fingerprint


def test_loaders__without_a_transform_are_taken_as_they_come(caplog: pytest.LogCaptureFixture) -> None:
    class Bare(Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            if not 0 <= index < 6:
                raise IndexError(index)
            return torch.full((3, 4, 4), float(index)), index % 2

    def bare(batch_size: int, output_resolution: int, cache_dir: str) -> tuple[Any, ...]:
        return DataLoader(Bare(), batch_size), DataLoader(Bare(), batch_size), (4, 4), 2

    assert takes_loaders(bare)
    with caplog.at_level(logging.WARNING):
        data = from_loaders("Bare", bare, 4, 2, "tmp")
    assert "Bare: its training set has no attribute 'transform'" in caplog.text
    assert data.eval.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.train.__getitems__([3])[0].unique().tolist() == [3.0]


@pytest.mark.parametrize("returned", [None, ([1], [2], (4, 4), 2), SimpleNamespace(train_dataset=[1])])
def test_loaders__what_is_none_is_refused_in_one_line(returned: object) -> None:
    def factory(batch_size: int, output_size: int, cache_dir: str) -> object:
        return returned

    with (
        stand_in({"datasets": SimpleNamespace(Wrong=factory)}),
        pytest.raises(ConfigError, match=r"^dataset 'Wrong' returned \w+; expected train_dataset and "),
    ):
        load_data(run_config(dataset="Wrong"))


def run_config(**changes: Any) -> Any:
    from satstore.config.grid import read_config

    [config] = read_config({**SMALL, **changes})
    return config


def test_optimizers__every_form_is_taken_and_others_are_refused() -> None:
    model = small_net(3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with stand_in({"optimizers": SimpleNamespace(bare=lambda model: sgd, wrong=lambda model: 3)}):
        assert make_optimizer("bare", model) == (sgd, None)
        with pytest.raises(ConfigError, match="optimizer 'wrong' returned int; expected a torch optimizer"):
            make_optimizer("wrong", model)
    with stand_in({"optimizers": BY_HAND["optimizers"]}):
        optimizer, scheduler = make_optimizer("steps", model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert isinstance(scheduler, torch.optim.lr_scheduler.StepLR)


def test_metrics__what_is_none_is_refused() -> None:
    with (
        stand_in({"metrics": SimpleNamespace(Wrong=dict)}),
        pytest.raises(ConfigError, match="dict is no metric: expected update and compute"),
    ):
        start_metrics(["Wrong"])


def test_stage__decorator_needs_a_way_to_tell_when_it_is_done() -> None:
    with pytest.raises(ConfigError, match="stage 'x' needs table or pending"):
        stage("x")
    with pytest.raises(ConfigError, match="a stage named 'train' is registered already"):
        stage("train", table="t")(lambda run, parameters: None)


def test_registries__are_all_named() -> None:
    with stand_in({"datasets": BY_HAND["datasets"], "stages": SimpleNamespace(dummy=lambda: None)}):
        assert "Squares" in DATASETS
        assert "dummy" in STAGES
    assert "Squares" not in {*DATASETS, *METRICS, *OPTIMIZERS}


LAB = '''
from typing import Annotated
from pydantic import Field
from satstore.stages.stage import stage
from satstore.stages.parameters import Overwrite, StageParameters

class Parameters(StageParameters):
    order: Annotated[float, Field(gt=0, description="order of the norm")] = 2.0
    overwrite: Overwrite = False

@stage("weigh-all", table="weights", parameters=Parameters, needs=())
def weigh_all(run, parameters):
    """Write down the order."""
    run.commit({"weights.csv": f"order\\n{parameters.order}\\n".encode()})
'''


@pytest.fixture
def own_stages() -> Iterator[None]:
    """Stages that a test registers, and the commands made of them, are forgotten after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STAGES, "_entries", dict(STAGES._entries))
        yield
    add_stages()


@pytest.mark.usefixtures("own_stages")
def test_stage__of_a_plugin_takes_its_own_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weighing_lab.py").write_text(LAB)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"plugins": ["weighing_lab"], "stages": ["weigh-all"]}))
    monkeypatch.syspath_prepend(str(tmp_path))
    logs = ["--logs-dir", tmp_path / "logs"]
    for words, order in (
        (["run", "--config", config, "--run-id", "mine", "--order", "3"], "3.0"),
        (["weigh-all", "--run", "mine", "--order=4", "--overwrite"], "4.0"),
        (["weigh_all", "--run", "mine", "--order", "5", "--overwrite"], "5.0"),
        (["run", "--run", "mine", "--stages", "weigh_all", "--order", "6", "--overwrite"], "6.0"),
    ):
        code, _, err = call(*words, *logs)
        assert code == 0, err
        [table] = tmp_path.glob("logs/mine/*/weights.csv")
        assert table.read_text() == f"order\n{order}\n"
    code, _, err = call("weigh-all", "--run", "mine", "--order", "-1", *logs)
    assert (code, err) == (2, "satstore: --order: input should be greater than 0, found '-1'\n")


def test_loaders__of_streams_are_refused_for_what_they_are() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    def streams(batch_size: int, output_size: int, cache_dir: str) -> SimpleNamespace:
        loader = DataLoader(Stream())
        return SimpleNamespace(train_dataset=loader, test_dataset=loader, cardinality=2)

    with pytest.raises(ConfigError, match=r"has an IterableDataset \(Stream\), which can't be read by index"):
        from_loaders("streams", streams, 32, 8, "tmp")
