"""What recording saturation adds to a training step, beside the delve package.

    python benchmarks/saturation.py [--model vgg16] [--batch 32] [--steps 30] [--threads 1] [--json]

Plain steps, steps with MomentRecorder and steps with delve's CheckLayerSat take turns on one model, so that
a noisy machine troubles all three alike; medians are given, and the median of the ratios within a turn.
Twice: with channels last in memory, as satstore trains, and in torch's default layout, in which delve's users
train as a rule.
On a busy machine use --threads 1, where the time is the process's own: threads that wait for each other
cost a time slice at each of their meetings.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from satstore.capture.layers import describe_layers, select_layers
from satstore.capture.recorders import MomentRecorder
from satstore.registry import MODELS

LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
"""How maps lie in memory: as satstore trains, and as torch has them by default."""


def make_step(
    model: nn.Module, n_images: int, resolution: int, device: str, layout: str
) -> Callable[[], None]:
    images = torch.randn(n_images, 3, resolution, resolution, device=device)
    labels = torch.randint(10, (n_images,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def measure(options: argparse.Namespace, layout: str) -> dict[str, list[float]]:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # delve's
        from delve.torchcallback import CheckLayerSat

        model = MODELS[options.model](num_classes=10).to(options.device)
        step = make_step(model, options.batch, options.resolution, options.device, layout)
        blank = torch.zeros(3, 3, options.resolution, options.resolution, device=options.device)
        layers = describe_layers(model, lambda n: model(blank[:n]), select_layers(model)).layers
        recorder = MomentRecorder(layers)
        tracker = CheckLayerSat(folder, "csv", model, device=options.device)
        tracker.stop()
        recorder.begin("train")
        clock = time.process_time if options.threads == 1 else time.perf_counter
        durations: dict[str, list[float]] = {"plain": [], "satstore": [], "delve": []}
        for turn in range(options.steps + 2):
            for name, times in durations.items():
                if name == "satstore":
                    recorder.__enter__()
                    recorder.next_batch()
                elif name == "delve":
                    tracker.resume()
                start = clock()
                step()
                duration_s = clock() - start
                recorder.__exit__(None, None, None)
                tracker.stop()
                if turn >= 2:  # the first two warm caches and allocate
                    times.append(duration_s)
    return durations


def summarize(durations: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    plain = durations["plain"]
    return {
        name: {
            "median_ms": 1e3 * statistics.median(times),
            "added": statistics.median(t / p for t, p in zip(times, plain, strict=True)) - 1,
        }
        for name, times in durations.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--resolution", type=int, default=32, help="pixels")
    parser.add_argument("--steps", type=int, default=30, help="steps measured, of each kind")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.manual_seed(0)
    logging.disable(logging.INFO)  # delve tells of every layer
    if options.threads:
        torch.set_num_threads(options.threads)
    figures = {layout: summarize(measure(options, layout)) for layout in LAYOUTS}
    if options.json:
        print(json.dumps(vars(options) | {"threads": torch.get_num_threads(), "results": figures}))
        return
    where = f"{options.device}, {torch.get_num_threads()} threads"
    print(f"{options.model}, {options.batch} images of {options.resolution} px, {where}")
    for layout, rows in figures.items():
        print(layout)
        for name, row in rows.items():
            print(f"  {name:10} {row['median_ms']:9.1f} ms a step   {row['added']:+7.1%}")


if __name__ == "__main__":
    main()
