"""Commands that draw: one run or several, and the paper's figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from satstore.cli.console import say
from satstore.errors import ConfigError
from satstore.logs import find_logs_dir, open_run
from satstore.run import Run

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
    from satstore.plots import plot_comparison, save_figure

    check_options(names, o)
    runs = [open_run(name, logs_dir) for name in names]
    if len(runs) > 1:
        figure, default = plot_comparison(runs, o.by_depth, o.all_layers, o.delta), Path("comparison.png")
    elif o.quantity is not None:
        return plot_epochs(runs[0], out, o)
    else:
        kind = "evolution" if o.evolution else o.kind or "layers"
        figure, default = draw(runs[0], kind, o), runs[0].path / f"{kind}.png"
    path = out or default
    save_figure(figure, path)
    return path.absolute()


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
    from satstore import plots

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
    """Return an epoch that a run has; None for the last.

    Raises
    ------
    ConfigError
        If it has no such epoch.
    """
    if text is None:
        return None
    if not text.isdecimal() or int(text) > run.last_epoch:
        raise ConfigError(
            f"there is no epoch {text} of {run.name}: they are counted from 0 to {run.last_epoch}"
        )
    return int(text)


def plot_epochs(run: Run, out: Path | None, o: PlotOptions) -> Path:
    """Draw a quantity of every layer after one epoch, or a picture per epoch into a folder."""
    from satstore.plots import plot_epoch, save_figure

    assert o.quantity is not None
    if o.epoch != "all":
        epoch = find_epoch(run, o.epoch)
        epoch = run.last_epoch if epoch is None else epoch
        path = out or run.path / f"{o.quantity}-epoch{epoch}.png"
        save_figure(plot_epoch(run, epoch, o.quantity, o.all_layers, o.delta), path)
        return path.absolute()
    folder = out or run.path / f"{o.quantity}-epochs"
    if folder.suffix:
        raise ConfigError(f"--out {folder}: --epoch all draws a picture per epoch; name a folder for them")
    for epoch in range(run.last_epoch + 1):
        figure = plot_epoch(run, epoch, o.quantity, o.all_layers, o.delta)
        save_figure(figure, folder / f"{o.quantity}-epoch{epoch:03d}.png")
    return folder.absolute()


# The paper's figures


def draw_figure(
    name: str, run_id: str, out: Path | None, kind: "Format", published: bool, logs_dir: Path | None
) -> None:
    """Draw a figure of the paper, or of any config, from the runs that it describes; say what is missing.

    Raises
    ------
    NotFoundError
        If there is no such config.
    """
    from satstore.figures import find_panels
    from satstore.plots import plot_paper_figure, plot_relative, save_figure, tabulate_relative
    from satstore.plots.style import KINDS

    panels = find_panels(name, run_id, logs_dir)
    stem = Path(name).stem
    if out is not None and out.suffix.lower().removeprefix(".") in KINDS:
        path = out
    else:
        path = (out or find_logs_dir(logs_dir, panels[0].config) / run_id) / f"{stem}.{kind}"
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
