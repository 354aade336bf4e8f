"""``satstore figure``: the figures and tables of the paper, or of any config."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from satstore.cli.completers import complete_figures, complete_runs
from satstore.cli.console import print_line
from satstore.cli.options import LogsDir
from satstore.cli.output import output_file
from satstore.runs.logs_folder import find_logs_dir, find_runs


def draw_figure(
    name: Annotated[
        str, Parameter(help="figure1 to figure19, table1, or any config", completer=complete_figures)
    ],
    *,
    run: Annotated[str, Parameter(help="the run id that its experiments are under", completer=complete_runs)],
    out: Annotated[
        Path | None, Parameter(help="a folder, or a file; by default the run id's folder in the logs")
    ] = None,
    format: Annotated[Literal["png", "svg", "pdf"], Parameter(help="where --out names no file")] = "png",
    published: Annotated[
        bool, Parameter(negative="", help="draw the published values too, faintly, where there are any")
    ] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Draw a figure from the runs of its config, and print the commands that complete these.

    Raises
    ------
    NotFoundError
        If there is no such config, or no such run id.
    """
    from satstore.reports.figures import find_panels
    from satstore.reports.plots import plot_paper_figure, plot_relative, save_figure, tabulate_relative
    from satstore.reports.plots.style import SUFFIXES

    panels = find_panels(name, run, logs_dir)
    if all(panel.run is None for panel in panels):
        find_runs(run, logs_dir)  # raises an error if the run id does not exist
    stem = Path(name).stem
    folder = find_logs_dir(logs_dir, panels[0].config) / run
    path = output_file(out, folder / f"{stem}.{format}", SUFFIXES)
    lacking = [panel for panel in panels if panel.lacks]
    commands = list(dict.fromkeys(panel.command for panel in lacking))
    if stem.startswith("table"):
        table = tabulate_relative(panels)
        save_figure(plot_relative(table, [f"what is missing: {command}" for command in commands]), path)
        print_line(table.to_string(index=False, na_rep="–", float_format="{:.1%}".format))
    else:
        save_figure(plot_paper_figure(panels, published), path)
    print_line(f"{path.absolute()}")
    if lacking:
        print_line(f"{len(lacking)} of {len(panels)} experiments are not complete; go on with:")
        for command in commands:
            print_line(f"  {command}")
