"""Makes the pictures that README and docs show: ``python docs/make_pictures.py [--keep] [--all]``.

Trains some small networks on handwritten digits first, some minutes of work, in a temporary folder; with
``--keep``, those of the last time serve. With ``--all``, makes others beside them, to look at and not to
keep: the terminal app's in other sizes, and kinds of figures that no page shows.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from textual.pilot import Pilot

from satstore.jobs.job import list_jobs
from satstore.jobs.start import cancel_job, start_job
from tui.app import SatstoreApp
from tui.screens.run import TABS

LOGS = Path("/tmp/satstore/logs")
IMAGES = Path(__file__).parent / "images"
NOTEBOOK = Path(__file__).parents[1] / "notebooks/vision_transformer.ipynb"
SIZES = {"": (120, 32), "-small": (80, 24), "-large": (200, 60)}

GRID = {
    "model": ["vgg8_XS", "vgg11_XS", "vgg16_XS", "resnet18_XS"],
    "dataset": "Digits",
    "epoch": 4,
    "batch_size": 64,
    "latent_epochs": [0, 1, 2],
    "stages": ["train", "extract", "saturation", "probe", "receptive-field"],
}
LONG = {"model": "vgg16_S", "dataset": "Digits", "epoch": 40, "batch_size": 32}
WRONG = {"model": "resnet18", "dataset": "Digits", "epoch": 4, "device": "cuda:7"}


def satstore(*words: str, check: bool = True) -> None:
    subprocess.run([sys.executable, "-m", "satstore", *words, "--logs-dir", str(LOGS)], check=check)


def make_runs() -> None:
    shutil.rmtree(LOGS.parent, ignore_errors=True)
    for name, config in (("depths", GRID), ("long", LONG), ("wrong", WRONG)):
        path = LOGS.parent / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    satstore("demo")
    for stage in ("receptive-field", "project"):
        satstore(stage, "--run", "demo")
    for stage in ("extract", "probe"):
        satstore(stage, "--run", "demo", "-d", "pixelwise", "--layers", r"features\.(0|4|8|11|15|18)$")
    satstore("run", "--config", str(LOGS.parent / "depths.json"), "--run-id", "depths")
    satstore("run", "--config", str(LOGS.parent / "wrong.json"), "--run-id", "wrong", check=False)


def draw_figures(others: bool) -> None:
    config = LOGS.parent / "depths.json"
    [vgg, *_], [resnet, *_] = (sorted(LOGS.glob(f"depths/{model}_*")) for model in ("vgg11", "resnet18"))
    draw(IMAGES / "demo.png", "plot", "demo")
    draw(IMAGES / "figure.png", "figure", str(config), "--run", "depths")
    draw(IMAGES / "pixelwise.png", "plot", "demo", "--kind", "pixelwise")
    draw(IMAGES / "evolution.png", "plot", f"depths/{vgg.name}", "--kind", "evolution")
    if others:
        for kind in ("training", "spectrum", "projection"):
            name = "demo" if kind == "projection" else f"depths/{vgg.name}"
            draw(LOGS.parent / f"{kind}.png", "plot", name, "--kind", kind)
        draw(LOGS.parent / "cka.png", "compare", f"depths/{vgg.name}", f"depths/{resnet.name}", "--cka")


def draw_blocks() -> None:
    """Train and record the vision transformer of the notebook, as far as its first figure, and draw that."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    end = next(n for n, cell in enumerate(notebook.cells, 1) if "run.plot()" in cell.source)
    notebook.cells = notebook.cells[:end]
    os.environ["SATSTORE_LOGS_DIR"] = str(LOGS)
    NotebookClient(notebook, timeout=600).execute(cwd=str(LOGS.parent))
    draw(IMAGES / "blocks.png", "plot", "vit")


def draw(path: Path, *words: str) -> None:
    satstore(*words, "--out", str(path))
    # With a palette, lines and letters look the same, in a third of the bytes.
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


async def press(pilot: Pilot[None], *keys: str, wait: float = 1.0) -> None:
    await pilot.press(*keys)
    await pilot.pause(wait)


def save(app: SatstoreApp, name: str, suffix: str) -> None:
    folder = LOGS.parent if suffix else IMAGES  # other sizes are to look at, not to keep
    (folder / f"{name}{suffix}.svg").write_text(app.export_screenshot(title="satstore tui"))


async def make_pictures(suffix: str, size: tuple[int, int]) -> None:
    app = SatstoreApp(LOGS, 0.2)
    async with app.run_test(size=size) as pilot:
        while app.snapshot is None:
            await pilot.pause(0.1)
        await pilot.pause(1)
        save(app, "tui-runs", suffix)
        await press(pilot, "slash", *"demo")
        await press(pilot, "enter")
        await press(pilot, "enter", wait=3)
        await press(pilot, "j", "j", "j", "j")
        save(app, "tui-run", suffix)
        await press(pilot, "escape", "escape", "J", wait=3)
        save(app, "tui-jobs", suffix)
        await press(pilot, "escape", "slash", *"depths", "enter")
        await press(pilot, "space", "space", "space", "c", wait=4)
        await press(pilot, "d", *["j"] * 20)
        save(app, "tui-compare", suffix)
        await press(pilot, "escape", "k", "enter", wait=3)  # a deep one: there is more to say of it
        await press(pilot, f"{TABS.index('advice') + 1}", wait=2)
        save(app, "tui-advice", suffix)
        await press(pilot, "escape", "n", wait=1)
        save(app, "tui-new-job", suffix)


def main() -> None:
    others = "--all" in sys.argv
    if not (LOGS.exists() and "--keep" in sys.argv):
        make_runs()
    draw_figures(others)
    draw_blocks()
    words = ["run", "--config", str(LOGS.parent / "long.json"), "--run-id", "long", "--stages", "train"]
    job = start_job([*words, "--logs-dir", str(LOGS)], LOGS)
    try:
        time.sleep(15)
        for suffix, size in SIZES.items():
            if others or not suffix:
                asyncio.run(make_pictures(suffix, size))
    finally:
        for job in list_jobs(LOGS):
            if job.is_running:
                cancel_job(job)


if __name__ == "__main__":
    main()
