"""The commands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from satstore import __version__
from satstore.cli.completion import Shell, name_configs, name_figures, name_runs
from satstore.cli.console import say
from satstore.errors import ConfigError
from satstore.registry import STAGES
from satstore.stages.parameters import DEFAULT_MEMORY_LIMIT, Device, MemoryLimit, Poolings, join_parameters

app = App(
    name="satstore",
    version=__version__,
    help="Layer saturation, linear probes and receptive fields of image classifiers, out of core. "
    "With --debug, errors show their traceback.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # who stops it is told how to go on
)

LogsDir = Annotated[
    Path | None, Parameter(help="logs folder; by default SATSTORE_LOGS_DIR, else the config's, else ./logs")
]
Kind = Literal["layers", "training", "spectrum", "pixelwise", "projection", "evolution"]
Quantity = Literal["saturation", "intrinsic_dimension"]
Format = Literal["png", "svg", "pdf"]
To = Literal["csv", "parquet", "zip"]
RunName = Annotated[
    str,
    Parameter(help="a run id (RES), or one experiment of it (RES/<experiment>)", completer=name_runs),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Target:
    """What a stage works on: a config under a run id, or a run that is there."""

    config: Annotated[
        str | None,
        Parameter(
            help="a JSON config, or a shipped one's name; with --run-id; see: satstore list configs",
            completer=name_configs,
        ),
    ] = None
    run_id: Annotated[
        str | None, Parameter(help="the name of the run's folder; missing stages run first")
    ] = None
    run: Annotated[
        str | None, Parameter(help="a run that is there: RES, or RES/<experiment>", completer=name_runs)
    ] = None
    logs_dir: LogsDir = None
    detach: Annotated[
        bool, Parameter(negative="", help="start it in the background, and say how to follow it")
    ] = False


def add_stage(name: str) -> None:
    """Make a command of a stage."""
    stage = STAGES[name]

    def command(*, target: Target = Target(), parameters: Any = None) -> None:
        from satstore.cli.run_stages import work

        work(target, lambda _: {name: parameters or stage.parameters()})

    command.__doc__ = stage.description
    command.__annotations__["parameters"] = Annotated[stage.parameters | None, Parameter(name="*")]
    command.__annotations__["target"] = Target
    app.command(command, name=name)


def usable_stages() -> list[str]:
    """Return the stages' names, less those of installed packages that are broken, of which it warns."""
    names = []
    for name in STAGES:
        try:
            STAGES[name]
        except ConfigError as error:
            say(f"satstore: warning: {error}", is_error=True)
        else:
            names.append(name)
    return names


def add_run(names: list[str]) -> None:
    """Make the command that runs several stages."""
    model = join_parameters(names)

    def run(
        *,
        target: Target = Target(),
        stages: Annotated[
            tuple[str, ...] | None, Parameter(help="the stages to run; by default the config's", negative="")
        ] = None,
        parameters: Any = None,
    ) -> None:
        from satstore.cli.run_stages import work
        from satstore.stages.pipeline import make_plan

        given = dict(parameters or model())
        if stages and given["latents"] is None:
            given["latents"] = False  # who names the stages and leaves extract out wants no latents
        work(target, lambda config: make_plan(stages or config.stages, given, strict=False), with_table=True)

    run.__doc__ = "Run all stages that a config names, each experiment of its grid; what is done is skipped."
    run.__annotations__["parameters"] = Annotated[model | None, Parameter(name="*")]
    run.__annotations__["target"] = Target
    app.command(run)


_commands: list[str] = []


def add_stages() -> None:
    """Make commands of the stages that are known now, in place of those of before: plugins may bring more."""
    names = usable_stages()
    if names == _commands:
        return
    for name in (*_commands, *(["run"] if _commands else [])):
        del app[name]
    _commands[:] = names
    for name in names:
        add_stage(name)
    add_run(names)


add_stages()


@app.command
def demo(
    *,
    run_id: Annotated[str, Parameter(help="the name of the run's folder")] = "demo",
    device: Annotated[Device, Parameter(help="cpu or cuda:N")] = None,
    logs_dir: LogsDir = None,
    detach: Annotated[
        bool, Parameter(negative="", help="start it in the background, and say how to follow it")
    ] = False,
) -> None:
    """Train a small VGG on handwritten digits, probe its layers and show what they do, in a minute or two."""
    if detach:
        from satstore.cli.run_stages import detach as start
        from satstore.runs.logs_folder import check_run_id, find_logs_dir

        check_run_id(run_id)
        start(find_logs_dir(logs_dir))
        return
    from satstore.cli.demo import run_demo

    run_demo(run_id, device, logs_dir)


@app.command
def estimate(
    *,
    config: Annotated[str | None, Parameter(help="a JSON config, or a shipped one's name")] = None,
    run: Annotated[
        str | None, Parameter(help="a run id, or one experiment of it, with its own config")
    ] = None,
    model: Annotated[str | None, Parameter(help="in place of the config's")] = None,
    resolution: Annotated[int | None, Parameter(help="in place of the config's, in pixels")] = None,
    pooling: Poolings = None,
    samples: Annotated[
        int | None, Parameter(help="training images of a dataset that is not here; with --classes")
    ] = None,
    eval_samples: Annotated[int | None, Parameter(help="its evaluation images")] = None,
    classes: Annotated[int | None, Parameter(help="its classes")] = None,
    device: Annotated[Device, Parameter(help="cpu or cuda:N, for the times")] = None,
    memory_limit: MemoryLimit = DEFAULT_MEMORY_LIMIT,
    workers: Annotated[
        int, Parameter(name=["--workers", "-mp"], help="processes that fit probes side by side")
    ] = 1,
    calibrate: Annotated[bool, Parameter(help="time this machine for some seconds")] = True,
    json: Annotated[bool, Parameter(negative="", help="print JSON")] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Say what a config will take before anything runs: latents, disk, memory and time, layer by layer."""
    from satstore.cli.estimate import Question, estimate

    counts = (samples, eval_samples, classes)
    question = Question(pooling, *counts, device, memory_limit, workers, calibrate, logs_dir)
    estimate(config, run, {"model": model, "resolution": resolution}, question, json)


@app.command
def ls(
    *, json: Annotated[bool, Parameter(negative="", help="print JSON")] = False, logs_dir: LogsDir = None
) -> None:
    """List the experiments of the logs folder."""
    from satstore.cli.show import list_experiments

    list_experiments(logs_dir, json)


@app.command
def status(
    *,
    watch: Annotated[bool, Parameter(negative="", help="print it again whenever something changed")] = False,
    filter: Annotated[str | None, Parameter(help="such as: model:resnet* acc>90 probe:done text")] = None,
    sort: Annotated[str, Parameter(help="a column")] = "run",
    reverse: Annotated[bool, Parameter(negative="", help="the largest first")] = False,
    csv: Annotated[bool, Parameter(negative="", help="print CSV")] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Print the table that the terminal app starts with, and what runs."""
    from satstore.cli.status import show_status
    from satstore.reports.listing.filters import parse_filter

    show_status(logs_dir, watch, parse_filter(filter or ""), (sort, reverse), csv)


JobNumber = Annotated[int, Parameter(help="a job's number, as satstore jobs prints it")]


@app.command
def jobs(
    *, json: Annotated[bool, Parameter(negative="", help="print JSON")] = False, logs_dir: LogsDir = None
) -> None:
    """List the commands that work on the logs folder or did, in the background or in a terminal."""
    from satstore.cli.jobs import show_jobs

    show_jobs(logs_dir, json)


@app.command
def cancel(
    job: JobNumber,
    *,
    grace: Annotated[float, Parameter(help="seconds that it has to stop before it is killed")] = 10.0,
    logs_dir: LogsDir = None,
) -> None:
    """End a job; its command goes on where it was when it is started again."""
    from satstore.cli.jobs import cancel_one

    cancel_one(job, grace, logs_dir)


@app.command
def log(
    job: JobNumber,
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative="", help="print what comes until it ends")
    ] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Print what a job has printed."""
    from satstore.cli.jobs import show_log

    show_log(job, follow, logs_dir)


@app.command
def show(
    run: RunName,
    *,
    json: Annotated[bool, Parameter(negative="", help="print JSON")] = False,
    advice: Annotated[
        bool, Parameter(negative="", help="say what the curves mean, and what to try, instead")
    ] = False,
    least_gain: Annotated[
        float | None,
        Parameter(help="accuracy that a layer's probe has to gain to count; by default .01, a point"),
    ] = None,
    tail_share: Annotated[
        float | None,
        Parameter(help="share of the median saturation that a tail's layers stay under; by default .5"),
    ] = None,
    logs_dir: LogsDir = None,
) -> None:
    """Show what is known of an experiment, layer by layer, and what it means."""
    from satstore.cli.show import show_advice, show_experiment

    if advice:
        thresholds = {"least_gain": least_gain, "tail_share": tail_share}
        show_advice(run, logs_dir, json, {k: v for k, v in thresholds.items() if v is not None})
    else:
        show_experiment(run, logs_dir, json)


@app.command
def plot(
    run: RunName,
    *others: Annotated[str, Parameter(help="more runs, to compare", completer=name_runs)],
    out: Annotated[
        Path | None,
        Parameter(help="PNG, SVG or PDF, or a folder; by default, such as layers.png, in the run's folder"),
    ] = None,
    all_layers: Annotated[
        bool, Parameter(negative="", help="draw shortcuts and the last Linear too")
    ] = False,
    kind: Annotated[
        Kind | None,
        Parameter(help="what to draw of one run; by default its layers"),
    ] = None,
    quantity: Annotated[
        Quantity | None,
        Parameter(help="draw it as bars, after the last epoch, --epoch N or each: --epoch all"),
    ] = None,
    evolution: Annotated[
        bool, Parameter(negative="", help="the same as --kind evolution: the layers' curves over the epochs")
    ] = False,
    by_depth: Annotated[
        bool, Parameter(negative="", help="align the layers of several runs by their share of the depth")
    ] = False,
    delta: Annotated[float | None, Parameter(help="of the saturation; by default the config's")] = None,
    epoch: Annotated[
        str | None, Parameter(help="the first is 1; by default the last; all: with --quantity")
    ] = None,
    logs_dir: LogsDir = None,
) -> None:
    """Draw saturation and probe accuracy over the layers, of one run or several, or what else is known."""
    from satstore.cli.plot import PlotOptions, plot_experiments

    options = PlotOptions(kind, quantity, all_layers, evolution, by_depth, delta, epoch)
    say(plot_experiments((run, *others), logs_dir, out, options))


@app.command
def figure(
    name: Annotated[
        str, Parameter(help="figure1 to figure19, table1, or any config", completer=name_figures)
    ],
    *,
    run: Annotated[str, Parameter(help="the run id that its experiments are under", completer=name_runs)],
    out: Annotated[
        Path | None, Parameter(help="a folder, or a file; by default the run id's folder in the logs")
    ] = None,
    format: Annotated[Format, Parameter(help="where --out names no file")] = "png",
    published: Annotated[
        bool, Parameter(negative="", help="draw the published values too, faintly, where there are any")
    ] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Draw a figure or table of the paper, or of any config, and say which commands fill what is missing."""
    from satstore.cli.plot import draw_figure

    draw_figure(name, run, out, format, published, logs_dir)


@app.command
def report(
    run: RunName,
    *,
    out: Annotated[Path | None, Parameter(help="an HTML file, or a folder; by default report.html")] = None,
    logs_dir: LogsDir = None,
) -> None:
    """Write all that is known of a run into one HTML file, which needs no network."""
    from satstore.cli.output import output_file
    from satstore.reports.html import write_report
    from satstore.runs.logs_folder import find_runs
    from satstore.storage.files import write_file

    path = output_file(out, Path("report.html"), (".html", ".htm"))
    write_file(path, write_report(find_runs(run, logs_dir)).encode())
    say(path.absolute())


@app.command
def compare(
    run: RunName,
    other: RunName,
    *,
    cka: Annotated[
        bool, Parameter(negative="", help="linear CKA of every layer of one with every layer of the other")
    ] = False,
    pooling: Annotated[
        str | None, Parameter(name=["--pooling", "-d"], help="of the latents; by default the first of both")
    ] = None,
    split: Annotated[Literal["train", "eval"], Parameter(help="of the latents")] = "eval",
    out: Annotated[
        Path | None, Parameter(help="PNG, SVG or PDF, a CSV beside it, or a folder; by default cka.png")
    ] = None,
    memory_limit: MemoryLimit = DEFAULT_MEMORY_LIMIT,
    json: Annotated[bool, Parameter(negative="", help="print JSON")] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Compare what the layers of two runs know of the same images; draw a heat map and write a table."""
    from cyclopts import CycloptsError

    from satstore.cli.compare import compare_cka

    if not cka:
        raise CycloptsError(msg="say what to compare: --cka; curves are compared by: satstore plot RES1 RES2")
    compare_cka((run, other), pooling, split, out, memory_limit, logs_dir, json)


@app.command
def verify(
    run: RunName,
    *,
    json: Annotated[bool, Parameter(negative="", help="print JSON")] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Read all that is stored of an experiment, and name what is damaged and the command that repairs it."""
    from satstore.cli.maintain import verify_experiments

    verify_experiments(run, logs_dir, json)


@app.command
def clean(
    run: RunName,
    *,
    latents: Annotated[
        bool, Parameter(negative="", help="remove the latents; satstore extract writes them again")
    ] = False,
    yes: Annotated[bool, Parameter(negative="", help="do not ask")] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Free the disk of what can be made again."""
    from cyclopts import CycloptsError

    from satstore.cli.maintain import clean_experiments

    if not latents:
        raise CycloptsError(msg="say what to remove; what can be made again are: --latents")
    clean_experiments(run, logs_dir, yes)


@app.command
def export(
    run: RunName,
    *,
    to: Annotated[
        To,
        Parameter(help="csv and parquet: its tables; zip: all of it, which satstore import opens elsewhere"),
    ],
    out: Annotated[
        Path | None, Parameter(help="a folder, or one experiment's zip file; by default this folder")
    ] = None,
    latents: Annotated[
        bool, Parameter(negative="", help="pack the latents too; without them, extract writes them again")
    ] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Write a run's tables for other tools, or pack it for another machine."""
    from satstore.cli.transfer import export_runs

    export_runs(run, to, out, latents, logs_dir)


@app.command(name="import")
def import_(
    path: Annotated[
        Path, Parameter(help="a zip file that satstore export wrote, or a folder of phd-lab's logs")
    ],
    *,
    run_id: Annotated[str | None, Parameter(help="by default that which it had")] = None,
    latents: Annotated[
        bool,
        Parameter(
            negative="", help="of phd-lab: its latents too, from the folder or latent_datasets beside it"
        ),
    ] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Open a run that was packed elsewhere, or runs of phd-lab; all is checked before any appears."""
    from satstore.cli.transfer import import_runs

    import_runs(path, run_id, latents, logs_dir)


@app.command
def du(
    run: Annotated[
        str | None, Parameter(help="a run id, or one experiment of it; by default all", completer=name_runs)
    ] = None,
    *,
    json: Annotated[bool, Parameter(negative="", help="print JSON, sizes in bytes")] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Show what experiments take on disk; those of a run id by pooling, split and layer."""
    from satstore.cli.maintain import show_usage

    show_usage(run, logs_dir, json)


@app.command(name="list")
def list_names(
    what: Literal["models", "datasets", "optimizers", "metrics", "stages", "configs"],
    *,
    details: Annotated[
        bool,
        Parameter(negative="", help="of models: parameters, depth and smallest resolution; takes minutes"),
    ] = False,
    json: Annotated[bool, Parameter(negative="", help="print JSON")] = False,
) -> None:
    """List the names that configs can use."""
    from satstore.cli.show import list_entries

    list_entries(what, details, json)


config_app = App(name="config", help="Look at configs.", help_format="plaintext")
app.command(config_app)


@config_app.command
def defaults() -> None:
    """Print the config that an empty one stands for, as JSON."""
    from satstore.config.experiment import ExperimentConfig

    print(ExperimentConfig().model_dump_json(indent=2))  # noqa: T201


@config_app.command
def schema() -> None:
    """Print the JSON Schema of configs, by which editors complete and check them."""
    from satstore.config.schema import describe_schema

    print(describe_schema())  # noqa: T201


@app.command
def completion(
    shell: Annotated[Shell, Parameter(help="for which; where its script goes, the README says")],
) -> None:
    """Print the script by which a shell completes commands, flags, runs and configs."""
    from satstore.cli.completion import print_completion

    print_completion(shell)


@app.command
def doctor(
    *, json: Annotated[bool, Parameter(negative="", help="print JSON")] = False, logs_dir: LogsDir = None
) -> None:
    """Check this installation: versions, GPU, memory, terminal, data and logs folder."""
    from satstore.cli.doctor import examine

    if examine(logs_dir, json):
        raise SystemExit(1)


dataset_app = App(name="dataset", help="Check datasets, and sort them by class.", help_format="plaintext")
app.command(dataset_app)

Seed = Annotated[int, Parameter(help="gives the same split every time")]


@dataset_app.command
def check(
    name: Annotated[str, Parameter(help="a name of: satstore list datasets")],
    *,
    data_dir: Annotated[
        Path | None, Parameter(help="the folder that holds it; by default TORCH_DATADIR, else tmp")
    ] = None,
    resolution: Annotated[int, Parameter(help="pixels that images are read at")] = 64,
    download: Annotated[bool, Parameter(negative="", help="download what isn't there")] = False,
    json: Annotated[bool, Parameter(negative="", help="print JSON")] = False,
) -> None:
    """Say what there is of a dataset, and read every image of it."""
    from satstore.cli.datasets import check_dataset

    check_dataset(name, data_dir, resolution, download, json)


@dataset_app.command
def split(
    folder: Annotated[Path, Parameter(help="a folder with a folder of images per class")],
    *,
    val: Annotated[float, Parameter(help="share of each class that goes to val/")] = 0.1,
    seed: Seed = 0,
) -> None:
    """Move the images of class folders into train/ and val/."""
    from satstore.cli.datasets import split_folder

    split_folder(folder, val, seed)


@dataset_app.command
def prepare(
    what: Literal["inaturalist", "tinyimagenet"],
    path: Annotated[Path, Parameter(help="the archive as it is shipped, or the folder that it unpacks to")],
    *,
    val: Annotated[
        float, Parameter(help="share of each class for test/, where iNaturalist's own split is not there")
    ] = 0.1,
    seed: Seed = 0,
) -> None:
    """Sort a dataset's archive into class folders."""
    from satstore.cli.datasets import prepare_dataset

    prepare_dataset(what, path, val, seed)


@app.command
def tui(
    *,
    read_only: Annotated[bool, Parameter(negative="", help="start, end and write nothing")] = False,
    theme: Annotated[str | None, Parameter(help="such as textual-light, nord or gruvbox")] = None,
    serve: Annotated[
        bool, Parameter(negative="", help="in a browser, on this machine only; needs textual-serve")
    ] = False,
    port: Annotated[int, Parameter(help="with --serve")] = 8000,
    logs_dir: LogsDir = None,
) -> None:
    """Open the terminal app on the logs folder: runs, their curves, and jobs, live."""
    from satstore.cli.tui import open_app, serve_app

    if serve:
        serve_app(logs_dir, read_only, theme, port)
    else:
        open_app(logs_dir, read_only, theme)
