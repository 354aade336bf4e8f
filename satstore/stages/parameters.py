"""The parameters that stages share, each with its flag, its checks and its help."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    create_model,
)

from satstore.config.experiment import DeviceName, Pooling, TokenMode
from satstore.registry import STAGES
from satstore.storage.location import locate


class StageParameters(BaseModel):
    """A stage's parameters: its command's flags, its form in the terminal app, its record in the manifest."""

    # A URL that is refused for the credentials in it must not be repeated.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _parse_bytes(_: Any, tokens: Any) -> int:
    token: Token = tokens[0]
    return int(TypeAdapter(ByteSize).validate_python(token.value))


def _check_place(place: str | None) -> str | None:
    if place is not None:
        locate(place)
    return place


def _read_splits(given: Any) -> Any:
    """Return splits, each once, those in one text apart."""
    texts = (given,) if isinstance(given, str) else given
    return tuple(dict.fromkeys(name for text in texts for name in str(text).split(",")))


def _read_epoch(epoch: Any) -> Any:
    """Return an epoch counted from 0, as in Python and stores; a text is a person's, who counts from 1."""
    if not isinstance(epoch, str):
        return epoch
    if not (epoch.isascii() and epoch.isdecimal()) or int(epoch) < 1:
        raise ValueError("expected a whole number, the first epoch is 1")
    return int(epoch) - 1


Device = Annotated[
    DeviceName | None,
    Field(description="cpu or cuda:N; by default the config's, else the first GPU, else the CPU"),
]

DeviceOfNeeds = Annotated[
    DeviceName | None, Field(description="cpu or cuda:N, for the stages that have to run first")
]

Poolings = Annotated[
    tuple[Annotated[Pooling, BeforeValidator(str)], ...] | None,
    Parameter(name=["--pooling", "-d"], negative=""),
    Field(description="pool latents to n x n (a number), or not at all (full, pixelwise); repeatable"),
]

Tokens = Annotated[
    tuple[Annotated[TokenMode, BeforeValidator(str)], ...] | None,
    Parameter(negative=""),
    Field(
        description="of layers that give tokens: cls, mean, last, all, or a position counted from 0; grid "
        "takes an image's patches as maps; repeatable"
    ),
]

Epochs = Annotated[
    tuple[Annotated[int, Field(ge=0), BeforeValidator(_read_epoch)], ...] | None,
    Parameter(negative=""),
    Field(
        description="epoch, the first is 1, whose latents to take; repeatable; by default the config's, and "
        "the last"
    ),
]

Splits = Annotated[
    tuple[Literal["train", "eval"], ...],
    Parameter(negative=""),
    BeforeValidator(_read_splits),
    Field(min_length=1, description="train, eval or both, separated by commas"),
]

Layers = Annotated[
    str | None, Field(description="regular expression, found anywhere in the names of the layers to take")
]

Exclude = Annotated[
    str | None, Field(description="regular expression of the layers to leave out, also of those to take")
]

LatentsDir = Annotated[
    str | None,
    AfterValidator(_check_place),
    Field(description="folder or URL (s3://bucket/prefix) for latents; by default the run's folder"),
]

Overwrite = Annotated[
    bool, Parameter(negative=""), Field(description="do it again, in place of what is there")
]

MaxSamples = Annotated[
    int | None, Field(ge=2, description="samples that spectra take at most, the first ones")
]

Force = Annotated[
    bool,
    Parameter(negative=""),
    Field(description="start even where disk or memory are not expected to suffice"),
]

MemoryLimit = Annotated[
    ByteSize,
    Parameter(converter=_parse_bytes, n_tokens=1, show_default=lambda size: ByteSize(size).human_readable()),
    Field(description="memory that the stage may take, such as 2GiB"),
]

DEFAULT_MEMORY_LIMIT = ByteSize(2 * 2**30)


def join_parameters(stages: Iterable[str]) -> type[BaseModel]:
    """Return a model with the parameters of some stages, for the command that runs them all."""
    fields: dict[str, Any] = {}
    for name in stages:
        model = STAGES[name].parameters
        for field, info in model.model_fields.items():
            fields.setdefault(field, (Annotated[(info.annotation, *info.metadata, info)], info.default))
    joined: type[BaseModel] = create_model("RunParameters", **fields)
    return joined


def record_parameters(parameters: StageParameters) -> dict[str, Any]:
    """Return parameters as the manifest keeps them."""
    content: dict[str, Any] = json.loads(parameters.model_dump_json())
    return content
