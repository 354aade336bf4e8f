"""What a stage is, and the parameters that stages share."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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

from satstore.config.experiment import DeviceName, Pooling, pooling_key
from satstore.config.keys import latents_key
from satstore.errors import ConfigError, NotFoundError
from satstore.registry import STAGES, suggest
from satstore.runs.manifest import checkpoint_name
from satstore.runs.run import Run
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
    DeviceName | None,
    Field(description="cpu or cuda:N, for the stages that have to run first"),
]
Poolings = Annotated[
    tuple[Annotated[Pooling, BeforeValidator(str)], ...] | None,
    Parameter(name=["--pooling", "-d"], negative=""),
    Field(description="pool latents to n x n (a number), or not at all (full, pixelwise); repeatable"),
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


@dataclass(frozen=True)
class Stage:
    """A step of the work on an experiment.

    Attributes
    ----------
    name
        Its command's name.
    description
        One line on what it does.
    function
        Does what is pending; called with the run locked.
    pending
        Says what is still to do for some parameters, in a few words each; nothing means that it is done.
    parameters
        The model of its parameters.
    needs
        The stages whose results it reads.
    table
        Its output table.
    needs_model
        Whether it builds the run's model, which of recorded runs is in a program of their user's.
    """

    name: str
    description: str
    function: Callable[[Run, Any], None]
    pending: Callable[[Run, Any], list[str]]
    parameters: type[StageParameters]
    needs: tuple[str, ...] = ()
    table: str = ""
    needs_model: bool = False

    @property
    def key(self) -> str:
        """The stage's name in manifests and JSON."""
        return self.name.replace("-", "_")

    def adapt(self, parameters: StageParameters | None, **changes: Any) -> Any:
        """Return this stage's parameters with what another stage's have in common with them."""
        known = self.parameters.model_fields
        given = {} if parameters is None else {k: v for k, v in dict(parameters).items() if k in known}
        given.pop("overwrite", None)  # what one stage is told to do again is no order to the one before it
        return self.parameters.model_validate({**given, **{k: v for k, v in changes.items() if k in known}})

    def command(self, run: Run, parameters: StageParameters) -> str:
        """Return the command line that starts the stage on a run."""
        words = ["satstore", self.name, "--run", run.name]
        for pooling in getattr(parameters, "pooling", None) or ():
            words += ["-d", pooling]
        for epoch in getattr(parameters, "epoch", None) or ():
            words += ["--epoch", str(epoch + 1)]
        return " ".join(words)


def stage(
    name: str,
    *,
    table: str = "",
    parameters: type[StageParameters] = StageParameters,
    needs: tuple[str, ...] = ("train",),
    pending: Callable[[Run, Any], list[str]] | None = None,
) -> Callable[[Callable[[Run, Any], None]], Callable[[Run, Any], None]]:
    """Register a function as a stage, its docstring's first line as the description.

    Parameters
    ----------
    name, table, parameters, needs, pending
        As for :class:`Stage`. Without ``pending``, the stage is done once the table is committed, and with
        the parameter ``overwrite`` never.

    Raises
    ------
    ConfigError
        If there is neither ``table`` nor ``pending``, or the name is taken.
    """
    if not table and pending is None:
        raise ConfigError(f"stage {name!r} needs table or pending, to tell when it is done")

    def is_missing(run: Run, asked: Any) -> list[str]:
        return [] if run.has_file(f"{table}.csv") and not getattr(asked, "overwrite", False) else [table]

    def add(function: Callable[[Run, Any], None]) -> Callable[[Run, Any], None]:
        text = " ".join((function.__doc__ or name).strip().splitlines()[0].split())
        made = Stage(name, text, function, pending or is_missing, parameters, needs, table)
        STAGES.register(name, family=function.__module__, description=text)(made)
        return function

    return add


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


def layers_of(run: Run, parameters: Any) -> list[str]:
    """Return the run's layers that parameters ask for, in forward order.

    Raises
    ------
    ConfigError
        If that is none, or a regular expression is not one.
    """
    for flag, text in (("--layers", parameters.layers), ("--exclude", parameters.exclude)):
        try:
            re.compile(text or "")
        except re.error as error:
            raise ConfigError(f"{flag} {text!r} is no regular expression: {error}") from error
    take, leave = (re.compile(text) if text else None for text in (parameters.layers, parameters.exclude))
    chosen = [
        layer
        for layer in run.layers
        if (take is None or take.search(layer)) and not (leave and leave.search(layer))
    ]
    if not chosen:
        given = {"--layers": parameters.layers, "--exclude": parameters.exclude}
        filters = " and ".join(f"{flag} {text!r}" for flag, text in given.items() if text)
        raise ConfigError(
            f"{run.name} has no layer left by {filters}{suggest(parameters.layers or '', run.layers)}"
        )
    return chosen


def poolings_of(run: Run, parameters: Any) -> tuple[str, ...]:
    """Return the poolings that parameters ask for, else the config's."""
    return tuple(parameters.pooling or run.config.pooling)


def epochs_of(run: Run, parameters: Any) -> tuple[int | None, ...]:
    """Return the epochs whose latents parameters ask for, else the config's; None, the first, is the last.

    Epochs of the config that training did not come to are left out: it stopped early.

    Raises
    ------
    ConfigError
        If an epoch asked for was not trained.
    NotFoundError
        If the weights after one were not kept.
    """
    last = run.last_epoch
    asked = parameters.epoch or (last, *(n for n in run.config.latent_epochs if n <= last))
    late = [epoch for epoch in asked if epoch > last]
    if late:
        raise ConfigError(
            f"there is no epoch {late[0] + 1} of {run.name}: its epochs are counted from 1 to {last + 1}"
        )
    earlier = sorted({epoch for epoch in asked if epoch != last})
    check_kept(run, earlier)
    return (*([None] if last in asked else []), *earlier)


def check_kept(run: Run, epochs: Iterable[int]) -> None:
    """Check that training kept the weights after some epochs.

    Raises
    ------
    NotFoundError
        If it did not; the message says which and what to do.
    """
    gone = [epoch for epoch in epochs if not run.has_file(checkpoint_name(epoch))]
    if gone:
        kept = [n for n in range(run.last_epoch) if run.has_file(checkpoint_name(n))]
        raise NotFoundError(
            f"{run.name} did not keep the weights after epoch {list_epochs(gone)} when trained "
            f"(kept: {list_epochs(kept) or 'none'}); to have latents of them, train a config with "
            f'"latent_epochs": {gone}, where they are counted from 0, under another run id, or this one with '
            "it and --overwrite"
        )


def list_epochs(epochs: Iterable[int]) -> str:
    """Return epochs, counted from 0, as people count them."""
    return ", ".join(str(epoch + 1) for epoch in epochs)


def latents_of(run: Run, parameters: Any) -> list[str]:
    """Return the keys of the latents that parameters ask for: of each epoch, the last first, each pooling."""
    poolings = [pooling_key(pooling) for pooling in poolings_of(run, parameters)]
    return [latents_key(pooling, epoch) for epoch in epochs_of(run, parameters) for pooling in poolings]
