"""The cost of models: against counts by hand, and against torchvision's published ones."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from command_line import SMALL, satstore
from torch import nn

from satstore.analysis.flops import count_costs
from satstore.models.torchvision import build
from satstore.runs.run import Run
from satstore.stages.pipeline import run_experiments


def test_count_costs__of_every_kind_of_layer_is_counted_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 16 x 16 outputs
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, bias=False),  # 8 x 8
        nn.Conv2d(8, 4, 3, padding=2, dilation=2),  # 8 x 8
        nn.ConvTranspose2d(4, 6, 2, stride=2),  # 16 x 16
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    ).train()
    macs = {
        "0": 16 * 16 * 3 * 8 * 9,
        "1": 8 * 8 * 8 * (8 // 4) * 9,
        "2": 8 * 8 * 8 * 4 * 9,
        "3": 8 * 8 * 4 * 6 * 4,  # each input position is multiplied into its own 2 x 2 outputs
        "6": 6 * 10,
    }
    for device in ("cpu", "meta"):
        costs = count_costs(net.to(device), torch.zeros(1, 3, 16, 16, device=device))
        assert {cost.layer: cost.flops for cost in costs.modules} == {k: 2 * n for k, n in macs.items()}
        assert costs.flops == 2 * sum(macs.values())
        # Gradients by weights and by inputs, but of the first layer, whose input is the image.
        assert costs.backward_flops == 4 * sum(macs.values()) - 2 * macs["0"]
        assert [cost.n_parameters for cost in costs.modules] == [224, 144, 292, 102, 70]
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("resnet50", marks=pytest.mark.long),
        "alexnet",
        pytest.param("densenet121", marks=pytest.mark.long),
        pytest.param("efficientnet_b0", marks=pytest.mark.long),
        "mobilenet_v2",
        pytest.param("swin_t", marks=pytest.mark.long),
        "vit_b_16",
    ],
)
def test_count_costs__forward_is_what_torchvision_publishes(name: str) -> None:
    with torch.device("meta"):
        costs = count_costs(build(name), torch.empty(1, 3, 224, 224))
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]  # type: ignore[attr-defined]
    assert costs.flops / 2e9 == pytest.approx(published, abs=6e-4)
    assert sum(cost.flops for cost in costs.modules) == costs.flops
    assert costs.backward_flops == pytest.approx(2 * costs.flops, rel=0.12)


def test_flops__are_written_without_training(tmp_path: Path) -> None:
    [run] = run_experiments({**SMALL, "epoch": 3}, "res", ["flops"], logs_dir=tmp_path)
    info = json.loads(Run(run.path).read_file("computational_info.json"))
    assert (info["n_train"], info["n_eval"], info["n_epochs"], info["n_classes"]) == (1437, 360, 3, 10)
    # vgg7_S: convs of 32, 64 and 128 channels at 32, 16 and 8 px, then 128 to 64 to 10.
    macs = [32 * 32 * 3 * 32 * 9, 16 * 16 * 32 * 64 * 9, 8 * 8 * 64 * 128 * 9, 128 * 64, 64 * 10]
    assert [row["macs"] for row in info["layers"] if row["macs"]] == macs
    assert info["macs"] == sum(macs)
    assert info["flops"] == 2 * info["macs"]
    backward = 4 * sum(macs) - 2 * macs[0]
    assert info["backward_flops"] == backward
    assert info["training_flops"] == 3 * ((1437 + 360) * info["flops"] + 1437 * backward)


def test_train__writes_them_of_the_epochs_that_were_trained(demo_run: Run, demo_logs: Path) -> None:
    info = json.loads(demo_run.read_file("computational_info.json"))
    assert info["n_epochs"] == demo_run.manifest.summary.epochs_done < demo_run.config.epoch
    assert demo_run.statuses()["flops"] == "done"
    shown = satstore("show", "demo", "--logs-dir", demo_logs).stdout
    assert f"{info['n_parameters']:,} parameters" in shown


UNCOUNTABLE = """
import torch
from torch import nn
from satstore.registry import MODELS

@MODELS.register("Odd")
class Odd(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        if len(x) == 1 and torch.is_grad_enabled():
            raise KeyError("an odd model")
        return self.fc(x.mean((2, 3)))
"""


def test_flops__of_a_model_that_fails_are_one_line_and_do_not_hinder_training(tmp_path: Path) -> None:
    (tmp_path / "odd_plugin.py").write_text(UNCOUNTABLE)
    config = {**SMALL, "model": "Odd", "plugins": ["odd_plugin"], "stages": ["train"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    trained = satstore("train", "--config", "config.json", "--run-id", "a", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "the operations of Odd at 32 px can't be counted: KeyError" in trained.stderr
    failed = satstore("flops", "--run", "a", cwd=tmp_path)
    assert failed.returncode == 1
    imported, *lines = failed.stderr.splitlines()
    assert imported == "satstore: importing the plugin 'odd_plugin', which the config names"
    assert len(lines) == 1
    assert lines[0].startswith("satstore: the operations of Odd at 32 px can't be counted: KeyError: ")


def test_flops__a_lost_file_names_the_command(demo_copy: Path) -> None:
    next(demo_copy.glob("demo/*/computational_info.json")).unlink()
    lost = satstore("flops", "--run", "demo", "--logs-dir", demo_copy)
    assert lost.returncode == 1
    assert "satstore flops --run demo/" in lost.stderr
    assert satstore("flops", "--run", "demo", "--overwrite", "--logs-dir", demo_copy).returncode == 0
