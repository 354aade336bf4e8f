"""``satstore export`` and ``import``: runs and their tables, for other machines and other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

from satstore.cli.console import say
from satstore.cli.output import output_file, output_folder
from satstore.errors import ConfigError, CorruptError, NotFoundError, reason_of
from satstore.runs.logs_folder import find_logs_dir, find_runs
from satstore.runs.repair import extract_command
from satstore.runs.run import Run

if TYPE_CHECKING:
    from satstore.cli.app import To


def export_runs(name: str, to: "To", out: Path | None, latents: bool, logs_dir: Path | None) -> None:
    """Write each experiment's tables into a folder, or pack each into a zip file; print what was written.

    Raises
    ------
    ConfigError
        If latents are to go into tables, or ``out`` is called like a file and several are written.
    NotFoundError
        If an experiment has no table, or Parquet has no writer here.
    """
    from satstore.runs.archive import pack_run

    if latents and to != "zip":
        raise ConfigError(f"--latents go into a zip file; --to {to} writes tables")
    runs = find_runs(name, logs_dir)
    stems = [f"{run.run_id}-{run.experiment}" for run in runs]
    if to == "zip" and len(runs) == 1:
        paths = [output_file(out, Path(f"{stems[0]}.zip"), (".zip",))]
    else:
        paths = [output_folder(out, Path()) / (f"{stem}.zip" if to == "zip" else stem) for stem in stems]
    for run, path in zip(runs, paths, strict=True):
        for written in [pack_run(run, path, latents)] if to == "zip" else write_tables(run, to, path):
            say(written)


def write_tables(run: Run, to: "To", folder: Path) -> list[Path]:
    """Write a run's tables as CSV, in which no name is a formula, or as Parquet, and return their paths."""
    import io

    from satstore.reports.spreadsheets import without_formulas
    from satstore.storage.files import write_file
    from satstore.storage.safe_files import check_folders

    names = [name.removesuffix(".csv") for name in run.manifest.files if name.endswith(".csv")]
    if not names:
        raise NotFoundError(f"{run.name} has no tables yet; run: satstore train --run {run.name}")
    written = []
    for name in sorted(names):
        content = io.BytesIO()
        if to == "csv":
            run.rows(name)  # which says what is wrong with a table that is none
            content.write(without_formulas(run.read_file(f"{name}.csv")))
        else:
            table = run.table(name)
            try:
                table.to_parquet(content, index=False)
            except (ValueError, TypeError) as error:  # pyarrow's own errors are of either
                reason = reason_of(error)
                raise CorruptError(f"{run.name}: {name}.csv can't be written as Parquet: {reason}") from error
            except ImportError:
                remedy = "install it with: pip install pyarrow"
                raise NotFoundError(f"--to parquet needs pyarrow; {remedy}") from None
        path = folder / f"{name}.{to}"
        check_folders(folder.parent, path)
        write_file(path, content.getvalue())
        written.append(path.absolute())
    return written


def import_runs(path: Path, run_id: str | None, latents: bool, logs_dir: Path | None) -> None:
    """Unpack a run, or read a folder of phd-lab's logs, and say what the runs are called.

    Raises
    ------
    ConfigError
        If latents are asked for of a run that is packed, which has its own with it.
    """
    if path.is_dir():
        from satstore.cli.progress import Bar
        from satstore.compat.phd_lab import import_logs

        with Bar() as bar:
            runs = import_logs(path, find_logs_dir(logs_dir), run_id, latents=latents, listener=bar.listen)
        for run in runs:
            say(f"{run.name}")
            for warning in run.manifest.warnings[1:]:
                say(f"satstore: warning: {warning}", is_error=True)
        return
    if latents:
        raise ConfigError(
            f"--latents is for a folder of phd-lab's logs; {path} brings the latents packed in it"
        )
    from satstore.runs.archive import unpack_run

    run = unpack_run(path, find_logs_dir(logs_dir), run_id)
    say(f"{run.name}")
    if run.manifest.re_extractable:
        again = extract_command(run, *run.manifest.re_extractable)
        say(f"its latents did not travel; write them again with: {again}")
