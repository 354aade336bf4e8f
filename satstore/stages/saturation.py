"""The stage ``saturation``: intrinsic dimension and saturation at any delta, from the stored spectra."""

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from pydantic import Field

from satstore.errors import CorruptError, NotFoundError
from satstore.runs.manifest import Manifest
from satstore.runs.run import Run
from satstore.stages.parameters import DeviceOfNeeds, Overwrite, StageParameters
from satstore.stages.stage import Plan, Stage

if TYPE_CHECKING:
    import pandas as pd


class SaturationParameters(StageParameters):
    """Parameters of ``saturation``."""

    device: DeviceOfNeeds = None
    delta: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...] | None,
        Parameter(negative=""),
        Field(
            description="share of the variance to explain; may be given several times; default: the config's"
        ),
    ] = None
    definition: Annotated[
        Literal["exact", "delve"],
        Field(description="exact: the smallest dimension that explains delta; delve: as that package counts"),
    ] = "exact"
    overwrite: Overwrite = False


def deltas_of(run: Run, parameters: SaturationParameters) -> tuple[float, ...]:
    """Return the deltas that parameters ask for, else the config's."""
    return parameters.delta or (run.config.delta,)


def plan_saturation(run: Run, parameters: SaturationParameters) -> Plan[None]:
    """Say which deltas are not in the table, or not for the last epoch."""
    deltas = deltas_of(run, parameters)
    if run.has_file("saturation.csv") and not parameters.overwrite:
        table = run.table("saturation")
        found = table[table["epoch"] == run.manifest.summary.epochs_done - 1]
        known = set(zip(found["delta"], found["definition"], strict=True))
        deltas = tuple(delta for delta in deltas if (delta, parameters.definition) not in known)
    if deltas and run.last_epoch >= 0 and not run.has_spectra:
        raise NotFoundError(
            f"{run.name} has no spectra of its epochs, only delve's saturation at delta "
            f"{run.config.delta:g}; others take a training by satstore, under another run id"
        )
    return Plan(parameters, [f"delta {delta}" for delta in deltas], None)


def write_saturation(run: Run, plan: Plan[None]) -> None:
    """Write the rows of the deltas asked for; rows of other deltas stay."""
    import pandas as pd

    parameters: SaturationParameters = plan.parameters
    asked = deltas_of(run, parameters)
    tables = [run.saturation(delta, parameters.definition) for delta in asked]
    old = read_known_saturation(run, parameters)
    if old is not None:
        replaced = old["delta"].isin(asked) & (old["definition"] == parameters.definition)
        # Rows of fewer epochs are from before training went on.
        kept = old[~replaced & (old["epoch"].max() == run.manifest.summary.epochs_done - 1)]
        tables = [kept, *tables] if len(kept) else tables
    table = pd.concat(tables, ignore_index=True)
    # What lists show is at the delta of the config that the experiment was made with, whatever is asked for.
    last = run.saturation(run.manifest.config["delta"], split="train")
    last = last[last["epoch"] == last["epoch"].max()]

    def change(manifest: Manifest) -> None:
        summary = manifest.summary
        for layer, dimension, n_features in zip(
            last["layer"], last["intrinsic_dimension"], last["n_features"], strict=True
        ):
            failed = dimension != dimension  # NaN
            summary.intrinsic_dimension[layer] = None if failed else int(dimension)
            summary.saturation[layer] = None if failed else float(dimension / n_features)

    run.commit({"saturation.csv": table.to_csv(index=False).encode()}, change)


def read_known_saturation(run: Run, parameters: SaturationParameters) -> "pd.DataFrame | None":
    """Return the table as it is; None if there is none, or a damaged one that is to be overwritten."""
    if not run.has_file("saturation.csv"):
        return None
    try:
        return run.table("saturation")
    except CorruptError:
        if not parameters.overwrite:
            raise
        return None


STAGE = Stage(
    name="saturation",
    description="Compute layer saturation at any delta from the stored spectra, without a pass over data.",
    plan=plan_saturation,
    run=write_saturation,
    parameters=SaturationParameters,
    needs=("train",),
    table="saturation",
)
