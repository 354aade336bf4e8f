"""``satstore compare``: the similarity of two runs' layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import CycloptsError, Parameter

from satstore.cli.console import print_json, print_line
from satstore.cli.options import Json, LogsDir, RunName
from satstore.cli.output import output_file
from satstore.cli.progress import Bar
from satstore.config.latent_keys import LatentsKey
from satstore.config.naming import name_experiments
from satstore.errors import ConfigError, NotFoundError
from satstore.reports.blocks import label_layers, place_layers
from satstore.runs.events import Event
from satstore.runs.logs_folder import open_run
from satstore.runs.manifest import drawn_layers
from satstore.runs.repair import extract_command
from satstore.runs.run import Run
from satstore.stages.parameters import DEFAULT_MEMORY_LIMIT, MemoryLimit
from satstore.storage.commit_log import is_anything
from satstore.system.text import list_first

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def compare_runs(
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
    as_json: Json = False,
    logs_dir: LogsDir = None,
) -> None:
    """Compute the linear CKA of two runs' layers; draw it as a heat map, with a CSV table beside it."""
    if not cka:
        raise CycloptsError(msg="say what to compare: --cka; curves are compared by: satstore plot RES1 RES2")
    from satstore.reports.plots.style import SUFFIXES

    path = output_file(out, Path("cka.png"), SUFFIXES)
    runs = [open_run(name, logs_dir) for name in (run, other)]
    key = choose_latents(runs, pooling)
    check_samples(runs, key, split)
    names, table = compute_cka(runs, key, split, memory_limit)
    draw_cka(runs, names, table, path)
    if as_json:
        print_json({"pooling": str(key), "split": split, "layers": names, "cka": _list_numbers(table)})
    else:
        print_line(path.absolute())
        print_line(path.with_suffix(".csv").absolute())


def compute_cka(
    runs: Sequence[Run], key: LatentsKey, split: str, memory_bytes: int
) -> tuple[tuple[list[str], list[str]], "NDArray[np.float64]"]:
    """Compute the linear CKA of every layer of one run with every layer of the other; show the progress.

    Return the layers of each run, and a table by layer of the first and of the second run; NaN where CKA is
    not defined.
    """
    from satstore.analysis.cka import linear_cka

    inputs = []
    for run in runs:
        latents = run.latents(str(key), split)
        wanted = drawn_layers(run.manifest)
        inputs.append({layer: latents[layer].rows for layer in wanted if layer in latents})
        if not inputs[-1]:
            raise NotFoundError(f"{run.name} has no latents at {key} of the layers that figures show")
    n_pairs, done = len(inputs[0]) * len(inputs[1]), 0
    with Bar() as bar:

        def report(one: str, other: str) -> None:
            nonlocal done
            done += 1
            bar.listen(Event("compare", "progress", f"{one}, {other}", done=done, total=n_pairs))

        table = linear_cka(inputs[0], inputs[1], memory_bytes, report)
    return (list(inputs[0]), list(inputs[1])), table


def draw_cka(
    runs: Sequence[Run], names: tuple[list[str], list[str]], table: "NDArray[np.float64]", path: Path
) -> None:
    """Draw a heat map of CKA, and write its values as CSV beside it."""
    from satstore.reports.plots import plot_cka, save_figure

    first, second = name_experiments([run.config for run in runs], [run.name for run in runs])
    rows, columns = map(label_layers, [place_layers(run.manifest) for run in runs], names)
    save_figure(plot_cka(table, rows, columns, first, second), path)
    write_table(table, *names, path.with_suffix(".csv"))


def _list_numbers(table: "NDArray[np.float64]") -> list[list[float | None]]:
    """Return a table as lists, with None for NaN."""
    return [[None if value != value else value for value in row] for row in table.tolist()]


def choose_latents(runs: Sequence[Run], pooling: str | None) -> LatentsKey:
    """Return the key of the given pooling, or of the first one that both runs, or one of them, have."""
    if pooling:
        return LatentsKey(pooling)
    one, other = (
        [key for key in run.manifest.latents if key.epoch is None and key.pooling != "pixelwise"]
        for run in runs
    )
    return next(iter([*(key for key in one if key in other), *one, *other, LatentsKey("4")]))


def check_samples(runs: Sequence[Run], key: LatentsKey, split: str) -> None:
    """Check that two runs' latents are of the same samples in the same order, and undamaged.

    Where one has no labels, ids alone are compared, and a line says so.
    """
    import numpy as np

    first, second = (run.latents(str(key), split) for run in runs)
    unlabelled = [run.name for run in runs if run.manifest.dataset and not run.manifest.dataset.has_labels]
    if unlabelled:
        print_line(
            f"warning: {list_first(unlabelled, 2)}: no labels, so that the number of samples and their ids "
            "alone tell whether both runs are of the same data",
            is_error=True,
        )
    for what, one, other in (
        ("sample ids", first.sample_ids, second.sample_ids),
        ("labels", first.labels, second.labels),
    ):
        if (what == "sample ids" or not unlabelled) and not np.array_equal(one, other):
            raise ConfigError(
                f"the {split} latents of {runs[0].name} and {runs[1].name} have other {what}: CKA compares "
                "layers on the same images; take runs of one dataset"
            )
    for run in runs:
        remedy = f"write it again with: {extract_command(run, key, overwrite=True)}"
        location = run.latents_location
        run.commits.read(location.name).check(location, f"{key}/{split}", remedy, is_anything)


def write_table(
    table: "NDArray[np.float64]", row_names: list[str], column_names: list[str], path: Path
) -> None:
    """Write CKA as CSV: a row per layer of the first run, a column per layer of the second."""
    from satstore.reports.spreadsheets import format_csv
    from satstore.storage.files import write_file

    rows = [[name, *row] for name, row in zip(row_names, _list_numbers(table), strict=True)]
    write_file(path, format_csv([["layer", *column_names], *rows]).encode())
