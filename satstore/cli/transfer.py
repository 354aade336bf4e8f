"""``satstore export`` and ``import``: runs and their tables for other machines and tools, and features."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from satstore.cli.console import print_line
from satstore.cli.options import LogsDir, RunName
from satstore.cli.output import output_file, output_folder
from satstore.cli.progress import Bar
from satstore.cli.run_stages import showing_recording
from satstore.errors import ConfigError, CorruptError, NotFoundError, reason_of
from satstore.runs.logs_folder import find_logs_dir, find_runs
from satstore.runs.repair import extract_command
from satstore.runs.run import Run
from satstore.stages.record.feature_parameters import FeatureParameters

FEATURES_ALONE = FeatureParameters()

Format = Literal["csv", "parquet", "zip"]


def export_runs(
    run: RunName,
    *,
    to: Annotated[
        Format,
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
    """Write each experiment's tables into a folder, or pack each into a zip file; print the paths."""
    from satstore.runs.archive import pack_run

    if latents and to != "zip":
        raise ConfigError(f"--latents go into a zip file; --to {to} writes tables")
    runs = find_runs(run, logs_dir)
    stems = [f"{each.run_id}-{each.experiment}" for each in runs]
    if to == "zip" and len(runs) == 1:
        paths = [output_file(out, Path(f"{stems[0]}.zip"), (".zip",))]
    else:
        paths = [output_folder(out, Path()) / (f"{stem}.zip" if to == "zip" else stem) for stem in stems]
    for each, path in zip(runs, paths, strict=True):
        for written in [pack_run(each, path, latents)] if to == "zip" else write_tables(each, to, path):
            print_line(written)


def write_tables(run: Run, to: Format, folder: Path) -> list[Path]:
    """Write a run's tables as CSV, with formulas escaped, or as Parquet, and return their paths."""
    from satstore.storage.files import write_file
    from satstore.storage.safe_files import check_folders

    names = [name.removesuffix(".csv") for name in run.manifest.files if name.endswith(".csv")]
    if not names:
        raise NotFoundError(f"{run.name} has no tables yet; run: satstore train --run {run.name}")
    written = []
    for name in sorted(names):
        content = encode_csv(run, name) if to == "csv" else encode_parquet(run, name)
        path = folder / f"{name}.{to}"
        check_folders(folder.parent, path)
        write_file(path, content)
        written.append(path.absolute())
    return written


def encode_csv(run: Run, name: str) -> bytes:
    """Return a table of a run as CSV, with formulas escaped."""
    from satstore.reports.spreadsheets import without_formulas

    run.rows(name)  # raises an error if the file is no table
    return without_formulas(run.read_file(f"{name}.csv"))


def encode_parquet(run: Run, name: str) -> bytes:
    """Return a table of a run as Parquet."""
    table, content = run.table(name), io.BytesIO()
    try:
        table.to_parquet(content, index=False)
    except (ValueError, TypeError) as error:  # pyarrow's errors are subclasses of either
        reason = reason_of(error)
        raise CorruptError(f"{run.name}: {name}.csv can't be written as Parquet: {reason}") from error
    except ImportError:
        raise NotFoundError("--to parquet needs pyarrow; install it with: pip install pyarrow") from None
    return content.getvalue()


ImportedPaths = Annotated[
    tuple[str, ...],
    Parameter(
        help="a zip file that satstore export wrote, a folder of phd-lab's logs, or files of features: .npy, "
        ".npz, .safetensors, .pt, .parquet, .h5 or Zarr; a.npz:x is one array of a file"
    ),
]


def import_runs(
    paths: ImportedPaths,
    /,
    *,
    run_id: Annotated[
        str | None, Parameter(help="of features, it is needed; of others by default that which it had")
    ] = None,
    latents: Annotated[
        bool,
        Parameter(
            negative="", help="of phd-lab: its latents too, from the folder or latent_datasets beside it"
        ),
    ] = False,
    parameters: Annotated[FeatureParameters, Parameter(name="*")] = FEATURES_ALONE,
    logs_dir: LogsDir = None,
) -> None:
    """Unpack a run, or import phd-lab's logs or features of your own, and print the names of the runs."""
    from satstore.storage.feature_files import is_of_features

    if any(map(is_of_features, paths)):
        if latents:
            raise ConfigError("--latents is for a folder of phd-lab's logs; leave it out for features")
        import_features(paths, run_id, parameters, logs_dir)
        return
    if len(paths) > 1:
        raise ConfigError(f"{len(paths)} paths are given, which are no files of features; give one")
    if parameters != FEATURES_ALONE:
        given = next(iter(parameters.model_dump(exclude_defaults=True)))
        raise ConfigError(f"--{given.replace('_', '-')} is for files of features, and {paths[0]} is none")
    import_written(Path(paths[0]), run_id, latents, logs_dir)


def import_written(path: Path, run_id: str | None, latents: bool, logs_dir: Path | None) -> None:
    """Import what satstore or phd-lab wrote."""
    if path.is_dir():
        import_phd_lab(path, run_id, latents, logs_dir)
    elif latents:
        raise ConfigError(
            f"--latents is for a folder of phd-lab's logs; {path} brings the latents packed in it"
        )
    else:
        import_archive(path, run_id, logs_dir)


def import_features(
    paths: Sequence[str], run_id: str | None, parameters: FeatureParameters, logs_dir: Path | None
) -> None:
    """Record files of features as a run, and print its name and layers."""
    from satstore.stages.record.features import record_features

    if run_id is None:
        raise ConfigError("features need a run id, the name of their run's folder: --run-id RES")
    logs = find_logs_dir(logs_dir)
    with showing_recording(run_id, "import", logs) as hooks:
        run = record_features(paths, run_id, logs_dir=logs, **hooks, **dict(parameters))
    print_line(run.name)
    for layer in run.manifest.layers:
        print_line(f"  {layer.layer}: {' × '.join(map(str, layer.output_shape))} ({layer.form})")


def import_phd_lab(path: Path, run_id: str | None, latents: bool, logs_dir: Path | None) -> None:
    """Import a folder of phd-lab's logs, and print the names and warnings of the runs."""
    from satstore.compat.phd_lab import import_logs

    with Bar() as bar:
        runs = import_logs(path, find_logs_dir(logs_dir), run_id, latents=latents, listener=bar.listen)
    for run in runs:
        print_line(run.name)
        for warning in run.manifest.warnings[1:]:
            print_line(f"satstore: warning: {warning}", is_error=True)


def import_archive(path: Path, run_id: str | None, logs_dir: Path | None) -> None:
    """Unpack a run from a zip file, and print its name."""
    from satstore.runs.archive import unpack_run

    run = unpack_run(path, find_logs_dir(logs_dir), run_id)
    print_line(run.name)
    if run.manifest.re_extractable:
        again = extract_command(run, *run.manifest.re_extractable)
        print_line(f"its latents did not travel; write them again with: {again}")
