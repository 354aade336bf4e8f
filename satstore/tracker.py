"""Saturation of any model in any training loop: a callback with the arguments that delve's tracker has.

It writes what delve writes: columns such as ``train-saturation_conv1`` in ``;``-separated CSV files. A row is
an epoch: all that was added up to a save; what is not known of it is empty. (delve 0.1.50 moves later values
of such a column up into earlier rows.) Moments are accumulated in float64 on the layers' device, from values
shifted by the first batch's mean; nothing of the batches is kept. They are of all batches since the last
call; delve 0.1.50's are of the last batch alone.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor, nn

from satstore.analysis.moments import Moments, NonFiniteError
from satstore.analysis.spectrum import Definition, eigenvalues, intrinsic_dimension
from satstore.capture import Recorder, select_layers, take_room
from satstore.errors import ConfigError
from satstore.files import write_file
from satstore.samples import ConvMethod, batch_first_output, to_samples

Stat = Literal["lsat", "idim", "cov", "det", "trc", "dtrc"]
SaveTo = Literal["csv", "plot", "print", "npy"]

STATS: Mapping[str, str] = {
    "lsat": "saturation",
    "idim": "intrinsic-dimensionality",
    "cov": "covariance-matrix",
    "det": "covariance-determinant",
    "trc": "covariance-trace",
    "dtrc": "diagonal-trace",
}
"""Statistic to its name in columns and files."""

Value = float | np.ndarray[Any, Any]


class SaturationTracker(Recorder):
    """Records layer saturation while a model is trained and evaluated by a loop of the user's own.

    What a layer computes in training mode counts as ``train``, in evaluation mode as ``eval``.

    Parameters
    ----------
    savefile
        Path of what is written, without an ending; for ``npy`` a folder.
    save_to
        ``csv``; ``plot``: CSV and pictures of each statistic, split and epoch; ``print``; ``npy``; or several
    modules
        A model; its Conv, ConvTranspose, Linear and LSTM layers are recorded.
    layer_filter
        Given layers by name, returns those to record.
    log_interval
        Record every so many calls of a layer.
    max_samples
        Images of a pass that a layer's moments take at most.
    stats
        ``lsat`` saturation, ``idim`` intrinsic dimension, ``cov`` covariance (``npy`` only), ``det`` its
        determinant, ``trc`` its trace, ``dtrc`` the sum of its eigenvalues.
    reset_covariance
        Begin anew after each :meth:`add_saturations`.
    ignore_layer_names
        Layers to leave out.
    include_conv
        Whether to record convolutions.
    conv_method, timeseries_method
        How their outputs become samples; see :func:`satstore.samples.to_samples`.
    sat_threshold
        Delta: the share of the variance.
    nosave
        Write nothing.
    device
        Accepted, and of no effect: moments stay where the layer is.
    initial_epoch
        The epochs done where training goes on: so many rows of what was written before are read back.
    definition
        ``delve``, whose dimension is one smaller, or ``exact``.

    Raises
    ------
    ConfigError
        If a statistic or a way to save is unknown.

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
        save_to: "SaveTo | Sequence[SaveTo]",
        modules: nn.Module,
        layer_filter: Callable[[dict[str, nn.Module]], dict[str, nn.Module]] | None = None,
        *,
        log_interval: int = 1,
        max_samples: int | None = None,
        stats: Sequence[Stat] = ("lsat",),
        reset_covariance: bool = True,
        ignore_layer_names: Sequence[str] = (),
        include_conv: bool = True,
        conv_method: ConvMethod = "channelwise",
        timeseries_method: Literal["last_timestep", "timestepwise"] = "last_timestep",
        sat_threshold: float = 0.99,
        nosave: bool = False,
        device: object = None,
        initial_epoch: int = 0,
        definition: Definition = "delve",
    ) -> None:
        self.writers = [] if nosave else _make_writers(save_to, Path(savefile))
        for stat in stats:
            if stat not in STATS:
                raise ConfigError(f"no statistic {stat!r}; known: {', '.join(STATS)}")
        layers = select_layers(modules)
        layers = layer_filter(layers) if layer_filter is not None else layers
        is_conv = nn.modules.conv._ConvNd
        super().__init__(
            {
                name: layer
                for name, layer in layers.items()
                if name not in ignore_layer_names and (include_conv or not isinstance(layer, is_conv))
            }
        )
        self._stats, self._delta, self._definition = tuple(stats), sat_threshold, definition
        self._log_interval, self._max_samples, self._resets = log_interval, max_samples, reset_covariance
        self._method = conv_method
        self._timeseries: Any = {"last_timestep": "last", "timestepwise": "every"}[timeseries_method]
        self._moments: dict[tuple[str, str], Moments] = {}
        self._n_calls: dict[str, int] = {}
        self._n_images: dict[tuple[str, str], int] = {}
        self._bad: set[tuple[str, str]] = set()
        self._row, self._given, self._is_begun = initial_epoch, set[str](), False
        if initial_epoch:
            for writer in self.writers:
                writer.go_on(initial_epoch)
        super().__enter__()

    def __enter__(self) -> Self:
        return self  # it records since it was made

    def stop(self) -> None:
        """Record nothing until :meth:`resume`."""
        self.enabled = False

    def resume(self) -> None:
        """Record again."""
        self.enabled = True

    def close(self) -> None:
        """Let go of the model."""
        self._hooks.close()

    def add_scalar(self, name: str, value: float) -> None:
        """Add a value of one's own, such as an accuracy, to this epoch's row.

        A name that the row has already begins the next row.
        """
        if name in self._given:
            self._end_row()
        self._given.add(name)
        for writer in self.writers:
            writer.add(self._row, name, value)

    def _end_row(self) -> None:
        self._row, self._given, self._is_begun = self._row + 1, set(), False

    def add_saturations(self, save: bool = True) -> dict[str, Value]:
        """Add what was recorded since the last call to this epoch's row, and return it by column.

        An epoch in which nothing was recorded has a row, too. A layer whose output held NaN or infinities has
        NaN.
        """
        if self._is_begun:
            self._end_row()
        found: dict[str, Value] = {}
        for (mode, layer), moments in self._moments.items():
            is_bad = (mode, layer) in self._bad
            covariance = None if is_bad else moments.covariance().cpu().numpy()
            for stat in self._stats:
                name = f"{mode}-{STATS[stat]}_{layer}"
                found[name] = float("nan") if covariance is None else self._measure(stat, covariance)
        for name, value in found.items():
            for writer in self.writers:
                writer.add(self._row, name, value)
        self._is_begun = True
        if self._resets:
            self._moments, self._bad = {}, set()
        self._n_images = {}
        if save:
            self.save()
        return found

    def save(self) -> None:
        """Write the files, and end the row."""
        if self._given or self._is_begun:
            self._end_row()
        for writer in self.writers:
            writer.save(self._row)

    def _measure(self, stat: str, covariance: np.ndarray[Any, Any]) -> Value:
        if stat == "cov":
            return covariance
        if stat == "trc":
            return float(np.trace(covariance))
        if stat == "det":
            return float(np.linalg.det(covariance))
        spectrum = eigenvalues(covariance)
        if stat == "dtrc":
            return float(spectrum.sum())
        dimension = float(intrinsic_dimension(spectrum, self._delta, self._definition))
        return dimension if stat == "idim" else dimension / len(spectrum)

    def _record(self, name: str, module: nn.Module, output: Any) -> None:
        key = ("train" if module.training else "eval", name)
        self._n_calls[name] = self._n_calls.get(name, 0) + 1
        if self._n_calls[name] % self._log_interval or key in self._bad:
            return
        room = take_room(self._n_images, key, self._max_samples, len(batch_first_output(output, module)))
        if room == 0:
            return
        samples: Tensor = to_samples(
            output, module, self._method, timeseries_method=self._timeseries, n_images=room
        )
        try:
            self._moments.setdefault(key, Moments()).update(samples)
        except NonFiniteError:
            self._bad.add(key)


class CsvWriter:
    """A ``;``-separated table, a row per epoch, written anew by each :meth:`save`.

    Attributes
    ----------
    columns
        By name, the values by row, those that are known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.csv")
        self.columns: dict[str, dict[int, float]] = {}

    def go_on(self, n_rows: int) -> None:
        """Take up so many rows of what was written before, if there is any."""
        import pandas as pd

        if self.path.exists():
            table = pd.read_csv(self.path, sep=";", index_col=0)[:n_rows]
            self.columns = {f"{name}": dict(enumerate(map(float, table[name]))) for name in table}

    def add(self, row: int, name: str, value: Value) -> None:
        """Add a value to a column."""
        if np.ndim(value) == 0:
            self.columns.setdefault(name, {})[row] = float(value)

    def save(self, n_rows: int) -> None:
        """Write the table, what is not known left empty."""
        import pandas as pd

        table = pd.DataFrame(
            {name: pd.Series(values, dtype=float) for name, values in self.columns.items()},
            index=range(n_rows),
        )
        write_file(self.path, table.to_csv(sep=";").encode())


class PlotWriter(CsvWriter):
    """The table, and a picture of each statistic and split after each epoch."""

    def save(self, n_rows: int) -> None:
        """Write the table and the pictures of its last row."""
        from matplotlib.figure import Figure

        from satstore.colors import SATURATION
        from satstore.plots.style import name_places, save_figure, tidy_axes

        super().save(n_rows)
        epoch = n_rows - 1
        for stat, words in STATS.items():
            for mode in ("train", "eval"):
                start = f"{mode}-{words}_"
                found = {
                    name: values[epoch]
                    for name, values in self.columns.items()
                    if name.startswith(start) and epoch in values
                }
                if not found:
                    continue
                layers = [name.removeprefix(start) for name in found]
                figure = Figure(figsize=(max(5.0, 1.6 + 0.32 * len(layers)), 4.0), layout="constrained")
                axes = figure.add_subplot()
                axes.bar(range(len(layers)), list(found.values()), color=SATURATION)
                name_places(axes, range(len(layers)), layers)
                axes.set_ylabel(words.replace("-", " "))
                if stat == "lsat":
                    axes.set_ylim(0, 1)
                tidy_axes(axes)
                axes.set_title(f"{mode}, epoch {epoch}", fontsize=10)
                stem = self.path.name.removesuffix(".csv")
                save_figure(figure, self.path.with_name(f"{stem}_{stat}_{mode}_epoch_{epoch}.png"))


class PrintWriter:
    """Lines on stdout."""

    def go_on(self, n_rows: int) -> None:
        """Do nothing: what was printed was printed."""

    def add(self, row: int, name: str, value: Value) -> None:
        """Print a value."""
        print(name, ":", value)  # noqa: T201 - what it is for

    def save(self, n_rows: int) -> None:
        """Do nothing."""


class NpyWriter:
    """A folder per name, with a file per epoch; covariances too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def go_on(self, n_rows: int) -> None:
        """Do nothing: the files that are there stay."""

    def add(self, row: int, name: str, value: Value) -> None:
        """Write a value."""
        import io

        content = io.BytesIO()
        np.save(content, np.asarray(value), allow_pickle=False)
        write_file(self.path / name / f"{name}_epoch{row}.npy", content.getvalue())

    def save(self, n_rows: int) -> None:
        """Do nothing: each value is written when it is added."""


Writer = CsvWriter | PrintWriter | NpyWriter


def _make_writers(save_to: "SaveTo | Sequence[SaveTo]", path: Path) -> list[Writer]:
    makers: Mapping[str, Callable[[], Writer]] = {
        "csv": lambda: CsvWriter(path),
        "plot": lambda: PlotWriter(path),
        "print": PrintWriter,
        "npy": lambda: NpyWriter(path),
    }
    names = (save_to,) if isinstance(save_to, str) else save_to
    for name in names:
        if name not in makers:
            raise ConfigError(f"can't save to {name!r}; known: {', '.join(makers)}")
    return [makers[name]() for name in names]
