"""What a stage is, and how one is registered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from satstore.errors import ConfigError
from satstore.registry import STAGES
from satstore.runs.repair import record_call
from satstore.runs.run import Run
from satstore.stages.parameters import StageParameters
from satstore.stages.selection import latents_of

Work = TypeVar("Work")


@dataclass(frozen=True)
class Plan(Generic[Work]):
    """What a stage has still to do on a run.

    Attributes
    ----------
    parameters
        Those that it was planned for.
    missing
        What is missing, in a few words each; nothing means that the stage is done.
    work
        What the stage found out on the way and needs to do it; None where the parameters tell all.
    """

    parameters: Any
    missing: list[str]
    work: Work


@dataclass(frozen=True)
class Stage:
    """A step of the work on an experiment.

    Attributes
    ----------
    name
        Its command's name.
    description
        One line on what it does.
    plan
        Returns what is to do on a run for some parameters; called with the run locked.
    run
        Does what was planned; called once, right after, unless nothing is missing.
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
    plan: Callable[[Run, Any], Plan[Any]]
    run: Callable[[Run, Plan[Any]], None]
    parameters: type[StageParameters]
    needs: tuple[str, ...] = ()
    table: str = ""
    needs_model: bool = False

    @classmethod
    def from_function(
        cls,
        name: str,
        description: str,
        function: Callable[[Run, Any], None],
        *,
        pending: Callable[[Run, Any], list[str]] | None = None,
        parameters: type[StageParameters] = StageParameters,
        needs: tuple[str, ...] = ("train",),
        table: str = "",
    ) -> Self:
        """Make a stage of a function of a run and parameters.

        Parameters
        ----------
        pending
            Returns what is missing, in a few words each. Without it, the stage is done once the table is
            committed, and never where the parameter ``overwrite`` is set.

        Raises
        ------
        ConfigError
            If there is neither ``table`` nor ``pending``.
        """
        _check_end(name, table, pending)

        def is_missing(run: Run, asked: Any) -> list[str]:
            return [] if run.has_file(f"{table}.csv") and not getattr(asked, "overwrite", False) else [table]

        find_missing = pending or is_missing
        return cls(
            name,
            description,
            plan=lambda run, asked: Plan(asked, find_missing(run, asked), None),
            run=lambda run, plan: function(run, plan.parameters),
            parameters=parameters,
            needs=needs,
            table=table,
        )

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
        """Return the command line that starts the stage on a run, or that records a recorded one again."""
        if self.needs_model and run.is_recorded:
            keys = latents_of(run, parameters) if hasattr(parameters, "epoch") else ()
            return record_call(run, *keys)
        words = ["satstore", self.name, "--run", run.name]
        for flag, field in (("-d", "pooling"), ("--tokens", "tokens")):
            for value in getattr(parameters, field, None) or ():
                words += [flag, value]
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

    The parameters are those of :meth:`Stage.from_function`.

    Raises
    ------
    ConfigError
        If there is neither ``table`` nor ``pending``, or the name is taken.
    """
    _check_end(name, table, pending)

    def add(function: Callable[[Run, Any], None]) -> Callable[[Run, Any], None]:
        text = " ".join((function.__doc__ or name).strip().splitlines()[0].split())
        made = Stage.from_function(
            name, text, function, pending=pending, parameters=parameters, needs=needs, table=table
        )
        STAGES.register(name, family=function.__module__, description=text)(made)
        return function

    return add


def _check_end(name: str, table: str, pending: object) -> None:
    if not table and pending is None:
        raise ConfigError(f"stage {name!r} needs table or pending, to tell when it is done")
