"""``satstore compare``: what two runs' layers have in common."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from satstore.cli.console import say
from satstore.cli.output import output_file
from satstore.cli.progress import Bar
from satstore.config.keys import LatentsKey
from satstore.config.naming import name_experiments
from satstore.errors import ConfigError, NotFoundError
from satstore.runs.events import Event
from satstore.runs.logs_folder import open_run
from satstore.runs.manifest import drawn_layers
from satstore.runs.repair import extract_command
from satstore.runs.run import Run
from satstore.storage.commit_log import is_anything

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def compare_cka(
    names: tuple[str, str],
    pooling: str | None,
    split: str,
    out: Path | None,
    memory_bytes: int,
    logs_dir: Path | None,
    as_json: bool,
) -> None:
    """Compare the layers of two runs by linear CKA; draw a heat map and write a table beside it.

    Raises
    ------
    ConfigError
        If the runs' latents are of other samples, or ``out`` is no picture's name.
    NotFoundError
        If they have no latents at one pooling.
    """
    from satstore.analysis.cka import linear_cka
    from satstore.reports.plots import plot_cka, save_figure
    from satstore.reports.plots.style import SUFFIXES

    path = output_file(out, Path("cka.png"), SUFFIXES)
    runs = [open_run(name, logs_dir) for name in names]
    key = choose_latents(runs, pooling)
    check_samples(runs, key, split)
    layers = [drawn_layers(run.manifest.layers) for run in runs]
    rows = []
    for run, wanted in zip(runs, layers, strict=True):
        latents = run.latents(str(key), split)
        rows.append({layer: latents[layer].rows for layer in wanted if layer in latents})
        if not rows[-1]:
            raise NotFoundError(f"{run.name} has no latents at {key} of the layers that figures show")
    n_pairs, done = len(rows[0]) * len(rows[1]), 0
    with Bar() as bar:

        def advance(one: str, other: str) -> None:
            nonlocal done
            done += 1
            bar.listen(Event("compare", "progress", f"{one}, {other}", done=done, total=n_pairs))

        found = linear_cka(rows[0], rows[1], memory_bytes, advance)
    first, second = name_experiments([run.config for run in runs], [run.name for run in runs])
    save_figure(plot_cka(found, list(rows[0]), list(rows[1]), first, second), path)
    write_table(found, list(rows[0]), list(rows[1]), path.with_suffix(".csv"))
    if as_json:
        content = {"pooling": str(key), "split": split, "layers": [list(part) for part in rows]}
        print(json.dumps({**content, "cka": [[_number(v) for v in row] for row in found]}, indent=1))  # noqa: T201
        return
    say(f"{path.absolute()}")
    say(f"{path.with_suffix('.csv').absolute()}")


def _number(value: float) -> float | None:
    return None if value != value else float(value)


def choose_latents(runs: list[Run], pooling: str | None) -> LatentsKey:
    """Return the key of the pooling asked for, or the first that both runs have, or the first of one."""
    if pooling:
        return LatentsKey(pooling)
    held = [
        [key for key in run.manifest.latents if key.epoch is None and key.pooling != "pixelwise"]
        for run in runs
    ]
    both = [key for key in held[0] if key in held[1]]
    return next(iter([*both, *held[0], *held[1], LatentsKey("4")]))


def check_samples(runs: list[Run], key: LatentsKey, split: str) -> None:
    """Check that two runs' latents are of the same samples in the same order, and as they were committed.

    Raises
    ------
    ConfigError
        If not.
    CorruptError
        If a file is not what was committed.
    """
    import numpy as np

    first, second = (run.latents(str(key), split) for run in runs)
    for what, one, other in (
        ("sample ids", first.sample_ids, second.sample_ids),
        ("labels", first.labels, second.labels),
    ):
        if not np.array_equal(one, other):
            raise ConfigError(
                f"the {split} latents of {runs[0].name} and {runs[1].name} have other {what}: CKA compares "
                "layers on the same images; take runs of one dataset"
            )
    for run in runs:
        remedy = f"write it again with: {extract_command(run, key, overwrite=True)}"
        location = run.latents_location
        run.commits.read(location.name).check(location, f"{key}/{split}", remedy, is_anything)


def write_table(found: "NDArray[np.float64]", rows: list[str], columns: list[str], path: Path) -> None:
    """Write the table as CSV: a row per layer of the first run, a column per layer of the second."""
    from satstore.reports.spreadsheets import write_rows
    from satstore.storage.files import write_file

    cells = [["" if value != value else float(value) for value in row] for row in found]
    table: list[list[object]] = [["layer", *columns]]
    table += [[name, *row] for name, row in zip(rows, cells, strict=True)]
    write_file(path, write_rows(table).encode())
