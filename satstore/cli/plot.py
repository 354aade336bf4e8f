"""``satstore plot``, ``figure`` and ``report``: pictures of experiments, and a page of all that is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from satstore.cli.console import print_line
from satstore.cli.options import LogsDir, RunName, complete_figures, complete_runs
from satstore.cli.output import output_file, output_folder
from satstore.errors import ConfigError, NotFoundError
from satstore.runs.logs_folder import find_logs_dir, find_runs, open_run
from satstore.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["layers", "training", "spectrum", "pixelwise", "projection", "evolution"]
Quantity = Literal["saturation", "intrinsic_dimension"]


@Parameter(name="*")
@dataclass(frozen=True)
class PlotOptions:
    """What ``satstore plot`` draws, and how."""

    out: Annotated[
        Path | None,
        Parameter(help="PNG, SVG or PDF, or a folder; by default, such as layers.png, in the run's folder"),
    ] = None
    all_layers: Annotated[bool, Parameter(negative="", help="draw shortcuts and the last Linear too")] = False
    kind: Annotated[Kind | None, Parameter(help="what to draw of one run; by default its layers")] = None
    quantity: Annotated[
        Quantity | None,
        Parameter(help="draw it as bars, after the last epoch, --epoch N or each: --epoch all"),
    ] = None
    evolution: Annotated[
        bool, Parameter(negative="", help="the same as --kind evolution: the layers' curves over the epochs")
    ] = False
    by_depth: Annotated[
        bool, Parameter(negative="", help="align the layers of several runs by their share of the depth")
    ] = False
    target: Annotated[
        str | None,
        Parameter(help="labels that the probes were fitted to; by default the data's own, else the first"),
    ] = None
    delta: Annotated[float | None, Parameter(help="of the saturation; by default the config's")] = None
    epoch: Annotated[
        str | None, Parameter(help="the first is 1; by default the last; all: with --quantity")
    ] = None


def plot_experiments(
    run: RunName,
    *others: Annotated[str, Parameter(help="more runs, to compare", completer=complete_runs)],
    options: PlotOptions = PlotOptions(),
    logs_dir: LogsDir = None,
) -> None:
    """Draw an experiment, its epochs, or several experiments, and print the path of the file or folder."""
    names = (run, *others)
    check_options(names, options)
    runs = [open_run(name, logs_dir) for name in names]
    path = plot_runs(runs, options) if options.quantity is None else plot_epochs(runs[0], options)
    print_line(path.absolute())


def plot_runs(runs: Sequence[Run], options: PlotOptions) -> Path:
    """Draw an experiment, or several over each other, and return the path of the file."""
    from satstore.reports.plots import plot_comparison, save_figure
    from satstore.reports.plots.style import SUFFIXES

    if len(runs) > 1:
        path = output_file(options.out, Path(name_file("comparison", options)), SUFFIXES)
        figure = plot_comparison(runs, options.by_depth, options.all_layers, options.delta, options.target)
    else:
        kind = "evolution" if options.evolution else options.kind or "layers"
        path = output_file(options.out, runs[0].path / name_file(kind, options), SUFFIXES)
        figure = draw_experiment(runs[0], kind, options)
    save_figure(figure, path)
    return path


def name_file(what: str, options: PlotOptions) -> str:
    """Return the default file name of a picture, which differs for each choice of options."""
    words = [what]
    words += ["by-depth"] if options.by_depth else []
    words += ["all-layers"] if options.all_layers else []
    words += [options.target] if options.target is not None else []
    words += [f"delta{options.delta:g}"] if options.delta is not None else []
    words += [f"epoch{options.epoch}"] if options.epoch is not None else []
    return "-".join(words) + ".png"


def check_options(names: Sequence[str], options: PlotOptions) -> None:
    """Check that no options exclude each other."""
    if options.delta is not None and not 0 < options.delta <= 1:
        raise ConfigError(f"--delta {options.delta:g}: expected a number above 0 and at most 1")
    of_one = {"--evolution": options.evolution, "--epoch": options.epoch, "--quantity": options.quantity}
    of_one["--kind"] = options.kind not in (None, "layers")
    if len(names) > 1 and any(of_one.values()):
        given = ", ".join(flag for flag, value in of_one.items() if value)
        raise ConfigError(f"{given}: for one experiment, {len(names)} are named")
    if len(names) == 1 and options.by_depth:
        raise ConfigError("--by-depth aligns several experiments; name two at least")
    if options.quantity is not None and (options.kind or options.evolution):
        raise ConfigError("--quantity draws each epoch's bars, which are of no other kind; leave --kind out")
    if options.epoch == "all" and options.quantity is None:
        raise ConfigError("--epoch all draws a picture per epoch; say of what: --quantity saturation")
    if options.epoch is not None and (
        options.evolution or options.kind in ("training", "pixelwise", "projection", "evolution")
    ):
        raise ConfigError("--epoch: what is drawn is of no one epoch; leave it out")
    has_no_probes = options.quantity or options.kind in ("training", "spectrum", "projection")
    if options.target is not None and has_no_probes:
        raise ConfigError("--target: what is drawn shows no probes; leave it out")


def draw_experiment(run: Run, kind: str, options: PlotOptions) -> "Figure":
    """Draw one experiment."""
    from satstore.reports import plots

    epoch = parse_epoch(run, options.epoch)
    kinds: dict[str, Callable[[], Figure]] = {
        "layers": lambda: plots.plot_layers(run, options.all_layers, options.delta, epoch, options.target),
        "training": lambda: plots.plot_training(run),
        "spectrum": lambda: plots.plot_spectrum(run, options.all_layers, epoch),
        "pixelwise": lambda: plots.plot_pixelwise(run, options.all_layers, options.target),
        "projection": lambda: plots.plot_projection(run),
        "evolution": lambda: plots.plot_evolution(run, options.all_layers, options.target),
    }
    return kinds[kind]()


def parse_epoch(run: Run, text: str | None) -> int | None:
    """Parse an epoch of a run, counted from 1; return it counted from 0, or None for the last one."""
    if text is None:
        return None
    if run.last_epoch < 0:
        raise NotFoundError(f"{run.name} is not trained yet; run: satstore train --run {run.name}")
    if not text.isdecimal() or not 1 <= int(text) <= run.last_epoch + 1:
        raise ConfigError(
            f"there is no epoch {text} of {run.name}: its epochs are counted from 1 to {run.last_epoch + 1}"
        )
    return int(text) - 1


def plot_epochs(run: Run, options: PlotOptions) -> Path:
    """Draw a quantity of every layer after one epoch or each; return the path of the file or folder."""
    from satstore.reports.plots import plot_epoch, save_figure
    from satstore.reports.plots.style import SUFFIXES

    assert options.quantity is not None
    quantity, all_layers, delta = options.quantity, options.all_layers, options.delta
    if options.epoch != "all":
        epoch = parse_epoch(run, options.epoch)
        epoch = run.last_epoch if epoch is None else epoch
        name = name_file(quantity, replace(options, epoch=str(epoch + 1)))
        path = output_file(options.out, run.path / name, SUFFIXES)
        save_figure(plot_epoch(run, epoch, quantity, all_layers, delta), path)
        return path
    folder = output_folder(options.out, run.path / f"{quantity}-epochs")
    for epoch in range(run.last_epoch + 1):
        name = name_file(quantity, replace(options, epoch=f"{epoch + 1:03d}"))
        save_figure(plot_epoch(run, epoch, quantity, all_layers, delta), folder / name)
    return folder


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
    """Draw a figure from the runs of its config, and print the commands that complete these."""
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


def write_html_report(
    run: RunName,
    *,
    out: Annotated[Path | None, Parameter(help="an HTML file, or a folder; by default report.html")] = None,
    logs_dir: LogsDir = None,
) -> None:
    """Write the HTML report of a run, and print its path."""
    from satstore.reports.html import write_report
    from satstore.storage.files import write_file

    path = output_file(out, Path("report.html"), (".html", ".htm"))
    write_file(path, write_report(find_runs(run, logs_dir)).encode())
    print_line(path.absolute())
