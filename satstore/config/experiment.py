"""The config of one experiment: its fields, their checks and defaults."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from satstore.config.latent_keys import LatentsRequest


def _check_pooling(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,3}|full|pixelwise", text):
        raise ValueError("expected a number from 1 to 9999, full, or pixelwise")
    return text


def _check_token_mode(text: str) -> str:
    if not re.fullmatch(r"cls|mean|last|all|grid|0|[1-9][0-9]{0,4}", text):
        raise ValueError("expected cls, mean, last, all, grid, or a number from 0 to 99999")
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
"""The name of a device; :func:`satstore.training.devices.choose_device` checks that it exists."""

PathText = Annotated[str, AfterValidator(_check_path)]

Pooling = Annotated[str, AfterValidator(_check_pooling)]
"""The pooling of latents: a number n for adaptive averages over n × n, ``full`` for unpooled maps, or
``pixelwise`` for unpooled maps whose features come last, ready for a probe of every position."""


TokenMode = Annotated[str, AfterValidator(_check_token_mode)]
"""Latents of tokens: the class token, the mean of those behind it, the last, all, or the one at a position,
counted from 0. ``grid`` has none of its own: an image's patches are then maps too, made by ``pooling``."""


Calls = Literal["last", "all"]


def split_pattern(text: str) -> tuple[str, str | None]:
    """Split a pattern of ``modules`` into a regular expression and the part of the output after the colon."""
    found = re.fullmatch(r"(.+?)(?::([A-Za-z_]\w*|\d+))?", text, re.DOTALL)
    return (found[1], found[2]) if found else (text, None)


def _as_ours(name: object) -> object:
    """Translate delve's name of a method to satstore's."""
    return {"last_timestep": "last", "timestepwise": "every"}.get(str(name), name)


class ExperimentConfig(BaseModel):
    """The config of one experiment: one point of a config's grid, with every default filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("resnet18", description="a name of `satstore list models`")
    dataset: str = Field(
        "Cifar10", description='a name of `satstore list datasets`; `"ImageFolder:PATH"` for your own images'
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
    modules: tuple[str, ...] | None = Field(
        None,
        description="regular expressions of modules of any class to record, in place of Conv, Linear and "
        "LSTM, or besides those of `layers`; `:part` at the end takes that part of their output; null: none",
    )
    calls: Calls = Field(
        "last",
        description="of a module called several times: `last` takes every call for spectra, and the last for "
        "latents; `all` takes each as a layer, `name@0`, `name@1`",
    )
    delta: float = Field(0.99, gt=0, le=1, description="share of the variance that saturation explains")
    pooling: tuple[Pooling, ...] = Field(
        ("4",), description="latents to store and probe: n for n × n, `full`, or `pixelwise`"
    )
    tokens: tuple[TokenMode, ...] | None = Field(
        None,
        description="latents of layers that give tokens: `cls`, `mean`, `last`, `all`, or a position from 0; "
        "`grid` takes patches as maps, which `pooling` is for; null: `mean`",
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
        """The experiment's title for people: ``vgg16 on Cifar10 at 32 px``; of a recorded run, ``MyNet``."""
        data = "" if self.dataset == RECORDED else f" on {self.dataset}"
        return f"{self.model}{data}{self.size_text}"

    @property
    def size_text(self) -> str:
        """The end of titles, `` at 32 px``; empty for recorded data without a size, whose resolution is 1."""
        return f" at {self.resolution} px" if self.resolution > 1 else ""

    @property
    def latents_request(self) -> LatentsRequest:
        """The latents to store and probe."""
        return LatentsRequest.of(self.pooling, self.tokens)

    @property
    def experiment(self) -> str:
        """The name of the experiment's folder: what people look for, and the beginning of the digest."""
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
        """The SHA-256 digest of all keys that training depends on, as hexadecimal digits."""
        # Without defaults, so that a key that a later version adds changes no digest of today.
        trained = self.model_dump(mode="json", exclude=set(NOT_TRAINING), exclude_defaults=True)
        return hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()

    def is_finished(self, epochs_done: int, accuracy: float | None) -> bool:
        """Tell whether training ends after so many epochs, given the last one's test accuracy."""
        goal = self.stop_at_accuracy
        is_good_enough = goal is not None and accuracy is not None and accuracy >= goal
        return epochs_done >= self.epoch or is_good_enough

    @property
    def data_dir(self) -> Path:
        """The folder that holds the datasets."""
        return Path(self.cache_dir or os.environ.get("TORCH_DATADIR") or "tmp").expanduser()


RECORDED = "Recorded"
"""The dataset's name in runs of ``satstore.record``, whose model and data satstore can't build."""

NOT_TRAINING = frozenset(
    {
        "logs_dir",
        "device",
        "delta",
        "cache_dir",
        "workers",
        "ranks",
        "pooling",
        "tokens",
        "latent_epochs",
        "stages",
        "plugins",
        "note",
    }
)
"""The keys that weights, metrics and spectra don't depend on: the digest leaves them out."""
