"""`satstore.record`: a model and loaders of one's own become a run, without a config."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import satstore
from satstore.analysis.spectrum import eigenvalues
from satstore.errors import ConfigError, MissingStageError
from satstore.pipeline import make_plan, run_stages
from satstore.verify import Verification


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
    [outcome] = run_stages([run], make_plan(["probe"], {"pooling": ["2"]}), with_needs=False)
    assert outcome.error is None
    run.reload()
    assert list(run.table("probe-pool2")["layer"]) == ["conv", "fc"]
    assert run.table("probe-pool2")["eval_accuracy"].iloc[0] > 0.5
    run.plot().savefig(tmp_path / "plot.png")


def test_record__without_an_eval_loader_takes_the_one_for_both(model: MyNet, tmp_path: Path) -> None:
    run = satstore.record(model, make_loader(30, 0), "one", pooling=["1"], logs_dir=tmp_path, layers="conv")
    assert run.layers == ["conv"]
    assert len(run.latents("pool1", "train").labels) == len(run.latents("pool1", "eval").labels) == 30


def test_record__refuses_what_it_could_not_pair(model: MyNet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"samples in an order of its own \(RandomSampler\)"):
        satstore.record(model, make_loader(30, 0, shuffle=True), "a", logs_dir=tmp_path)
    satstore.record(model, make_loader(30, 0), "a", pooling=["1"], logs_dir=tmp_path)
    with pytest.raises(ConfigError, match="is there already; record under another run id"):
        satstore.record(model, make_loader(30, 0), "a", pooling=["1"], logs_dir=tmp_path)


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


def test_apply_stages__does_what_the_command_does(model: MyNet, tmp_path: Path) -> None:
    run = satstore.record(model, make_loader(30, 0), "a", pooling=["1"], logs_dir=tmp_path)
    found = satstore.apply_stages(run, ["probe"], pooling=["1"], tol=1e-3)
    assert found is run
    assert run.manifest.probes["pool1"].tol == 1e-3
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
