"""Probes at TinyImageNet's scale: ResNet18 at 64 px, 100,000 images, 200 classes, all layers.

    python benchmarks/scale.py [--folder tmp/benchmarks] [--full] [--device cpu] [--train 500]

The images are those of tiny_digits.py; the net is trained for some hundred steps. By default three layers are
extracted and probed through the command line: the smallest, the largest, and the conv whose probe converges
slowest; the others are extrapolated, each at the geometric mean of the two convs' passes and at the time per
feature and pass that the largest took. --full does them all. What is there from earlier is gone on with.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_digits import CLASSES, write_tiny_digits
from torch.nn import functional
from watched import run_watched

from satstore.config.grid import read_config
from satstore.datasets.loaders import make_loader
from satstore.models.plan import describe_model
from satstore.runs.manifest import CHECKPOINT
from satstore.runs.run import Run
from satstore.stages.pipeline import make_runs
from satstore.storage.zarr.compression_trial import encoded_ratio
from satstore.training import devices, provenance, run_model, session, session_data

MEASURED = {"smallest": "fc", "largest": "layer3.1.conv2", "slowest": "conv1"}


def make_run(options: argparse.Namespace) -> Run:
    """Write the images and a run of a net that was trained for some steps, unless they are there."""
    images = options.folder / f"tiny{options.train}"
    if not (images / "done").exists():
        write_tiny_digits(images, options.train, max(1, options.train // 10))
        (images / "done").touch()
    config = {
        "model": "resnet18",
        "dataset": f"ImageFolder:{images.absolute()}",
        "resolution": 64,
        "batch_size": 64,
        "epoch": 1,
        "device": options.device,
        "augment": False,
    }
    [run] = make_runs(read_config(config), f"scale{options.train}", options.folder / "logs")
    if run.has_file(CHECKPOINT):
        return run
    data = session_data.load_data(run.config)
    device = devices.choose_device(options.device)
    model = run_model.initialize_model(run.config, len(data.classes), device)
    state = session.Session(run.config, model, data, device)
    train_briefly(state, data.train_plain, options.steps)
    with run.lock():
        provenance.describe_session(run, state, describe_model(model, run.config))
        content = io.BytesIO()
        torch.save(state.state(), content)
        trained = run.manifest.summary.model_copy(update={"epochs_done": run.config.epoch})
        run.commit({CHECKPOINT: content.getvalue()}, lambda manifest: setattr(manifest, "summary", trained))
    return run


def train_briefly(state: session.Session, images: Any, steps: int) -> None:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: 64 * steps]
    loader = make_loader(torch.utils.data.Subset(images, order.tolist()), 64, shuffle=False)
    state.model.train()
    for batch, labels in loader:
        state.optimizer.zero_grad()
        batch = batch.to(state.device, memory_format=torch.channels_last)
        functional.cross_entropy(state.model(batch), labels.to(state.device)).backward()
        state.optimizer.step()


def call(run: Run, stage: str, options: argparse.Namespace, *words: str) -> dict[str, float]:
    """Run a stage in a process of its own; return its seconds and the peak of its resident memory."""
    command = [sys.executable, "-m", "satstore", stage, "--run", run.name, "--logs-dir", run.path.parents[1]]
    command += ["-d", "4", "--device", options.device, "--memory-limit", "2GiB"]
    return run_watched([*command, *words])


def store_shares(run: Run, layers: list[str]) -> dict[str, float]:
    """Return the bytes of the store per byte of float32, as it is and at 5 mantissa bits (of a sample)."""
    train, stored, raw, rounded = run.latents("pool4", "train"), 0, 0, []
    sizes = run.latents_location.sizes("pool4/train")
    for layer in layers:
        raw += 4 * train[layer].array.size
        stored += sum(size for key, size in sizes.items() if key.startswith(f"pool4/train/{layer}/"))
        sample = train[layer].rows().read_stored(0, min(2048, train[layer].shape[0]))
        rounded.append((encoded_ratio(sample, 5) / 2, sample.shape[1]))
    shares, weights = zip(*rounded, strict=True)
    return {"stored": stored / raw, "stored_5_bits": float(np.average(shares, weights=weights))}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    run = make_run(options)
    layers = run.layers if options.full else [n for n in run.layers if n in MEASURED.values()]
    pattern = "^(" + "|".join(layer.replace(".", r"\.") for layer in layers) + ")$"
    results: dict[str, Any] = {"images": len(CLASSES) * options.train, "classes": len(CLASSES)}
    results["extract"] = call(run, "extract", options, "--layers", pattern, "--no-check")
    results["probe"] = call(run, "probe", options, "--layers", pattern)
    run.reload()
    table = run.table("probe-pool4").set_index("layer").loc[layers]
    results["layers"] = table.reset_index().to_dict("records")
    results["converged"] = float(table["converged"].mean())
    results |= store_shares(run, layers)
    costs = table["duration_s"] / (table["n_features"] * (table["n_iter"] + FIXED_PASSES))
    largest, slowest = (table["n_iter"][MEASURED[name]] + FIXED_PASSES for name in ("largest", "slowest"))
    passes, cost = np.sqrt(largest * slowest), costs[MEASURED["largest"]]
    widths = {r.layer: r.n_features * min(16, int(np.prod(r.output_shape[1:]))) for r in run.manifest.layers}
    extrapolated = sum(width * cost * passes for layer, width in widths.items() if layer not in layers)
    results["probe_minutes"] = (table["duration_s"].sum() + extrapolated) / 60
    return results


FIXED_PASSES = 4
"""What a fit costs besides its iterations, in passes: the sample, the first evaluation, each split's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("tmp/benchmarks"))
    parser.add_argument("--train", type=int, default=500, help="training images per class")
    parser.add_argument("--steps", type=int, default=150, help="training steps of the net")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="measure all layers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    results = measure(options)
    if options.json:
        print(json.dumps(results))
        return
    print(
        f"resnet18 at 64 px on {results['images']:,} images of {results['classes']} classes, {options.device}"
    )
    for row in results["layers"]:
        print(
            f"{row['layer']:20} {row['n_features']:5} features {row['duration_s']:8.1f} s "
            f"{row['n_iter']:4} iterations {'' if row['converged'] else 'not '}converged, "
            f"accuracy {row['eval_accuracy']:.1%}, peak {row['peak_memory_bytes'] / 2**20:.0f} MiB"
        )
    for stage in ("extract", "probe"):
        row = results[stage]
        print(f"{stage:8} {row['seconds']:8.1f} s, peak {row['peak_bytes'] / 2**20:.0f} MiB")
    print(f"store: {results['stored']:.1%} of float32, {results['stored_5_bits']:.1%} at 5 mantissa bits")
    what = "measured" if options.full else "extrapolated"
    print(f"probes of all layers: {results['probe_minutes']:.0f} minutes ({what})")


if __name__ == "__main__":
    main()
