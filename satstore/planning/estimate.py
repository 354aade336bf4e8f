"""Estimating what an experiment will take before it runs: bytes on disk, peak memory, time.

All of it is arithmetic over a model's sizes (:mod:`satstore.models.plan`) and what was measured of this
machine (:mod:`satstore.planning.calibration`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import LatentsKey
from satstore.errors import MemoryLimitError
from satstore.models.plan import ModelPlan
from satstore.system.cores import count_cores
from satstore.system.limits import loader_bytes

if TYPE_CHECKING:
    from satstore.planning.calibration import Rates

FLOAT16_BYTES, FLOAT32_BYTES, FLOAT64_BYTES = 2, 4, 8

TYPICAL_RATIO = 0.96
"""Bytes on disk per byte of float16, where nothing was measured: most of a convolution's bits are noise.

Measured of latents pooled to 4 × 4 of networks trained on digits: vgg11_XS at 32 px 0.96 (layers 0.89 to
1.0), resnet18 at 64 px 0.99 (0.91 to 1.0); of the same networks untrained 0.93 and 0.95.
"""

OPTIMIZER_VALUES = {"lrs": 1, "lrs60": 1, "sgd": 1}
"""Values that an optimizer keeps per parameter; those not listed keep two, as Adam does."""

Ratios = Mapping[tuple[LatentsKey, str], float]
"""Key and layer to bytes on disk per byte of float16."""


@dataclass(frozen=True)
class Counts:
    """How many images and classes a dataset has."""

    n_train: int
    n_eval: int
    n_classes: int

    @property
    def n_samples(self) -> int:
        """Images of both splits."""
        return self.n_train + self.n_eval

    @property
    def n_outputs(self) -> int:
        """Rows of a probe's weights: one per class, but one in all for two classes."""
        return self.n_classes if self.n_classes > 2 else 1


def latent_bytes(shape: tuple[int, ...], n_samples: int, ratio: float = 1.0) -> int:
    """Return the bytes of samples' latents, raw float16 or, times a ratio, on disk."""
    return round(FLOAT16_BYTES * prod(shape) * n_samples * ratio)


def store_bytes(plan: ModelPlan, n_samples: int, ratios: Ratios | None = None) -> int:
    """Return the bytes on disk of all layers and poolings; without ratios, at the typical one."""
    found = ratios or {}
    return sum(
        latent_bytes(shape, n_samples, found.get((key, layer.layer), TYPICAL_RATIO))
        for layer in plan.layers
        for key, shape in layer.latents.items()
    )


def latent_passes(config: ExperimentConfig) -> int:
    """Return the number of epochs whose latents are extracted and probed."""
    return len({*config.latent_epochs, config.epoch - 1})


def checkpoint_bytes(plan: ModelPlan, optimizer: str) -> int:
    """Return the bytes of a checkpoint: the weights and the optimizer's state."""
    return FLOAT32_BYTES * plan.n_values * (1 + OPTIMIZER_VALUES.get(optimizer, 2))


def kept_bytes(plan: ModelPlan, config: ExperimentConfig) -> int:
    """Return the bytes of all checkpoints: the last one, and the weights kept of earlier epochs."""
    earlier = FLOAT32_BYTES * plan.n_values * (latent_passes(config) - 1)
    return checkpoint_bytes(plan, config.optimizer) + earlier


def extraction_memory(
    plan: ModelPlan,
    config: ExperimentConfig,
    n_samples: int,
    memory_limit: int,
    base_bytes: int,
    n_loaders: int,
) -> int:
    """Project the peak of an extraction, in bytes: while the checkpoint loads, or while latents are written.

    Parameters
    ----------
    n_samples
        Of the larger split.
    memory_limit
        Bounds the shards, and the loader processes.
    base_bytes
        The interpreter with all libraries loaded, and the images that are held in memory.
    """
    from satstore.storage.zarr import plan_memory

    base_bytes += loader_bytes(n_loaders)
    model = FLOAT32_BYTES * plan.n_values
    loading = 2 * checkpoint_bytes(plan, config.optimizer) + model
    held = model + _batch_bytes(plan, config)
    try:
        _, writing = plan_memory(plan.shapes, n_samples, memory_limit - base_bytes, held, config.batch_size)
    except MemoryLimitError:  # not even one sample's latents fit the limit
        writing = held
    return base_bytes + max(loading, writing)


def _batch_bytes(plan: ModelPlan, config: ExperimentConfig) -> int:
    """Return the bytes of a forward pass without gradients: images, the widest module, pooled latents."""
    images = 3 * config.resolution**2
    latents = 2 * sum(plan.n_features)  # a batch's are let go when the next one's are there
    return FLOAT32_BYTES * config.batch_size * (2 * images + plan.widest + latents)


def training_memory(plan: ModelPlan, config: ExperimentConfig, base_bytes: int) -> int:
    """Project the peak of training, in bytes, roughly: weights, gradients, optimizer, kept activations."""
    from satstore.analysis.moments import moments_bytes
    from satstore.capture.layer_samples import count_features

    weights = FLOAT32_BYTES * plan.n_values + checkpoint_bytes(plan, config.optimizer)
    # Their gradients need no more: the backward pass lets activations go as it comes to them.
    activations = FLOAT32_BYTES * config.batch_size * (plan.n_activations + plan.widest)
    method, downsampling = config.conv_method, config.downsampling
    covariances = moments_bytes(
        count_features(layer.layout, layer.output_shape, method, downsampling) for layer in plan.layers
    )
    # A checkpoint is made in memory, from which it is written.
    return base_bytes + weights + max(activations, checkpoint_bytes(plan, config.optimizer)) + covariances


def probe_memory(plan: ModelPlan, counts: Counts, n_threads: int, base_bytes: int) -> int:
    """Project the peak of the probe that takes the most, in bytes; see ``fit_bytes``."""
    from satstore.analysis.logistic.memory import fit_bytes
    from satstore.analysis.logistic.problem import LogisticProblem

    problems = [
        LogisticProblem(
            n_rows=counts.n_train,
            n_features=prod(shape),
            n_classes=counts.n_classes,
            C=1.0,
            tol=1e-4,
            max_iter=1,
            n_positions=prod(shape[:-1]) if key.pooling == "pixelwise" else 1,  # features come last
        )
        for key, layers in plan.shapes.items()
        for shape in layers.values()
    ]
    return base_bytes + max(fit_bytes(problem, n_threads) for problem in problems)


def stored_ratios(
    logs_dir: Path, config: ExperimentConfig, plan: ModelPlan
) -> tuple[dict[tuple[LatentsKey, str], float], str]:
    """Return the compression of stored latents of the same model and resolution, and the name of their run.

    Of several runs in the logs folder, the newest with a pooling counts; both are empty where there is none.
    """
    from satstore.runs.logs_folder import list_runs
    from satstore.storage.zarr.layout import encode_layer

    found: dict[tuple[LatentsKey, str], float] = {}
    name = ""
    runs = list_runs(logs_dir, []) if logs_dir.is_dir() else []
    for run in sorted(runs, key=lambda run: run.manifest.created):
        if (run.config.model, run.config.resolution) != (config.model, config.resolution):
            continue
        committed = run.commits.read(run.latents_location.name)
        for key, record in run.manifest.latents.items():
            shapes = plan.shapes.get(key, {})
            sizes = {}
            for layer in shapes:
                files = committed.under(f"{key}/train/{encode_layer(layer)}/latent")
                sizes[layer] = sum(digest.size_bytes for digest in files.values())
            if not all(sizes.values()):
                continue
            found |= {(key, n): s / latent_bytes(shapes[n], record.n_train) for n, s in sizes.items()}
            name = run.name
    return found, name


PASSES = 60
"""Passes over a layer's rows that a probe is assumed to need at tol 1e-4; 14 to 148 were seen."""

PRODUCT_SHARE = 0.6
"""The share of the machine's rate of products that a probe's pass is assumed to reach."""

# Seconds that a layer takes whatever its size: its spectra after an epoch; its arrays, moments and digests;
# the iterations of its solver. They were measured with vgg11_XS, vgg16_XS and resnet18_XS on digits (10, 15,
# 21 layers), where they are the larger part of extraction and probes.
EPOCH_LAYER_S, EXTRACT_LAYER_S, PROBE_LAYER_S = 0.05, 0.1, 0.2

SPREAD = {"train": (0.7, 1.5), "extract": (0.7, 1.5), "probe": (0.5, 2.0)}
"""The range of a stage's time, by its estimate: see ``benchmarks/estimate.py``."""


@dataclass(frozen=True)
class Times:
    """Estimated seconds of the stages, with nothing else at work on the machine."""

    train: float
    extract: float
    probe: float

    def range_of(self, stage: str) -> tuple[float, float]:
        """Return the least and the most seconds that a stage is likely to take."""
        low, high = SPREAD[stage]
        return low * getattr(self, stage), high * getattr(self, stage)


def stage_times(
    plan: ModelPlan, config: ExperimentConfig, counts: Counts, rates: "Rates", workers: int
) -> Times:
    """Estimate the stages' times from this machine's rates and the number of loader processes, 0 for none."""
    n_cores = count_cores()
    on_gpu = rates.device.startswith("cuda")
    # Per image. On the CPU, decoding and the model share the cores; beside a GPU, they overlap.
    loading = 0.0 if rates.images is None else 1 / (rates.images * min(max(1, workers), n_cores))
    train = max(1 / rates.train, loading) if on_gpu else 1 / rates.train + loading
    forward = max(1 / rates.extract, loading) if on_gpu else 1 / rates.extract + loading
    encoding = FLOAT16_BYTES * sum(plan.n_features) / rates.encoding
    extract = counts.n_samples * (max(forward, encoding) if on_gpu else forward + encoding)
    probe = sum(_pass_seconds(n, counts, rates) * PASSES + PROBE_LAYER_S for n in plan.n_features)
    n_layers, n_arrays = len(plan.layers), len(plan.n_features)
    epoch = counts.n_train * train + counts.n_eval * forward + n_layers * EPOCH_LAYER_S
    return Times(
        train=config.epoch * epoch,
        extract=(extract + n_arrays * EXTRACT_LAYER_S) * latent_passes(config),
        probe=probe * latent_passes(config),
    )


def _pass_seconds(n_features: int, counts: Counts, rates: "Rates") -> float:
    """Return the seconds of one pass over a layer's rows: of their products or of decoding, the longer."""
    products = 4.0 * counts.n_train * n_features * counts.n_outputs / (rates.flops * PRODUCT_SHARE)
    return max(products, FLOAT16_BYTES * counts.n_train * n_features / rates.decoding)


@dataclass(frozen=True)
class Memory:
    """Peak memory of the stages, in bytes of one process."""

    train: int
    extract: int
    probe: int


def stage_memory(
    plan: ModelPlan,
    config: ExperimentConfig,
    counts: Counts,
    base: "Base",
    memory_limit: int,
    workers: int,
    n_loaders: int,
) -> Memory:
    """Project the stages' peaks; a probe's is that of the layer with the most features.

    Each of `workers` processes that fit probes side by side takes its peak; `n_loaders` processes load images
    beside an extraction.
    """
    n_threads = max(1, count_cores() // workers)
    n_most = max(counts.n_train, counts.n_eval)
    return Memory(
        train=training_memory(plan, config, base.torch),
        extract=extraction_memory(plan, config, n_most, memory_limit, base.torch, n_loaders),
        probe=probe_memory(plan, counts, n_threads, base.probe),
    )


@dataclass(frozen=True)
class Base:
    """Bytes that a process holds before it fits probes, or uses torch: libraries and images in memory."""

    probe: int
    torch: int


def measure_base() -> Base:
    """Load the libraries of the stages and measure the memory they take; call this before others."""
    import satstore.analysis.logistic.evaluation
    import satstore.analysis.logistic.solver
    import satstore.storage.zarr
    from satstore.system.memory import resident_bytes

    probe = resident_bytes()
    import satstore.training.loop  # noqa: F401

    return Base(probe, resident_bytes())
