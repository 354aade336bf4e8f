"""Commands that draw: one run or several, and the paper's figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from satstore.cli.console import say
from satstore.cli.output import output_file, output_folder
from satstore.errors import ConfigError, NotFoundError
from satstore.runs.logs_folder import find_logs_dir, find_runs, open_run
from satstore.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from satstore.cli.app import Format, Kind, Quantity


@dataclass(frozen=True)
class PlotOptions:
    """What ``satstore plot`` draws; see its flags."""

    kind: "Kind | None" = None
    quantity: "Quantity | None" = None
    all_layers: bool = False
    evolution: bool = False
    by_depth: bool = False
    delta: float | None = None
    epoch: str | None = None


def plot_experiments(names: Sequence[str], logs_dir: Path | None, out: Path | None, o: PlotOptions) -> Path:
    """Draw an experiment, its epochs, or several experiments, and return the file's path.

    Raises
    ------
    ConfigError
        If options exclude each other, or there is no such epoch or delta.
    """
    from satstore.reports.plots import plot_comparison, save_figure
    from satstore.reports.plots.style import SUFFIXES

    check_options(names, o)
    runs = [open_run(name, logs_dir) for name in names]
    if o.quantity is not None:
        return plot_epochs(runs[0], out, o)
    kind = "evolution" if o.evolution else o.kind or "layers"
    default = runs[0].path / usual_name(kind, o) if len(runs) == 1 else Path(usual_name("comparison", o))
    path = output_file(out, default, SUFFIXES)
    if len(runs) > 1:
        figure = plot_comparison(runs, o.by_depth, o.all_layers, o.delta)
    else:
        figure = draw(runs[0], kind, o)
    save_figure(figure, path)
    return path.absolute()


def usual_name(what: str, o: PlotOptions) -> str:
    """Return the file name of a picture, by what it shows and how, so that no other one is replaced."""
    words = [what]
    words += ["by-depth"] if o.by_depth else []
    words += ["all-layers"] if o.all_layers else []
    words += [f"delta{o.delta:g}"] if o.delta is not None else []
    words += [f"epoch{o.epoch}"] if o.epoch is not None else []
    return "-".join(words) + ".png"


def check_options(names: Sequence[str], o: PlotOptions) -> None:
    """Refuse options that exclude each other.

    Raises
    ------
    ConfigError
        Naming them.
    """
    if o.delta is not None and not 0 < o.delta <= 1:
        raise ConfigError(f"--delta {o.delta:g}: expected a number above 0 and at most 1")
    of_one = {"--evolution": o.evolution, "--epoch": o.epoch, "--quantity": o.quantity}
    of_one["--kind"] = o.kind not in (None, "layers")
    if len(names) > 1 and any(of_one.values()):
        given = ", ".join(flag for flag, value in of_one.items() if value)
        raise ConfigError(f"{given}: for one experiment, {len(names)} are named")
    if len(names) == 1 and o.by_depth:
        raise ConfigError("--by-depth aligns several experiments; name two at least")
    if o.quantity is not None and (o.kind or o.evolution):
        raise ConfigError("--quantity draws each epoch's bars, which are of no other kind; leave --kind out")
    if o.epoch == "all" and o.quantity is None:
        raise ConfigError("--epoch all draws a picture per epoch; say of what: --quantity saturation")
    if o.epoch is not None and (
        o.evolution or o.kind in ("training", "pixelwise", "projection", "evolution")
    ):
        raise ConfigError("--epoch: what is drawn is of no one epoch; leave it out")


def draw(run: Run, kind: str, o: PlotOptions) -> "Figure":
    """Draw one experiment."""
    from satstore.reports import plots

    epoch = find_epoch(run, o.epoch)
    kinds: dict[str, Callable[[], Figure]] = {
        "layers": lambda: plots.plot_layers(run, o.all_layers, o.delta, epoch),
        "training": lambda: plots.plot_training(run),
        "spectrum": lambda: plots.plot_spectrum(run, o.all_layers, epoch),
        "pixelwise": lambda: plots.plot_pixelwise(run, o.all_layers),
        "projection": lambda: plots.plot_projection(run),
        "evolution": lambda: plots.plot_evolution(run, o.all_layers),
    }
    return kinds[kind]()


def find_epoch(run: Run, text: str | None) -> int | None:
    """Return an epoch that a run has, counted from 0, of a text that counts from 1; None for the last.

    Raises
    ------
    ConfigError
        If it has no such epoch.
    NotFoundError
        If it has none yet.
    """
    if text is None:
        return None
    if run.last_epoch < 0:
        raise NotFoundError(f"{run.name} is not trained yet; run: satstore train --run {run.name}")
    if not text.isdecimal() or not 1 <= int(text) <= run.last_epoch + 1:
        raise ConfigError(
            f"there is no epoch {text} of {run.name}: its epochs are counted from 1 to {run.last_epoch + 1}"
        )
    return int(text) - 1


def plot_epochs(run: Run, out: Path | None, o: PlotOptions) -> Path:
    """Draw a quantity of every layer after one epoch, or a picture per epoch into a folder."""
    from satstore.reports.plots import plot_epoch, save_figure
    from satstore.reports.plots.style import SUFFIXES

    assert o.quantity is not None
    if o.epoch != "all":
        epoch = find_epoch(run, o.epoch)
        epoch = run.last_epoch if epoch is None else epoch
        name = usual_name(o.quantity, replace(o, epoch=str(epoch + 1)))
        path = output_file(out, run.path / name, SUFFIXES)
        save_figure(plot_epoch(run, epoch, o.quantity, o.all_layers, o.delta), path)
        return path.absolute()
    folder = output_folder(out, run.path / f"{o.quantity}-epochs")
    for epoch in range(run.last_epoch + 1):
        figure = plot_epoch(run, epoch, o.quantity, o.all_layers, o.delta)
        save_figure(figure, folder / usual_name(o.quantity, replace(o, epoch=f"{epoch + 1:03d}")))
    return folder.absolute()


# The paper's figures


def draw_figure(
    name: str, run_id: str, out: Path | None, kind: "Format", published: bool, logs_dir: Path | None
) -> None:
    """Draw a figure of the paper, or of any config, from the runs that it describes; say what is missing.

    Raises
    ------
    NotFoundError
        If there is no such config, or no such run id.
    """
    from satstore.reports.figures import find_panels
    from satstore.reports.plots import plot_paper_figure, plot_relative, save_figure, tabulate_relative
    from satstore.reports.plots.style import SUFFIXES

    panels = find_panels(name, run_id, logs_dir)
    if all(panel.run is None for panel in panels):
        find_runs(run_id, logs_dir)  # for its error, where there is nothing of that run id
    stem = Path(name).stem
    folder = find_logs_dir(logs_dir, panels[0].config) / run_id
    path = output_file(out, folder / f"{stem}.{kind}", SUFFIXES)
    lacking = [panel for panel in panels if panel.lacks]
    commands = list(dict.fromkeys(panel.command for panel in lacking))
    if stem.startswith("table"):
        table = tabulate_relative(panels)
        save_figure(plot_relative(table, [f"what is missing: {command}" for command in commands]), path)
        say(table.to_string(index=False, na_rep="–", float_format="{:.1%}".format))
    else:
        save_figure(plot_paper_figure(panels, published), path)
    say(f"{path.absolute()}")
    if lacking:
        say(f"{len(lacking)} of {len(panels)} experiments are not complete; go on with:")
        for command in commands:
            say(f"  {command}")
