"""`satstore.record`: a model and loaders of one's own become a run, without a config."""

import copy
import gc
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import WORKS_S
from command_line import satstore as satstore_command
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import satstore
from satstore.analysis.spectrum import eigenvalues
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import ConfigError, MemoryLimitError, MissingStageError
from satstore.runs.logs_folder import make_run
from satstore.runs.verify import Verification
from satstore.stages.pipeline import make_tasks, run_stages


class MyNet(nn.Module):
    """One channel in, twelve by twelve: nothing that a config's models take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.conv(x))
        return self.fc(self.drop(nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)))


def make_loader(n: int, seed: int, *, shuffle: bool = False) -> "DataLoader[tuple[torch.Tensor, ...]]":
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randn(n, 1, 12, 12, generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * int(label) : 4 * int(label) + 4] += 1
    return DataLoader(TensorDataset(images, labels), 16, shuffle=shuffle)


@pytest.fixture(scope="module")
def model() -> MyNet:
    torch.manual_seed(0)
    return MyNet().train()


@pytest.fixture(scope="module")
def run(model: MyNet, tmp_path_factory: pytest.TempPathFactory) -> satstore.Run:
    logs = tmp_path_factory.mktemp("logs")
    loaders = make_loader(90, 0), make_loader(40, 1)
    return satstore.record(
        model, loaders[0], "mine", loaders[1], classes=["a", "b", "c"], pooling=["2"], logs_dir=logs
    )


def test_record__stores_what_the_model_computes_in_eval_mode(run: satstore.Run, model: MyNet) -> None:
    assert run.layers == ["conv", "fc"]
    assert run.manifest.dataset is not None
    assert run.manifest.dataset.classes == ["a", "b", "c"]
    assert model.training, "the user's own stays as it was"
    assert not any(module._forward_hooks for module in model.modules())
    outputs = []
    copy = MyNet()
    copy.load_state_dict(model.state_dict())
    copy.eval().conv.register_forward_hook(lambda _module, _input, output: outputs.append(output.detach()))
    labels = []
    with torch.no_grad():
        for images, part in make_loader(40, 1):
            copy(images)
            labels.append(part)
    conv = torch.cat(outputs)
    latents = run.latents("pool2", "eval")
    np.testing.assert_array_equal(latents.labels, torch.cat(labels))
    pooled = nn.functional.adaptive_avg_pool2d(conv, 2).numpy()
    np.testing.assert_allclose(latents["conv"].numpy(), pooled, rtol=2e-3, atol=1e-3)
    samples = conv.double().permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    expected = eigenvalues(np.cov(samples.T, bias=True))
    np.testing.assert_allclose(run.spectra("eval")["conv"][0], expected, rtol=1e-4)
    assert set(run.manifest.summary.saturation) == {"conv", "fc"}
    assert [f for f in Verification(run).findings() if f.is_wrong] == []


def test_record__can_be_probed_and_plotted(run: satstore.Run, tmp_path: Path) -> None:
    [outcome] = run_stages([run], make_tasks(["probe"], {"pooling": ["2"]}), with_needs=False)
    assert outcome.error is None
    run.reload()
    assert list(run.table("probe-pool2")["layer"]) == ["conv", "fc"]
    assert run.table("probe-pool2")["eval_accuracy"].iloc[0] > 0.5
    run.plot().savefig(tmp_path / "plot.png")


class Offset(nn.Module):
    """Layers whose outputs float16 does not do for: with a mean, scaled, and one as before."""

    def __init__(self, mean: float, scale: float) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(6 * 4, 3)
        with torch.no_grad():
            self.conv.weight *= scale
            self.conv.bias.fill_(mean)
        self.mean, self.scale = mean, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = (self.conv(x) - self.mean) / self.scale
        return self.fc(nn.functional.adaptive_avg_pool2d(torch.relu(maps), 2).flatten(1))


def exact_outputs(model: Offset, split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the conv layer's outputs, pooled to 2 x 2, and the labels."""
    loader = make_loader(240, 0) if split == "train" else make_loader(120, 1)
    with torch.no_grad():
        parts = [nn.functional.adaptive_avg_pool2d(model.eval().conv(images), 2) for images, _ in loader]
    return torch.cat(parts).flatten(1).numpy(), np.concatenate([labels.numpy() for _, labels in loader])


@pytest.mark.parametrize(("mean", "scale"), [(1e4, 1), (-1e6, 1), (0, 1e-7), (0, 1e6), (1e4, 1e4)])
def test_record__what_float16_would_ruin_is_probed_as_it_is(
    mean: float, scale: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Offset(mean, scale)
    run = satstore.record(
        model, make_loader(240, 0), "a", make_loader(120, 1), pooling=["2"], logs_dir=tmp_path
    )
    assert not any("beyond" in line or "NaN" in line for line in run.manifest.warnings)
    is_ordinary = (mean, scale) == (1e4, 1e4)
    for split in ("train", "eval"):
        exact = exact_outputs(model, split)[0].astype(np.float64)
        stored = run.latents("pool2", split)["conv"].numpy().reshape(exact.shape)
        assert stored.dtype == (np.float16 if is_ordinary else np.float32)
        assert (np.abs(stored - exact).max(axis=0) <= np.ptp(exact, axis=0) / 2**9).all()
        assert run.latents("pool2", split)["fc"].array.dtype == np.float16
    assert [f for f in Verification(run).findings() if f.is_wrong] == []
    if scale < 1:  # to scikit-learn's tol, as to satstore's, weights of zero are near enough
        return
    satstore.apply_stages(run, "probe")
    run.reload()
    found = run.table("probe-pool2").set_index("layer").loc["conv"]
    (seen, labels), (unseen, others) = (exact_outputs(model, split) for split in ("train", "eval"))
    # Centred, which changes no minimum, as the intercept is free, and lets scikit-learn find it.
    centre = seen.astype(np.float64).mean(axis=0)
    peer = LogisticRegression(tol=1e-8, max_iter=20000, solver="newton-cg").fit(seen - centre, labels)
    assert found["eval_accuracy"] == pytest.approx(peer.score(unseen - centre, others), abs=2 / 120)
    assert found["eval_accuracy"] > 0.8


def test_record__says_of_doubles_that_no_float32_tells_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 3)).double()
    with torch.no_grad():
        model[1].bias += torch.tensor([1e9, 0.0, 1e9])  # the outputs' spread is about 1
        model[2].weight.mul_(1e-9)
    loader = [(torch.rand(16, 2, 2, dtype=torch.float64), torch.arange(16) % 3)]
    run = satstore.record(model, loader, "a", logs_dir=tmp_path)
    said = [line for line in run.manifest.warnings if "float32" in line]
    assert len(said) == 2, "of train and eval"
    assert (
        "layer 1: of 2 features, float32 keeps less than 8 bits of the spread in samples 0 to 15" in said[0]
    )
    assert said[0].endswith("a probe of that layer sees little of these features")


def test_record__without_an_eval_loader_takes_the_one_for_both(model: MyNet, tmp_path: Path) -> None:
    run = satstore.record(model, make_loader(30, 0), "one", pooling=["1"], logs_dir=tmp_path, layers="conv")
    assert run.layers == ["conv"]
    assert len(run.latents("pool1", "train").labels) == len(run.latents("pool1", "eval").labels) == 30


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_record__of_a_compiled_model_is_that_of_the_model(
    how: str, run: satstore.Run, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model: Any = MyNet()
    if how == "wrapped":
        model = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
    with torch.no_grad():  # as it is recorded: other modes are compiled anew in any case
        model.eval()(next(iter(make_loader(90, 0)))[0])
    loaders = make_loader(90, 0), make_loader(40, 1)
    found = satstore.record(model, loaders[0], "mine", loaders[1], pooling=["2"], logs_dir=tmp_path)
    torch.compiler.reset()
    assert found.layers == ["conv", "fc"]
    for layer in found.layers:
        np.testing.assert_allclose(found.spectra("eval")[layer], run.spectra("eval")[layer], rtol=1e-6)
    assert found.config.model == "MyNet"


def test_record__refuses_a_run_that_is_there(model: MyNet, tmp_path: Path) -> None:
    satstore.record(model, make_loader(30, 0), "a", pooling=["1"], logs_dir=tmp_path)
    with pytest.raises(ConfigError, match="is there already; record under another run id"):
        satstore.record(model, make_loader(30, 0), "a", pooling=["1"], logs_dir=tmp_path)


# What a loader yields is what is stored: the oracle is a pass over an equal loader by hand.


class Fixed(Dataset[tuple[torch.Tensor, int]]):
    """Twelve images of which each tells its own place, with `targets` that are not what is yielded."""

    def __init__(self, relabel: Callable[[int], Any] = int) -> None:
        self.images = torch.randn(12, 1, 12, 12, generator=torch.Generator().manual_seed(3))
        self.targets = [0] * 12
        self.relabel = relabel
        self.n_read = 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        self.n_read += 1
        return self.images[index], self.relabel(index % 3)


class Stream(IterableDataset[tuple[torch.Tensor, int]]):
    """The same, one after another, of no known length."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        yield from (Fixed()[index] for index in range(11))


class Batched(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """The same in batches, as pipelines over archives yield them."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from DataLoader(Stream(), 4)


def halved(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*[part for part in samples if part[1] != 1], strict=True)
    return torch.stack(images) / 2 - 1, torch.tensor(labels)


def seeded(n: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(n)


LOADERS: dict[str, Callable[[], "DataLoader[Any]"]] = {
    "labels that a transform changes": lambda: DataLoader(Fixed(lambda y: 3 - y - 1), 5),
    "labels from 1 on": lambda: DataLoader(Fixed(lambda y: y + 1), 5),
    "a collate_fn that changes and leaves out": lambda: DataLoader(Fixed(), 5, collate_fn=halved),
    "shuffled": lambda: DataLoader(Fixed(), 5, shuffle=True, generator=seeded()),
    "batches of a sampler": lambda: DataLoader(Fixed(), batch_sampler=[[3, 1], [7], [8, 9, 3]]),
    "a last batch dropped": lambda: DataLoader(Fixed(), 5, drop_last=True),
    "a stream of no length": lambda: DataLoader(Stream(), 4),
    "workers that fork": lambda: DataLoader(Fixed(), 5, num_workers=2, multiprocessing_context="fork"),
    "a dataset that yields batches": lambda: Batched(),
    "a list of batches": lambda: [halved([Fixed()[i] for i in (0, 2)]), halved([Fixed()[5]])],
    "parts beyond the second": lambda: DataLoader(
        TensorDataset(Fixed().images, torch.arange(12) % 3, torch.ones(12)), 5
    ),
    "float labels that are whole": lambda: DataLoader(Fixed(float), 5),
    "one-hot labels": lambda: DataLoader(Fixed(lambda y: torch.eye(3)[y]), 5),
}


@pytest.mark.parametrize("name", LOADERS)
def test_record__stores_what_the_loader_yields(model: MyNet, name: str, tmp_path: Path) -> None:
    batches = [batch[:2] for batch in LOADERS[name]()]
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    labels = labels.argmax(1) if labels.ndim == 2 else labels.long()
    with torch.no_grad():
        maps = copy.deepcopy(model).eval().conv(images)
    run = satstore.record(model, LOADERS[name](), "a", pooling=["2"], classes=list("abcd"), logs_dir=tmp_path)
    for split in ("train", "eval"):
        latents = run.latents("pool2", split)
        np.testing.assert_array_equal(latents.labels, labels)
        np.testing.assert_array_equal(latents.sample_ids, np.arange(len(labels)))
        expected = nn.functional.adaptive_avg_pool2d(maps, 2).numpy()
        np.testing.assert_allclose(latents["conv"].numpy(), expected, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(latents["conv"].mean, expected.mean(0), rtol=1e-2, atol=1e-3)
        samples = maps.double().permute(0, 2, 3, 1).reshape(-1, 6).numpy()
        spectrum = eigenvalues(np.cov(samples.T, bias=True))
        np.testing.assert_allclose(run.spectra(split)["conv"][0], spectrum, rtol=1e-4)
    assert any("one-hot" in line for line in run.manifest.warnings) == (name == "one-hot labels")
    assert [f for f in Verification(run).findings() if f.is_wrong] == []


def test_record__reads_each_sample_once(model: MyNet, tmp_path: Path) -> None:
    train, test = Fixed(), Fixed()
    satstore.record(model, DataLoader(train, 5), "a", DataLoader(test, 5), pooling=["1"], logs_dir=tmp_path)
    assert (train.n_read, test.n_read) == (12, 12)


@pytest.mark.parametrize("shard_rows", [4, 5, 8])
def test_record__of_no_known_length_ends_within_any_shard(
    model: MyNet, shard_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 ** (shard_rows - 1).bit_length()
    monkeypatch.setattr("satstore.stages.record.passes.UNKNOWN_LENGTH", size)
    run = satstore.record(model, DataLoader(Stream(), shard_rows), "a", pooling=["1"], logs_dir=tmp_path)
    array = run.latents("pool1", "train")["conv"].array
    assert (array.shape[0], array.shards[0]) == (11, size)
    maps = copy.deepcopy(model).eval().conv(Fixed().images[:11]).detach().mean((2, 3))
    np.testing.assert_allclose(
        run.latents("pool1", "eval")["conv"].numpy()[..., 0, 0], maps, rtol=2e-3, atol=1e-3
    )
    dask = run.latents("pool1", "train")["conv"].dask().compute()
    np.testing.assert_array_equal(dask, run.latents("pool1", "train")["conv"].numpy())


def pair(labels: Any) -> tuple[torch.Tensor, Any]:
    return torch.zeros(2, 1, 12, 12), labels


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pair(torch.tensor([0.25, 0.5])), r"batch 1 of loader has labels 0.25, 0.5; expected class indices"),
        (pair(torch.tensor([0, -1])), r"batch 1 of loader has labels -1; expected class indices"),
        (pair(torch.tensor([[0.5, 0.5], [0, 1]])), r"batch 1 of loader has labels 0.5, 0.5 of one sample"),
        (pair(torch.tensor([[1, 1], [0, 1]])), r"batch 1 of loader has labels 1, 1 of one sample"),
        (pair(torch.tensor([0, 1, 2])), r"batch 1 of loader has 2 samples and labels of shape \(3,\)"),
        (pair(["cat", "dog"]), r"batch 1 of loader has a list of 2 \(str, str\) for labels"),
        (pair(torch.tensor([0, float("nan")])), r"batch 1 of loader has labels nan; expected class indices"),
        (
            {"image": 1, "label": 2},
            r"batch 1 of loader is a dict of 'image', 'label': no tensor among its inputs; make ",
        ),
        (torch.zeros(2, 1, 12, 12), r"batch 1 of loader has no labels, the ones before had some"),
        ("text", r"batch 1 of loader is str; expected \(inputs, labels\): take an adapt, or a collate_fn"),
        ((["a"], [0]), r"batch 1 of loader has a list of 1 \(str\) for inputs; expected a tensor"),
    ],
)
def test_record__names_the_first_batch_that_it_can_not_take_and_leaves_nothing(
    model: MyNet, batch: Any, message: str, tmp_path: Path
) -> None:
    good = pair(torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match=message):
        satstore.record(model, [good, batch], "a", pooling=["1"], logs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="loader yields no batch"):
        satstore.record(model, [], "a", pooling=["1"], logs_dir=tmp_path)
    loader = [good, pair(torch.tensor([2, 1]))]
    with pytest.raises(ConfigError, match="labels up to 2, for which 2 classes are too few"):
        satstore.record(model, loader, "a", pooling=["1"], classes=["a", "b"], logs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (None, r"loader is NoneType; expected an iterable of batches .* such as DataLoader\(dataset, "),
        (Fixed(), r"loader is Fixed; expected an iterable of batches"),
        (
            Stream(),
            r"batch 0 of loader has 1 samples and labels of shape \(\); expected a class index of each",
        ),
        ([pair([0, 7.5])], r"batch 0 of loader has labels 7.5; expected class indices"),
        (
            [(torch.zeros(2, 1, 12, 12, dtype=torch.float64), torch.tensor([0, 1]))],
            r"the loader's first batch, a tensor of shape \(2, 1, 12, 12\) of torch.float64, fails",
        ),
        (
            [(torch.zeros(2, 1, 12, 12, dtype=torch.uint8), torch.tensor([0, 1]))],
            r"of torch.uint8, fails \(RuntimeError: Input type .*\); make it what the model takes",
        ),
        (
            [pair([0, 1]), (torch.zeros(2, 2, 12, 12), torch.tensor([0, 1]))],
            r"forward pass of batch 1 of loader, a tensor of shape \(2, 2, 12, 12\) of torch.float32, fails",
        ),
    ],
)
def test_record__says_what_a_model_can_not_take_and_leaves_nothing(
    model: MyNet, loader: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        satstore.record(model, loader, "a", pooling=["1"], logs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_record__plans_memory_before_it_begins(model: MyNet, tmp_path: Path) -> None:
    with pytest.raises(MemoryLimitError, match="raise memory_limit"):
        satstore.record(
            model, DataLoader(Fixed(), 5), "a", pooling=["full"], memory_limit=2**20, logs_dir=tmp_path
        )
    assert list(tmp_path.iterdir()) == []


def test_record__gives_the_model_back_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    satstore.record(model, DataLoader(Fixed(), 5), "a", pooling=["1"], logs_dir=tmp_path)
    assert [module.training for module in model] == [True, False, True, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    loss = model(Fixed().images).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def two_outputs(model: MyNet, x: torch.Tensor) -> Any:
    return model(x), x


def named_output(model: MyNet, x: torch.Tensor) -> Any:
    return {"hidden": x, "logits": model(x)}


def features(model: MyNet, x: torch.Tensor) -> Any:
    return model.conv(x).flatten(1)


class Around(nn.Module):
    """A model that returns something else than logits."""

    def __init__(self, model: MyNet, call: Callable[[MyNet, torch.Tensor], Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(self.model, x)


@pytest.mark.parametrize(
    ("call", "has_accuracy"), [(two_outputs, True), (named_output, True), (features, False)]
)
def test_record__notes_an_accuracy_where_there_are_logits(
    model: MyNet, call: Callable[..., Any], has_accuracy: bool, tmp_path: Path
) -> None:
    layers = "conv"
    run = satstore.record(
        Around(model, call), DataLoader(Fixed(), 5), "a", pooling=["1"], layers=layers, logs_dir=tmp_path
    )
    with torch.no_grad():
        guesses = copy.deepcopy(model).eval()(Fixed().images).argmax(1)
    accuracy = float((guesses == torch.arange(12) % 3).double().mean())
    assert run.manifest.summary.test_accuracy == (pytest.approx(accuracy) if has_accuracy else None)
    assert any("no accuracy: the model returns" in line for line in run.manifest.warnings) != has_accuracy
    satstore.apply_stages(run, "probe")
    run.plot()
    assert "conv" in satstore_command("show", run.name, "--logs-dir", tmp_path).stdout


MODELS_OF_OTHER_KINDS: dict[str, Callable[[], nn.Module]] = {
    "double": lambda: MyNet().double(),
    "bfloat16": lambda: MyNet().bfloat16(),
    "weight_norm": lambda: with_weight_norm(MyNet()),
    "old weight_norm": lambda: with_old_weight_norm(MyNet()),
    "pruned": lambda: pruned(MyNet()),
}


def with_weight_norm(model: MyNet) -> MyNet:
    nn.utils.parametrizations.weight_norm(model.conv)
    return model


def with_old_weight_norm(model: MyNet) -> MyNet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.conv)
    model(torch.zeros(1, 1, 12, 12))  # its weight is no leaf from now on, which copy.deepcopy refuses
    return model


def pruned(model: MyNet) -> MyNet:
    prune.l1_unstructured(model.conv, "weight", 0.5)
    model(torch.zeros(1, 1, 12, 12))
    return model


@pytest.mark.parametrize("name", MODELS_OF_OTHER_KINDS)
def test_record__takes_models_of_other_kinds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS_OF_OTHER_KINDS[name]()
    dtype = next(model.parameters()).dtype
    loader = [(Fixed().images[i : i + 4].to(dtype), torch.arange(i, i + 4) % 3) for i in (0, 4, 8)]
    run = satstore.record(model, loader, "a", pooling=["2"], logs_dir=tmp_path)
    with torch.no_grad():
        maps = model.conv(Fixed().images.to(dtype))
    expected = nn.functional.adaptive_avg_pool2d(maps, 2).float().numpy()
    np.testing.assert_allclose(run.latents("pool2", "train")["conv"].numpy(), expected, rtol=1e-2, atol=1e-2)
    assert np.isfinite(run.spectra("train")["conv"][0]).all()


SCRIPT = """
import torch, satstore
from torch import nn
from torch.utils.data import DataLoader
print("the script's body")
data = [(torch.full((1, 8, 8), float(i)), i % 2) for i in range(8)]
model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
loader = DataLoader(data, 4, num_workers=2, collate_fn=lambda part: torch.utils.data.default_collate(part))
run = satstore.record(model, loader, "mine", pooling=["1"], logs_dir={logs!r})
print(len(run.latents("pool1", "train").labels))
"""


def test_record__of_a_part_that_ran_compiled_stores_its_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    images, labels = torch.rand(12, 3, 4, 4), torch.arange(12) % 3
    expected = net(images).detach()
    model = nn.Sequential(torch.compile(net, backend="eager"), nn.Softmax(1))
    with torch.no_grad():
        model(images[:6])  # compiled without hooks, and taken again for any batch of six
    run = satstore.record(model, DataLoader(TensorDataset(images, labels), 6), "r", logs_dir=tmp_path)
    assert run.layers == ["0._orig_mod.1", "0._orig_mod.3"]
    found = run.latents("pool4", "train")["0._orig_mod.3"].numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_record__torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        script = torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2))
    loader = [(torch.rand(4, 2), torch.arange(4) % 2)]
    with pytest.raises(ConfigError, match=r"is TorchScript .* give the module that it was made of"):
        satstore.record(script, loader, "r", logs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_record__of_layers_that_are_never_called_says_so(tmp_path: Path) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(values, self.layer.weight)

    loader = [(torch.rand(4, 2), torch.arange(4) % 2)]
    with pytest.raises(ConfigError, match=r"nothing to record, .*: layer \(not called\)"):
        satstore.record(Unused(), loader, "r", logs_dir=tmp_path)


@pytest.mark.long
def test_record__works_in_a_script_without_a_main_guard(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(logs=str(tmp_path / "logs")))
    command = [sys.executable, tmp_path / "script.py"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WORKS_S)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n") == ["the script's body", "8", ""]


def test_record__layers_whose_names_look_like_numbers_keep_them(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model = nn.Sequential(body, pooled, nn.Linear(16, 8), nn.Linear(8, 3))
    run = satstore.record(model, make_loader(60, 0), "a", pooling=["2"], logs_dir=tmp_path)
    satstore.apply_stages(run, "probe")
    assert run.layers == ["0.0", "0.2", "2", "3"]
    for name in ("probe-pool2", "saturation", "receptive_field"):
        assert list(run.table(name)["layer"].unique()) == run.layers
    saturation, probes, *_ = run.plot().axes[0].get_lines()
    for line in (saturation, probes):
        assert np.isfinite(np.asarray(line.get_ydata(), float)).all()
    assert np.isfinite(run.saturation(delta=0.5)["saturation"]).all()


def test_record__overwrite_replaces_all_that_was_made_of_the_old_one(model: MyNet, tmp_path: Path) -> None:
    old = satstore.record(model, make_loader(30, 0), "a", pooling=["1"], logs_dir=tmp_path)
    satstore.apply_stages(old, "probe")
    assert old.manifest.probes
    new = satstore.record(model, make_loader(50, 2), "a", pooling=["1"], overwrite=True, logs_dir=tmp_path)
    assert new.path == old.path
    assert not new.manifest.probes
    assert new.latents("pool1", "train")["conv"].shape == (50, 6, 1, 1)
    assert [f for f in Verification(new).findings() if f.is_wrong] == []


@pytest.mark.parametrize(
    "words", [("project",), ("flops",), ("extract", "-d", "4"), ("extract", "--overwrite")]
)
def test_stages__that_need_the_model_of_a_recorded_run_say_so_and_leave_it_as_it_is(
    run: satstore.Run, words: tuple[str, ...]
) -> None:
    before = (run.path / "manifest.json").read_bytes()
    result = satstore_command(words[0], "--run", run.name, "--logs-dir", run.path.parents[1], *words[1:])
    assert result.returncode == 1
    assert f"your own program, which {words[0]} does not open; record it again with: " in result.stderr
    assert "satstore.record(…, 'mine', overwrite=True)" in result.stderr
    assert (run.path / "manifest.json").read_bytes() == before


def test_clean__keeps_the_latents_of_a_recorded_run(run: satstore.Run) -> None:
    result = satstore_command("clean", run.name, "--latents", "--yes", "--logs-dir", run.path.parents[1])
    assert result.returncode == 1
    assert "could not be extracted again, so they stay" in result.stderr
    assert len(run.latents("pool2", "eval").labels) == 40


def test_apply_stages__does_what_the_command_does(model: MyNet, tmp_path: Path) -> None:
    run = satstore.record(model, make_loader(30, 0), "a", pooling=["1"], logs_dir=tmp_path)
    found = satstore.apply_stages(run, ["probe"], pooling=["1"], tol=1e-3)
    assert found is run
    assert run.manifest.probes[ProbeKey(LatentsKey("1"))].tol == 1e-3
    with pytest.raises(MissingStageError, match="probe needs extract first"):
        satstore.apply_stages(run, "probe", pooling=["2"])
    with pytest.raises(ConfigError, match="'poolings' is no parameter of the stages probe"):
        satstore.apply_stages(run, "probe", poolings=["1"])


def test_record__finds_receptive_fields_where_the_model_can_be_traced(
    run: satstore.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = run.table("receptive_field").set_index("layer")
    assert table.loc["conv", "receptive_field_max"] == 3
    assert table.loc["fc", "receptive_field_max"] == 12, "of maps averaged over all positions in their cells"
    assert run.status("receptive_field") == "done"

    class Branching(MyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    found = satstore.record(Branching(), make_loader(30, 0), "b", pooling=["1"], logs_dir=tmp_path)
    assert found.status("receptive_field") == "missing"
    assert any("can't be traced" in line for line in found.manifest.warnings)
    assert not caplog.records, "who hands over loaders is not told what they are"


class Dying(Dataset[Any]):
    """Images whose reader is killed at the fourth, as the system kills what takes too much memory."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(1, 12, 12), index % 2


def test_record__leaves_nothing_where_a_loader_process_dies_as_the_run_is_made(
    model: MyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_and_die(*words: Any) -> None:
        make_run(*words)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("satstore.stages.record.record.make_run", make_and_die)
    with pytest.raises(MemoryLimitError, match="a process that reads batches died"):
        satstore.record(model, [(torch.ones(8, 1, 12, 12), torch.arange(8) % 2)], "a", logs_dir=tmp_path)
    assert not [*tmp_path.rglob("*")]


# torch raises a worker's death wherever the program is: also between the opening of a file and its "with".
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("batch_size", [8, 2])
def test_record__says_what_to_lower_where_a_loader_process_was_killed(
    model: MyNet, batch_size: int, tmp_path: Path
) -> None:
    loader = DataLoader(Dying(), batch_size, num_workers=1, multiprocessing_context="fork")
    message = ""
    try:
        satstore.record(model, loader, "a", pooling=["2"], logs_dir=tmp_path)
    except MemoryLimitError as error:
        message = str(error)
    gc.collect()  # what the error's frames held, while its warning is ignored
    assert "a process that reads batches died" in message
    assert "give the loader fewer num_workers, or a smaller batch_size" in message
    assert "\n" not in message
    assert not [*tmp_path.rglob("manifest.json")]
