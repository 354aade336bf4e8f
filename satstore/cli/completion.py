"""``satstore completion``: the scripts by which shells complete commands."""

from typing import Annotated, Literal

from cyclopts import Parameter

from satstore.cli.console import print_line

Shell = Literal["bash", "zsh", "fish", "powershell"]


def print_completion(
    shell: Annotated[Shell, Parameter(help="for which; where its script goes, the README says")],
) -> None:
    """Print the script that makes a shell complete satstore's commands."""
    from satstore.cli.app import app

    print_line(app.generate_completion(prog_name="satstore", shell=shell))
