"""Configs: read a JSON file, check it, and expand its lists into the experiments of a grid."""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from satstore.errors import ConfigError, NotFoundError, SatstoreError
from satstore.registry import DATASETS, METRICS, MODELS, OPTIMIZERS, STAGES, Registry, load_plugins, suggest


def _check_pooling(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,3}|full|pixelwise", text):
        raise ValueError("expected a number from 1 to 9999, full, or pixelwise")
    return text


def _sort_once_each(epochs: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(epochs)))


def _check_path(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected a path without control characters")
    return text


def _check_device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise ValueError("expected cpu or cuda:N")
    return name


DeviceName = Annotated[str, AfterValidator(_check_device)]
"""A device as it is named; whether it is there, :func:`satstore.session.choose_device` says."""

PathText = Annotated[str, AfterValidator(_check_path)]

Pooling = Annotated[str, AfterValidator(_check_pooling)]
"""How latents are pooled: a number n for adaptive averages over n × n, ``full`` for unpooled maps, or
``pixelwise`` for unpooled maps whose features come last, ready for a probe of every position."""


def pooling_key(pooling: str) -> str:
    """Return the name that a pooling has on disk: ``pool4`` for ``"4"``, ``full`` for ``"full"``."""
    return f"pool{pooling}" if pooling.isdecimal() else pooling


def pooling_flag(key: str) -> str:
    """Return what ``-d`` takes for a pooling of that name on disk: ``4`` for ``pool4``."""
    return key.removeprefix("pool")


def _as_ours(name: object) -> object:
    """Return our word for what delve calls otherwise."""
    return {"last_timestep": "last", "timestepwise": "every"}.get(str(name), name)


CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
"""Where the shipped configs lie: inside an installed wheel, and in a checkout."""


class ExperimentConfig(BaseModel):
    """What one experiment is: one point of a config's grid, every default filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("resnet18", description="a name of `satstore list models`")
    dataset: str = Field(
        "Cifar10",
        description='a name of `satstore list datasets`; `"ImageFolder:PATH"` for your own images',
    )
    resolution: int = Field(32, ge=1, description="height and width of the model's input, in pixels")
    epoch: int = Field(30, ge=1, description="number of epochs to train")
    batch_size: int = Field(128, ge=1, description="images of a training step, on all ranks together")
    optimizer: str = Field("adam", description="a name of `satstore list optimizers`")
    metrics: tuple[str, ...] = Field(
        ("Accuracy", "Top5Accuracy"), description="names of `satstore list metrics`, computed on both splits"
    )
    stop_at_accuracy: float | None = Field(
        None, gt=0, le=1, description="stop after the epoch whose test accuracy reaches it; null: never"
    )
    augment: bool = Field(True, description="the dataset's own augmentation of the training images")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order, dropout and augmentation")
    amp: bool = Field(True, description="bfloat16 autocast where the device is a GPU")
    device: DeviceName | None = Field(
        None, description='`"cpu"` or `"cuda:N"`; null: the first GPU, else the CPU. `--device` beats it'
    )
    data_parallel: bool = Field(
        False, description="train on several GPUs, a process for each, which share out every batch"
    )
    ranks: int | None = Field(
        None, ge=1, description="processes of `data_parallel`; null: one per visible GPU, on the CPU one"
    )
    workers: int | None = Field(
        None, ge=0, description="loader processes; null: none for data in memory, else by the cores"
    )
    on_corrupt: Literal["fail", "skip"] = Field(
        "fail",
        description="images that can't be decoded: `fail` names the file, `skip` leaves it out and notes it",
    )
    conv_method: Literal["channelwise", "mean", "max", "median", "flatten"] = Field(
        "channelwise",
        description="samples of a conv map, for spectra: each position, or one of the map, reduced so",
    )
    downsampling: int | None = Field(
        None, ge=1, description="keep so many evenly spaced positions per axis of larger maps, for spectra"
    )
    downsampling_method: Literal["centred", "nearest", "average"] = Field(
        "centred", description="which positions; `nearest`: those that delve takes; `average` pools instead"
    )
    timeseries_method: Annotated[Literal["last", "every"], BeforeValidator(_as_ours)] = Field(
        "last",
        description="an LSTM's samples: its last step, or every step; delve's names are taken for these",
    )
    max_samples: int | None = Field(
        None, ge=2, description="images of a pass that spectra take at most, the first ones; null: all"
    )
    log_interval: int = Field(1, ge=1, description="spectra take every so many batches")
    layers: str | None = Field(None, description="regular expression of the layers to record; null: all")
    exclude_layers: str | None = Field(None, description="regular expression of the layers to leave out")
    delta: float = Field(0.99, gt=0, le=1, description="share of the variance that saturation explains")
    pooling: tuple[Pooling, ...] = Field(
        ("4",), description="latents to store and probe: n for n × n, `full`, or `pixelwise`"
    )
    latent_epochs: Annotated[
        tuple[Annotated[int, Field(ge=0, strict=True)], ...], AfterValidator(_sort_once_each)
    ] = Field(
        (),
        description="epochs, the first is 0, whose weights are kept, and whose latents are stored and probed "
        "too, besides the last's",
    )
    stages: tuple[str, ...] = Field(
        ("train", "extract", "saturation", "probe"),
        description="what `satstore run` does: names of `satstore list stages`",
    )
    logs_dir: PathText = Field(
        "./logs/", description="where runs are kept; `--logs-dir` and SATSTORE_LOGS_DIR beat it"
    )
    cache_dir: PathText | None = Field(
        None, description="the data folder; null: `$TORCH_DATADIR`, else `tmp`"
    )
    plugins: tuple[str, ...] = Field(
        (), description="modules to import, which register models, datasets, … of their own"
    )
    note: str = Field("", description="for people")

    @property
    def title(self) -> str:
        """What the experiment is, for people: ``vgg16 on Cifar10 at 32 px``."""
        return f"{self.model} on {self.dataset} at {self.resolution} px"

    @property
    def experiment(self) -> str:
        """The name of the experiment's folder: what people look for, and a digest over all that matters."""
        parts = (
            self.model,
            self.dataset,
            f"r{self.resolution}",
            f"bs{self.batch_size}",
            f"e{self.epoch}",
            self.optimizer,
        )
        readable = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part)[-48:] for part in parts)
        return f"{readable}-{self.digest[:6]}"

    @property
    def digest(self) -> str:
        """The SHA-256 digest over all that training depends on, as hexadecimal digits."""
        # Without what is at its default, so that a key that a later version adds moves no digest of today.
        trained = self.model_dump(mode="json", exclude=set(NOT_TRAINING), exclude_defaults=True)
        return hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()

    def is_finished(self, epochs_done: int, accuracy: float | None) -> bool:
        """Tell whether training ends after so many epochs, the last of which had that test accuracy."""
        goal = self.stop_at_accuracy
        is_good_enough = goal is not None and accuracy is not None and accuracy >= goal
        return epochs_done >= self.epoch or is_good_enough

    @property
    def data_dir(self) -> Path:
        """The folder that holds the datasets."""
        return Path(self.cache_dir or os.environ.get("TORCH_DATADIR") or "tmp").expanduser()


NOT_TRAINING = frozenset(
    {
        "logs_dir",
        "device",
        "delta",
        "cache_dir",
        "workers",
        "ranks",
        "pooling",
        "latent_epochs",
        "stages",
        "plugins",
        "note",
    }
)
"""Keys that an experiment's weights, metrics and spectra don't depend on: they are not in its digest."""

LIST_KEYS = frozenset({"metrics", "pooling", "latent_epochs", "stages", "plugins"})
"""Keys whose value is one list; a list under any other key multiplies out."""

NAMED_KEYS: Mapping[str, Registry] = {
    "model": MODELS,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
    "metrics": METRICS,
    "stages": STAGES,
}


def find_config(name: str) -> Path:
    """Return the path of a config: a file, or the name of a shipped one such as ``demo``.

    Raises
    ------
    NotFoundError
        If there is no such file and no such shipped config.
    """
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
    """Return the shipped configs: name, such as ``section3.3/figure3``, to path."""
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
        In the order of the config's keys, the last list varying fastest; equal points once.

    Raises
    ------
    ConfigError
        If it is no JSON object, or has an unknown key, name or value.
    NotFoundError
        If there is no such file.
    """
    if isinstance(source, Mapping):
        return expand(dict(source))
    path = find_config(str(source))
    content = read_content(path)
    try:
        return expand(content)
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error


def read_content(path: Path) -> dict[str, Any]:
    """Read a config's JSON object as it stands, its keys and values unchecked.

    Raises
    ------
    ConfigError
        If it is no JSON object, or has a key twice.
    """
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
    """Make a dict of a JSON object's pairs; of two values for one key, none can be meant to win."""
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"the key {twice!r} is there twice")
    return content


def expand(content: dict[str, Any]) -> list[ExperimentConfig]:
    """Multiply a config's lists out; see :func:`read_config`."""
    content = {key: value for key, value in content.items() if key != "$schema"}  # a hint for editors
    known = ExperimentConfig.model_fields
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown config key {key!r}{suggest(key, known)}")
    for key in LIST_KEYS & content.keys():
        if not isinstance(content[key], list | tuple):
            raise ConfigError(f"{key!r} takes a list, found {content[key]!r}")
    for key, value in content.items():
        if (
            key not in ("plugins", "metrics", "latent_epochs")
            and isinstance(value, list | tuple)
            and not value
        ):
            raise ConfigError(f"{key!r} is an empty list; give one value at least")
    load_plugins(map(str, content.get("plugins", ())))
    axes = [
        [(key, value)] if key in LIST_KEYS or not isinstance(value, list) else [(key, v) for v in value]
        for key, value in content.items()
    ]
    points = [_make_config(dict(point)) for point in itertools.product(*axes)]
    return list(dict.fromkeys(points))


def _make_config(content: dict[str, Any]) -> ExperimentConfig:
    if "pooling" in content:  # numbers are as good as digits in a config
        content["pooling"] = list(dict.fromkeys(str(p) for p in content["pooling"]))
    try:
        config = ExperimentConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe(error)) from error
    for key, registry in NAMED_KEYS.items():
        value = getattr(config, key)
        for name in (value,) if isinstance(value, str) else value:
            registry.entry(name)
    for key in ("layers", "exclude_layers"):
        try:
            re.compile(getattr(config, key) or "")
        except re.error as error:
            raise ConfigError(
                f"{key!r}: {getattr(config, key)!r} is no regular expression: {error}"
            ) from error
    late = [epoch for epoch in config.latent_epochs if epoch >= config.epoch]
    if late:
        raise ConfigError(
            f"'latent_epochs': {late[0]} is past the last of {config.epoch} epochs, which is "
            f"{config.epoch - 1}: they are counted from 0"
        )
    return config


def describe(error: ValidationError) -> str:
    """Return what pydantic found wrong, in one line: the key, what was found and what was expected."""
    return "; ".join(map(describe_item, error.errors()))


def describe_item(item: Mapping[str, Any], flag: str = "") -> str:
    """Return one of the things that pydantic found wrong, by its key, or by the flag that was typed."""
    key = flag or repr(".".join(str(place) for place in item["loc"]))
    text = item["msg"].removeprefix("Value error, ")
    # An error of our own says what was found, or must not say it: a URL with a password in it.
    is_own = isinstance(item.get("ctx", {}).get("error"), SatstoreError)
    shown = f"{item['input']!r}"
    found = "" if is_own else f", found {shown if len(shown) <= 200 else f'{shown[:200]}…'}"
    return f"{key}: {text[0].lower()}{text[1:]}{found}"
