"""The stage ``receptive-field``: what every layer sees of the image, from the model's graph alone."""

from typing import TYPE_CHECKING

from satstore.errors import ConfigError
from satstore.runs.manifest import Manifest
from satstore.runs.run import Run
from satstore.stages.parameters import Overwrite, StageParameters
from satstore.stages.stage import Plan, Stage

if TYPE_CHECKING:
    import pandas as pd

TABLE = "receptive_field"


class ReceptiveFieldParameters(StageParameters):
    """Parameters of ``receptive-field``."""

    overwrite: Overwrite = False


def plan_receptive_fields(run: Run, parameters: ReceptiveFieldParameters) -> Plan[None]:
    """Say whether the table is missing; ConfigError if the run was recorded without one."""
    if run.is_recorded and not run.has_file(f"{TABLE}.csv"):
        raise ConfigError(
            f"{run.name} has no receptive fields: those of a recorded model are found while it is recorded, "
            "where its input is one tensor of square images, Conv layers are recorded, and it can be traced"
        )
    if not run.has_file(f"{TABLE}.csv") or parameters.overwrite:
        return Plan(parameters, [TABLE], None)
    run.check_file(f"{TABLE}.csv")
    return Plan(parameters, [], None)


def write_receptive_fields(run: Run, _: Plan[None]) -> None:
    """Write the table, of the layers that the config records, and note the border layer."""
    from satstore.analysis.receptive_field.table import receptive_field
    from satstore.capture.layers import select_layers
    from satstore.models.plan import build_blank, on_meta_or_cpu

    config = run.config

    def measure(device: str) -> "pd.DataFrame":
        model = build_blank(config, 10, device)  # any number of classes: the last layer has none to look at
        recorded = select_layers(model, config.layers, config.exclude_layers, config.modules)
        table = receptive_field(model, config.resolution)
        return table[table["layer"].isin(list(recorded))]

    write_fields(run, on_meta_or_cpu(measure))


def write_fields(run: Run, table: "pd.DataFrame") -> None:
    """Write the receptive fields of a run's layers, and note the border layer."""

    def change(manifest: Manifest) -> None:
        summary = manifest.summary
        summary.border_layer, summary.strict_border_layer = (
            next(iter(table.loc[table[column], "layer"]), None) for column in ("border", "strict_border")
        )

    run.commit({f"{TABLE}.csv": table.to_csv(index=False).encode()}, change)


STAGE = Stage(
    name="receptive-field",
    description="Tabulate every layer's receptive field, and find the border layer.",
    plan=plan_receptive_fields,
    run=write_receptive_fields,
    parameters=ReceptiveFieldParameters,
    table=TABLE,
    needs_model=True,
)
