"""The stage ``project``: the test accuracy of a model whose layers' outputs are projected."""

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import Field

from satstore.errors import ConfigError, NotFoundError
from satstore.runs.repair import damage_remedy
from satstore.runs.run import Run
from satstore.stages.parameters import Device, Exclude, Layers, Overwrite, StageParameters
from satstore.stages.selection import layers_of
from satstore.stages.stage import Plan, Stage
from satstore.storage.commit_log import is_anything
from satstore.storage.location import Folder

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from satstore.analysis.projection import Axes

TABLE = "projection"

KEY = ("mode", "delta", "seed", "layers", "exclude")
"""What tells the rows of the table apart; the columns after the measures are layers."""


class ProjectParameters(StageParameters):
    """Parameters of ``project``."""

    device: Device = None
    mode: Annotated[
        Literal["pca", "random"],
        Field(description="pca: top eigenvectors; random: a random basis of the same dimension"),
    ] = "pca"
    delta: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...] | None,
        Parameter(negative=""),
        Field(description="share of the variance to keep; repeatable; default: 24 from .9 to .9999"),
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**32, description="of the random bases")] = 0
    layers: Layers = None
    exclude: Exclude = None
    overwrite: Overwrite = False


Row = dict[str, Any]


def rows_of(parameters: ProjectParameters) -> list[Row]:
    """Return the keys of the rows that parameters ask for; the first is of no projection."""
    from satstore.analysis.projection import DELTAS

    layers = {"layers": parameters.layers or "", "exclude": parameters.exclude or ""}
    seed = parameters.seed if parameters.mode == "random" else None
    none: Row = {"mode": "none", "delta": None, "seed": None, "layers": "", "exclude": ""}
    asked = dict.fromkeys(parameters.delta or DELTAS)
    return [none, *({"mode": parameters.mode, "delta": d, "seed": seed, **layers} for d in asked)]


def plan_projections(run: Run, parameters: ProjectParameters) -> Plan[list[Row]]:
    """Find the rows that are not in the table, or are of other weights than the run's."""
    known = set() if parameters.overwrite else {tuple(key.values()) for key in stored_keys(run)}
    missing = [key for key in rows_of(parameters) if tuple(key.values()) not in known]
    return Plan(parameters, list(map(describe, missing)), missing)


def stored_keys(run: Run) -> list[Row]:
    """Return the keys of the table's rows; none if it is of other weights."""
    table = read_current_rows(run)
    if table is None:
        return []
    return [
        {
            name: (None if value != value else value) if name in ("delta", "seed") else str(value)  # NaN
            for name, value in zip(KEY, values, strict=True)
        }
        for values in table[list(KEY)].itertuples(index=False)
    ]


def read_current_rows(run: Run) -> "pd.DataFrame | None":
    """Return the table as it is; None if there is none, or if it is of other weights than the run's."""
    if not run.has_file(f"{TABLE}.csv"):
        return None
    table = run.table(TABLE)
    patterns = table[["layers", "exclude"]].astype(object)
    table[["layers", "exclude"]] = patterns.where(patterns.notna(), "")
    if "epoch" not in table:  # it is not known which weights it is of
        return None
    is_current = (table["epoch"] == run.manifest.summary.epochs_done - 1).all()
    return table if is_current else None


def describe(key: Row) -> str:
    """Return what a row is of, in a few words."""
    return "no projection" if key["mode"] == "none" else f"{key['mode']} at delta {key['delta']}"


def evaluate_projections(run: Run, plan: Plan[list[Row]]) -> None:
    """Evaluate the model at each delta that is missing, and commit each row as it is made.

    An output x becomes mean + P(x − mean), P projecting onto the basis: a covariance is about its mean, which
    a projection through the origin would throw away. With ``conv_method`` mean, max or median, the covariance
    is of pooled channels, and the channels are projected at every position; with flatten, the whole map is.
    """
    import pandas as pd

    from satstore.capture.projection_hook import projected
    from satstore.training import devices
    from satstore.training.evaluation import ModelEvaluation

    parameters: ProjectParameters = plan.parameters
    axes, means = find_axes(run, parameters)
    evaluation = ModelEvaluation(run, devices.choose_device(parameters.device or run.config.device))
    modules = dict(evaluation.model.named_modules())
    axes = keep_projectable(run, axes, modules)
    table = None if parameters.overwrite and not parameters.delta else read_current_rows(run)
    for done, key in enumerate(plan.work, start=1):
        bases = {} if key["mode"] == "none" else {n: find_basis(n, found, key) for n, found in axes.items()}
        with projected(modules, make_projections(bases, means, evaluation.device)):
            result = evaluation.measure()
        row = {
            **key,
            "epoch": run.manifest.summary.epochs_done - 1,
            "eval_accuracy": result.metrics["accuracy"],
            "eval_loss": result.loss,
            "n_samples": evaluation.n_samples,
            **{layer: bases[layer].shape[1] if layer in bases else None for layer in run.layers},
        }
        table = add_row(table, pd.DataFrame([row]))
        run.commit({f"{TABLE}.csv": table.to_csv(index=False).encode()})
        run.emit(
            "project",
            "progress",
            describe(key),
            done=done,
            total=len(plan.work),
            values={"accuracy": result.metrics["accuracy"]},
        )


def make_projections(
    bases: Mapping[str, Any], means: Mapping[str, Any], device: "torch.device"
) -> dict[str, tuple["torch.Tensor", "torch.Tensor"]]:
    """Return each layer's projection, (feature, feature), and mean; none for a basis of all dimensions."""
    import torch

    return {
        layer: (
            torch.from_numpy(basis @ basis.T).to(device, torch.float32),
            torch.from_numpy(means[layer]).to(device, torch.float32),
        )
        for layer, basis in bases.items()
        if basis.shape[1] < basis.shape[0]
    }


def add_row(table: "pd.DataFrame | None", row: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table with a row in place of the one of the same key; rows sorted by key."""
    import pandas as pd

    whole = row if table is None else pd.concat([table.astype(object), row.astype(object)], ignore_index=True)
    # What is new comes last, and stays.
    kept = whole.drop_duplicates(subset=list(KEY), keep="last")
    order = {"none": 0, "pca": 1, "random": 2}
    by_mode = kept.assign(order=kept["mode"].map(order), delta=pd.to_numeric(kept["delta"]))
    found = by_mode.sort_values(["order", "layers", "exclude", "seed", "delta"], na_position="first")
    whole_numbers = dict.fromkeys(("seed", *found.columns[len(KEY) + 4 : -1]), "Int64")
    return found.drop(columns="order").astype(whole_numbers).reset_index(drop=True)


def find_axes(run: Run, parameters: ProjectParameters) -> tuple[dict[str, "Axes"], dict[str, Any]]:
    """Return the axes and means of the layers that are to be projected, of the last epoch's train split.

    Raises
    ------
    ConfigError
        If no layer is left, or the covariances are of features that a projection can't reach.
    NotFoundError
        If the run has no covariances.
    """
    from satstore.analysis.projection import decompose
    from satstore.storage.zarr import AnalysisStore

    config = run.config
    if config.conv_method == "flatten" and config.downsampling is not None:
        raise ConfigError(
            f"{run.name} has covariances of flattened maps at {config.downsampling} positions per axis, "
            "which say nothing of the others; train with downsampling null, or conv_method channelwise"
        )
    remedy = damage_remedy(run, "metrics.csv")
    run.commits.read(run.analysis_path.name).check(Folder(run.analysis_path), "spectra", remedy, is_anything)
    store, axes, means = AnalysisStore(run.analysis_path), {}, {}
    kinds = {record.layer: record.kind for record in run.manifest.layers}
    for layer in layers_of(run, parameters):
        if kinds[layer] == "LSTM":
            run.warn("project", f"layer {layer} is left alone: an LSTM's steps feed on each other")
            continue
        try:
            mean, covariance = store.moments("train", layer)
        except (NotFoundError, KeyError):
            run.warn("project", f"layer {layer} is left alone: its output was not finite in training")
            continue
        axes[layer], means[layer] = decompose(covariance), mean
    if not axes:
        raise NotFoundError(f"{run.name} has no covariance of any layer asked for; {remedy}")
    return axes, means


def keep_projectable(run: Run, axes: dict[str, "Axes"], modules: Mapping[str, Any]) -> dict[str, "Axes"]:
    """Return the axes of convolutions and Linear layers; ConfigError if there are none."""
    from satstore.analysis.modules import LAYER_TYPES

    kept = {layer: found for layer, found in axes.items() if isinstance(modules.get(layer), LAYER_TYPES)}
    for layer in axes.keys() - kept.keys():
        run.warn("project", f"layer {layer} is left alone: it is neither a convolution nor a Linear layer")
    if not kept:
        raise ConfigError(f"{run.name} has no convolution or Linear layer among those asked for (--layers)")
    return kept


def find_basis(layer: str, axes: "Axes", key: Row) -> Any:
    """Return the basis (feature, dimension) that a layer is projected onto."""
    from satstore.analysis.projection import random_basis

    if key["mode"] == "pca":
        return axes.basis(key["delta"])
    dimension = axes.dimension(key["delta"])
    # The layer's name, so that layers of one size have bases of their own.
    return random_basis(len(axes.eigenvalues), dimension, (key["seed"], zlib.crc32(layer.encode())))


STAGE = Stage(
    name="project",
    description="Evaluate the model with its layers' outputs projected onto their principal axes.",
    plan=plan_projections,
    run=evaluate_projections,
    parameters=ProjectParameters,
    needs=("train",),
    table=TABLE,
    needs_model=True,
)
