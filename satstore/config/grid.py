"""Read a config file, check it, and expand its lists into the experiments of a grid."""

import itertools
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from satstore.config.experiment import ExperimentConfig, split_pattern
from satstore.config.validation import describe_invalid
from satstore.errors import ConfigError, NotFoundError
from satstore.registry import DATASETS, METRICS, MODELS, OPTIMIZERS, STAGES, Registry, load_plugins, suggest

CONFIG_FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
"""The folders of the shipped configs: inside an installed wheel, and in a checkout."""


LIST_KEYS = frozenset({"metrics", "pooling", "tokens", "modules", "latent_epochs", "stages", "plugins"})
"""Keys whose value is one list; a list under any other key multiplies out."""


NAMED_KEYS: Mapping[str, Registry] = {
    "model": MODELS,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
    "metrics": METRICS,
    "stages": STAGES,
}


def find_config(name: str) -> Path:
    """Find a config by its path or a shipped one's name, such as ``demo``; NotFoundError if there is none."""
    with suppress(OSError):  # a name that is too long for a file, or in a folder that can't be entered
        if Path(name).is_file():
            return Path(name)
    shipped = list_configs()
    if name.removesuffix(".json") in shipped:
        return shipped[name.removesuffix(".json")]
    raise NotFoundError(
        f"no config file {name!r}, and no shipped config of that name{suggest(name, shipped)}"
    )


def list_configs() -> dict[str, Path]:
    """List the shipped configs: name, such as ``section3.3/figure3``, to path."""
    folder = next((f for f in CONFIG_FOLDERS if f.is_dir()), CONFIG_FOLDERS[0])
    return {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.json"))}


def read_config(source: str | Path | Mapping[str, Any]) -> list[ExperimentConfig]:
    """Read a config and expand its lists into the grid of experiments.

    Parameters
    ----------
    source
        A path, the name of a shipped config, or the config's content.

    Returns
    -------
    list of ExperimentConfig
        In the order of the config's keys, with the last list varying fastest; equal points once.

    Raises
    ------
    ConfigError
        If it is no JSON object, or has an unknown key, name or value.
    NotFoundError
        If there is no such file.
    """
    if isinstance(source, Mapping):
        return _check_names(expand_grid(dict(source)))
    path = find_config(str(source))
    content = read_json_config(path)
    try:
        return _check_names(expand_grid(content))
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error


def read_json_config(path: Path) -> dict[str, Any]:
    """Read a config's JSON object, unchecked; ConfigError if it is no such object, or has a key twice."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a JSON {type(content).__name__}; expected an object of config keys")
    return content


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object's pairs; refuse two values for one key."""
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"the key {twice!r} is there twice")
    return content


def expand_grid(content: dict[str, Any]) -> list[ExperimentConfig]:
    """Multiply a config's lists out, any names of models, datasets, … taken; see :func:`read_config`."""
    content = {key: value for key, value in content.items() if key != "$schema"}  # a hint for editors
    if isinstance(content.get("modules"), str):  # one is as good as a list of one
        content["modules"] = [content["modules"]]
    known = ExperimentConfig.model_fields
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown config key {key!r}{suggest(key, known)}")
    for key, value in content.items():
        is_default = value is None and known[key].default is None
        if key in LIST_KEYS and not is_default and not isinstance(value, list | tuple):
            raise ConfigError(f"{key!r} takes a list, found {value!r}")
        if (
            isinstance(value, list | tuple)
            and not value
            and key not in ("plugins", "metrics", "latent_epochs")
        ):
            raise ConfigError(f"{key!r} is an empty list; give one value at least")
    load_plugins(map(str, content.get("plugins", ())))
    axes = [
        [(key, value)] if key in LIST_KEYS or not isinstance(value, list) else [(key, v) for v in value]
        for key, value in content.items()
    ]
    points = [_make_config(dict(point)) for point in itertools.product(*axes)]
    return list(dict.fromkeys(points))


def _check_names(configs: list[ExperimentConfig]) -> list[ExperimentConfig]:
    for config in configs:
        for key, registry in NAMED_KEYS.items():
            value = getattr(config, key)
            for name in (value,) if isinstance(value, str) else value:
                registry.entry(name)
    return configs


def _make_config(content: dict[str, Any]) -> ExperimentConfig:
    for key in ("pooling", "tokens"):  # numbers are as good as digits in a config
        if content.get(key) is not None:
            content[key] = list(dict.fromkeys(map(str, content[key])))
    try:
        config = ExperimentConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe_invalid(error)) from error
    patterns = [(key, getattr(config, key) or "") for key in ("layers", "exclude_layers")]
    for key, text in [*patterns, *(("modules", split_pattern(text)[0]) for text in config.modules or ())]:
        try:
            re.compile(text)
        except re.error as error:
            raise ConfigError(f"{key!r}: {text!r} is no regular expression: {error}") from error
    late = [epoch for epoch in config.latent_epochs if epoch >= config.epoch]
    if late:
        raise ConfigError(
            f"'latent_epochs': {late[0]} is past the last of {config.epoch} epochs, which is "
            f"{config.epoch - 1}: they are counted from 0"
        )
    return config
