"""The table of commands: each one's name, the function that implements it, and its line of help.

A command's module is imported when the command is called; ``satstore --help`` imports none of them.
"""

from collections.abc import Mapping

from cyclopts import App

from satstore import __version__
from satstore.cli.console import print_line
from satstore.cli.stage_commands import make_run_command, make_stage_command
from satstore.stages.forms import find_usable_stages

config_app = App(name="config", help="Look at configs.", help_format="plaintext")
dataset_app = App(name="dataset", help="Check datasets, and sort them by class.", help_format="plaintext")

COMMANDS: dict[str, tuple[str, str] | App] = {
    "demo": (
        "demo:run_demo",
        "Train a small VGG on handwritten digits, probe its layers and show what they do, "
        "in a minute or two.",
    ),
    "estimate": (
        "estimate:estimate_experiments",
        "Say what a config will take before anything runs: latents, disk, memory and time, layer by layer.",
    ),
    "record": (
        "record:record_model",
        "Store latents and spectra of a model of torchvision, timm, Hugging Face or your own code.",
    ),
    "ls": ("show:list_experiments", "List the experiments of the logs folder."),
    "status": ("status:show_status", "Print the table that the terminal app starts with, and what runs."),
    "jobs": (
        "jobs:show_jobs",
        "List the commands that work on the logs folder or did, in the background or in a terminal.",
    ),
    "cancel": ("jobs:cancel", "End a job; its command goes on where it was when it is started again."),
    "log": ("jobs:show_log", "Print what a job has printed."),
    "show": (
        "show:show_experiment",
        "Show what is known of an experiment, layer by layer, and what it means.",
    ),
    "plot": (
        "plot:plot_experiments",
        "Draw saturation and probe accuracy over the layers, of one run or several, or what else is known.",
    ),
    "figure": (
        "plot:draw_figure",
        "Draw a figure or table of the paper, or of any config, and say which commands fill what is missing.",
    ),
    "report": (
        "plot:write_html_report",
        "Write all that is known of a run into one HTML file, which needs no network.",
    ),
    "compare": (
        "compare:compare_runs",
        "Compare what the layers of two runs know of the same images; draw a heat map and write a table.",
    ),
    "verify": (
        "maintain:verify_experiments",
        "Read all that is stored of an experiment, and name what is damaged and the command that repairs it.",
    ),
    "clean": ("maintain:clean_experiments", "Free the disk of what can be made again."),
    "export": (
        "transfer:export_runs",
        "Write a run's tables for other tools, or pack it for another machine.",
    ),
    "import": (
        "transfer:import_runs",
        "Open a run that was packed elsewhere, runs of phd-lab, or features of your own.",
    ),
    "du": (
        "maintain:show_disk_usage",
        "Show what experiments take on disk; those of a run id by pooling, split and layer.",
    ),
    "list": ("configs:list_names", "List the names that configs can use, or the modules of a model."),
    "config": config_app,
    "completion": (
        "completion:print_completion",
        "Print the script by which a shell completes commands, flags, runs and configs.",
    ),
    "doctor": (
        "doctor:check_installation",
        "Check this installation: versions, GPU, memory, terminal, data and logs folder.",
    ),
    "dataset": dataset_app,
    "tui": (
        "tui:open_terminal_app",
        "Open the terminal app on the logs folder: runs, their curves, and jobs, live.",
    ),
}
"""Command -> ``"file:function"`` in this folder and help, or the app of its subcommands."""

CONFIG_COMMANDS = {
    "defaults": ("configs:print_defaults", "Print the config that an empty one stands for, as JSON."),
    "schema": (
        "configs:print_schema",
        "Print the JSON Schema of configs, by which editors complete and check them.",
    ),
}

DATASET_COMMANDS = {
    "check": ("datasets:check_dataset", "Say what there is of a dataset, and read every image of it."),
    "split": ("datasets:split_folder", "Move the images of class folders into train/ and val/."),
    "prepare": ("datasets:prepare_dataset", "Sort a dataset's archive into class folders."),
}

app = App(
    name="satstore",
    version=__version__,
    help="Layer saturation, linear probes and receptive fields of image classifiers, out of core. "
    "With --debug, errors show their traceback.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # the entry point says how to go on
)

_stage_names: list[str] = []
"""The stages that have a command."""


def add_stages() -> None:
    """Make a command of each stage that is registered now, and ``run`` of all; plugins may add stages."""
    names, errors = find_usable_stages()
    for error in errors:
        print_line(f"satstore: warning: {error}", is_error=True)
    if names == _stage_names:
        return
    for name in (*_stage_names, *(["run"] if _stage_names else [])):
        del app[name]
    _stage_names[:] = names
    for name in names:
        app.command(make_stage_command(name), name=name)
    app.command(make_run_command(names), name="run")


def _add_commands(parent: App, commands: Mapping[str, tuple[str, str] | App]) -> None:
    for name, command in commands.items():
        if isinstance(command, App):
            parent.command(command)
        else:
            function, text = command
            parent.command(f"satstore.cli.{function}", name=name, help=text)


add_stages()
_add_commands(app, COMMANDS)
_add_commands(config_app, CONFIG_COMMANDS)
_add_commands(dataset_app, DATASET_COMMANDS)
