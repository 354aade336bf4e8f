"""``satstore list`` and ``config``: the names that configs and commands can use, and what configs hold."""

import json
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

from satstore.cli.console import make_console, print_json, print_line
from satstore.cli.options import Json, LogsDir
from satstore.config.grid import list_configs, read_json_config
from satstore.errors import ConfigError
from satstore.registry import REGISTRIES, STAGES

ListedSource = Annotated[
    str | None,
    Parameter(help="of modules: torchvision:NAME, timm:NAME, hf:PATH_OR_NAME, module:factory, or a run"),
]

Settings = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative="", help="of modules: the model's argument, key=value; repeatable"),
]

AllModules = Annotated[
    bool, Parameter(name="--all", negative="", help="of modules: also those of blocks that repeat")
]

Details = Annotated[
    bool, Parameter(negative="", help="of models: parameters, depth and smallest resolution; takes minutes")
]


def list_names(
    what: Literal["models", "datasets", "optimizers", "metrics", "stages", "configs", "modules"],
    source: ListedSource = None,
    *,
    settings: Settings = (),
    all_modules: AllModules = False,
    details: Details = False,
    as_json: Json = False,
    logs_dir: LogsDir = None,
) -> None:
    """Print the names of a registry, of the shipped configs, or of the modules of a model."""
    if details and what != "models":
        raise ConfigError(f"--details is for models; {what} have none")
    if what == "modules":
        from satstore.cli.modules import print_modules

        if source is None:
            raise ConfigError(
                "modules of which model? satstore list modules SOURCE, such as torchvision:vit_b_16"
            )
        print_modules(source, settings, logs_dir, all_modules=all_modules, as_json=as_json)
        return
    if source is not None or settings or all_modules:
        raise ConfigError(f"a source, --set and --all are for modules; {what} have none")
    entries = list_entries(what)
    if details:
        print_details(entries, as_json)
    elif as_json:
        print_json(entries)
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for entry in entries:
            table.add_row(*entry.values())
        make_console().print(table)


def list_entries(what: str) -> list[dict[str, str]]:
    """Return the name, description and, in most registries, family of each entry."""
    if what == "configs":
        return [
            {"name": name, "description": str(read_json_config(path).get("note", ""))}
            for name, path in list_configs().items()
        ]
    if what == "stages":
        return [{"name": name, "description": STAGES[name].description} for name in STAGES]
    return [
        {
            "name": entry.name + (f":{entry.argument.upper()}" if entry.argument else ""),
            "family": entry.family,
            "description": entry.description,
        }
        for entry in REGISTRIES[what].entries()
    ]


def print_details(models: list[dict[str, str]], as_json: bool) -> None:
    """Print models with parameters, depth and smallest resolution, each as soon as it is measured."""
    from satstore.models.details import N_CLASSES, inspect_model

    if as_json:
        print_json([model | asdict(inspect_model(model["name"])) for model in models])
        return
    widths = [max(len(model[key]) for model in models) for key in ("name", "family")]
    print_line(f"{'model':{widths[0]}}  {'family':{widths[1]}}  parameters  depth  smallest")
    for model in models:
        found = inspect_model(model["name"])
        depth, smallest = (
            "–" if value is None else f"{value}" for value in (found.depth, found.smallest_resolution)
        )
        name, family = model["name"], model["family"]
        sizes = f"{found.n_parameters:>10,}  {depth:>5}  {smallest:>5} px"
        print_line(f"{name:{widths[0]}}  {family:{widths[1]}}  {sizes}  {model['description']}")
    print_line(
        f"parameters with {N_CLASSES:,} classes; depth: layers with weights on the longest path; "
        "smallest: pixels of a side that training needs"
    )


def print_defaults() -> None:
    """Print the default config as JSON."""
    from satstore.config.experiment import ExperimentConfig

    print_line(ExperimentConfig().model_dump_json(indent=2))


def print_schema() -> None:
    """Print the JSON Schema of configs."""
    from satstore.config.schema import config_schema

    print_line(json.dumps(config_schema(), indent=2))
