"""The arguments of the command line that this process runs."""

from contextvars import ContextVar

ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())
"""What follows ``satstore``."""


def arguments_without(*flags: str) -> list[str]:
    """Return the arguments of the command line, without some flags and their values.

    A flag is given as ``--detach``, which also removes ``--detach=true``, or, if it takes a value, as
    ``--logs-dir=``, which also removes the value.
    """
    names = {flag.rstrip("=") for flag in flags}
    kept, arguments = [], iter(ARGUMENTS.get())
    for argument in arguments:
        if f"{argument}=" in flags:
            next(arguments, None)
        elif argument.partition("=")[0] not in names:
            kept.append(argument)
    return kept
