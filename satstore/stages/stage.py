"""What a stage is, and how one is registered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from satstore.errors import ConfigError
from satstore.registry import STAGES
from satstore.runs.run import Run
from satstore.stages.parameters import StageParameters


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
