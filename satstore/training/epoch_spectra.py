"""The spectra of each epoch: what records them, and what they come to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from satstore.analysis.moments import moments_bytes
from satstore.analysis.spectrum import eigenvalues
from satstore.capture.layer_samples import count_features
from satstore.capture.layers import Layer
from satstore.capture.recorders import MomentRecorder
from satstore.config.experiment import ExperimentConfig
from satstore.errors import MemoryLimitError, NumericsError
from satstore.runs.run import Run
from satstore.system.limits import available_memory
from satstore.system.process_group import Ranks
from satstore.system.text import describe_size

Float64 = NDArray[np.float64]


def make_recorder(modules: Mapping[str, nn.Module], config: ExperimentConfig, ranks: Ranks) -> MomentRecorder:
    """Return what records layers as a config says; of ``max_samples``, each rank takes its share."""
    limit = config.max_samples
    return MomentRecorder(
        modules,
        config.conv_method,
        config.downsampling,
        max_samples=None if limit is None else ranks.counts(limit)[ranks.rank],
        log_interval=config.log_interval,
        downsampling_method=config.downsampling_method,
        timeseries_method=config.timeseries_method,
    )


def merge_ranks(recorder: MomentRecorder, ranks: Ranks) -> None:
    """Add to the main rank's recorder what the others recorded, in the order of the ranks."""
    if ranks.size > 1:
        for part in ranks.gather(recorder.part())[1:]:
            recorder.absorb(part)


@dataclass(frozen=True)
class Spectra:
    """Each layer's eigenvalues of one pass (NaN where it failed), and mean and covariance where it didn't."""

    eigenvalues: dict[str, Float64]
    moments: dict[str, tuple[Float64, Float64]]


def take_spectra(
    run: Run, epoch: int, recorder: MomentRecorder, layers: Mapping[Layer, nn.Module], split: str
) -> Spectra:
    """Compute the spectra of an epoch's pass; layers whose output was not finite are reported and get NaN."""
    for bad in recorder.non_finite:
        run.warn(
            "train",
            f"layer {bad.layer}: {bad.count} values are NaN or infinite in batch {bad.batch} of the {split} "
            f"pass of epoch {epoch + 1}; it has no spectrum there",
        )
    moments = {
        layer: (found.mean.cpu().numpy(), found.covariance().cpu().numpy())
        for layer, found in recorder.results().items()
    }
    spectra = {}
    for layer, n_features in features_of(layers, run.config).items():
        spectra[layer] = np.full(n_features, np.nan)
        if layer not in moments:
            continue
        try:
            spectra[layer] = eigenvalues(moments[layer][1])
        except NumericsError as error:  # finite values of which the products are not: the others go on
            del moments[layer]
            run.warn(
                "train",
                f"layer {layer}: {error}, in the {split} pass of epoch {epoch + 1}",
            )
    return Spectra(spectra, moments)


def features_of(layers: Iterable[Layer], config: ExperimentConfig) -> dict[str, int]:
    """Return the number of features that each layer's samples have."""
    method, downsampling = config.conv_method, config.downsampling
    return {
        layer.name: count_features(layer.kind, layer.output_shape, method, downsampling) for layer in layers
    }


def check_moments(run: Run, layers: Iterable[Layer], device: torch.device) -> None:
    """Refuse spectra that this machine's memory can't suffice for, before anything is computed.

    Raises
    ------
    MemoryLimitError
        Naming the layer that takes the most.
    """
    features = features_of(layers, run.config)
    needed, largest = moments_bytes(features.values()), max(features, key=lambda name: features[name])
    found = available_memory()
    free = [found] if found is not None else []
    if device.type == "cuda":
        free.append(torch.cuda.mem_get_info(device)[0])
    if free and needed > min(free):
        raise MemoryLimitError(
            f"{run.name}: about {describe_size(needed)} of memory are needed for covariances, most of it for "
            f"layer {largest} of {features[largest]:,} features, {describe_size(min(free))} are available; "
            "take conv_method channelwise, a downsampling, or fewer layers (exclude_layers), or try --force"
        )
