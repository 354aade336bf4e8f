"""Recordings that are killed at every operation, and what must be true where they are gone on with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes import Recording, check_whole
from faults import Disk, Tree, digest, lay_out
from tiny import results
from torch import Tensor, nn

import satstore
from satstore.runs.run import Run


class Net(nn.Module):
    """A model of which one layer's output has a large mean from the middle of the data on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shifted, self.last = nn.Conv2d(1, 5, 3), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, images: Tensor, shift: Tensor) -> Tensor:
        means = torch.relu(self.conv(images)).mean((2, 3))
        return self.last(torch.tanh(self.shifted(means + shift) / 1e3))


def make_model() -> Net:
    torch.manual_seed(0)
    return Net()


def make_loader(n: int, seed: int) -> list[dict[str, Tensor]]:
    """Return batches of 6 and a last one of fewer, of labelled images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, 8, 8, generator=generator)
    shift = torch.where(torch.arange(n) < n // 2, 0.0, 1e5)[:, None].expand(n, 5)
    rows = torch.arange(n).split(6)
    return [{"images": images[part], "shift": shift[part], "labels": part % 3} for part in rows]


def record_net(logs: Path, **changes: Any) -> Run:
    """Record the model, or go on with its recording."""
    options: dict[str, Any] = {
        "model": make_model(),
        "loader": make_loader(45, 0),
        "eval_loader": make_loader(20, 1),
        "pooling": ["2"],
        "resume": True,
        "logs_dir": logs,
    }
    run = satstore.record(run="res", **{**options, **changes})
    run.reload()
    return run


def found_by(run: Run) -> dict[str, Any]:
    """Return all that a run found, its warnings among them, free of times."""
    return results(run) | {"warnings": run.manifest.warnings, "dataset": run.manifest.dataset}


def set_pace(patch: pytest.MonkeyPatch) -> None:
    """Let progress be saved at every shard, and a shard have eight samples."""
    patch.setattr("satstore.stages.record.progress.PAUSE_S", 0.0)
    patch.setattr("satstore.stages.record.progress.MOST_SHARE", float("inf"))
    patch.setattr("satstore.stages.record.passes.choose_shard_rows", lambda *_: 8)


def record_states(root: Path, **options: Any) -> Recording:
    """Record once, and keep what a kill before each operation would leave."""
    found, seen = Recording(), set[str]()

    def before(number: int, kind: str, path: Path) -> None:
        tree = disk.files()
        if (known := digest(tree)) not in seen:
            seen.add(known)
            found.killed[number] = tree
        found.manifests.update(c for p, c in tree.items() if c and p.endswith("/manifest.json"))

    disk = Disk(root, before)
    with disk.installed():
        run = record_net(root, **options)
    found.n_operations, found.expected = disk.n_operations, found_by(run)
    return found


def check_resumed(recording: Recording, tree: Tree, folder: Path, **options: Any) -> None:
    """Check one state: what is committed is whole, and going on from it ends as the undisturbed one did."""
    logs = folder / "logs"
    lay_out(tree, logs)
    for path in logs.glob("res/*/manifest.json"):
        check_whole(Run(path.parent))
    found = found_by(record_net(logs, **options))
    names = sorted(found.keys() | recording.expected.keys())
    assert [name for name in names if found.get(name) != recording.expected.get(name)] == []
    assert not [*logs.rglob("*.partial"), *logs.rglob("*.new"), *logs.rglob("recording.pt")]
    shutil.rmtree(folder)
