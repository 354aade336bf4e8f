"""The commands of stages, made from the stages' parameters: one for each, and ``run`` for several."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from satstore.cli.options import Target
from satstore.registry import STAGES
from satstore.stages.parameters import join_parameters

NO_TARGET = Target()


def make_stage_command(name: str) -> Callable[..., None]:
    """Return the function of a stage's command."""
    stage = STAGES[name]

    def command(*, target: Target = NO_TARGET, parameters: Any = None) -> None:
        from satstore.cli.run_stages import run_target

        run_target(target, lambda _: {name: parameters or stage.parameters()})

    command.__doc__ = stage.description
    command.__annotations__["parameters"] = Annotated[stage.parameters | None, Parameter(name="*")]
    return command


def make_run_command(names: Sequence[str]) -> Callable[..., None]:
    """Return the function of the command that runs several stages, with the parameters of all of them."""
    model = join_parameters(names)

    def command(
        *,
        target: Target = NO_TARGET,
        stages: Annotated[
            tuple[str, ...] | None, Parameter(help="the stages to run; by default the config's", negative="")
        ] = None,
        parameters: Any = None,
    ) -> None:
        from satstore.cli.run_stages import run_target
        from satstore.stages.pipeline import make_tasks

        given = dict(parameters or model())
        if stages and given["latents"] is None:
            given["latents"] = False  # stages that are named without extract need no latents
        run_target(
            target,
            lambda config: make_tasks(stages or config.stages, given, strict=False),
            with_table=True,
        )

    command.__doc__ = (
        "Run all stages that a config names, each experiment of its grid; what is done is skipped."
    )
    command.__annotations__["parameters"] = Annotated[model | None, Parameter(name="*")]
    return command
