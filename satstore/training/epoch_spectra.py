"""The spectra of each epoch: recorded during its passes, computed after them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from satstore.analysis.moments import moments_bytes
from satstore.analysis.spectrum import eigenvalues
from satstore.capture.layer_samples import count_features
from satstore.capture.layers import Layer, Layers
from satstore.capture.recorders import MomentRecorder
from satstore.config.experiment import ExperimentConfig
from satstore.errors import MemoryLimitError, NumericsError
from satstore.runs.run import Run
from satstore.system.memory import available_memory
from satstore.system.process_group import ProcessGroup
from satstore.system.text import describe_size

Float64 = NDArray[np.float64]


def make_recorder(layers: Layers, config: ExperimentConfig, group: ProcessGroup) -> MomentRecorder:
    """Make a config's recorder of moments; each process of a group takes its share of ``max_samples``."""
    limit = config.max_samples
    return MomentRecorder(
        layers,
        config.conv_method,
        config.downsampling,
        max_samples=None if limit is None else group.counts(limit)[group.rank],
        log_interval=config.log_interval,
        downsampling_method=config.downsampling_method,
        timeseries_method=config.timeseries_method,
    )


def gather_moments(recorder: MomentRecorder, group: ProcessGroup) -> None:
    """Add the moments of all processes to the main one's recorder, in the order of their ranks."""
    if group.size > 1:
        for part in group.gather(recorder.part())[1:]:
            recorder.absorb(part)


@dataclass(frozen=True)
class Spectra:
    """The spectra of one pass, by layer.

    ``eigenvalues`` has (feature,) of every layer, descending, NaN where its output was not finite;
    ``moments`` the mean (feature,) and covariance (feature, feature) of the other layers.
    """

    eigenvalues: dict[str, Float64]
    moments: dict[str, tuple[Float64, Float64]]


def compute_spectra(run: Run, epoch: int, recorder: MomentRecorder, layers: Layers, split: str) -> Spectra:
    """Compute the spectra of the pass of an epoch, counted from 0; warn of layers that were not finite."""
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
    for layer, n_features in count_layer_features(layers, run.config).items():
        spectra[layer] = np.full(n_features, np.nan)
        if layer not in moments:
            continue
        try:
            spectra[layer] = eigenvalues(moments[layer][1])
        except NumericsError as error:  # values are finite, their products are not
            del moments[layer]
            run.warn("train", f"layer {layer}: {error}, in the {split} pass of epoch {epoch + 1}")
    return Spectra(spectra, moments)


def count_layer_features(layers: Iterable[Layer], config: ExperimentConfig) -> dict[str, int]:
    """Return the number of features of each layer's samples."""
    method, downsampling = config.conv_method, config.downsampling
    return {
        layer.name: count_features(layer.layout, layer.output_shape, method, downsampling) for layer in layers
    }


def check_moments(run: Run, layers: Iterable[Layer], device: torch.device) -> None:
    """Raise MemoryLimitError unless the memory here suffices for the covariances of all layers."""
    features = count_layer_features(layers, run.config)
    needed, largest = moments_bytes(features.values()), max(features, key=lambda name: features[name])
    free = [available_memory()]
    if device.type == "cuda":
        free.append(torch.cuda.mem_get_info(device)[0])
    if needed > min(free):
        raise MemoryLimitError(
            f"{run.name}: about {describe_size(needed)} of memory are needed for covariances, most of it for "
            f"layer {largest} of {features[largest]:,} features, {describe_size(min(free))} are available; "
            "take conv_method channelwise, a downsampling, or fewer layers (modules, exclude_layers), or try "
            "--force"
        )
