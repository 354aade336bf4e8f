"""Images per second of extraction beside the bare forward pass over the same loader, and peak memory.

    python benchmarks/extract.py [--model resnet18] [--images 2000] [--turns 3] [--memory-limit 2GiB] [--json]

An untrained model on benchmarks/tiny_digits.py's images, 64 px, all layers pooled to 4 × 4, batches of 64.
Extractions and bare passes take turns, so that a noisy machine troubles both alike; medians are given, and
the median of the ratios within a turn. Peak memory is that of ``satstore extract`` in a process of its own,
its loader processes with it.
"""

import argparse
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from pydantic import ByteSize, TypeAdapter
from tiny_digits import CLASSES, write_tiny_digits
from watched import run_watched

from satstore.config.grid import read_config
from satstore.config.latent_keys import LatentsKey
from satstore.datasets.image_data import ImageSplit
from satstore.datasets.loaders import make_loader
from satstore.models.plan import describe_model
from satstore.runs.manifest import CHECKPOINT
from satstore.runs.run import Run
from satstore.stages.extract.write import write_split
from satstore.stages.pipeline import make_runs
from satstore.storage.files import Digest
from satstore.training import devices, provenance, run_model, session, session_data


def make_run(options: argparse.Namespace, folder: Path) -> Run:
    """Write the images, and a run with an untrained checkpoint."""
    n_train = -(-options.images // len(CLASSES))
    write_tiny_digits(folder / "images", n_train, 1)
    config = {
        "model": options.model,
        "dataset": f"ImageFolder:{folder / 'images'}",
        "resolution": 64,
        "batch_size": options.batch,
        "device": options.device,
        "workers": options.workers,
    }
    [run] = make_runs(read_config(config), "bench", folder)
    data = session_data.load_data(run.config)
    device = devices.choose_device(options.device)
    model = run_model.initialize_model(run.config, len(data.classes), device)
    state = session.Session(run.config, model, data, device)
    described = describe_model(model, run.config)
    with run.lock():
        provenance.describe_session(run, state, described)
        buffer = io.BytesIO()
        torch.save(state.state(), buffer)
        trained = run.manifest.summary.model_copy(update={"epochs_done": run.config.epoch})
        run.commit({CHECKPOINT: buffer.getvalue()}, lambda manifest: setattr(manifest, "summary", trained))
    assert Digest.of_file(run.path / CHECKPOINT) == run.manifest.files[CHECKPOINT].digest
    return run


def bare_pass(run: Run, model: torch.nn.Module, images: ImageSplit, options: argparse.Namespace) -> float:
    workers = session_data.choose_workers(run.config, in_memory=False, memory_limit=2 * 2**30)
    loader = make_loader(images, options.batch, shuffle=False, workers=workers, pin_memory=True)
    device = next(model.parameters()).device
    model.eval()
    started = time.perf_counter()
    with torch.inference_mode():
        for batch, _ in loader:
            model(batch.to(device, non_blocking=True, memory_format=torch.channels_last))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return len(images) / (time.perf_counter() - started)


def extraction(run: Run, model: torch.nn.Module, images: ImageSplit, options: argparse.Namespace) -> float:
    started = time.perf_counter()
    with run.lock():
        write_split(run, model, images, "train", {LatentsKey("4"): run.layers}, 10, options.memory_limit)
    duration_s = time.perf_counter() - started
    run.commits.remove(run.latents_path.name)
    shutil.rmtree(run.latents_path)
    return len(images) / duration_s


def measure(options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = make_run(options, Path(folder))
        data = session_data.load_data(run.config)
        device = devices.choose_device(options.device)
        model = run_model.load_model(run, len(data.classes), device)
        images = data.train_plain
        bare_pass(run, model, images, options)  # starts the fork server and warms the page cache
        rates: dict[str, list[float]] = {"bare": [], "extract": []}
        for _ in range(options.turns):
            rates["bare"].append(bare_pass(run, model, images, options))
            rates["extract"].append(extraction(run, model, images, options))
        command = [sys.executable, "-m", "satstore", "extract", "--run", "bench", "--logs-dir", folder]
        watched = run_watched([*command, "--memory-limit", options.memory_limit])
        stored = sum(f.stat().st_size for f in run.latents_path.rglob("*") if f.is_file())
    ratios = [e / b for e, b in zip(rates["extract"], rates["bare"], strict=True)]
    return {
        "bare_images_per_s": statistics.median(rates["bare"]),
        "extract_images_per_s": statistics.median(rates["extract"]),
        "ratio": statistics.median(ratios),
        "peak_bytes": watched["peak_bytes"],
        "memory_limit_bytes": options.memory_limit,
        "stored_bytes": stored,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, help="loader processes; by default chosen for the machine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--memory-limit", type=TypeAdapter(ByteSize).validate_python, default=ByteSize(2 * 2**30)
    )
    parser.add_argument("--folder", help="where the images and the store go, for a time")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    figures = measure(options)
    if options.json:
        print(json.dumps(vars(options) | {"threads": torch.get_num_threads(), "results": figures}))
        return
    print(f"{options.model}, {options.images} images of 64 px, {options.device}, batches of {options.batch}")
    print(f"bare forward pass  {figures['bare_images_per_s']:8.1f} images/s")
    print(f"extract            {figures['extract_images_per_s']:8.1f} images/s   {figures['ratio']:.1%}")
    peak, limit = figures["peak_bytes"] / 2**20, figures["memory_limit_bytes"] / 2**20
    print(f"peak memory        {peak:8.0f} MiB of {limit:.0f} MiB")


if __name__ == "__main__":
    main()
