"""``satstore list modules``: the tree of a model's modules, to find the pattern of those to record."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from satstore.cli.console import make_console, make_table, print_json, print_line
from satstore.models.sources.source import parse_arguments
from satstore.reports.module_tree import ModuleEntry, lay_out, suggest_patterns
from satstore.system.text import counted, list_first

CONTAINERS = ("ModuleList", "ModuleDict", "ParameterList", "ParameterDict")
"""Classes that are never called, by which a model lists its parts."""

N_SHOWN = 5
"""The names of left-out modules that are printed by reason."""


def print_modules(
    source: str, settings: Sequence[str], logs_dir: Path | None, *, all_modules: bool, as_json: bool
) -> None:
    """Print a source's modules as a tree with classes and output shapes, and patterns that find some."""
    from satstore.stages.record.modules import list_modules

    found = list_modules(source, parse_arguments(settings), logs_dir)
    patterns = suggest_patterns(found.entries)
    if as_json:
        entries = [asdict(entry) for entry in found.entries]
        print_json({"source": source, "sample": found.sample, "modules": entries, "patterns": patterns})
        return
    has_calls = any(entry.n_calls > 1 for entry in found.entries)
    headings = ("module", "class", "output of one sample", *(["calls"] if has_calls else []))
    table = make_table(*headings, right=["calls"])
    for row in lay_out(found.entries, fold=not all_modules):
        cells = describe_entry(row.entry) if row.entry else ()
        name = "  " * row.depth + (row.text or "(the model)")
        table.add_row(*[name, *cells, "", "", ""][: len(headings)])
    make_console().print(table)
    print_line(f"the sample is {found.sample}")
    for text, names in group_remarks(found.entries).items():
        shown = ", ".join(names) if all_modules else list_first(names, N_SHOWN)
        print_line(f"{text}: {shown}")
    for pattern, n_modules in patterns.items():
        print_line(f"--modules '{pattern}'  records {counted(n_modules, 'module')}")


def describe_entry(entry: ModuleEntry) -> tuple[str, str, str]:
    """Return a module's class, output and number of calls, the last only if there are several."""
    output = f"{entry.form} {' × '.join(map(str, entry.shape))}" if entry.form else ""
    if not output and entry.kind not in CONTAINERS:
        output = entry.left_out
    return entry.kind, output, str(entry.n_calls) if entry.n_calls > 1 else ""


def group_remarks(entries: Sequence[ModuleEntry]) -> dict[str, list[str]]:
    """Group modules' names by why they are left out, or what is in doubt; containers are never called."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        is_left_out = bool(entry.left_out) and entry.kind not in CONTAINERS
        text = f"left out, {entry.left_out}" if is_left_out else f"unclear, {entry.doubt}"
        if is_left_out or entry.doubt:
            groups.setdefault(text, []).append(entry.name or "the model")
    return groups
