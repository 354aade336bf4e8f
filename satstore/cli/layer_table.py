"""The table of an experiment's layers that commands print."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from satstore.cli.console import SafeConsole, make_table
from satstore.config.latent_keys import ProbeKey
from satstore.reports.blocks import Places, describe_form, name_once, place_layers, sort_tables
from satstore.reports.listing.table_layout import Column, cell_text, cut, fit_widths
from satstore.runs.manifest import LayerRecord
from satstore.runs.run import Run
from satstore.system.text import FAILED, clean, describe_number

GAP = 2
"""The spaces between two columns."""

SATURATION = "saturation"


def print_layers(console: SafeConsole, run: Run) -> None:
    """Print the table of an experiment's layers: in a row, or by block where they are in blocks."""
    places = place_layers(run.manifest)
    if places is None:
        print_in_order(console, run)
    else:
        print_by_block(console, run, places)


def print_in_order(console: SafeConsole, run: Run) -> None:
    """Print a line for each layer, each number with a small bar."""
    keys = [key for key in run.manifest.summary.probe_accuracy if key in run.manifest.last_probes]
    layers = run.manifest.layers
    widest = max(layer.n_features for layer in layers) or 1  # imported layers may have 0: unknown
    unconverged, has_failed = find_unconverged(run, keys), False
    numbers = ("features", "dimension", "saturation", *(f"probe {key}" for key in keys))
    headings = [heading for name in numbers for heading in (name, "")]  # a bar beside each number
    table = make_table("layer", *headings, right=numbers)
    summary = run.manifest.summary
    deepest = max((summary.intrinsic_dimension.get(layer.layer) or 0 for layer in layers), default=0) or 1
    for layer in layers:
        name = layer.layer
        cells = [f"{layer.n_features}", draw_bar(layer.n_features / widest)]
        cells += as_cells(summary.intrinsic_dimension, name, "{:d}", deepest)
        cells += as_cells(summary.saturation, name)
        for key in keys:
            mark = "*" if (key, name) in unconverged else ""
            cells += as_cells(summary.probe_accuracy[key], name, "{:.1%}" + mark)
        table.add_row(name, *cells)
        has_failed |= FAILED in cells
    console.print(table)
    print_legend(console, run, has_failed=has_failed, has_unconverged=bool(unconverged))


def print_legend(console: SafeConsole, run: Run, *, has_failed: bool, has_unconverged: bool) -> None:
    """Print what the numbers and marks of a table of layers are."""
    console.print(f"saturation: train split, delta {run.made_with.delta}; probes: accuracy on the eval split")
    if has_failed:
        console.print(f"{FAILED} no number: the warnings say why")
    if has_unconverged:
        console.print("* did not converge")


@dataclass(frozen=True)
class BlockLine:
    """A layer's line in a table by block; the block's name is in the first of its lines only."""

    block: str
    part: str
    record: LayerRecord


def print_by_block(console: SafeConsole, run: Run, places: Places) -> None:
    """Print a line for each layer, with the columns that the console has room for; bars if it has for all."""
    records, accuracy = run.manifest.layers, run.manifest.summary.probe_accuracy
    keys = sort_tables({key: accuracy.get(key, {}).values() for key in run.manifest.last_probes})
    named = name_once(places, [record.layer for record in records])
    lines = [BlockLine(*names, record) for names, record in zip(named, records, strict=True)]
    unconverged = find_unconverged(run, keys)
    numbers = [*make_name_columns(lines), *make_number_columns(run, keys, unconverged)]
    columns = [part for column in numbers for part in (column, *make_bar(column, run, keys))]
    widths = fit_widths(columns, lines, console.width, GAP)
    if len(widths) < len(columns):
        widths = fit_widths(numbers, lines, console.width, GAP)
    shown = [column for column in columns if column.key in widths]
    right = [column.label for column in shown if column.align == "right"]
    table = make_table(*(column.label for column in shown), right=right)
    for line in lines:
        table.add_row(*(cell_text(cut(column, column.cell(line), widths[column.key])) for column in shown))
    console.print(table)
    has_failed = any(cell_text(column.cell(line)) == FAILED for column in numbers for line in lines)
    print_legend(console, run, has_failed=has_failed, has_unconverged=bool(unconverged))
    hidden = [str(key) for key in keys if str(key) not in widths]
    if hidden:
        console.print(f"no room for the probes {', '.join(hidden)}: a wider terminal, or --json, has them")


def make_name_columns(lines: Sequence[BlockLine]) -> list[Column[BlockLine]]:
    """Return the columns of texts; of names, some letters come before any number."""

    def column(key: str, cell: Callable[[BlockLine], str], rank: int, n_least: int) -> Column[BlockLine]:
        longest = max(len(cell(line)) for line in lines)
        least = max(len(key), min(longest, n_least))
        return Column(key, key, cell, least, max(least, longest), rank=rank, n_last=-1)

    return [
        column("block", lambda line: clean(line.block), 0, 18),
        column("part", lambda line: clean(line.part), 0, 18),
        column("kind", lambda line: clean(line.record.kind), 6, 6),
        column("output", lambda line: describe_form(line.record), 7, 6),
    ]


def make_number_columns(
    run: Run, keys: Sequence[ProbeKey], unconverged: Collection[tuple[ProbeKey, str]]
) -> list[Column[BlockLine]]:
    """Return the columns of numbers; those of the highest rank are left out first."""
    summary = run.manifest.summary

    def number(
        key: str, label: str, rank: int, found: Mapping[str, float | None], form: str = "{:.1%}"
    ) -> Column[BlockLine]:
        stopped = {layer for table, layer in unconverged if str(table) == key}

        def cell(line: BlockLine) -> str:
            layer = line.record.layer
            return describe_number(found, layer, form) + ("*" if layer in stopped else "")

        return Column(key, label, cell, len(label), len(label), rank=rank, align="right")

    features = {record.layer: record.n_features for record in run.manifest.layers}
    return [
        number("features", "features", 3, features, "{:d}"),
        number("dimension", "dimension", 4, summary.intrinsic_dimension, "{:d}"),
        number(SATURATION, SATURATION, 1, summary.saturation),
        *(number(str(key), f"probe {key}", 2, summary.probe_accuracy.get(key, {})) for key in keys),
    ]


def make_bar(column: Column[BlockLine], run: Run, keys: Sequence[ProbeKey]) -> list[Column[BlockLine]]:
    """Return the column of bars beside one of shares; none beside others."""
    summary = run.manifest.summary
    probes = {str(key): summary.probe_accuracy.get(key, {}) for key in keys}
    found = ({SATURATION: summary.saturation} | probes).get(column.key)
    if found is None:
        return []

    def cell(line: BlockLine) -> str:
        return draw_bar(found.get(line.record.layer) or 0)

    return [Column(f"{column.key} bar", "", cell, 8, 8, rank=8)]


def find_unconverged(run: Run, keys: list[ProbeKey]) -> set[tuple[ProbeKey, str]]:
    """Return the table and layer of each probe that stopped before it converged."""
    found = set()
    for key in keys:
        if run.has_file(key.file):
            table = run.table(key.table)
            stopped = ~table["converged"].astype(bool) & table["eval_accuracy"].notna()
            found |= {(key, layer) for layer in table.loc[stopped, "layer"]}
    return found


def as_cells(
    found: Mapping[str, float | None], layer: str, form: str = "{:.1%}", whole: float = 1
) -> list[str]:
    """Return a layer's number, or a mark if it has none, and a bar of its share of the whole."""
    value = found.get(layer)
    return [describe_number(found, layer, form), "" if value is None else draw_bar(value / whole)]


def draw_bar(share: float, width: int = 8) -> str:
    """Return a bar, in eighths of a block, for a share in [0, 1]."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
