"""``satstore config``: what configs can hold."""

import json

from satstore.cli.console import print_line


def print_defaults() -> None:
    """Print the default config as JSON."""
    from satstore.config.experiment import ExperimentConfig

    print_line(ExperimentConfig().model_dump_json(indent=2))


def print_schema() -> None:
    """Print the JSON Schema of configs."""
    from satstore.config.schema import config_schema

    print_line(json.dumps(config_schema(), indent=2))
