"""The experiments in a tree of phd-lab's logs: finding them, reading their configs and tables."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import LIST_KEYS
from satstore.config.validation import describe_invalid
from satstore.errors import CorruptError, reason_of
from satstore.storage.safe_files import read_content

if TYPE_CHECKING:
    import pandas as pd

NAME = re.compile(
    r"(?P<model>.+)-(?P<dataset>[^-]+)-r(?P<resolution>\d+)-bs(?P<batch_size>\d+)-e(?P<epoch>\d+)"
)
DROPPED = ("logs_dir", "device", "cache_dir", "metrics", "data_parallel")
"""Keys of phd-lab's configs that satstore doesn't take over: where and how it ran, what it measured."""


@dataclass
class LoggedExperiment:
    """One experiment of a tree of phd-lab's logs: its CSV file of metrics and saturation.

    The warnings say what of its files was left out, or read in another sense, and why.
    """

    table: Path
    warnings: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """The table's path without its ending."""
        return str(self.table).removesuffix(".csv")

    @property
    def named(self) -> dict[str, str]:
        """What the table's name says: model, dataset, resolution, batch_size and epoch."""
        found = NAME.fullmatch(self.table.stem)
        assert found is not None
        return found.groupdict()

    @property
    def run_id(self) -> str:
        """The name of its folder."""
        return self.table.parent.name


def find_logged_experiments(root: Path) -> Iterator[LoggedExperiment]:
    """Yield the experiments of a tree, by the names of their tables."""
    for path in sorted(root.rglob("*.csv")):
        if NAME.fullmatch(path.stem):
            yield LoggedExperiment(path)


@contextmanager
def reporting_corruption(path: Path, what: str) -> Iterator[None]:
    """Turn errors of reading a file into a CorruptError that names it, what was expected, and the reason."""
    import pandas as pd

    try:
        yield
    except CorruptError:
        raise
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, pd.errors.ParserError) as error:
        reason = reason_of(error)[:200]
        raise CorruptError(f"{path} is no {what} ({type(error).__name__}: {reason})") from error


def read_logged_table(path: Path) -> "pd.DataFrame":
    """Read a table in phd-lab's format, separated by ``;``; raise CorruptError if it has another."""
    import pandas as pd

    with reporting_corruption(path, "table separated by ';'"):
        return pd.read_csv(io.BytesIO(read_content(path, follow=True)), sep=";", index_col=0)


def read_logged_config(logged: LoggedExperiment) -> ExperimentConfig:
    """Read an experiment's config; what it lacks is taken from the file's name."""
    found: dict[str, Any] = {
        key: text if key in ("model", "dataset") else int(text) for key, text in logged.named.items()
    }
    path = Path(f"{logged.stem}_config.json")
    if path.is_file():
        try:
            content = json.loads(read_content(path, follow=True).decode())
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path} can't be read: {reason_of(error)}") from error
        if not isinstance(content, dict):
            raise CorruptError(f"{path} holds a JSON {type(content).__name__}; expected an object")
        for key, value in content.items():
            if key in DROPPED or key not in ExperimentConfig.model_fields or key in LIST_KEYS:
                continue
            found[key] = value[0] if isinstance(value, list) and value else value
    else:
        logged.warnings.append(f"no {path.name}: the config is what the file's name says, the rest defaults")
    try:
        return ExperimentConfig.model_validate({**found, "stages": ["train", "saturation"]})
    except ValueError as error:
        text = describe_invalid(error) if isinstance(error, ValidationError) else str(error)
        raise CorruptError(f"{path}: {text}") from error


def dotted(layer: str) -> str:
    """Return a layer's PyTorch name, of phd-lab's with dashes."""
    return layer.replace("-", ".")
