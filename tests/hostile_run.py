"""Runs whose names are markup of a terminal, formulas of matplotlib and of spreadsheets, and emoji."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny import CONFIG, tiny_images
from torch import Tensor, nn

from satstore.registry import DATASETS, MODELS
from satstore.runs.manifest import Manifest, StageRecord
from satstore.stages.pipeline import apply_stages, run_experiments

MODEL = r"=M[/a] $\frac{ :heart:"
DATASET = r"@D[/b] $\frac{ :heart: <b>"
LAYERS = ("conv[/a]", "_conv[b]", r"=1+1 $\frac{", ":heart: [red]<i>")
RUN_ID = "=R[b]"
"""Of a folder that no command makes, and lists show."""
ERROR = r"[/a] $\frac{ :heart: <script>"


class Net(nn.Module):
    """Convs and a Linear of such names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for place, name in enumerate(LAYERS):
            self.add_module(name, nn.Conv2d(4 if place else 3, 4, 3, padding=1))
        self.pool, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        for name in LAYERS:
            images = self.get_submodule(name)(images).relu()
        logits: Tensor = self.last(self.pool(images).flatten(1))
        return logits


@contextmanager
def hostile_names() -> Iterator[dict[str, Any]]:
    """Let model and dataset be known, and yield a config of them; then forget them."""
    before = [(registry, dict(registry._entries)) for registry in (MODELS, DATASETS)]
    MODELS.register(MODEL, description=ERROR)(Net)
    DATASETS.register(DATASET, description=ERROR)(tiny_images)
    try:
        yield {**CONFIG, "model": MODEL, "dataset": DATASET, "resolution": 16, "note": ERROR, "epoch": 1}
    finally:
        for registry, entries in before:
            registry._entries = entries


def make_runs(logs: Path) -> None:
    """Make two experiments, which differ in their seed, and one of them again under such a run id.

    Of each, a last stage has failed.
    """
    with hostile_names() as config:
        runs = run_experiments({**config, "seed": [0, 1]}, "res", logs_dir=logs)
        for run in runs:
            apply_stages(run, "receptive-field")

    def change(manifest: Manifest) -> None:
        manifest.warnings.append(ERROR)
        manifest.stages["project"] = StageRecord(status="failed", started=1.0, error=ERROR)

    for run in runs:
        run.commit(change=change)
    shutil.copytree(runs[0].path, logs / RUN_ID / runs[0].experiment)
    make_job(logs)


def make_job(logs: Path) -> None:
    """Write what a job leaves that has failed."""
    folder = logs / ".jobs" / "7"
    folder.mkdir(parents=True)
    job = {"words": ["train", "--run", ERROR], "started": 1.0, "host": ERROR, "detached": True}
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "exit.json").write_text(json.dumps({"code": 1, "ended": 2.0, "error": ERROR}))
    (folder / "log.txt").write_text(f"{ERROR}\n")
