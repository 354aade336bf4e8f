"""phd-lab's tables of one experiment, converted to satstore's columns."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satstore.compat.phd_lab.tree import LoggedExperiment, dotted, read_logged_table, reporting_corruption
from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import CorruptError
from satstore.runs.manifest import LayerRecord

if TYPE_CHECKING:
    import pandas as pd

PROBE_FILE = re.compile(r"(?:(?P<prefix>.*)_)?probe_performances?\.csv")
POSITION_SUFFIX = re.compile(r"(?P<layer>.+?)[-_]\(?(?P<y>\d+)[,x_]\s*(?P<x>\d+)\)?")
SATURATION_COLUMN = re.compile(
    r"(?P<split>train|eval)-(?P<what>saturation|intrinsic-dimensionality)_(?P<layer>.+)"
)
DEFAULT_POOLING = 4


def saturation_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row per epoch, split and layer with saturation and intrinsic dimension."""
    import pandas as pd

    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name in table.columns:
        match = SATURATION_COLUMN.fullmatch(name)
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
    by = ["epoch", "split", "layer"]
    return frame.sort_values(by, key=lambda part: part.map(order) if part.name == "layer" else part)


def _count_features(saturation: list[float], dimension: list[float]) -> int:
    """Return the layer's features, intrinsic dimension / saturation; 0 where they are unknown."""
    pairs = zip(saturation, dimension, strict=False)
    return next((round(n / share) for share, n in pairs if share > 0 and n > 0), 0)


def metrics_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row of metrics per epoch, accuracies as fractions."""
    import pandas as pd

    columns: dict[str, Any] = {"epoch": range(len(table))}
    for name in table.columns:
        split, _, metric = name.partition("_")
        if split in ("training", "test") and metric:
            values = table[name].astype(float)
            ours = f"{'train' if split == 'training' else 'eval'}_{metric.replace('-', '_')}"
            columns[ours] = values / 100 if "accuracy" in metric else values
    return pd.DataFrame(columns)


def infer_layers(dimensions: "pd.DataFrame", state: "Mapping[str, Any] | None") -> list[LayerRecord]:
    """Return the layers in the order of the columns; their kinds come from the weights, else their names."""
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


def read_probes(
    logged: LoggedExperiment, layers: list[LayerRecord]
) -> "Iterator[tuple[ProbeKey, pd.DataFrame]]":
    """Yield the tables of probes, under satstore's keys for them."""
    import pandas as pd

    known = {record.layer: record.n_features for record in layers}
    taken = set()
    for path in sorted(logged.table.parent.glob("*probe_performance*.csv")):
        match = PROBE_FILE.fullmatch(path.name)
        if match is None:
            continue
        table = read_logged_table(path)
        missing = {"name", "train_acc", "eval_acc"} - set(table.columns)
        if missing:
            raise CorruptError(
                f"{path} has no column {sorted(missing)[0]!r}; found {', '.join(table.columns)}"
            )
        key = name_table(match["prefix"])
        if key in taken:
            logged.warnings.append(f"{path.name} was left out: another file has probes of {key} too")
            continue
        taken.add(key)
        with reporting_corruption(path, "table of probes"):
            found = pd.DataFrame(probe_rows(table, known))
        unknown = sorted(set(found["layer"]) - known.keys()) if len(found) else []
        if unknown:
            logged.warnings.append(
                f"{path.name} has probes of layers without saturation: {', '.join(unknown[:5])}"
            )
        order = {layer: index for index, layer in enumerate(known)}
        found = found.sort_values("layer", key=lambda part: part.map(order), kind="stable")
        yield key, found.assign(top5=float("nan"), converged=True, error="")


def probe_rows(table: "pd.DataFrame", n_features: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the rows of a table of probes, with the position where a row is of one."""
    rows = []
    for name, train, evaluated in zip(table["name"], table["train_acc"], table["eval_acc"], strict=True):
        layer = dotted(f"{name}".removeprefix("train-").removeprefix("eval-"))
        place: dict[str, int] = {}
        position = POSITION_SUFFIX.fullmatch(layer) if layer not in n_features else None
        if position is not None and position["layer"] in n_features:
            layer, place = position["layer"], {"y": int(position["y"]), "x": int(position["x"])}
        row = {"layer": layer, **place, "n_features": n_features.get(layer, 0)}
        rows.append({**row, "train_accuracy": float(train), "eval_accuracy": float(evaluated)})
    return rows


def name_table(prefix: str | None) -> ProbeKey:
    """Return satstore's key of a table of probes by the prefix of its file: ``pool4`` for ``4x4``."""
    if not prefix:
        return ProbeKey(LatentsKey(f"{DEFAULT_POOLING}"))
    size = re.fullmatch(r"(\d+)x\1", prefix)
    if size:
        return ProbeKey(LatentsKey(size[1]))
    if prefix in ("pixelwise", "perpixel"):
        return ProbeKey(LatentsKey("pixelwise"))
    return ProbeKey.parse(f"{re.sub(r'[^A-Za-z0-9_]+', '_', prefix)}-pool{DEFAULT_POOLING}")


def read_receptive_fields(
    logged: LoggedExperiment, layers: list[LayerRecord], resolution: int
) -> "tuple[str | None, pd.DataFrame | None]":
    """Return the border layer and the table of receptive fields, whose rows are convolutions."""
    import pandas as pd

    paths = sorted(logged.table.parent.glob("receptive_field_*.csv"))
    if not paths:
        return None, None
    table = read_logged_table(paths[0])
    convs = [r.layer for r in layers if r.kind == "Conv2d" and not re.search(r"downsample|shortcut", r.layer)]
    if len(table) != len(convs):
        logged.warnings.append(
            f"{paths[0].name} was left out: it has {len(table)} convolutions, the main path {len(convs)}"
        )
        return None, None
    with reporting_corruption(paths[0], "table of receptive fields"):
        sizes = table[["receptive_field", "jump", "map_size"]].astype(float)
    found = pd.DataFrame(
        {
            "layer": convs,
            "kind": "Conv2d",
            "receptive_field_min": sizes["receptive_field"].to_numpy(),
            "receptive_field_max": sizes["receptive_field"].to_numpy(),
            "jump": sizes["jump"].to_numpy(),
            "map_size": sizes["map_size"].to_numpy(),
        }
    )
    is_beyond = found["receptive_field_max"].shift(1, fill_value=1) > resolution
    border = next((layer for layer, beyond in zip(convs, is_beyond, strict=True) if beyond), None)
    found["border"] = found["strict_border"] = found["layer"] == border
    return border, found


def read_projections(logged: LoggedExperiment, root: Path, config: ExperimentConfig) -> "pd.DataFrame | None":
    """Return the experiment's rows of the table of projections of its run id, in the root of the logs."""
    import pandas as pd

    name = f"projections_{logged.run_id}.csv"
    path = next((p / name for p in [root, *logged.table.parents] if (p / name).is_file()), None)
    if path is None:
        return None
    table = read_logged_table(path)
    data = f"{logged.named['dataset']}_{config.resolution}"
    with reporting_corruption(path, "table of projections"):
        rows = table[(table["model"] == logged.named["model"]) & (table["dataset"] == data)]
        rows = rows[["thresh", "accs", "loss"]].astype(float)
    if not len(rows):
        return None
    none = rows["thresh"] > 1  # phd-lab's delta of 3 means no projection
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
