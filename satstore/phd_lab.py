"""Moving over: logs of phd-lab, read into runs that all commands treat like any other.

phd-lab keeps an experiment in ``<logs>/<Model>/<Dataset>_<resolution>/<run id>/``: ``NAME.csv`` with metrics
and saturation, ``NAME_config.json``, ``NAME.pt``, tables of probes and of receptive fields, where NAME is
``Model-Dataset-r32-bs128-e30``; projections lie in the root. Its tables are separated by ``;``; accuracies
are in percent but for the probes', layers have ``-`` where PyTorch has ``.``, and saturation is delve's.
"""

import io
import json
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satstore.config import LIST_KEYS, ExperimentConfig, describe
from satstore.errors import ConfigError, CorruptError, NotFoundError
from satstore.logs import check_run_id, make_run
from satstore.manifest import CHECKPOINT, LayerRecord, Manifest, ProbesRecord, StageRecord
from satstore.run import Run

if TYPE_CHECKING:
    import pandas as pd

NAME = re.compile(
    r"(?P<model>.+)-(?P<dataset>[^-]+)-r(?P<resolution>\d+)-bs(?P<batch_size>\d+)-e(?P<epoch>\d+)"
)
PROBES = re.compile(r"(?:(?P<prefix>.*)_)?probe_performances?\.csv")
POSITION = re.compile(r"(?P<layer>.+?)[-_]\(?(?P<y>\d+)[,x_]\s*(?P<x>\d+)\)?")
DROPPED = ("logs_dir", "device", "cache_dir", "metrics", "data_parallel")
"""Keys of its configs that say where and how it ran, or what it measured."""
DEFAULT_POOLING = 4

NOTE = (
    "import: this run is phd-lab's; its intrinsic dimension and saturation are by delve's definition, one "
    "dimension less than satstore's, and there are no spectra for other deltas"
)


@dataclass
class Original:
    """One experiment of a tree of logs.

    Attributes
    ----------
    table
        Its CSV file of metrics and saturation.
    stem
        The table's path without its ending.
    run_id
        The name of its folder.
    """

    table: Path
    warnings: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """The table's path without its ending."""
        return str(self.table).removesuffix(".csv")

    @property
    def run_id(self) -> str:
        """The name of its folder."""
        return self.table.parent.name


def import_logs(root: Path, logs_dir: Path, run_id: str | None = None) -> list[Run]:
    """Import every experiment of a tree of phd-lab's logs.

    Parameters
    ----------
    run_id
        By default the names of the experiments' folders.

    Raises
    ------
    NotFoundError
        If there is none.
    CorruptError
        If a file can't be read as what its name says.
    ConfigError
        If an experiment is there already, or a run id can't be used.
    """
    originals = list(find_originals(root))
    if not originals:
        raise NotFoundError(
            f"no experiments of phd-lab under {root}: expected files such as Model-Dataset-r32-bs128-e30.csv"
        )
    # All are read before any is written.
    read = [(original, *read_original(original, root)) for original in originals]
    seen: set[Path] = set()
    for original, config, _ in read:
        target = logs_dir / check_run_id(run_id or original.run_id) / config.experiment
        if (target / "manifest.json").exists() or target in seen:
            raise ConfigError(f"{target} is there already; give it another name with --run-id")
        seen.add(target)
    return [write_run(logs_dir, run_id or o.run_id, config, content) for o, config, content in read]


def find_originals(root: Path) -> Iterator[Original]:
    """Yield the experiments of a tree."""
    for path in sorted(root.rglob("*.csv")):
        if NAME.fullmatch(path.stem):
            yield Original(path)


@dataclass
class Content:
    """What an experiment's files hold, as satstore keeps it."""

    files: dict[str, bytes]
    layers: list[LayerRecord]
    epochs_done: int
    test_accuracy: float | None
    saturation: dict[str, float | None]
    dimension: dict[str, int | None]
    probes: dict[str, dict[str, float | None]]
    border: str | None
    source: str
    warnings: list[str]


def read_original(original: Original, root: Path) -> tuple[ExperimentConfig, Content]:
    """Read an experiment's files.

    Raises
    ------
    CorruptError
        If one can't be read.
    """
    table = read_table(original.table)
    state = read_weights(original)
    dimensions = saturation_table(table)
    layers = describe_layers(dimensions, state)
    config = read_config(original)
    probes = dict(read_probes(original, layers))
    border, fields = read_fields(original, layers, config.resolution)
    metrics = metrics_table(table)
    is_done = config.is_finished(len(metrics), None)
    files: dict[str, bytes] = {"metrics.csv": as_csv(metrics)}
    if len(dimensions):
        dimensions.insert(0, "delta", config.delta)
        dimensions["index"] = [[r.layer for r in layers].index(layer) for layer in dimensions["layer"]]
        files["saturation.csv"] = as_csv(dimensions)
    files |= {f"probe-{key}.csv": as_csv(found) for key, found in probes.items()}
    if fields is not None:
        files["receptive_field.csv"] = as_csv(fields)
    projections = read_projections(original, root, config)
    if projections is not None:
        files["projection.csv"] = as_csv(projections)
    if state is not None and is_done:
        files[CHECKPOINT] = pack_weights(state, len(metrics) - 1)
    elif state is not None:
        original.warnings.append(
            "its weights were left out: training was not finished, and can't be gone on with"
        )
    last = dimensions[(dimensions["epoch"] == dimensions["epoch"].max()) & (dimensions["split"] == "train")]
    accuracy = metrics["eval_accuracy"].iloc[-1] if "eval_accuracy" in metrics and len(metrics) else None
    content = Content(
        files,
        layers,
        len(metrics),
        None if accuracy is None else float(accuracy),
        {row.layer: _number(row.saturation) for row in last.itertuples()},
        {row.layer: _whole(row.intrinsic_dimension) for row in last.itertuples()},
        {key: _means(found) for key, found in probes.items()},
        border,
        str(original.table.absolute()),
        original.warnings,
    )
    return config, content


def write_run(logs_dir: Path, run_id: str, config: ExperimentConfig, content: Content) -> Run:
    """Write one experiment, in a single commit."""
    run = make_run(logs_dir, run_id, config)
    stages = {
        "train": "metrics.csv",
        "saturation": "saturation.csv",
        "receptive_field": "receptive_field.csv",
    }
    stages |= {"project": "projection.csv", **({"probe": ""} if content.probes else {})}
    now = time.time()

    def change(manifest: Manifest) -> None:
        manifest.layers = content.layers
        manifest.environment |= {"imported_from": "phd-lab", "source": content.source}
        manifest.warnings = [NOTE, *(f"import: {line}" for line in content.warnings)]
        for stage, name in stages.items():
            if name in content.files or stage == "probe":
                manifest.stages[stage] = StageRecord(status="done", started=now, ended=now)
        for key in content.probes:
            manifest.probes[key] = ProbesRecord(C=1.0, tol=1e-4, max_iter=100)
        summary = manifest.summary
        summary.epochs_done, summary.test_accuracy = content.epochs_done, content.test_accuracy
        summary.saturation, summary.intrinsic_dimension = content.saturation, content.dimension
        summary.probe_accuracy, summary.border_layer = content.probes, content.border

    with run.lock():
        run.commit(content.files, change)
    return run


# Its files


def read_table(path: Path) -> "pd.DataFrame":
    """Read one of its tables.

    Raises
    ------
    CorruptError
        If it is none.
    """
    import pandas as pd

    try:
        return pd.read_csv(path, sep=";", index_col=0)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise CorruptError(f"{path} is no table separated by ';': {' '.join(str(error).split())}") from error


def read_config(original: Original) -> ExperimentConfig:
    """Read an experiment's config; what it lacks is taken from the file's name."""
    named = NAME.fullmatch(original.table.stem)
    assert named is not None
    found: dict[str, Any] = {"model": named["model"], "dataset": named["dataset"]}
    found |= {key: int(named[key]) for key in ("resolution", "batch_size", "epoch")}
    path = Path(f"{original.stem}_config.json")
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path} can't be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise CorruptError(f"{path} holds a JSON {type(content).__name__}; expected an object")
        for key, value in content.items():
            if key in DROPPED or key not in ExperimentConfig.model_fields or key in LIST_KEYS:
                continue
            found[key] = value[0] if isinstance(value, list) and value else value
    else:
        original.warnings.append(
            f"no {path.name}: the config is what the file's name says, the rest defaults"
        )
    try:
        return ExperimentConfig.model_validate({**found, "stages": ["train", "saturation"]})
    except ValueError as error:
        from pydantic import ValidationError

        text = describe(error) if isinstance(error, ValidationError) else str(error)
        raise CorruptError(f"{path}: {text}") from error


COLUMN = re.compile(r"(?P<split>train|eval)-(?P<what>saturation|intrinsic-dimensionality)_(?P<layer>.+)")


def saturation_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return saturation and intrinsic dimension as a row per epoch, split and layer."""
    import pandas as pd

    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name in table.columns:
        match = COLUMN.fullmatch(name)
        if match is not None:
            key = (match["split"], dotted(match["layer"]))
            found.setdefault(key, {})[match["what"]] = [float(value) for value in table[name]]
    rows = []
    for (split, layer), columns in found.items():
        saturation = columns.get("saturation", [])
        dimension = columns.get("intrinsic-dimensionality", [float("nan")] * len(saturation))
        n_features = _count_features(saturation, dimension)
        for epoch, (share, n) in enumerate(zip(saturation, dimension, strict=False)):
            rows.append(("delve", epoch, split, layer, n_features, n, share))
    names = ["definition", "epoch", "split", "layer", "n_features", "intrinsic_dimension", "saturation"]
    frame = pd.DataFrame(rows, columns=names)
    order = {layer: i for i, layer in enumerate(dict.fromkeys(layer for _, layer in found))}
    places = frame["layer"].map(order)
    return (
        frame.assign(place=places)
        .sort_values(["epoch", "split", "place"], kind="stable")
        .drop(columns="place")
    )


def _count_features(saturation: list[float], dimension: list[float]) -> int:
    """Return the features that both numbers are of; 0 if they don't say."""
    for share, n in zip(saturation, dimension, strict=False):
        if share > 0 and n > 0:
            return round(n / share)
    return 0


def metrics_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the metrics by epoch, accuracies as fractions."""
    import pandas as pd

    columns: dict[str, Any] = {"epoch": range(len(table))}
    for name in table.columns:
        split, _, metric = name.partition("_")
        if split in ("training", "test") and metric:
            values = table[name].astype(float)
            ours = f"{'train' if split == 'training' else 'eval'}_{metric.replace('-', '_')}"
            columns[ours] = values / 100 if "accuracy" in metric else values
    return pd.DataFrame(columns)


def describe_layers(dimensions: "pd.DataFrame", state: "Mapping[str, Any] | None") -> list[LayerRecord]:
    """Return the layers in the order of its columns, of which kind they are by the weights or their names."""
    counts = dict(zip(dimensions["layer"], dimensions["n_features"], strict=True))
    records = []
    for index, (layer, n_features) in enumerate(counts.items()):
        weight = None if state is None else state.get(f"{layer}.weight")
        if weight is not None:
            is_conv, n_features = weight.ndim > 2, int(weight.shape[0])
        else:
            is_conv = not re.search(r"(^|\.)(fc|classifier|linear|head)", layer)
        shape = [n_features, 0, 0] if is_conv else [n_features]
        records.append(
            LayerRecord(
                layer=layer,
                index=index,
                kind="Conv2d" if is_conv else "Linear",
                n_features=n_features,
                output_shape=shape,
            )
        )
    return records


def read_probes(original: Original, layers: list[LayerRecord]) -> "Iterator[tuple[str, pd.DataFrame]]":
    """Yield the tables of probes, by the names that satstore has for them."""
    import pandas as pd

    known = {record.layer: record.n_features for record in layers}
    taken = set()
    for path in sorted(original.table.parent.glob("*probe_performance*.csv")):
        match = PROBES.fullmatch(path.name)
        if match is None:
            continue
        table = read_table(path)
        missing = {"name", "train_acc", "eval_acc"} - set(table.columns)
        if missing:
            raise CorruptError(
                f"{path} has no column {sorted(missing)[0]!r}; found {', '.join(table.columns)}"
            )
        key = name_table(match["prefix"])
        if key in taken:
            original.warnings.append(f"{path.name} was left out: another file has probes of {key} too")
            continue
        taken.add(key)
        rows = []
        for name, train, evaluated in zip(table["name"], table["train_acc"], table["eval_acc"], strict=True):
            layer = dotted(f"{name}".removeprefix("train-").removeprefix("eval-"))
            place: dict[str, int] = {}
            position = POSITION.fullmatch(layer) if layer not in known else None
            if position is not None and position["layer"] in known:
                layer, place = position["layer"], {"y": int(position["y"]), "x": int(position["x"])}
            row = {"layer": layer, **place, "n_features": known.get(layer, 0)}
            rows.append({**row, "train_accuracy": float(train), "eval_accuracy": float(evaluated)})
        found = pd.DataFrame(rows)
        unknown = sorted(set(found["layer"]) - known.keys()) if len(found) else []
        if unknown:
            original.warnings.append(
                f"{path.name} has probes of layers without saturation: {', '.join(unknown[:5])}"
            )
        order = {layer: index for index, layer in enumerate(known)}
        found = found.sort_values("layer", key=lambda part: part.map(order), kind="stable")
        yield key, found.assign(top5=float("nan"), converged=True, error="")


def name_table(prefix: str | None) -> str:
    """Return the name of a table of probes by the prefix of its file: ``4x4`` is ``pool4``."""
    if not prefix:
        return f"pool{DEFAULT_POOLING}"
    size = re.fullmatch(r"(\d+)x\1", prefix)
    if size:
        return f"pool{size[1]}"
    if prefix in ("pixelwise", "perpixel"):
        return "pixelwise"
    return f"{re.sub(r'[^A-Za-z0-9_]+', '_', prefix)}-pool{DEFAULT_POOLING}"


def read_fields(
    original: Original, layers: list[LayerRecord], resolution: int
) -> "tuple[str | None, pd.DataFrame | None]":
    """Return the border layer and the table of receptive fields, whose rows are convs in forward order."""
    import pandas as pd

    paths = sorted(original.table.parent.glob("receptive_field_*.csv"))
    if not paths:
        return None, None
    table = read_table(paths[0])
    convs = [r.layer for r in layers if r.kind == "Conv2d" and not re.search(r"downsample|shortcut", r.layer)]
    if len(table) != len(convs):
        original.warnings.append(
            f"{paths[0].name} was left out: it has {len(table)} convolutions, the main path {len(convs)}"
        )
        return None, None
    found = pd.DataFrame(
        {
            "layer": convs,
            "kind": "Conv2d",
            "receptive_field_min": table["receptive_field"].to_numpy(),
            "receptive_field_max": table["receptive_field"].to_numpy(),
            "jump": table["jump"].to_numpy(),
            "map_size": table["map_size"].to_numpy(),
        }
    )
    seen_before = found["receptive_field_max"].shift(1, fill_value=1)
    places = [place for place, size in enumerate(seen_before) if size > resolution]
    found["border"] = found["strict_border"] = [
        place == places[0] if places else False for place in range(len(found))
    ]
    return (convs[places[0]] if places else None), found


def read_projections(original: Original, root: Path, config: ExperimentConfig) -> "pd.DataFrame | None":
    """Return this experiment's rows of its run id's projections, a table in the root of the logs."""
    import pandas as pd

    path = next(
        (p for p in [root, *original.table.parents] if (p / f"projections_{original.run_id}.csv").is_file()),
        None,
    )
    if path is None:
        return None
    table = read_table(path / f"projections_{original.run_id}.csv")
    named = NAME.fullmatch(original.table.stem)
    assert named is not None
    data = f"{named['dataset']}_{config.resolution}"
    rows = table[(table["model"] == named["model"]) & (table["dataset"] == data)]
    if not len(rows):
        return None
    none = rows["thresh"] > 1  # its delta of 3 is no projection
    return pd.DataFrame(
        {
            "mode": ["none" if whole else "pca" for whole in none],
            "delta": rows["thresh"].where(~none).to_numpy(),
            "seed": float("nan"),
            "layers": "",
            "exclude": "",
            "eval_accuracy": (rows["accs"] / 100).to_numpy(),
            "eval_loss": rows["loss"].to_numpy(),
        }
    ).drop_duplicates(["mode", "delta"])


def read_weights(original: Original) -> dict[str, Any] | None:
    """Return the weights of a checkpoint, without the prefix of data-parallel models; None if there is none.

    Raises
    ------
    CorruptError
        If it holds more than tensors and numbers.
    """
    path = Path(f"{original.stem}.pt")
    if not path.is_file():
        return None
    import numpy as np
    import torch

    # Its metrics are NumPy's numbers at times: these, and nothing else, are allowed beside tensors.
    floats = (type(np.dtype(np.float64)), type(np.dtype(np.float32)))
    numbers: list[Any] = [np._core.multiarray.scalar, np.dtype, *floats]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(numbers):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["model_state_dict"]
        return {f"{name}".removeprefix("module."): tensor for name, tensor in state.items()}
    except Exception as error:  # torch raises pickle's, zipfile's and its own errors here
        text = " ".join(str(error).split())[:200]
        raise CorruptError(
            f"{path} is no checkpoint of phd-lab, or holds more than tensors and numbers, and is not loaded "
            f"({type(error).__name__}: {text}); move it away to import the rest"
        ) from error


def pack_weights(state: Mapping[str, Any], epoch: int) -> bytes:
    """Return a checkpoint of satstore's, of weights alone."""
    import torch

    content = io.BytesIO()
    torch.save({"model": dict(state), "epoch": epoch}, content)
    return content.getvalue()


def dotted(layer: str) -> str:
    """Return a layer's name as PyTorch has it."""
    return layer.replace("-", ".")


def as_csv(table: "pd.DataFrame") -> bytes:
    """Return a table as satstore keeps it."""
    return table.to_csv(index=False).encode()


def _means(table: "pd.DataFrame") -> dict[str, float | None]:
    means = table.groupby("layer", sort=False)["eval_accuracy"].mean()
    return {f"{layer}": _number(value) for layer, value in means.items()}


def _number(value: Any) -> float | None:
    return None if value != value else float(value)  # NaN alone differs from itself


def _whole(value: Any) -> int | None:
    return None if value != value else int(value)
