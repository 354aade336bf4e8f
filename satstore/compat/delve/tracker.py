"""The saturation tracker: it records any model in any training loop, with the arguments of delve's.

Moments are accumulated in float64 on the layers' device, from values shifted by the first batch's mean;
batches are not kept. A row has the moments of all batches since the row before; delve 0.1.50 takes those of
the last batch alone.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import nn

from satstore.analysis.compiled_models import prepare_to_compile
from satstore.analysis.modules import LAYER_TYPES, name_module
from satstore.analysis.spectrum import Definition
from satstore.capture.layer_samples import ConvMethod
from satstore.capture.outputs import arrange, expect_tensor
from satstore.capture.recorders import Recorder, take_room
from satstore.compat.delve.layers import (
    DelveTimeseriesMethod,
    InterpolationStrategy,
    Sampler,
    find_layers,
    name_layers,
)
from satstore.compat.delve.statistics import STATS, TrackedLayer, Value, choose_stats
from satstore.compat.delve.writers import NPYWriter, PrintWriter, add_epoch, make_writers, resume
from satstore.errors import ConfigError

_log = logging.getLogger(__name__)

MODES = ("train", "eval")


class SaturationTracker(Recorder[str]):
    """Records layer saturation while a model is trained and evaluated by a loop of the user's own.

    What a layer computes in training mode counts as ``train``, in evaluation mode as ``eval``.

    Parameters
    ----------
    savefile
        Path of the files to write, without an ending; for ``npy`` a folder.
    save_to
        ``csv``; ``plot``, also called ``csvplot`` and ``plotcsv``: CSV and pictures of each statistic, split
        and epoch; ``print`` or ``console``; ``npy``; ``tensorboard``; a writer object, satstore's, delve's or
        your own; or a list of these.
    modules
        A model, or a list of models and layers; their Conv, ConvTranspose, Linear and LSTM layers are
        recorded.
    layer_filter
        Given layers by name, returns those to record.
    writer_args
        Arguments of the writers that `save_to` names: ``figsize``, ``fontsize``, ``primary_metric``,
        ``plot_manipulation_func``; ``zip``. A writer ignores those of others.
    log_interval
        Record one in this many calls of a layer.
    max_samples
        Images that a layer's moments take of a pass, at most.
    stats
        ``lsat`` saturation, ``idim`` intrinsic dimension, ``cov`` covariance (``npy`` only), ``det`` its
        determinant, ``trc`` its trace, ``dtrc`` the sum of its eigenvalues, ``embed`` the last batch's
        samples in a plane (``npy`` and ``plot``).
    layerwise_sat
        Whether to save the layers' values.
    reset_covariance
        Start the moments anew after each :meth:`add_saturations`.
    average_sat
        Save ``average-train-sat`` and ``average-eval-sat``, the mean saturation of the layers.
    ignore_layer_names
        Layers to leave out.
    include_conv
        Whether to record convolutions.
    conv_method, timeseries_method
        How their outputs become samples; see :class:`satstore.compat.delve.layers.Sampler`.
    sat_threshold
        Delta: the share of the variance.
    nosave
        Write nothing.
    verbose
        Print each value, too.
    device
        Accepted without effect: moments stay on the layer's device.
    initial_epoch
        Epochs done before, where training is resumed: that many rows of earlier files are read back.
    interpolation_strategy, interpolation_downsampling
        A mode of ``torch.nn.functional.interpolate`` by which larger maps are interpolated to this many
        positions along both axes before they become samples; None: they are taken as they are.
    definition
        ``delve``: delve's intrinsic dimension, and its samples of sequences; ``exact``: those of
        docs/definitions.md.

    Raises
    ------
    ConfigError
        If an argument has a value that isn't allowed, or no layer is left to record.
    NotFoundError
        If TensorBoard is asked for and not installed.

    Examples
    --------
    >>> tracker = SaturationTracker("logs/mine", "csv", model)  # doctest: +SKIP
    ... for epoch in range(10):
    ...     train(model)
    ...     evaluate(model)
    ...     tracker.add_scalar("accuracy", accuracy)
    ...     tracker.add_saturations()
    ... tracker.close()
    """

    def __init__(
        self,
        savefile: str | os.PathLike[str],
        save_to: Any,
        modules: nn.Module | Iterable[nn.Module],
        layer_filter: Callable[[dict[str, nn.Module]], Mapping[str, nn.Module]] | None = None,
        writer_args: Mapping[str, Any] | None = None,
        log_interval: int = 1,
        max_samples: int | None = None,
        stats: str | Sequence[str] = ("lsat",),
        layerwise_sat: bool = True,
        reset_covariance: bool = True,
        average_sat: bool = False,
        ignore_layer_names: str | Sequence[str] = (),
        include_conv: bool = True,
        conv_method: ConvMethod = "channelwise",
        timeseries_method: DelveTimeseriesMethod = "last_timestep",
        sat_threshold: float = 0.99,
        nosave: bool = False,
        verbose: bool = False,
        device: object = None,
        initial_epoch: int = 0,
        interpolation_strategy: InterpolationStrategy | None = None,
        interpolation_downsampling: int = 32,
        *,
        definition: Definition = "delve",
    ) -> None:
        _check_numbers(sat_threshold, log_interval=log_interval, max_samples=max_samples)
        self._sampler = Sampler(
            conv_method, timeseries_method, definition, interpolation_strategy, interpolation_downsampling
        )
        self.stats = choose_stats(stats)
        self.layers = _choose_layers(find_layers(modules), layer_filter, ignore_layer_names, include_conv)
        self.writers = [] if nosave else make_writers(save_to, savefile, writer_args)
        super().__init__(self.layers)
        self._delta, self._definition = sat_threshold, definition
        self._log_interval, self._max_samples, self._resets = log_interval, max_samples, reset_covariance
        self._layerwise, self._average = layerwise_sat, average_sat
        self._prepare_writers(Path(savefile), initial_epoch, verbose=verbose)
        self._start()

    def _prepare_writers(self, savefile: Path, initial_epoch: int, *, verbose: bool) -> None:
        """Make their folder, read back the epochs before `initial_epoch`, and warn of arrays not saved."""
        if verbose and not any(isinstance(writer, PrintWriter) for writer in self.writers):
            self.writers.append(PrintWriter())
        if "cov" in self.stats and not any(_takes_arrays(writer) for writer in self.writers):
            _log.warning("'cov' is returned, but not saved: add 'npy' to save_to")
        if self.writers:
            savefile.parent.mkdir(parents=True, exist_ok=True)
        for writer in self.writers if initial_epoch else ():
            resume(writer, initial_epoch)

    def _start(self) -> None:
        """Register the hooks, with nothing recorded yet."""
        self._records: dict[tuple[str, str], TrackedLayer] = {}
        self._n_calls: dict[str, int] = {}
        self._n_images: dict[tuple[str, str], int] = {}
        self._is_closed, self._was_stopped, self._n_calls_of_epoch = False, False, 0
        if self._definition == "delve":
            _warn_of_time_first(self.layers)
        prepare_to_compile()
        super().__enter__()

    def __enter__(self) -> Self:
        return self  # it has been recording since it was made

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SaturationTracker of {', '.join(self.layers)}"

    @property
    def logs(self) -> dict[str, dict[str, TrackedLayer]]:
        """Recorded moments since the last :meth:`add_saturations`, by split and layer."""
        return {
            f"{mode}-{STATS['cov']}": {
                layer: record for (split, layer), record in self._records.items() if split == mode
            }
            for mode in MODES
        }

    def is_recording(self) -> bool:
        """Return whether calls of layers are recorded."""
        return self.enabled and not self._is_closed

    def stop(self) -> None:
        """Record nothing until :meth:`resume`."""
        self.enabled, self._was_stopped = False, True

    def resume(self) -> None:
        """Record again."""
        self.enabled = True

    def close(self) -> None:
        """Remove the hooks from the model and close the writers."""
        if not self._is_closed:
            self._hooks.close()
            self._is_closed = True
            self.enabled = False  # code compiled with the hooks still calls them
            for writer in self.writers:
                writer.close()

    def add_scalar(self, name: str, value: float, **kwargs: Any) -> None:
        """Add a value of your own, such as an accuracy, to this epoch's row.

        A name that the row already has starts the next row.
        """
        for writer in self.writers:
            writer.add_scalar(name, value, **kwargs)

    def add_scalars(self, prefix: str, value_dict: Mapping[str, float], **kwargs: Any) -> None:
        """Add several values to this epoch's row; outside tables, their names get the prefix."""
        for writer in self.writers:
            writer.add_scalars(prefix, value_dict, **{"sample_value_dict": {}, **kwargs})

    def add_saturations(self, save: bool = True) -> dict[str, Value]:
        """Add the statistics since the last call to this epoch's row, and return them by column.

        An epoch in which nothing was recorded gets a row too; the log says why, unless the tracker was
        stopped. A layer whose output held NaN or infinities gets NaN.
        """
        found = self._compute()
        if not self._records and (self._is_closed or not self._was_stopped):
            _log.warning("nothing was recorded for this row: %s", self._why_empty())
        for writer in self.writers:
            add_epoch(writer, found)
        if self._resets:
            self._records = {}
        self._n_images, self._n_calls_of_epoch, self._was_stopped = {}, 0, not self.enabled
        if save:
            self._save()
        return found

    def save(self) -> None:
        """Write the files and end the row."""
        if not self._n_calls and self.enabled:
            _log.warning("nothing has been recorded so far: %s", self._why_empty())
        self._save()

    def _save(self) -> None:
        for writer in self.writers:
            writer.save()

    def _why_empty(self) -> str:
        if self._is_closed:
            return "the tracker is closed"
        if self._n_calls_of_epoch:
            return (
                f"log_interval is {self._log_interval}, but its {len(self.layers)} layers were called "
                f"{self._n_calls_of_epoch} times; choose a smaller one"
            )
        first = next(iter(self.layers))
        return (
            f"none of its {len(self.layers)} layers ({first}, …) was called; run the very model that the "
            "tracker was made of, neither a copy nor an exported one"
        )

    def _compute(self) -> dict[str, Value]:
        found: dict[str, Value] = {}
        saturations: dict[str, list[float]] = {}
        for (mode, layer), record in self._records.items():
            wanted = (*self.stats, *(("lsat",) if self._average else ()))
            values = record.compute(dict.fromkeys(wanted), self._delta, self._definition)
            if self._layerwise:
                found |= {f"{mode}-{STATS[stat]}_{layer}": values[stat] for stat in self.stats}
            if self._average:
                saturations.setdefault(mode, []).append(float(values["lsat"]))
        return found | {f"average-{mode}-sat": float(np.mean(of)) for mode, of in saturations.items()}

    def _record(self, key: str, module: nn.Module, output: Any) -> None:
        mode = "train" if module.training else "eval"
        self._n_calls[key] = self._n_calls.get(key, 0) + 1
        self._n_calls_of_epoch += 1
        if self._n_calls[key] % self._log_interval:
            return
        tensor = expect_tensor(output, None, name_module(key, module))
        layout = self._sampler.layout(tensor, module)
        tensor = arrange(tensor, layout)
        room = take_room(self._n_images, (mode, key), self._max_samples, len(tensor))
        if room != 0:
            record = self._records.setdefault((mode, key), TrackedLayer())
            record.update(self._sampler.samples(tensor, layout, room), keep="embed" in self.stats)


def _check_numbers(sat_threshold: float, **counts: int | None) -> None:
    if not 0 < sat_threshold <= 1:
        raise ConfigError(f"sat_threshold is {sat_threshold!r}, but has to be above 0 and at most 1")
    for key, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{key} is {value!r}, but has to be 1 at least")


def _choose_layers(
    layers: dict[str, nn.Module],
    layer_filter: Callable[[dict[str, nn.Module]], Mapping[str, nn.Module]] | None,
    ignored: str | Sequence[str],
    include_conv: bool,
) -> dict[str, nn.Module]:
    """Return the layers to record, under their names in columns; raise ConfigError if none is left."""
    left = layers if layer_filter is None else layer_filter(dict(layers))
    ignored = (ignored,) if isinstance(ignored, str) else ignored
    kinds = LAYER_TYPES if include_conv else (nn.Linear, nn.LSTM)
    chosen = {
        name: layer
        for name, layer in name_layers({k: v for k, v in left.items() if isinstance(v, kinds)}).items()
        if name not in ignored
    }
    if not chosen:
        raise ConfigError(
            "no layer is left by layer_filter, ignore_layer_names and include_conv; the layers are called "
            f"{', '.join(list(layers)[:8])}{', …' if len(layers) > 8 else ''}"
        )
    return chosen


def _takes_arrays(writer: Any) -> bool:
    """Return whether a writer saves covariances; writers of other packages are taken to."""
    return isinstance(writer, NPYWriter) or not type(writer).__module__.startswith("satstore.")


def _warn_of_time_first(layers: Mapping[str, nn.Module]) -> None:
    names = [name for name, layer in layers.items() if isinstance(layer, nn.LSTM) and not layer.batch_first]
    if names:
        _log.warning(
            "the first axis of the outputs of %s is time, which delve takes for the batch, and so does this "
            "tracker; definition='exact' takes each axis for what it is",
            ", ".join(names),
        )
