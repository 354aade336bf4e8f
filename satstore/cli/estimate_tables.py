"""Tables and JSON of ``satstore estimate``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from satstore.cli.console import SafeConsole, make_console, make_table
from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import LatentsKey
from satstore.config.naming import name_experiments
from satstore.models.plan import ModelPlan, PlannedLayer
from satstore.planning.estimate import (
    PASSES,
    SPREAD,
    TYPICAL_RATIO,
    Counts,
    Memory,
    Ratios,
    Times,
    kept_bytes,
    latent_bytes,
    latent_passes,
    store_bytes,
)
from satstore.system.limits import free_disk
from satstore.system.memory import available_memory, resident_bytes
from satstore.system.text import describe_durations, describe_size


@dataclass(frozen=True, kw_only=True)
class ExperimentEstimate:
    """What one experiment will take."""

    config: ExperimentConfig
    counts: Counts
    plan: ModelPlan
    ratios: Ratios  # compression of latents by pooling and layer
    measured: str  # how the ratios were measured; empty if they were not
    memory: Memory
    memory_limit: int
    times: Times | None  # of the stages; None if this machine was not timed
    device: str
    logs_dir: Path

    def sizes(self, layer: PlannedLayer, key: LatentsKey) -> tuple[int, int, int]:
        """Return the features of a layer's latents, and their bytes as float16 and on disk."""
        shape, n_samples = layer.latents[key], self.counts.n_samples
        ratio = self.ratios.get((key, layer.layer), TYPICAL_RATIO)
        return layer.n_features(key), latent_bytes(shape, n_samples), latent_bytes(shape, n_samples, ratio)

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk of all latents, of every epoch."""
        return store_bytes(self.plan, self.counts.n_samples, self.ratios) * latent_passes(self.config)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes on disk of all checkpoints."""
        return kept_bytes(self.plan, self.config)


def print_estimates(estimates: Sequence[ExperimentEstimate]) -> None:
    """Print the estimates of experiments, and their sum if there are several."""
    console = make_console()
    names = name_experiments([estimate.config for estimate in estimates])
    for place, (name, estimate) in enumerate(zip(names, estimates, strict=True)):
        if place:
            console.print()
        print_estimate(console, name, estimate)
    if len(estimates) > 1:
        print_total(console, estimates)


def print_estimate(console: SafeConsole, name: str, estimate: ExperimentEstimate) -> None:
    """Print an estimate: a table of layers, then what the stages need and what is free here."""
    counts, plan = estimate.counts, estimate.plan
    console.print(
        f"{name}: {counts.n_train:,} + "
        f"{counts.n_eval:,} images, {counts.n_classes:,} classes, {plan.n_values / 1e6:.1f} M parameters"
    )
    console.print(make_layers_table(estimate))
    source = f"measured: {estimate.measured}" if estimate.measured else f"typical: {TYPICAL_RATIO} of float16"
    console.print(f"on disk: float16, compressed; {source}")
    n_epochs = latent_passes(estimate.config)
    console.print(f"latents of {n_epochs} epochs, each as above\n" if n_epochs > 1 else "")
    console.print(make_needs_table(estimate))
    for shortage in find_shortages(estimate):
        console.print(f"✗ {shortage}")
    if estimate.times is not None:
        console.print(
            f"times on this machine's {estimate.device} with nothing else at work, from a short calibration; "
            f"probes at {PASSES} passes a layer (14 to 148 were seen)"
            + ("; training may stop earlier" if estimate.config.stop_at_accuracy else "")
        )


def make_layers_table(estimate: ExperimentEstimate) -> Table:
    """Return the table of layers, in forward order, with a line of totals."""
    keys = estimate.plan.keys
    right = [heading for key in keys for heading in (f"{key} features", "float16", "on disk")]
    table = make_table("layer", "kind", "output", *right, right=right)
    totals = {key: [0, 0, 0] for key in keys}
    for layer in estimate.plan.layers:
        cells = [layer.layer, layer.kind, " × ".join(map(str, layer.output_shape))]
        for key in keys:
            if key not in layer.latents:
                cells += ["", "", ""]
                continue
            row = estimate.sizes(layer, key)
            totals[key] = [total + value for total, value in zip(totals[key], row, strict=True)]
            cells += [f"{row[0]:,}", *map(describe_size, row[1:])]
        table.add_row(*cells)
    cells = [f"{len(estimate.plan.layers)} layers", "", ""]
    for total in totals.values():
        cells += [f"{total[0]:,}", *map(describe_size, total[1:])]
    table.add_row(*cells)
    return table


def make_needs_table(estimate: ExperimentEstimate) -> Table:
    """Return the table of what the stages need, with what is free here in the last row."""
    table = make_table("stage", "memory", "time", "disk", right=("memory", "time", "disk"))
    for name in ("train", "extract", "probe"):
        roughly = "roughly " if name == "train" else ""
        memory = roughly + describe_size(getattr(estimate.memory, name))
        duration = "" if estimate.times is None else describe_durations(*estimate.times.range_of(name))
        disk = {"train": estimate.checkpoint_bytes, "extract": estimate.disk_bytes}.get(name)
        table.add_row(name, memory, duration, describe_size(disk) if disk else "")
    memory_here, disk_here = available_memory(), free_disk(estimate.logs_dir)
    table.add_row("here", f"{describe_size(memory_here)} available", "", f"{describe_size(disk_here)} free")
    return table


def find_shortages(estimate: ExperimentEstimate) -> list[str]:
    """Return a sentence for each resource that does not suffice."""
    memory_here, disk_here = available_memory(), free_disk(estimate.logs_dir)
    lines = []
    if estimate.disk_bytes + estimate.checkpoint_bytes > disk_here:
        lines.append(f"the disk of {estimate.logs_dir} does not suffice")
    for name in ("train", "extract", "probe"):
        needed = getattr(estimate.memory, name)
        if needed > memory_here + resident_bytes():
            lines.append(f"the memory here does not suffice to {name}")
        elif name != "train" and needed > estimate.memory_limit:
            lines.append(f"--memory-limit {describe_size(estimate.memory_limit)} does not suffice to {name}")
    return lines


def print_total(console: SafeConsole, estimates: Sequence[ExperimentEstimate]) -> None:
    """Print the sums over a grid's experiments."""
    parts = [f"{describe_size(sum(estimate.disk_bytes for estimate in estimates))} on disk"]
    times = [estimate.times for estimate in estimates if estimate.times is not None]
    for name in ("train", "extract", "probe"):
        if times:
            lows, highs = zip(*(t.range_of(name) for t in times), strict=True)
            parts.append(f"{name} {describe_durations(sum(lows), sum(highs))}")
    console.print(f"\n{len(estimates)} experiments: {', '.join(parts)}")


def summarize_estimate(estimate: ExperimentEstimate) -> dict[str, Any]:
    """Return an experiment's entry of ``estimate --json``; sizes in bytes, times in seconds."""
    names = ("n_features", "float16_bytes", "disk_bytes")
    return {
        "config": estimate.config.model_dump(mode="json"),
        **asdict(estimate.counts),
        "n_parameters": estimate.plan.n_values,
        "layers": [
            {
                "layer": layer.layer,
                "kind": layer.kind,
                "output_shape": layer.output_shape,
                "latents": {
                    str(key): {"shape": shape, **dict(zip(names, estimate.sizes(layer, key), strict=True))}
                    for key, shape in layer.latents.items()
                },
            }
            for layer in estimate.plan.layers
        ],
        "compression": estimate.measured or "typical",
        "n_latent_epochs": latent_passes(estimate.config),
        "disk_bytes": estimate.disk_bytes,
        "checkpoint_bytes": estimate.checkpoint_bytes,
        "disk_free_bytes": free_disk(estimate.logs_dir),
        "memory_bytes": asdict(estimate.memory),
        "memory_available_bytes": available_memory(),
        "memory_limit_bytes": estimate.memory_limit,
        "times_s": None if estimate.times is None else asdict(estimate.times),
        "times_range_s": estimate.times and {name: estimate.times.range_of(name) for name in SPREAD},
        "passes": PASSES,
        "lacks": find_shortages(estimate),
    }
