"""The HTML report on experiments: one file, without scripts, that needs no network."""

import base64
import html
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from satstore.errors import NotFoundError, printable
from satstore.reports.blocks import describe_form, name_once, place_layers, sort_tables
from satstore.reports.evidence import advise_on
from satstore.reports.plots import (
    plot_evolution,
    plot_layers,
    plot_pixelwise,
    plot_projection,
    plot_spectrum,
    plot_training,
    save_figure,
)
from satstore.runs.run import Run
from satstore.system.text import FAILED, MARKS, UNKNOWN, counted, describe_costs, describe_number, stage_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
body { color: #1a1a1a; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h1, h2, li { overflow-wrap: anywhere; } h3 { font-size: 1rem; break-after: avoid; }
img { max-width: 100%; height: auto; break-inside: avoid; } .stage { white-space: nowrap; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #eee; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; } tr { break-inside: avoid; }
pre { background: #f6f6f6; padding: .8rem; font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.blocks :is(th, td):nth-child(-n+4) { text-align: left; } .blocks tbody { break-inside: avoid; }
.blocks tbody tr:first-child td { border-top: 1px solid #bbb; padding-top: .3rem; }
.blocks td:first-child, .blocks td:nth-child(4) { white-space: nowrap; } .blocks td { border-bottom: none; }
.scroll { overflow-x: auto; } .dim { color: #666; }
@media screen and (max-width: 60rem) { .scroll img { max-width: none; } }
@media print { body { max-width: none; margin: 0; } .scroll { overflow: visible; } }
@media print { .blocks { font-size: .66rem; } .blocks :is(th, td) { padding: .05rem .3rem; } }
"""

BY_BLOCK = ' class="blocks"'

# No script, no network: a browser only shows what a run's names and warnings hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(runs: Sequence[Run]) -> str:
    """Write a report on some experiments; return its HTML.

    Raises
    ------
    CorruptError
        If a table or a spectrum is not as it was committed.
    """
    names = ", ".join(dict.fromkeys(run.run_id for run in runs))
    title = _text(f"satstore: {names}")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="dim">{time.strftime("%Y-%m-%d %H:%M")}, {counted(len(runs), "experiment")}</p>',
    ]
    if len(runs) > 1:
        links = (f'<li><a href="#run{i}">{_text(run.name)}</a></li>' for i, run in enumerate(runs))
        parts += ["<ul>", *links, "</ul>"]
    for number, run in enumerate(runs):
        parts += render_experiment(run, number)
    return "\n".join([*parts, "</body></html>\n"])


def render_experiment(run: Run, number: int) -> Iterable[str]:
    """Yield the parts of one experiment's section."""
    yield f'<h2 id="run{number}">{_text(run.name)}</h2>'
    yield from _render_progress(run)
    yield "<h3>What the curves mean</h3>"
    for title, texts in advise_on(run).parts.items():
        yield f"<p>{title}:</p>{_list(texts)}"
    yield from _render_figures(run)
    if run.manifest.layers:
        yield "<h3>Layers</h3>"
        yield tabulate_layers(run)
    costs = run.costs()
    if costs is not None:
        yield f"<p>{describe_costs(costs)}</p>"
    if run.manifest.warnings:
        yield "<h3>Warnings</h3>"
        yield _list(run.manifest.warnings)
    for title, content in (("Config", run.manifest.config), ("Environment", run.manifest.environment)):
        yield f"<h3>{title}</h3>"
        yield f"<pre>{_text(json.dumps(content, indent=2, ensure_ascii=False))}</pre>"


def _render_progress(run: Run) -> Iterable[str]:
    """Yield the experiment's title, epochs and accuracy, the states of its stages, and their failures."""
    statuses = run.statuses()
    states = " ".join(
        f'<span class="stage">{_text(f"{MARKS[state]} {stage_name(key)}")}</span>'
        for key, state in statuses.items()
    )
    what = _text(f"{run.config.title}; {run.progress_text}")
    yield f'<p>{what}<br><span class="dim">{states}</span></p>'
    failures = run.failures(statuses)
    if failures:
        yield "<p>failed:</p>"
        yield _list(f"{stage_name(key)}: {error}" for key, error in failures.items())


def _render_figures(run: Run) -> Iterable[str]:
    """Yield the figures of all stages that have run."""
    others = run.manifest.fitted_targets[1:]
    figures: dict[str, Callable[[Run], Figure]] = dict(FIGURES)
    figures |= {f"Probes of target {name}": partial(plot_layers, target=name) for name in others}
    for name, draw in figures.items():
        try:
            figure = draw(run)
        except NotFoundError:  # its stage has not run, as the states above show
            continue
        yield f"<h3>{name}</h3>"
        alternative = _text(f"{name} of {run.name}")
        yield f'<div class="scroll"><img alt="{alternative}" src="{as_image(figure)}"></div>'


FIGURES: "dict[str, Callable[[Run], Figure]]" = {
    "Saturation and probes": plot_layers,
    "Training": plot_training,
    "Spectra": plot_spectrum,
    "Over the epochs": plot_evolution,
    "Pixelwise probes": plot_pixelwise,
    "Projections": plot_projection,
}


def as_image(figure: "Figure") -> str:
    """Return a figure as a data URL."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        save_figure(figure, path)
        content = path.read_bytes()
    return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"


def tabulate_layers(run: Run) -> str:
    """Return the table of layers as HTML; those of a block stay on one page of paper."""
    summary, records = run.manifest.summary, run.manifest.layers
    places = place_layers(run.manifest)
    tables = [key for key in run.manifest.last_probes if key in summary.probe_accuracy]
    if places is not None:
        tables = sort_tables({key: summary.probe_accuracy[key].values() for key in tables})
    heads = ["layer", "kind"] if places is None else ["block", "part", "kind", "output"]
    heads += ["features", "dimension", "saturation", *(f"probe {key}" for key in tables)]
    named = None if places is None else name_once(places, [record.layer for record in records])
    bodies: list[str] = []
    for number, record in enumerate(records):
        cells = [record.layer, record.kind] if named is None else [*named[number], record.kind]
        cells += [] if named is None else [describe_form(record)]
        cells.append(f"{record.n_features}")
        cells.append(describe_number(summary.intrinsic_dimension, record.layer, "{:d}"))
        cells.append(describe_number(summary.saturation, record.layer, "{:.1%}"))
        cells += [describe_number(summary.probe_accuracy[key], record.layer, "{:.1%}") for key in tables]
        if not bodies or (named is not None and named[number][0]):
            bodies.append("")
        bodies[-1] += f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"
    note = (
        f"saturation: train split, delta {run.config.delta:g}; probes: accuracy on the eval split; "
        f"{UNKNOWN} not measured; {FAILED} no number: the warnings say why"
    )
    return (
        f'<div class="scroll"><table{"" if places is None else BY_BLOCK}><thead><tr>'
        f"{''.join(f'<th>{_text(name)}</th>' for name in heads)}</tr></thead>"
        f"{''.join(f'<tbody>{body}</tbody>' for body in bodies or [''])}</table></div>"
        f'<p class="dim">{note}</p>'
    )


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _text(text: str) -> str:
    return html.escape(printable(text))
