"""``satstore verify``, ``clean`` and ``du``: check stored runs, free the disk, show disk usage."""

import sys
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import CycloptsError, Parameter

from satstore.cli.console import SafeConsole, make_console, make_table, print_json, print_line
from satstore.cli.options import Json, LogsDir, RunName, complete_runs
from satstore.cli.progress import Bar
from satstore.cli.show import list_readable_runs
from satstore.errors import ConfigError, CorruptError
from satstore.runs.disk_usage import (
    DiskUsage,
    check_removable,
    latents_bytes,
    measure_disk_usage,
    remove_latents,
)
from satstore.runs.logs_folder import find_logs_dir, find_runs
from satstore.runs.repair import extract_command
from satstore.runs.run import Run
from satstore.system.text import describe_size


def verify_experiments(run: RunName, *, as_json: Json = False, logs_dir: LogsDir = None) -> None:
    """Read all stored data of experiments, and print what is damaged and how to repair it."""
    unreadable: list[CorruptError] = []
    with Bar() as bar:
        runs = find_runs(run, logs_dir, bar.listen, unreadable)
        reports = [verify_experiment(each, bar, as_json) for each in runs]
    for error in unreadable:
        if not as_json:
            print_line(f"{error}; restore it, or train again under another run id")
    if as_json:
        lost = [
            {"run": None, "findings": [{"what": str(e), "command": "", "is_wrong": True}]} for e in unreadable
        ]
        print_json([*reports, *lost])
    n_wrong = len(unreadable) + sum(report["n_wrong"] for report in reports)
    if n_wrong:
        raise CorruptError(f"{count(n_wrong, 'thing is', 'things are')} wrong with {run}")


def verify_experiment(run: Run, bar: Bar, as_json: bool) -> dict[str, Any]:
    """Read all stored data of one experiment; print each finding, unless JSON is wanted; return a report."""
    from satstore.runs.verify import Verification

    verification = Verification(run, bar.listen)
    findings = []
    for finding in verification.findings():
        findings.append(finding)
        if not as_json:
            bar.print(f"{run.name}: {finding}")
    n_wrong = sum(finding.is_wrong for finding in findings)
    if not as_json:
        verdict = count(n_wrong, "thing is wrong", "things are wrong") if n_wrong else "nothing wrong"
        size = describe_size(verification.size_bytes)
        bar.print(f"{run.name}: {verification.n_files} files, {size} read, {verdict}")
    return {
        "run": run.name,
        "n_files": verification.n_files,
        "size_bytes": verification.size_bytes,
        "n_wrong": n_wrong,
        "findings": [asdict(finding) for finding in findings],
    }


def count(n: int, one: str, several: str) -> str:
    """Return a number and the form of a phrase that goes with it."""
    return f"{n} {one if n == 1 else several}"


def clean_experiments(
    run: RunName,
    *,
    latents: Annotated[
        bool, Parameter(negative="", help="remove the latents; satstore extract writes them again")
    ] = False,
    yes: Annotated[bool, Parameter(negative="", help="do not ask")] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Remove the latents of experiments, after asking; nothing, if some could not be extracted again."""
    if not latents:
        raise CycloptsError(msg="say what to remove; what can be made again are: --latents")
    found = find_runs(run, logs_dir)
    sizes = {each: size_bytes for each in found if (size_bytes := latents_bytes(each))}
    if not sizes:
        print_line(f"{run} has no latents on disk")
        return
    for each, size_bytes in sizes.items():
        check_removable(each)
        print_line(f"{each.name}: latents, {describe_size(size_bytes)}")
    total = describe_size(sum(sizes.values()))
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"nothing was removed: to free {total} where no terminal can ask, say --yes")
    if not yes and input(f"remove them and free {total}? [y/N] ").strip().lower() not in ("y", "yes"):
        print_line("nothing was removed")
        return
    freed_bytes = sum(remove_latents(each) for each in sizes)
    again = "\n".join(f"  {extract_command(each, *each.manifest.re_extractable)}" for each in sizes)
    print_line(f"freed {describe_size(freed_bytes)}; to write them again:\n{again}")


def show_disk_usage(
    run: Annotated[
        str | None,
        Parameter(help="a run id, or one experiment of it; by default all", completer=complete_runs),
    ] = None,
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print JSON, sizes in bytes")
    ] = False,
    logs_dir: LogsDir = None,
) -> None:
    """Print the disk usage of experiments: a row each, or, of a run, by pooling, split and layer."""
    runs = list_readable_runs(logs_dir) if run is None else find_runs(run, logs_dir)
    usages = {each.name: measure_disk_usage(each) for each in runs}
    if as_json:
        print_json([summarize_usage(name, usage) for name, usage in usages.items()])
    elif not usages:
        print_line(f"no runs in {find_logs_dir(logs_dir).absolute()}")
    elif run is None:
        print_usages(make_console(), usages)
    else:
        for experiment, usage in usages.items():
            print_usage(make_console(), experiment, usage)


def summarize_usage(name: str, usage: DiskUsage) -> dict[str, Any]:
    """Return an experiment's entry of ``du --json``."""
    return {
        "run": name,
        "latents": [
            {"pooling": str(key or ""), "split": split, "layer": layer, "size_bytes": size_bytes}
            for (key, split, layer), size_bytes in usage.latents.items()
        ],
        "latents_bytes": {str(key or ""): size_bytes for key, size_bytes in usage.by_key.items()},
        "analysis_bytes": usage.analysis_bytes,
        "checkpoint_bytes": usage.checkpoint_bytes,
        "other_bytes": usage.other_bytes,
        "total_bytes": usage.total_bytes,
    }


def print_usages(console: SafeConsole, usages: dict[str, DiskUsage]) -> None:
    """Print the disk usage of experiments, a row each, and their sum."""
    keys = sorted({key for usage in usages.values() for key in usage.by_key if key}, key=str)
    rows = {
        name: [
            *(usage.by_key.get(key, 0) for key in keys),
            usage.analysis_bytes,
            usage.checkpoint_bytes,
            usage.other_bytes + usage.by_key.get(None, 0),
            usage.total_bytes,
        ]
        for name, usage in usages.items()
    }
    print_sizes(console, "run", [*map(str, keys), "analysis", "checkpoint", "other", "total"], rows)


def print_usage(console: SafeConsole, name: str, usage: DiskUsage) -> None:
    """Print the disk usage of an experiment: its latents layer by layer, then the rest."""
    console.print(name)
    columns = list(dict.fromkeys((key, split) for key, split, _ in usage.latents if split))
    layers = dict.fromkeys(layer for _, _, layer in usage.latents if layer)
    rows = {layer: [usage.latents.get((*column, layer), 0) for column in columns] for layer in layers}
    rows["labels, metadata"] = [usage.latents.get((*column, ""), 0) for column in columns]
    if columns:
        print_sizes(console, "layer", [f"{key or ''} {split}" for key, split in columns], rows)
    latents = {f"latents {key}": size for key, size in usage.by_key.items() if key}
    rest = latents | {
        "analysis": usage.analysis_bytes,
        "checkpoint": usage.checkpoint_bytes,
        "other": usage.other_bytes + usage.by_key.get(None, 0),
    }
    print_sizes(console, "", ["size"], {key: [size_bytes] for key, size_bytes in rest.items()})


def print_sizes(console: SafeConsole, heading: str, columns: list[str], rows: dict[str, list[int]]) -> None:
    """Print a table of sizes, with a last row of sums if there are several."""
    table = make_table(heading, *columns, right=columns)
    if len(rows) > 1:
        rows = {**rows, "total": [sum(sizes) for sizes in zip(*rows.values(), strict=True)]}
    for name, sizes in rows.items():
        table.add_row(name, *(describe_size(size) if size else "–" for size in sizes))
    console.print(table)
