"""Run folders of any content: ways to change one, with digests that fit, and all that reads it."""

import csv
import io
import json
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from command_line import satstore
from matplotlib.figure import Figure

from satstore import advise_on
from satstore.config.latent_keys import LatentsKey
from satstore.errors import SatstoreError
from satstore.reports import plots
from satstore.reports.listing.columns import SORT_KEYS, describe_row, sort_experiments
from satstore.reports.listing.reader import LogsReader
from satstore.reports.run_curves import read_curves
from satstore.runs.repair import extract_command, probe_command
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.storage.files import Digest
from satstore.storage.zarr import AnalysisStore, LatentSplit
from tui.layers import (
    View,
    describe_layer,
    describe_values,
    make_columns,
    make_curves,
    make_layer_rows,
    make_reference_lines,
    training_curves,
)

# Changing a run folder; what is changed counts as committed.

NUMBERS: list[Any] = [0, 1, -1, 2, 0.5, 3.7, 10**6, 2**63, 10**30, 10**400, -(10**12), 1e308, -1e308]
NUMBERS += [float("nan"), float("inf"), -float("inf")]
VALUES = [*NUMBERS, None, True, "", "0", "5", "x", "nan", "a/b", "..", "/", "é\u2028\x00\n", "\ud800", [], {}]
VALUES += [[1], ["0"], {"0": 1}, {"0": None}, [[]], "9" * 5000]
CELLS = ["", "0", "5", "-1", "1", "0.5", "nan", "inf", "-inf", "1e308", "1e400", "x", "True", "None", "NA"]
CELLS += [
    "9" * 20,
    "9" * 400,
    "other",
    '"',
    "é",
    "\u2028",
    "train",
    "none",
    "a\nb",
    "1_0",
    " 1",
    "1,2",
    "\x00",
]


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value of a JSON document."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [above, *(place for key, child in children for place in places(child, (*above, key)))]


def change_json(document: Any, draw: random.Random) -> Any:
    """Return a document with one value replaced, taken out, or under another name."""
    found = json.loads(json.dumps(document))
    known = [place for place in places(found) if place]
    if not known:
        return draw.choice(VALUES)
    # First where, by one level after the other: a long list is not changed more often than a short one.
    top = draw.choice(sorted({place[0] for place in known}, key=str))
    *above, last = draw.choice([place for place in known if place[0] == top])
    parent = found
    for key in above:
        parent = parent[key]
    how = draw.randrange(5)
    if how == 0:
        del parent[last]
    elif how == 1 and isinstance(parent, dict):
        parent[
            draw.choice(["", "0", "x", "..", "a/b", "epochs/x/pool2", "epochs/7/pool2", "full", "P-pool2"])
        ] = parent.pop(last)
    elif how == 2 and isinstance(parent, list):
        parent.insert(last, parent[last])
    elif isinstance(parent[last], int | float) and draw.randrange(4):
        parent[last] = draw.choice(NUMBERS)
    else:
        parent[last] = draw.choice(VALUES)
    return found


def commit_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, without the seal that would tell that it was changed."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    (path / "manifest.json").write_text(json.dumps(content))


def commit_file(path: Path, name: str, content: bytes) -> None:
    """Write a file of a run folder, and its digest into the manifest."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = asdict(Digest.of(content))
    commit_manifest(path, manifest)


def commit_store(path: Path, store: str) -> None:
    """Commit all that lies in a store, as it is, to the commit log and the manifest."""
    folder = path / store
    with (path / "commits.jsonl").open("a") as log:
        log.write("\n" + json.dumps({"store": store, "removed": ""}) + "\n")
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                digest = Digest.of_file(file)
                line = {"store": store, "key": file.relative_to(folder).as_posix(), **asdict(digest)}
                log.write(json.dumps(line) + "\n")


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest in place."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    commit_manifest(path, manifest)


# Ways to change it, each by the numbers drawn.


def change_manifest(path: Path, draw: random.Random) -> None:
    """Change one to three values of the manifest."""
    for _ in range(draw.randrange(1, 4)):
        commit_manifest(path, change_json(json.loads((path / "manifest.json").read_bytes()), draw))


def change_layers(path: Path, draw: random.Random) -> None:
    """Take layers out of the manifest, rename, double or empty them."""

    def change(manifest: dict[str, Any]) -> None:
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not layers or not all(isinstance(x, dict) for x in layers):
            return
        how = draw.randrange(7)
        if how == 0:
            manifest["layers"] = []
        elif how == 1:
            for record in layers:
                record["layer"] = f"other.{record['layer']}"
        elif how == 2:
            layers.pop(draw.randrange(len(layers)))
        elif how == 3:
            layers.append(dict(layers[0]))
        elif how == 4:
            draw.choice(layers)["layer"] = draw.choice(
                ["", ".", "..", "label", "a/b", "x" * 300, "é\n", "\x00"]
            )
        elif how == 5:
            for record in layers:
                record["n_features"] = draw.choice([0, -1, 10**6, 10**30])
        else:
            draw.choice(layers)["output_shape"] = draw.choice([[], [0], [-1], [10**30] * 3, [1] * 50])

    edit_manifest(path, change)


def change_summary(path: Path, draw: random.Random) -> None:
    """Change counts and numbers of the manifest's summary."""

    def change(manifest: dict[str, Any]) -> None:
        summary = manifest.setdefault("summary", {})
        if not isinstance(summary, dict):
            return
        key = draw.choice(
            [
                "epochs_done",
                "test_accuracy",
                "saturation",
                "intrinsic_dimension",
                "probe_accuracy",
                "border_layer",
            ]
        )
        number = draw.choice(NUMBERS)
        by_layer = draw.choice([{}, {"0": None}, {"0": number}, {"other": number}, {"0": number, "5": None}])
        summary[key] = {
            "epochs_done": draw.choice([0, 1, 3, 7, -1, 10**6, 10**12]),
            "test_accuracy": number,
            "probe_accuracy": {draw.choice(["pool2", "full", "x", "P-pool2"]): by_layer},
            "border_layer": draw.choice(["", "other", "5", None]),
        }.get(key, by_layer)

    edit_manifest(path, change)


def table_names(path: Path) -> list[str]:
    """Return the tables' files."""
    return sorted(file.name for file in path.glob("*.csv"))


def change_table(path: Path, draw: random.Random) -> None:
    """Change a table's header, rows, cells or bytes."""
    name = draw.choice(table_names(path))
    content = (path / name).read_bytes()
    with suppress(UnicodeDecodeError):
        content = change_csv(content.decode(), draw)
    commit_file(path, name, content)


def change_csv(text: str, draw: random.Random) -> bytes:
    """Return a CSV table of another content."""
    header, *rows = [*csv.reader(io.StringIO(text))] or [["layer"]]
    how = draw.randrange(12)
    column = draw.randrange(max(1, len(header)))
    if how == 0:
        header, rows = header[:column] + header[column + 1 :], [r[:column] + r[column + 1 :] for r in rows]
    elif how == 1 and header:
        header[column] = draw.choice(["", "x", "layer", "y", header[0], "NA", "a\nb"])
    elif how == 2:
        rows = []
    elif how in (3, 4, 5) and rows:
        for _ in range(draw.randrange(1, 3)):
            row = draw.choice(rows)
            row[min(column, len(row) - 1) if row else 0 :][:1] = [draw.choice(CELLS)]
            if row:
                row[min(column, len(row) - 1)] = draw.choice(CELLS)
    elif how == 6:
        cell = draw.choice(CELLS)
        rows = [[*r[:column], cell, *r[column + 1 :]] for r in rows]
    elif how == 7 and rows:
        draw.choice(rows).extend(["1"] * draw.randrange(1, 3))
    elif how == 8 and rows:
        rows = [[*row, "1"] for row in rows]
    elif how == 9 and rows:
        row = draw.choice(rows)
        del row[column:]
    elif how == 10:
        return draw.choice(
            [b"", b"\n", b",\n", b"\xff\xfe\x00", text.encode("utf-16"), b'layer\n"', b"\xef\xbb\xbf"]
        )
    elif how == 11:
        rows = rows * 2 if draw.randrange(2) else rows[: len(rows) // 2]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue().encode(draw.choice(["utf-8"] * 6 + ["latin-1", "utf-8-sig"]), "replace")


def change_costs(path: Path, draw: random.Random) -> None:
    """Change what ``satstore flops`` counted."""
    name = "computational_info.json"
    try:
        document = json.loads((path / name).read_bytes())
    except ValueError:
        document = {}
    for _ in range(draw.randrange(1, 3)):
        document = change_json(document, draw) if isinstance(document, dict | list) else document
    content = json.dumps(document).encode()
    if draw.randrange(8) == 0:
        content = draw.choice([b"", b"{", b"\xff", b"[" * 100_000, b"null", b"[]", b'""'])
    commit_file(path, name, content)


def entries(path: Path) -> list[Path]:
    """Return files and folders, first those of the upper levels, as often as all below them."""
    upper = sorted(p for p in path.iterdir())
    return upper * 5 + sorted(p for p in path.rglob("*"))


def swap_kinds(path: Path, draw: random.Random) -> None:
    """Put a folder in place of a file, a file in place of a folder, or take one away."""
    place = draw.choice(entries(path))
    was_file = place.is_file()
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)
    how = draw.randrange(4)
    if how == 0 and was_file:
        place.mkdir(parents=True)
    elif how == 1:
        place.write_bytes(draw.choice([b"", b"x", b"{}", b"[]", b"\xff", b'"x"', b"null"]))
    elif how == 2:
        place.symlink_to(place.name)
    if draw.randrange(2):
        for store in ("analysis.zarr", "latents.zarr"):
            with suppress(OSError):
                commit_store(path, store)


def change_log(path: Path, draw: random.Random) -> None:
    """Change lines of the commit log or of the events."""
    file = path / draw.choice(["commits.jsonl", "events.jsonl"])
    if not file.is_file():
        return
    lines = [line for line in file.read_bytes().splitlines() if line.strip()]
    for _ in range(draw.randrange(1, 4)):
        if not lines:
            break
        i = draw.randrange(len(lines))
        with suppress(ValueError):
            lines[i] = json.dumps(change_json(json.loads(lines[i]), draw)).encode()
    file.write_bytes(b"\n".join(lines) + b"\n")


def change_metadata(path: Path, draw: random.Random) -> None:
    """Change a store's metadata, and commit it."""
    store = draw.choice(["analysis.zarr", "analysis.zarr", "latents.zarr"])
    files = sorted((path / store).rglob("zarr.json"))
    if not files:
        return
    file = draw.choice(files)
    try:
        document = change_json(json.loads(file.read_bytes()), draw)
    except (ValueError, OSError):
        return
    file.write_text(json.dumps(document))
    commit_store(path, store)


SHAPES = [
    (),
    (0,),
    (1,),
    (3,),
    (2, 0),
    (0, 3),
    (2, 2),
    (2, 3),
    (3, 3),
    (1, 1, 1),
    (2, 2, 3),
    (2, 2, 3, 3),
    (1, 2, 3, 4),
]
TYPES = ["float64", "float32", "float16", "int64", "uint8", "bool", "complex64", "int8", "<U3"]


def change_array(path: Path, draw: random.Random) -> None:
    """Replace an array by one of another shape, type or content, or a group by an array; or take one away."""
    store = draw.choice(["analysis.zarr", "analysis.zarr", "latents.zarr"])
    files = sorted((path / store).rglob("zarr.json"))
    arrays = []
    for file in files:
        with suppress(ValueError, OSError, TypeError, LookupError):
            if json.loads(file.read_bytes())["node_type"] == "array" or draw.randrange(8) == 0:
                arrays.append(file.parent)
    if not arrays:
        return
    place = draw.choice(arrays)
    with suppress(Exception):
        old = zarr.open_array(place, mode="r")
        shape, dtype = old.shape, old.dtype
        values: Any = np.asarray(old[...])
        how = draw.randrange(5)
        if how == 0:
            values = np.resize(values, draw.choice(SHAPES))
        elif how == 1:
            values = values.astype(draw.choice(TYPES))
        elif how == 2:
            values = np.full(shape, draw.choice([0, -1, np.nan, np.inf, 1e308, -np.inf, 99, 5e-324]))
            values = values.astype(draw.choice([dtype, "float64"]))
        elif how == 3 and values.size:
            values.reshape(-1)[draw.randrange(values.size)] = draw.choice([0, 99, 1])
        shutil.rmtree(place)
        if how != 4:
            new = zarr.create_array(str(place), shape=values.shape, dtype=values.dtype, overwrite=True)
            if values.size:
                new[...] = values
    commit_store(path, store)


def change_groups(path: Path, draw: random.Random) -> None:
    """Rename a layer of a store, copy a group over another, or take one away."""
    store = draw.choice(["analysis.zarr", "analysis.zarr", "latents.zarr"])
    folders = sorted(p for p in (path / store).rglob("*") if p.is_dir() and (p / "zarr.json").is_file())
    if len(folders) < 2:
        return
    one, other = draw.choice(folders), draw.choice(folders)
    how = draw.randrange(4)
    with suppress(OSError, shutil.Error, ValueError):
        if how == 0:
            shutil.rmtree(one)
        elif how == 1:
            one.rename(one.with_name(draw.choice(["x", "0", "5", "train", "eval", "pool2", "a~b"])))
        elif how == 2:
            shutil.copytree(one, other / one.name)
        else:
            document = json.loads((one / "zarr.json").read_bytes())
            if isinstance(document, dict):
                document["attributes"] = draw.choice(
                    [{}, {"layer": draw.choice(VALUES)}, None, {"layers": VALUES[0]}]
                )
                (one / "zarr.json").write_text(json.dumps(document))
    commit_store(path, store)


def change_holder(path: Path, draw: random.Random) -> None:
    """Say that a process holds the run, in any words; or leave a file that was never committed."""
    holder = change_json({"pid": 1, "host": "elsewhere", "since": 1.0}, draw)
    (path / ".holder.json").write_text(json.dumps(holder))
    if draw.randrange(2):
        (path / draw.choice(["x.new", "metrics.csv.new", ".x.partial"])).mkdir(exist_ok=True)


CHANGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "manifest": change_manifest,
    "layers": change_layers,
    "summary": change_summary,
    "table": change_table,
    "costs": change_costs,
    "kinds": swap_kinds,
    "log": change_log,
    "metadata": change_metadata,
    "array": change_array,
    "groups": change_groups,
    "holder": change_holder,
}


# What reads it: each on its own, so that what one refuses keeps no other from reading on.


def try_all(*reads: Callable[[], object]) -> None:
    """Call all; each may refuse in satstore's own words."""
    for read in reads:
        with suppress(SatstoreError):
            read()


def read_states(path: Path) -> None:
    """Read what lists show."""
    run = Run(path)
    run.failures(run.statuses())
    assert run.manifest.size_bytes >= 0
    try_all(*(partial(run.check_file, name) for name in run.manifest.files))
    for key in [*run.manifest.latents, *run.manifest.re_extractable]:
        extract_command(run, key)
    for key in run.manifest.probes:
        probe_command(run, key)


def read_tables(path: Path) -> None:
    """Read all tables."""
    run = Run(path)
    for name in [*run.manifest.files, "probe-pool2.csv", "metrics.csv"]:
        stem = name.removesuffix(".csv")
        try_all(partial(run.table, stem), partial(run.rows, stem))
    try_all(run.costs)


def read_spectra(path: Path) -> None:
    """Read spectra, and what follows from them."""
    run = Run(path)
    for split in ("train", "eval"):
        try_all(partial(run.spectra, split), partial(run.saturation, split=split))
        store = AnalysisStore(run.analysis_path)
        try_all(*(partial(store.moments, split, layer) for layer in run.layers))
    try_all(run.saturation, partial(run.saturation, 0.9, "delve"))


def read_latents(path: Path) -> None:
    """Read all latents, in all ways."""
    run = Run(path)
    for key in {*run.manifest.latents, LatentsKey("2")}:
        for split in ("train", "eval"):
            with suppress(SatstoreError):
                found = run.latents(key.group, split, key.epoch)
                try_all(*(partial(getattr, found, name) for name in ("labels", "sample_ids")))
                try_all(*(partial(read_layer, found, layer) for layer in found))


def read_layer(found: LatentSplit, layer: str) -> None:
    """Read a layer's latents."""
    array = found[layer]
    try_all(
        array.numpy,
        array.dask,
        lambda: (array.mean, array.std),
        lambda: array.rows().read(0, array.shape[0]),
    )


def read_probes(path: Path) -> None:
    """Read probes and their tables."""
    run = Run(path)
    for key in {*map(str, run.manifest.probes), "pool2", "pixelwise"}:
        try_all(partial(run.probe_evolution, key))
        for layer in {*run.layers, "0"}:
            try_all(partial(run.confusion, layer, key), partial(run.class_accuracy, layer, key))
    try_all(partial(run.confusion, "0"))


def read_lists(path: Path) -> None:
    """Read what the terminal app lists."""
    snapshot = LogsReader(path.parents[1]).poll()
    assert not snapshot.problem, snapshot.problem
    for experiment in snapshot.experiments:
        describe_row(experiment)
    for column in SORT_KEYS:
        sort_experiments(snapshot.experiments, column, False)


def read_screens(path: Path) -> None:
    """Read what the terminal app shows of a run."""
    data = read_curves(path)
    for layers in (data.shown, tuple(range(len(data.layers)))):
        for epoch in {0, max(0, data.n_epochs - 1)}:
            view = View(epoch, data.deltas.index(data.delta), layers)
            columns = make_columns(list(data.probes))
            for row in make_layer_rows(data, view):
                for column in columns:
                    column.cell(row)
            make_curves(data, view)
            make_reference_lines(data, view)
            if layers:
                describe_layer(data, view)
                describe_values(data, view, 80)
    training_curves(data)


def make_panel(run: Run) -> plots.Panel:
    """Return a run as a panel of a figure."""
    return plots.Panel(run.config, run, "satstore run")


DRAWN: Mapping[str, Callable[[Run], Figure]] = {
    "run.plot": lambda run: run.plot(),
    "layers": lambda run: plots.plot_layers(run, True, 0.9, 0),
    "comparison": lambda run: plots.plot_comparison([run, run], True, False, 0.5),
    "training": plots.plot_training,
    "spectrum": lambda run: plots.plot_spectrum(run, True, 0),
    "pixelwise": lambda run: plots.plot_pixelwise(run, True),
    "projection": plots.plot_projection,
    "evolution": plots.plot_evolution,
    "saturation": lambda run: plots.plot_epoch(run, 0),
    "dimension": lambda run: plots.plot_epoch(run, run.last_epoch, "intrinsic_dimension", True),
    "paper": lambda run: plots.plot_paper_figure([make_panel(run)] * 2, True),
    "relative": lambda run: plots.plot_relative(plots.tabulate_relative([make_panel(run)]), ["x"]),
}


def draw(path: Path, name: str) -> Figure:
    """Draw a figure of a run."""
    return DRAWN[name](Run(path))


def command(*words: str) -> Callable[[Path], None]:
    """Return what gives a command: RUN stands for the run, OUT for a place to write to."""

    def call(path: Path) -> None:
        out = str(path.parents[2] / "out")
        said = {"RUN": f"{path.parent.name}/{path.name}"}
        tokens = [said.get(word, word.replace("OUT", out)) for word in words]
        done = satstore(*tokens, "--logs-dir", path.parents[1])
        assert done.returncode in (0, 1), done.stderr
        assert done.returncode == 0 or done.stderr.startswith("satstore: "), done.stderr

    return call


READERS: Mapping[str, Callable[[Path], object]] = {
    "states": read_states,
    "tables": read_tables,
    "spectra": read_spectra,
    "latents": read_latents,
    "probes": read_probes,
    "advice": lambda path: advise_on(Run(path)).lines(),
    "verify": lambda path: [str(finding) for finding in Verification(Run(path)).findings()],
    "lists": read_lists,
    "screens": read_screens,
    "show": command("show", "RUN"),
    "show --json": command("show", "RUN", "--json"),
    "show --advice": command("show", "RUN", "--advice"),
    "ls": command("ls"),
    "ls --json": command("ls", "--json"),
    "status": command("status"),
    "status --csv": command("status", "--csv"),
    "du": command("du"),
    "du RUN": command("du", "RUN"),
    "export csv": command("export", "RUN", "--to", "csv", "--out", "OUT"),
    "export parquet": command("export", "RUN", "--to", "parquet", "--out", "OUT"),
    "export zip": command("export", "RUN", "--to", "zip", "--latents", "--out", "OUT"),
    "satstore verify": command("verify", "RUN"),
    **{f"plot {name}": partial(draw, name=name) for name in DRAWN},
}
"""What reads a run and takes a moment."""

SLOW_READERS: Mapping[str, Callable[[Path], object]] = {
    **{
        f"plot --kind {kind}": command("plot", "RUN", "--kind", kind, "--out", "OUT.svg")
        for kind in ("layers", "training", "spectrum", "pixelwise", "projection", "evolution")
    },
    "plot --quantity": command("plot", "RUN", "--quantity", "saturation", "--epoch", "all", "--out", "OUT"),
    "report": command("report", "RUN", "--out", "OUT.html"),
    "compare": command("compare", "RUN", "RUN", "--cka", "--out", "OUT.png"),
}
"""What draws, and writes it."""

ALL_READERS: Mapping[str, Callable[[Path], object]] = {**READERS, **SLOW_READERS}
