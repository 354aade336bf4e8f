"""Readers of what another tool, or an attacker, may have written, with digests that fit: each says so."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from any_content import ALL_READERS, DRAWN, READERS, SLOW_READERS, commit_file, commit_store, edit_manifest
from command_line import satstore
from tiny import run_tiny

from satstore.errors import CorruptError, NotFoundError
from satstore.reports.plots import plot_epoch, plot_layers, save_figure, tabulate_relative
from satstore.reports.plots.paper_figures import Panel
from satstore.reports.run_curves import read_curves
from satstore.runs.events import read_events
from satstore.runs.run import Run
from satstore.runs.table_formats import NUMBER, TEXT, find_table
from satstore.runs.verify import Verification
from satstore.storage.commit_log import CommitLog
from satstore.storage.zarr import AnalysisStore


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has every table and kind of probe."""
    stages = ["train", "extract", "saturation", "probe", "receptive-field", "project", "flops"]
    return run_tiny(tmp_path_factory.mktemp("whole"), pooling=["2", "pixelwise"], stages=stages)


@pytest.fixture
def path(whole: Run, tmp_path: Path) -> Path:
    """The folder of a copy of it, which the test may change."""
    return Path(shutil.copytree(whole.path, tmp_path / "logs" / "res" / whole.experiment))


def put(path: Path, **values: Any) -> None:
    """Put values into the manifest; ``__`` leads to those of a part: ``summary__epochs_done``."""

    def change(manifest: dict[str, Any]) -> None:
        for place, value in values.items():
            *above, last = place.split("__")
            part = manifest
            for key in above:
                part = part[key]
            part[last] = value

    edit_manifest(path, change)


def replace(path: Path, name: str, old: str, new: str) -> None:
    """Replace a text of a file, and commit it."""
    content = (path / name).read_text()
    changed, n_changes = re.subn(old, new, content, flags=re.MULTILINE)
    assert n_changes, content
    commit_file(path, name, changed.encode())


def put_array(path: Path, name: str, values: Any) -> None:
    """Replace an array of a store, and commit it."""
    values = np.asarray(values)
    shutil.rmtree(path / name)
    array = zarr.create_array(str(path / name), shape=values.shape, dtype=values.dtype)
    if values.size:
        array[...] = values
    commit_store(path, name.partition("/")[0])


def remove(path: Path, name: str) -> None:
    """Take a part of a store away, and commit that."""
    shutil.rmtree(path / name)
    commit_store(path, name.partition("/")[0])


def make_folder(path: Path, name: str) -> None:
    """Put a folder in place of a file."""
    (path / name).unlink()
    (path / name).mkdir()


def rename_layers(path: Path) -> None:
    """Let the manifest name other layers than the stores and tables do."""

    def change(manifest: dict[str, Any]) -> None:
        for record in manifest["layers"]:
            record["layer"] = f"other.{record['layer']}"

    edit_manifest(path, change)


@dataclass(frozen=True)
class Case:
    """A change of a run, what reads it, and what is said then."""

    change: Callable[[Path], object]
    read: Callable[[Run], object]
    words: str
    error: type[Exception] = CorruptError


EIGENVALUES = "analysis.zarr/spectra/train/0/eigenvalues"
PROBE = "analysis.zarr/probes/pool2/0"
COSTS = "computational_info.json"

CASES = {
    "no layer of the spectra in the manifest": Case(
        rename_layers,
        lambda run: run.saturation(),
        r"has spectra of 0, 5, and of no layer .*; restore it from a copy; satstore verify",
    ),
    "no layers at all": Case(
        lambda path: put(path, layers=[]),
        lambda run: run.saturation(split="train"),
        "of no layer that the manifest",
    ),
    "a column is missing": Case(
        lambda path: replace(path, "probe-pool2.csv", "eval_accuracy", "accuracy"),
        lambda run: run.table("probe-pool2"),
        r"probe-pool2.csv has no column 'eval_accuracy'; expected layer, .*satstore probe --run",
    ),
    "no column that lists need": Case(
        lambda path: commit_file(path, "receptive_field.csv", b"layer\n0\n"),
        lambda run: run.rows("receptive_field"),
        "no column 'receptive_field_min'.*satstore receptive-field --run",
    ),
    "text where a number belongs": Case(
        lambda path: replace(path, "metrics.csv", r"^0,0\.001", "0,fast"),
        lambda run: run.table("metrics"),
        "metrics.csv has 'fast' in row 1, column 'lr'; expected a number or nothing; restore it",
    ),
    "a number that pandas takes for text": Case(
        lambda path: replace(path, "metrics.csv", r"^0,0\.001", f"0,{'9' * 30}"),
        lambda run: run.rows("metrics"),
        "expected a number or nothing",
    ),
    "a negative epoch": Case(
        lambda path: replace(path, "saturation.csv", "exact,0", "exact,-1"),
        lambda run: run.table("saturation"),
        "has '-1' in row 1, column 'epoch'; expected a whole number",
    ),
    "a split that there is none of": Case(
        lambda path: replace(path, "saturation.csv", "train", "test"),
        lambda run: run.rows("saturation"),
        "expected train or eval",
    ),
    "positions without end": Case(
        lambda path: replace(path, "probe-pixelwise.csv", "^0,0,0", "0,100000,0"),
        lambda run: run.table("probe-pixelwise"),
        "'100000' in row 1, column 'y'; expected a number from 0 to 999",
    ),
    "a cell too many": Case(
        lambda path: replace(path, "metrics.csv", "^1,", "1,1,"),
        lambda run: run.table("metrics"),
        "metrics.csv has 9 cells in row 2; expected 8",
    ),
    "a cell too many in every row": Case(
        lambda path: replace(path, "metrics.csv", "^([01]),", r"\1,1,"),
        lambda run: run.rows("metrics"),
        "metrics.csv has 9 cells in row 1; expected 8",
    ),
    "a column twice": Case(
        lambda path: replace(path, "metrics.csv", "train_loss", "eval_loss"),
        lambda run: run.rows("metrics"),
        "has a column 'eval_loss' twice",
    ),
    "another encoding": Case(
        lambda path: commit_file(path, "metrics.csv", "epoch,é\n0,1\n".encode("latin-1")),
        lambda run: run.table("metrics"),
        "is no text in UTF-8 .* at byte 6",
    ),
    "an empty file": Case(
        lambda path: commit_file(path, "metrics.csv", b""),
        lambda run: run.rows("metrics"),
        "not even a header",
    ),
    "a cell of any length": Case(
        lambda path: commit_file(path, "metrics.csv", b"epoch\n" + b"1" * 200_000),
        lambda run: run.rows("metrics"),
        "is no table .*field larger than field limit",
    ),
    "a table of a plugin that is none": Case(
        lambda path: commit_file(path, "mine.csv", b'a\n"'),
        lambda run: run.table("mine"),
        "mine.csv Error tokenizing data",
    ),
    "costs without parameters": Case(
        lambda path: replace(path, COSTS, '"n_parameters": 163', '"n": 163'),
        lambda run: run.costs(),
        f"{COSTS} has 'n_parameters': field required.*satstore flops --run",
    ),
    "costs of text": Case(
        lambda path: replace(path, COSTS, '"flops": 13920', '"flops": "many"'),
        lambda run: run.costs(),
        "'flops': input",
    ),
    "costs without end": Case(
        lambda path: commit_file(path, COSTS, b"[" * 100_000), lambda run: run.costs(), "recursion limit"
    ),
    "a folder for a table": Case(
        lambda path: make_folder(path, "metrics.csv"),
        lambda run: run.table("metrics"),
        "can't be read: Is a directory",
    ),
    "a folder for the commit log": Case(
        lambda path: make_folder(path, "commits.jsonl"),
        lambda run: run.spectra("train"),
        "can't be read: Is a dir",
    ),
    "eigenvalues of three axes": Case(
        lambda path: put_array(path, EIGENVALUES, np.ones((2, 2, 2))),
        lambda run: run.spectra("train"),
        r"eigenvalues has shape \(2, 2, 2\) of float64; expected \(any, any\) of numbers",
    ),
    "eigenvalues that are complex": Case(
        lambda path: put_array(path, EIGENVALUES, np.ones((2, 4), complex)),
        lambda run: run.saturation(),
        "of numbers",
    ),
    "no eigenvalue": Case(
        lambda path: put_array(path, EIGENVALUES, np.ones((2, 0))),
        lambda run: run.spectra("train"),
        "has shape",
    ),
    "no eigenvalues": Case(
        lambda path: remove(path, EIGENVALUES), lambda run: run.spectra("train"), "has no array 'eigenvalues'"
    ),
    "moments that do not fit": Case(
        lambda path: put_array(path, "analysis.zarr/spectra/train/0/mean", np.ones(7)),
        lambda run: AnalysisStore(run.analysis_path).moments("train", "0"),
        r"covariance has shape \(4, 4\) of float64; expected \(7, 7\)",
    ),
    "confusion that is no square": Case(
        lambda path: put_array(path, f"{PROBE}/confusion", np.ones((2, 3), int)),
        lambda run: run.confusion("0"),
        "confusion has shape",
    ),
    "confusion of other classes": Case(
        lambda path: put_array(path, f"{PROBE}/class_index", [0, 1, 9]),
        lambda run: run.confusion("0"),
        "has a probe of layer 0 for classes up to 9; expected some of the 3 that .*; fit it again with",
    ),
    "classes that are no numbers": Case(
        lambda path: put_array(path, f"{PROBE}/class_index", [0.0, 1.0, np.nan]),
        lambda run: run.class_accuracy("0"),
        "class_index has shape",
    ),
    "no confusion": Case(
        lambda path: remove(path, f"{PROBE}/confusion"),
        lambda run: run.confusion("0"),
        "has no confusion of layer 0 at pool2: matrices of that many classes",
        NotFoundError,
    ),
    "no dataset": Case(
        lambda path: put(path, dataset=None),
        lambda run: run.confusion("0"),
        "of the 0 that the manifest names",
    ),
    "latents of one number": Case(
        lambda path: put_array(path, "latents.zarr/pool2/train/0/latent", np.float16(1)),
        lambda run: run.latents("pool2", "train")["0"],
        r"latent has shape \(\) of float16; expected \(any, any\)",
    ),
    "latents of whole numbers": Case(
        lambda path: put_array(path, "latents.zarr/pool2/train/0/latent", np.ones((40, 4, 2, 2), int)),
        lambda run: run.latents("pool2", "train")["0"],
        "of int64; expected",
    ),
    "a mean of another shape": Case(
        lambda path: put_array(path, "latents.zarr/pool2/train/0/mean", np.ones(3, np.float32)),
        lambda run: run.latents("pool2", "train")["0"].rows(),
        r"mean has shape \(3,\) of float32; expected \(4, 2, 2\)",
    ),
    "labels that are no numbers": Case(
        lambda path: put_array(path, "latents.zarr/pool2/train/label", np.full(40, np.nan)),
        lambda run: run.latents("pool2", "train").labels,
        "label has shape",
    ),
    "a spectrum of an epoch that was not trained": Case(
        lambda path: put(path, summary__epochs_done=10**6),
        lambda run: plot_epoch(run, 2),
        "has no spectra of epoch 3",
        NotFoundError,
    ),
    "no latents of the layers": Case(
        rename_layers,
        lambda run: READERS["show"](run.path) or SLOW_READERS["compare"](run.path) or run.saturation(),
        "of no layer",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reader__says_what_is_wrong_in_a_line(path: Path, case: Case) -> None:
    case.change(path)
    with pytest.raises(case.error, match=case.words) as caught:
        case.read(Run(path))
    assert "\n" not in str(caught.value)


MANIFESTS = {
    "negative epochs": ({"summary__epochs_done": -1}, "'summary.epochs_done'"),
    "epochs without end": ({"summary__epochs_done": 10**12}, "'summary.epochs_done'"),
    "an accuracy that is none": ({"summary__test_accuracy": float("nan")}, "'summary.test_accuracy'"),
    "a saturation beyond all": ({"summary__saturation": {"0": 1e308}}, "'summary.saturation.0'"),
    "a dimension beyond all": (
        {"summary__intrinsic_dimension": {"0": 10**400}},
        "'summary.intrinsic_dimension.0'",
    ),
    "a size beyond all": ({"files": {"a": {"size_bytes": 10**400, "sha256": ""}}}, "'files.a.size_bytes'"),
    "a file that lies elsewhere": (
        {"files": {"../a": {"size_bytes": 1, "sha256": ""}}},
        "a file in the run folder",
    ),
    "a file of no name": ({"files": {"a\0": {"size_bytes": 1, "sha256": ""}}}, "a file in the run folder"),
    "probes of no epoch": ({"probes": {"a/b": {"C": 1, "tol": 1, "max_iter": 1}}}, "should match pattern"),
    "accuracies of no probes": ({"summary__probe_accuracy": {"../x": {}}}, "should match pattern"),
    "latents of no epoch": ({"re_extractable": {"epochs/x/pool2": {}}}, "should match pattern"),
    "a broken text": ({"warnings": ["\ud800"]}, "is not a manifest: .*hex escape"),
    "a path of no folder": ({"latents_path": "/\0/latents.zarr"}, "expected latents.zarr"),
}


@pytest.mark.parametrize(("values", "words"), MANIFESTS.values(), ids=MANIFESTS)
def test_manifest__that_no_run_has_is_refused_in_a_line(
    path: Path, values: dict[str, Any], words: str
) -> None:
    put(path, **values)
    with pytest.raises(CorruptError, match=words) as caught:
        Run(path)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
    assert "warning: " in satstore("ls", "--logs-dir", path.parents[1]).stderr


def test_manifest__with_a_layer_twice_is_refused(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest["layers"].append(manifest["layers"][0]))
    with pytest.raises(CorruptError, match="'layers': expected layers of different names"):
        Run(path)


def test_manifest__that_is_a_folder_is_refused(path: Path) -> None:
    make_folder(path, "manifest.json")
    with pytest.raises(CorruptError, match="can't be read: Is a directory"):
        Run(path)


def test_layers__that_nobody_knows_the_features_of_are_shown(path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for record in manifest["layers"]:
            record["n_features"] = 0

    edit_manifest(path, change)
    done = satstore("show", f"res/{path.name}", "--logs-dir", path.parents[1])
    assert done.returncode == 0, done.stderr
    READERS["screens"](path)


def test_layers__named_as_formulas_are_drawn_as_they_are_called(path: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for record in manifest["layers"]:
            record["layer"] = rf"$\{record['layer']}$"
        manifest["summary"]["saturation"] = {r"$\0$": 0.5}

    edit_manifest(path, change)
    save_figure(plot_layers(Run(path)), tmp_path / "x.svg")
    assert r"$\0$" in (tmp_path / "x.svg").read_text()


def test_figures__of_thousands_of_layers_have_an_end(path: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        first = manifest["layers"][0]
        manifest["layers"] += [{**first, "layer": f"more.{i}"} for i in range(3000)]

    edit_manifest(path, change)
    figure = plot_layers(Run(path))
    save_figure(figure, tmp_path / "x.svg")
    assert figure.get_figwidth() == 100


def test_figures__of_all_epochs_end_with_the_last_that_has_spectra(path: Path) -> None:
    put(path, summary__epochs_done=10**6)
    SLOW_READERS["plot --quantity"](path)
    assert len(list(path.parents[2].glob("out/*.png"))) == 2


def test_metrics__without_the_accuracy_of_the_model_are_drawn_without_it(path: Path) -> None:
    commit_file(path, "metrics.csv", b"epoch,train_loss\n0,1.5\n1,0.5\n")
    for name in DRAWN:
        READERS[f"plot {name}"](path)


def test_table_of_accuracies__relative_to_none_has_no_numbers(path: Path) -> None:
    put(path, summary__test_accuracy=0.0, config__resolution=224)
    run = Run(path)
    table = tabulate_relative([Panel(run.config, run, "")])
    assert table["224 px"].isna().all()
    assert table["accuracy at 224 px"].tolist() == [0.0]


def test_spectra__that_overflow_give_no_number(path: Path) -> None:
    put_array(path, EIGENVALUES, np.full((2, 4), 1e308))
    table = Run(path).saturation(split="train")
    assert table.loc[table["layer"] == "0", "saturation"].isna().all()
    assert table.loc[table["layer"] == "5", "saturation"].notna().all()
    READERS["screens"](path)


def test_terminal_app__names_a_table_that_is_none(path: Path) -> None:
    replace(path, "metrics.csv", r"^0,0\.001", "0,fast")
    replace(path, "probe-pool2.csv", "layer", "name")
    problems = read_curves(path).problems
    assert len(problems) == 2
    assert "probe-pool2.csv has no column 'layer'" in problems[0]
    assert "metrics.csv has 'fast'" in problems[1]


def test_verify__names_a_table_that_is_none_though_its_digest_fits(path: Path) -> None:
    replace(path, "probe-pool2.csv", "layer", "name")
    replace(path, COSTS, '"flops": 13920', '"flops": -1')
    found = [str(finding) for finding in Verification(Run(path)).findings() if finding.is_wrong]
    assert any("probe-pool2.csv has no column 'layer'" in line for line in found)
    assert any(f"{COSTS} has 'flops'" in line for line in found)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("latents.zarr/pool2/train/label", np.ones(40, complex), "is of an array of shape (40,)"),
        ("latents.zarr/pool2/train/label", np.ones((40, 2), int), "is of an array of shape (40, 2)"),
        ("latents.zarr/pool2/train/0/latent", np.ones((40, 4, 2, 2), int), "not as satstore writes it"),
    ],
)
def test_verify__names_arrays_that_are_none_of_ours(path: Path, name: str, values: Any, words: str) -> None:
    put_array(path, name, values)
    found = [str(finding) for finding in Verification(Run(path)).findings() if finding.is_wrong]
    assert any(f"{name}/zarr.json" in line and words in line for line in found), found


def test_verify__names_latents_that_are_cut_within_a_sample(path: Path) -> None:
    place = path / "latents.zarr/pool2/train/0/latent"
    shutil.rmtree(place)
    array = zarr.create_array(str(place), shape=(40, 4, 2, 2), dtype=np.float16, chunks=(16, 3, 2, 2))
    array[...] = 1
    commit_store(path, "latents.zarr")
    found = [str(finding) for finding in Verification(Run(path)).findings()]
    assert any("in 6 files: not as satstore writes it" in line for line in found), found


@pytest.mark.parametrize(
    "line",
    [
        {"key": "../../secret", "size_bytes": 1, "sha256": ""},
        {"key": "/dev/zero", "size_bytes": 1, "sha256": ""},
        {"key": "a\0", "size_bytes": 1, "sha256": ""},
        {"key": "a", "size_bytes": -1, "sha256": ""},
        {"group": "a", "n_rows": -5},
    ],
)
def test_commit_log__passes_over_what_nobody_commits(tmp_path: Path, line: dict[str, Any]) -> None:
    log = CommitLog(tmp_path / "log")
    log.path.write_text(json.dumps({"store": "s", **line}) + "\n")
    assert log.count_torn() == 1
    committed = log.read("s")
    assert (committed.files, committed.n_rows) == ({}, {})


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        json.dumps({"stage": 1, "kind": "progress"}).encode(),
        json.dumps({"stage": "a", "kind": "progress", "done": 1, "total": 10**400}).encode(),
        json.dumps({"stage": "a", "kind": "progress", "done": "x", "total": "y"}).encode(),
        json.dumps({"stage": "a", "kind": "done", "time": 1e300}).encode(),
        json.dumps({"stage": "a", "kind": "done", "values": []}).encode(),
    ],
)
def test_events__that_are_none_are_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "log").write_bytes(line + b'\n{"stage": "a", "kind": "done"}\n')
    assert [event.kind for event in read_events(tmp_path / "log")[0]] == ["done"]
    assert read_events(tmp_path) == ([], 0), "a folder is no log"


def test_lock__notes_that_are_none_hold_nothing(path: Path) -> None:
    notes: list[object] = [
        {"pid": 1e999, "since": 1},
        {"pid": 1, "since": "x"},
        {"pid": 1, "since": 1e300},
        [],
    ]
    for note in notes:
        (path / ".holder.json").write_text(json.dumps(note))
        assert not Run(path).is_being_written


def test_export__of_a_run_that_lacks_a_file_says_so(path: Path) -> None:
    (path / "projection.csv").unlink()
    done = satstore(
        "export", f"res/{path.name}", "--to", "zip", "--out", path.parent, "--logs-dir", path.parents[1]
    )
    assert done.returncode == 1
    assert "projection.csv is committed but not there" in done.stderr
    assert not list(path.parent.glob("*.zip"))


def test_tables__hold_what_is_declared_of_them(whole: Run) -> None:
    """Every column that a stage writes is declared, but for metrics and the layers of a projection."""
    for file in whole.manifest.files:
        name = file.removesuffix(".csv")
        if not file.endswith(".csv"):
            continue
        table = find_table(name)
        assert table is not None, name
        columns = set(whole.table(name)) - set(whole.layers)
        free = {"receptive_field": {"jump", "start", "map_size"}, "metrics": columns - {"epoch"}}
        assert columns - table.columns.keys() - table.optional.keys() == free.get(name, set()), name
        assert len(whole.rows(name)) == len(whole.table(name))


@pytest.mark.parametrize(
    "text", ["", "1", "-1", "0.5", "1e-07", "1.5E+300", "nan", "NaN", "inf", "-inf", "1e400"]
)
def test_number__is_what_pandas_and_python_take_for_one(text: str) -> None:
    assert NUMBER.pattern.fullmatch(text)
    assert isinstance(float(text or "nan"), float)


@pytest.mark.parametrize(
    "text", ["x", "1_0", " 1", "9" * 16, "٣", "0x1", "1,2", "True", "NA", "e5", ".", "--1"]
)
def test_number__is_nothing_else(text: str) -> None:
    assert not NUMBER.pattern.fullmatch(text)
    assert TEXT.pattern.fullmatch(text)


@pytest.mark.parametrize("name", [*READERS, *(pytest.param(n, marks=pytest.mark.long) for n in SLOW_READERS)])
def test_readers__read_a_whole_run(path: Path, name: str) -> None:
    ALL_READERS[name](path)


@pytest.mark.parametrize("change", [rename_layers, partial(put, layers=[]), partial(put, summary={})])
def test_readers__read_a_run_whose_parts_know_nothing_of_each_other(
    path: Path, change: Callable[[Path], object]
) -> None:
    change(path)
    for name in (
        "states",
        "tables",
        "probes",
        "latents",
        "screens",
        "lists",
        "show",
        "show --advice",
        "verify",
    ):
        READERS[name](path)
