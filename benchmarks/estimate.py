"""What ``satstore estimate`` says of the stages' times, beside what they then take.

    python benchmarks/estimate.py [--folder tmp/benchmarks] [--turns 3] [--config NAME …] [--cpu] [--json]

Every turn estimates a config, then trains, extracts and probes it, each in a process of its own; the configs
take turns. Times are those in the manifest: of the stage's work, without the start of its process. With
``--cpu``, all of it is done in this process by one thread and told in CPU seconds, which other programs
hardly change. Training that stops early counts as if it had gone on to the last epoch, as the estimate does.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from threadpoolctl import threadpool_limits
from tiny_digits import write_tiny_digits

from satstore.runs.logs_folder import open_run

STAGES = ("train", "extract", "probe")
SMALL = {"dataset": "Digits", "resolution": 32, "batch_size": 64, "optimizer": "adam", "device": "cpu"}
N_TRAIN, N_EVAL = 25, 10
"""Images of each of the 200 classes of ``folder``."""


def write_configs(folder: Path) -> dict[str, Path]:
    """Write configs that train in about a minute on two cores; return their files by name."""
    images = folder / f"tiny-digits-{N_TRAIN}-{N_EVAL}"
    if not images.is_dir():
        write_tiny_digits(images, N_TRAIN, N_EVAL)
    contents: dict[str, dict[str, Any]] = {
        "demo": {**SMALL, "model": "vgg11_XS", "epoch": 10, "augment": False, "stop_at_accuracy": 0.95},
        "vgg16_XS": {**SMALL, "model": "vgg16_XS", "epoch": 5},
        "resnet18_XS": {**SMALL, "model": "resnet18_XS", "epoch": 5},
        "vgg11": {**SMALL, "model": "vgg11", "epoch": 1},
        "folder": {
            **SMALL,
            "model": "resnet18_XS",
            "epoch": 2,
            "dataset": f"ImageFolder:{images.absolute()}",
            "resolution": 64,
        },
    }
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / f"estimate-{name}.json"
        paths[name].write_text(json.dumps(content))
    return paths


def satstore(*words: object) -> str:
    """Run a command; return its output."""
    command = [sys.executable, "-m", "satstore", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(config: Path) -> dict[str, tuple[float, float]]:
    """Return what was estimated, and what it took, in seconds, by stage."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder) / "logs"
        [found] = json.loads(satstore("estimate", "--json", "--config", config, "--logs-dir", logs))
        for stage, words in (("train", ["--no-latents"]), ("extract", []), ("probe", [])):
            satstore(stage, "--config", config, "--run-id", "res", "--logs-dir", logs, *words)
        run = open_run("res", logs)
        seconds = {
            stage: (record.ended or math.nan) - record.started
            for stage, record in run.manifest.stages.items()
        }
        seconds["train"] *= run.config.epoch / len(run.table("metrics"))
    return {stage: (found["times_s"][stage], seconds[stage]) for stage in STAGES}


def measure_cpu(path: Path) -> dict[str, tuple[float, float]]:
    """Return what :func:`measure` does in CPU seconds of one thread; images are read in this process."""
    import torch

    from satstore.config.grid import read_config
    from satstore.models.plan import plan_model
    from satstore.planning import calibration
    from satstore.planning.estimate import Counts, stage_times
    from satstore.stages.pipeline import run_experiments
    from satstore.storage.zarr import compression_trial
    from satstore.training.session_data import load_data

    torch.set_num_threads(1)
    cpu_clock: Any = SimpleNamespace(perf_counter=time.process_time)
    calibration.time = compression_trial.time = cpu_clock
    content = json.loads(path.read_text()) | {"workers": 0}
    [config] = read_config(content)
    data = load_data(config)
    counts = Counts(len(data.train), len(data.eval), len(data.classes))
    plan = plan_model(config, counts.n_classes)
    rates = calibration.measure_rates(
        config, data, counts.n_classes, config.latents_request, torch.device("cpu")
    )
    times, seconds = stage_times(plan, config, counts, rates, 0), {}
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            started = time.process_time()
            options: dict[str, Any] = {"latents": False} if stage == "train" else {}
            run_experiments(content, "res", [stage], logs_dir=Path(folder), **options)
            seconds[stage] = time.process_time() - started
        seconds["train"] *= config.epoch / len(open_run("res", Path(folder)).table("metrics"))
    return {stage: (getattr(times, stage), seconds[stage]) for stage in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("tmp/benchmarks"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--config", nargs="*", help="some of the configs; by default all")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of one thread, in this process")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    configs = write_configs(options.folder)
    found: dict[str, list[dict[str, tuple[float, float]]]] = {n: [] for n in options.config or configs}
    for _ in range(options.turns):
        for name, turns in found.items():
            turns.append((measure_cpu if options.cpu else measure)(configs[name]))
    if options.json:
        print(json.dumps(found))
        return
    for name, turns in found.items():
        for stage in STAGES:
            estimated, taken = zip(*(turn[stage] for turn in turns), strict=True)
            ratios = sorted(e / t for e, t in zip(estimated, taken, strict=True))
            print(
                f"{name:12} {stage:8} estimated {statistics.median(estimated):6.1f} s, "
                f"took {statistics.median(taken):6.1f} s; "
                f"estimated by taken {ratios[0]:.2f} to {ratios[-1]:.2f}"
            )


if __name__ == "__main__":
    main()
