"""The tracker's writers: a table, pictures, arrays, lines on stdout, TensorBoard.

A row is an epoch: all values added up to a save. Cells without a value stay empty.
"""

import io
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satstore.compat.delve.pictures import PictureStyle, draw_embedding, draw_layer_bars
from satstore.compat.delve.statistics import STATS, Value
from satstore.errors import ConfigError, NotFoundError
from satstore.registry import suggest
from satstore.storage.files import write_file

_log = logging.getLogger(__name__)


class AbstractWriter(ABC):
    """The interface of writers, which is delve's: subclass it for a writer of your own."""

    @abstractmethod
    def resume_from_saved_state(self, initial_epoch: int) -> None:
        """Continue after the first `initial_epoch` epochs of what was written before."""

    @abstractmethod
    def add_scalar(self, name: str, value: Any, **kwargs: Any) -> None:
        """Add a value."""

    @abstractmethod
    def add_scalars(self, prefix: str, value_dict: Mapping[str, Any], **kwargs: Any) -> None:
        """Add several values, by name."""

    @abstractmethod
    def save(self) -> None:
        """Write the values added since the last call: an epoch."""

    @abstractmethod
    def close(self) -> None:
        """Close open files."""


class EpochWriter(AbstractWriter):
    """A writer that counts epochs (rows, from 0): an epoch ends at a save, or when a name comes again."""

    def __init__(self) -> None:
        self.row = 0
        self._names: set[str] = set()
        self._has_saturations = False

    def resume_from_saved_state(self, initial_epoch: int) -> None:
        """Continue after `initial_epoch` epochs."""
        self.row = initial_epoch

    def add_scalar(self, name: str, value: Any, **kwargs: Any) -> None:
        """Add a value to this epoch; a name that it already has starts the next."""
        if name in self._names:
            self._end_row()
        self._names.add(name)
        self.write(name, value)

    def add_scalars(self, prefix: str, value_dict: Mapping[str, Any], **kwargs: Any) -> None:
        """Add values to this epoch."""
        for name, value in value_dict.items():
            self.add_scalar(self.column(prefix, name), value)

    def add_epoch(self, values: Mapping[str, Value]) -> None:
        """Add a tracker's statistics, possibly none; end the epoch first if it already has some."""
        if self._has_saturations:
            self._end_row()
        self.add_scalars("", values)
        self._has_saturations = True

    def save(self) -> None:
        """Write the files and end the row."""
        if self._names or self._has_saturations:
            self._end_row()
        self.flush()

    def close(self) -> None:
        """Do nothing, as no file stays open."""

    def column(self, prefix: str, name: str) -> str:
        """Return the name under which `add_scalars` adds a value."""
        return name

    def write(self, name: str, value: Any) -> None:
        """Store a value of this row, or write it at once."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write the rows before this one that aren't written yet."""

    def _end_row(self) -> None:
        self.row, self._names, self._has_saturations = self.row + 1, set(), False


class CSVWriter(EpochWriter):
    """Writes a ``;``-separated table with a row per epoch; each :meth:`save` replaces the file.

    Attributes
    ----------
    columns
        Name to the values by row; rows without a value are left out.
    """

    def __init__(self, savepath: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__()
        self.path = Path(f"{Path(savepath)}.csv")
        self.columns: dict[str, dict[int, float]] = {}

    def resume_from_saved_state(self, initial_epoch: int) -> None:
        """Read the first `initial_epoch` rows of the table that was written before, if there is one."""
        import pandas as pd

        super().resume_from_saved_state(initial_epoch)
        if not self.path.exists():
            _log.warning("%s isn't there: the epochs before %d stay empty", self.path, initial_epoch)
            return
        table = pd.read_csv(self.path, sep=";", index_col=0)[:initial_epoch]
        self.columns = {f"{name}": dict(enumerate(map(float, table[name]))) for name in table}

    def write(self, name: str, value: Any) -> None:
        """Store a number in its column; arrays are left out."""
        if _is_single(value):
            self.columns.setdefault(name, {})[self.row] = _to_float(name, value)

    def flush(self) -> None:
        """Write the table; cells without a value stay empty."""
        import pandas as pd

        table = pd.DataFrame(
            {name: pd.Series(values, dtype=float) for name, values in self.columns.items()},
            index=range(self.row),
        )
        write_file(self.path, table.to_csv(sep=";").encode())


class CSVandPlottingWriter(CSVWriter):
    """Writes the table, and a picture of each statistic and split after each epoch.

    Parameters
    ----------
    savepath
        Path of the files, without an ending.
    plot_manipulation_func
        Called with each picture's matplotlib axes to change them.
    primary_metric
        Column whose value is shown in each picture's title.
    fontsize, figsize
        In points; width and height in inches.
    """

    def __init__(
        self,
        savepath: str | os.PathLike[str],
        plot_manipulation_func: Callable[[Any], object] | None = None,
        *,
        primary_metric: str | None = None,
        fontsize: float | None = None,
        figsize: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(savepath)
        self._style = PictureStyle(fontsize, figsize, plot_manipulation_func)
        self._primary_metric = primary_metric
        self._points: dict[str, Any] = {}

    def write(self, name: str, value: Any) -> None:
        """Store a number in its column, and embedded samples for a picture."""
        super().write(name, value)
        if f"-{STATS['embed']}_" in name:
            self._points[name] = np.asarray(value)

    def flush(self) -> None:
        """Write the table and the pictures of its last row."""
        super().flush()
        for stat, quantity in STATS.items():
            for mode in ("train", "eval"):
                start = f"{mode}-{quantity}_"
                values = {
                    name.removeprefix(start): column[self.row - 1]
                    for name, column in self.columns.items()
                    if name.startswith(start) and self.row - 1 in column
                }
                if values:
                    label, path = quantity.replace("-", " "), self._picture(f"{stat}_{mode}")
                    draw_layer_bars(
                        values, label, self._title(mode), path, self._style, is_share=stat == "lsat"
                    )
        for name, points in self._points.items():
            mode, _, layer = name.partition(f"-{STATS['embed']}_")
            path = self._picture(f"embed_{mode}_{layer}")
            draw_embedding(points, self._title(f"{layer}, {mode}"), path, self._style)
        self._points = {}

    def _picture(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.name.removesuffix('.csv')}_{what}_epoch_{self.row - 1}.png")

    def _title(self, what: str) -> str:
        title = f"{what}, epoch {self.row - 1}"
        metric = self._primary_metric
        if metric is None:
            return title
        if metric not in self.columns:
            raise ConfigError(f"primary_metric: no column {metric!r}{suggest(metric, self.columns)}")
        value = self.columns[metric].get(self.row - 1)
        return title if value is None else f"{title}, {metric} {value:.4g}"


class PrintWriter(EpochWriter):
    """Prints a line per value on stdout."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()

    def write(self, name: str, value: Any) -> None:
        """Print a value."""
        print(name, ":", value)  # noqa: T201 - printing is its purpose


class NPYWriter(EpochWriter):
    """Writes a folder per name with a ``.npy`` file per epoch, arrays included.

    With `zip`, the folder of these folders is packed into a ZIP file beside it after each epoch.
    """

    def __init__(self, savepath: str | os.PathLike[str], zip: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.path = Path(savepath)
        self._zip = zip

    def column(self, prefix: str, name: str) -> str:
        """Return the prefix and the name, as delve does: ``_train-saturation_conv1`` where it is empty."""
        return f"{prefix}_{name}"

    def write(self, name: str, value: Any) -> None:
        """Write the value's file."""
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if array.dtype.hasobject:
            raise ConfigError(f"{name} is {value!r}, which is no array of numbers")
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        write_file(self.path / name / f"{name}_epoch{self.row}.npy", content.getvalue())

    def flush(self) -> None:
        """Pack the folder if asked to; the values' files are there already."""
        if self._zip and self.path.is_dir():
            shutil.make_archive(str(self.path), "zip", root_dir=self.path)


class TensorBoardWriter(EpochWriter):
    """Writes scalars for TensorBoard, with the epoch as the step.

    Raises NotFoundError if TensorBoard is not installed.
    """

    def __init__(self, savepath: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise NotFoundError(
                "save_to='tensorboard' needs TensorBoard, which isn't installed; install it with: "
                "pip install tensorboard"
            ) from error
        self._writer: Any = SummaryWriter(os.fspath(savepath))

    def write(self, name: str, value: Any) -> None:
        """Log a number; arrays are left out."""
        if _is_single(value):
            self._writer.add_scalar(name, _to_float(name, value), self.row)

    def flush(self) -> None:
        """Write what TensorBoard holds in memory."""
        self._writer.flush()

    def close(self) -> None:
        """Close the log."""
        self._writer.close()


WRITERS: Mapping[str, Callable[..., AbstractWriter]] = {
    "csv": CSVWriter,
    "plot": CSVandPlottingWriter,
    "csvplot": CSVandPlottingWriter,
    "plotcsv": CSVandPlottingWriter,
    "csvplotting": CSVandPlottingWriter,
    "print": PrintWriter,
    "console": PrintWriter,
    "npy": NPYWriter,
    "tensorboard": TensorBoardWriter,
    "tb": TensorBoardWriter,
}
"""Writers by the names that ``save_to`` takes."""


def make_writers(
    save_to: Any, savefile: str | os.PathLike[str], arguments: Mapping[str, Any] | None
) -> list[Any]:
    """Return the writers for a name, a writer object, or a list of these.

    Raises ConfigError if a name is unknown, or an object lacks a writer's methods.
    """
    found: list[Any] = []
    methods = AbstractWriter.__abstractmethods__
    for item in save_to if isinstance(save_to, list | tuple) else [save_to]:
        if isinstance(item, str):
            if item not in WRITERS:
                raise ConfigError(f"can't save to {item!r}; known: {', '.join(WRITERS)}")
            found.append(WRITERS[item](**{**(arguments or {}), "savepath": savefile}))
        elif isinstance(item, type) or any(not hasattr(item, name) for name in methods):
            raise ConfigError(f"can't save to {item!r}: expected a name such as 'csv', or a writer object")
        else:
            found.append(item)
    return found


def resume(writer: Any, initial_epoch: int) -> None:
    """Let a writer continue what it wrote before; warn if it can't."""
    try:
        writer.resume_from_saved_state(initial_epoch)
    except NotImplementedError:
        _log.warning("%s can't go on where it was: it begins anew", type(writer).__name__)


def add_epoch(writer: Any, values: Mapping[str, Value]) -> None:
    """Pass an epoch's statistics to a writer; writers of other packages get delve's calls."""
    if isinstance(writer, EpochWriter):
        writer.add_epoch(values)
        return
    for name, value in values.items():
        if f"-{STATS['embed']}_" in name:
            points = [tuple(point) for point in np.asarray(value)]
            writer.add_scalars(prefix="", value_dict={}, sample_value_dict={"embed": points})
        else:
            writer.add_scalars(prefix="", value_dict={name: value}, sample_value_dict={})


def _is_single(value: Any) -> bool:
    """Return whether a value is one number: a scalar, or an array or tensor of one element."""
    return isinstance(value, str) or int(np.prod(np.shape(value))) == 1


def _to_float(name: str, value: Any) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}, but a column takes numbers") from error
