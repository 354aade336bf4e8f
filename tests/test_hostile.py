"""Hostile files: none runs code, leaves the logs folder, or reaches the terminal as more than text."""

import csv
import io
import json
import logging
import os
import pickle
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import hostile_run
import matplotlib as mpl
import numpy as np
import pytest
from command_line import satstore
from hostile_run import DATASET, ERROR, LAYERS, MODEL
from received import PLACES, READERS, THINGS, WRITERS, check_command, check_reader, make_received, receive
from received import plant as plant_thing
from tiny import CONFIG as TINY
from tiny import register as register_tiny

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import LIST_KEYS, read_config
from satstore.errors import ConfigError, CorruptError, SatstoreError
from satstore.registry import load_plugins
from satstore.runs.disk_usage import remove_latents
from satstore.runs.logs_folder import make_run
from satstore.runs.manifest import Manifest
from satstore.runs.manifest_file import read_manifest
from satstore.runs.run import Run
from satstore.storage.commit_log import CommitLog
from satstore.storage.files import Digest
from satstore.storage.safe_names import as_key


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def run(demo_copy: Path) -> Run:
    """A copy of the demo's run."""
    [manifest] = demo_copy.glob("demo/*/manifest.json")
    return Run(manifest.parent)


def plant(run: Run, name: str, content: bytes) -> None:
    """Put a file in place of one of the run's, and its digest into the manifest, as an attacker would."""
    manifest = json.loads((run.path / "manifest.json").read_text())
    digest = Digest.of(content)
    manifest["files"][name] = {"size_bytes": digest.size_bytes, "sha256": digest.sha256}
    (run.path / name).write_bytes(content)
    (run.path / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(run: Run, **changes: object) -> None:
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_checkpoint__with_a_pickle_in_it_is_refused(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    pickle.loads(pickle.dumps(Evil(target)))
    assert target.exists(), "the pickle works"
    target.rmdir()
    plant(run, "checkpoint.pt", pickle.dumps({"model": Evil(target)}))
    done = satstore("project", "--run", "demo", "--logs-dir", tmp_path / "logs")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "checkpoint.pt holds more than tensors" in done.stderr
    assert not target.exists()


def pack_arrays(**arrays: Any) -> bytes:
    """Return the content of an .npz file, with objects as pickles."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


def claim_rows(content: bytes) -> bytes:
    """Return an .npz file whose headers claim 10^12 rows, in place of 1437."""
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, member in members.items():
            packed.writestr(name, member.replace(b"(1437,), }         ", b"(1000000000000,), }"))
    return file.getvalue()


TRAIN_LABELS, EVAL_LABELS = np.zeros(1437, np.int64), np.zeros(360, np.int64)
HOSTILE_LABELS: dict[str, Callable[[Path], bytes]] = {
    "holds Python objects, which are pickled": lambda folder: pack_arrays(
        train=np.array([Evil(folder)] * 1437), eval=EVAL_LABELS
    ),
    "claims 8,000,000,000,000 bytes of values int64": lambda _: claim_rows(
        pack_arrays(train=TRAIN_LABELS, eval=EVAL_LABELS)
    ),
    "has the classes 7 to 7 in train, and there are 2": lambda _: pack_arrays(
        train=TRAIN_LABELS + 7, eval=EVAL_LABELS
    ),
    "has the classes -1 to -1 in eval": lambda _: pack_arrays(train=TRAIN_LABELS, eval=EVAL_LABELS - 1),
    "has int64 (1436,) of train; expected": lambda _: pack_arrays(train=TRAIN_LABELS[1:], eval=EVAL_LABELS),
    "has float64 (1437,) of train": lambda _: pack_arrays(train=TRAIN_LABELS * 1.0, eval=EVAL_LABELS),
    "has no array 'eval'": lambda _: pack_arrays(train=TRAIN_LABELS),
    "can't be read as NumPy's format (File is not a zip file)": lambda _: b"labels",
}
"""What is said of labels, and a function that makes their file; it may name a folder to be made."""


def plant_labels(run: Run, content: bytes) -> None:
    """Give a run a target ``made`` of two classes, and a file of its labels."""
    edit_manifest(run, targets={"made": {"classes": ["a", "b"], "n_train": 1437, "n_eval": 360}})
    plant(run, "target-made.npz", content)


@pytest.mark.parametrize("said", HOSTILE_LABELS)
def test_labels__that_are_hostile_are_refused_and_run_nothing(run: Run, tmp_path: Path, said: str) -> None:
    plant_labels(run, HOSTILE_LABELS[said](tmp_path / "owned"))
    with pytest.raises(
        CorruptError, match=rf"target-made\.npz {re.escape(said)}.* --target made --labels FILE"
    ):
        Run(run.path).labels("made", "eval")
    assert not (tmp_path / "owned").exists()


def test_labels__that_are_hostile_are_named_by_commands_and_not_imported(run: Run, tmp_path: Path) -> None:
    said = next(iter(HOSTILE_LABELS))
    plant_labels(run, HOSTILE_LABELS[said](tmp_path / "owned"))
    logs, packed = run.path.parents[1], tmp_path / "run.zip"
    for words in (("probe", "--run", "demo", "--target", "made"), ("verify", "demo")):
        done = satstore(*words, "--logs-dir", logs)
        assert done.returncode == 1
        assert f"target-made.npz {said}" in done.stdout + done.stderr
    assert satstore("export", "demo", "--to", "zip", "--out", packed, "--logs-dir", logs).returncode == 0
    done = satstore("import", packed, "--logs-dir", tmp_path / "received")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"target-made.npz {said}" in done.stderr
    assert not (tmp_path / "received" / "demo").exists()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["../key", "a/b", "pool4", "\x1b[31m", "x" * 41, ""])
def test_targets__of_names_that_lead_out_are_refused(run: Run, name: str) -> None:
    edit_manifest(run, targets={name: {"classes": ["a", "b"], "n_train": 1437, "n_eval": 360}})
    with pytest.raises(CorruptError, match=r"is not a manifest: 'targets"):
        read_manifest(run.path)


@pytest.mark.parametrize(
    "place",
    [
        "..",
        "../..",
        "/",
        "/home",
        "elsewhere",
        "a/latents.zarr",
        "../x/latents.zarr",
        "",
        "/a/../latents.zarr",
    ],
)
def test_manifest__that_has_latents_elsewhere_is_refused(run: Run, place: str) -> None:
    edit_manifest(run, latents_path=place)
    with pytest.raises(CorruptError, match="'latents_path': expected latents"):
        read_manifest(run.path)
    done = satstore("clean", "demo", "--latents", "--yes", "--logs-dir", run.path.parents[1])
    assert done.returncode == 1
    assert (run.path / "latents.zarr" / "zarr.json").exists()


def test_clean__removes_no_other_runs_latents(run: Run, tmp_path: Path) -> None:
    victim = tmp_path / "victim" / "latents.zarr"
    shutil.copytree(run.path / "latents.zarr", victim)
    for content in (
        {"attributes": {"run_id": "other", "experiment": run.experiment}},
        {"attributes": {}},
        {},
        [],
    ):
        (victim / "zarr.json").write_text(json.dumps(content))
        run.commit(change=lambda manifest: setattr(manifest, "latents_path", str(victim)))
        with pytest.raises(CorruptError, match="nothing was removed"):
            remove_latents(run)
        assert (victim / "pool4").exists()


def test_clean__follows_no_link_out_of_the_folder(run: Run, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("done")
    (run.path / "latents.zarr" / "pool4" / "link").symlink_to(precious)
    remove_latents(run)
    assert (precious / "thesis.tex").exists()


def test_plugins__of_a_run_are_imported_by_no_command_that_looks(run: Run, tmp_path: Path) -> None:
    (tmp_path / "evil_plugin.py").write_text(f"import os; os.mkdir({str(tmp_path / 'owned')!r})")
    config = run.manifest.config | {"plugins": ["evil_plugin"]}
    edit_manifest(run, config=config)
    for words in (["ls"], ["show", "demo"], ["status"], ["du"], ["verify", "demo"], ["jobs"]):
        done = satstore(*words, "--logs-dir", tmp_path / "logs", cwd=tmp_path)
        assert "plugin" not in done.stderr, words
    assert not (tmp_path / "owned").exists()


def test_plugins__are_announced_by_commands_that_work(tmp_path: Path) -> None:
    (tmp_path / "some_plugin.py").write_text("")
    (tmp_path / "c.json").write_text(json.dumps({"plugins": ["some_plugin"], "dataset": "Digts"}))
    done = satstore("train", "--config", "c.json", "--run-id", "r", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[0] == "satstore: importing the plugin 'some_plugin', which the config names"
    )


def test_plugins__are_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("satstore.plugins"), "propagate", True)
    monkeypatch.setattr("sys.path", [*sys.path])  # to which the working folder is added
    (tmp_path / "quiet_plugin.py").write_text("")
    with caplog.at_level(logging.INFO, "satstore.plugins"):
        load_plugins(["quiet_plugin"])
        load_plugins(["quiet_plugin"])
    assert [record.getMessage() for record in caplog.records] == [
        "importing the plugin 'quiet_plugin', which the config names"
    ]


@pytest.mark.parametrize("name", ["../x", "a b", "", "sys:exit", "\0"])
def test_plugins__that_are_none_are_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"plugin .* can't be imported"):
        load_plugins([name])


ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


def test_escapes__in_names_logs_and_errors_do_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    def change(manifest: Any) -> None:
        manifest.warnings.append(f"probe: {ESCAPES}")
        manifest.stages["probe"].status, manifest.stages["probe"].error = "failed", ESCAPES
        manifest.layers[0].layer = f"features{ESCAPES}"
        manifest.summary.saturation[f"features{ESCAPES}"] = 0.5

    run.commit(change=change)
    logs = tmp_path / "logs"
    folder = logs / f"bad{ESCAPES}" / "x"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    job = logs / ".jobs" / "99"
    job.mkdir(parents=True)
    content = {"words": [f"train{ESCAPES}"], "started": 1.0, "host": "h", "detached": True}
    (job / "job.json").write_text(json.dumps(content))
    (job / "exit.json").write_text(json.dumps({"code": 1, "ended": 2.0, "error": ESCAPES}))
    (job / "log.txt").write_text(f"one{ESCAPES}\ntwo\n")
    for words in (
        ["ls"],
        ["status"],
        ["show", "demo"],
        ["du"],
        ["du", "demo"],
        ["jobs"],
        ["log", "99"],
        ["cancel", "99"],
        ["show", f"demo{ESCAPES}"],
        ["probe", "--run", "demo", "--layers", ESCAPES],
        ["train", "--config", f"x{ESCAPES}", "--run-id", "r"],
        ["status", "--filter", f"x{ESCAPES}:1"],
    ):
        done = satstore(*words, "--logs-dir", logs)
        assert done.stdout + done.stderr, words
        found = {c for c in done.stdout + done.stderr if not c.isprintable()} - {"\n", "\t"}
        assert not found, (words, found)


HOSTILE = {
    "up": "../../evil",
    "absolute": "/etc/evil",
    "NUL": "a\x00b",
    "escape": "a\x1b[31mb",
    "bidi": "a\u202eb",
    "long": "x" * 300,
    "long in bytes": "層" * 200,
    "reserved": "CON",
    "home": "~root",
    "here": ".",
    "above": "..",
    "empty": "",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_config__values_climb_out_of_no_logs_folder(value: str, tmp_path: Path) -> None:
    register_tiny()
    logs = tmp_path / "above" / "logs"
    for key in ExperimentConfig.model_fields:
        try:
            [config] = read_config({**TINY, key: [value] if key in LIST_KEYS else value})
            run = make_run(logs, "res", config)
        except SatstoreError as error:
            assert "\n" not in str(error)  # noqa: PT017 - some are refused, some are none of the folder's business
            continue
        assert run.path.parent == logs / "res"
        assert run.experiment.isascii()
        assert len(run.experiment) < 255
    made = {path for path in tmp_path.rglob("*") if not path.is_relative_to(logs)}
    assert made <= {logs.parent}


@pytest.mark.parametrize("value", [HOSTILE["NUL"], HOSTILE["escape"], HOSTILE["bidi"]])
@pytest.mark.parametrize("key", ["logs_dir", "cache_dir"])
def test_config__paths_have_no_control_characters(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}': expected a path without control characters, found 'a"):
        read_config({key: value})


# Names that are markup, formulas and emoji


@pytest.fixture
def named(hostile_logs: Path) -> list[Run]:
    """Two experiments whose model, dataset and layers have such names, which tests read."""
    return [Run(path.parent) for path in sorted(hostile_logs.glob("res/*/manifest.json"))]


def logs_of(runs: list[Run]) -> Path:
    return runs[0].path.parents[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "RES"], [MODEL, DATASET, *LAYERS, ERROR]),
        (["show", "RES", "--advice"], [MODEL, DATASET, LAYERS[0]]),
        (["status"], [MODEL, DATASET]),
        (["du", "RES"], LAYERS),
        (["verify", "RES"], ["nothing wrong"]),
        (["jobs"], [ERROR, f"train --run '{ERROR}'"]),
        (["log", "7"], [ERROR]),
        (["estimate", "--config", "grid.json", "--no-calibrate"], [f"{MODEL} on {DATASET} at 16 px, seed 1"]),
        (["list", "models"], [MODEL, ERROR]),
        (["train", "--config", "grid.json", "--run-id", ERROR], [repr(ERROR)]),
        (["probe", "--run", "RES", "-C", ERROR], [repr(ERROR)]),
    ],
    ids=lambda value: value[0] if value[0].isalpha() else "",
)
def test_names__are_printed_as_they_are(
    words: list[str], said: list[str], named: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with hostile_run.hostile_names() as config:
        (tmp_path / "grid.json").write_text(json.dumps({**config, "seed": [0, 1]}))
        tokens = [named[0].name if word == "RES" else word for word in words]
        done = satstore(*tokens, *(["--logs-dir", logs_of(named)] if words[0] != "list" else []))
    for text in said:
        assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def letters_of(path: Path) -> list[str]:
    """Return the lines of text in an SVG."""
    return [f"{text}" for node in ElementTree.parse(path).iter() if (text := (node.text or "").strip())]


def test_names__are_drawn_as_they_are(named: list[Run], tmp_path: Path) -> None:
    both, where = [run.name for run in named], ["--logs-dir", logs_of(named)]
    for words, said in (
        (["plot", both[0]], LAYERS),
        (["plot", both[0], "--kind", "spectrum"], LAYERS),
        (["plot", both[0], "--kind", "evolution"], LAYERS),
        (["plot", both[0], "--kind", "training"], []),
        (["plot", both[0], "--quantity", "saturation"], LAYERS),
        (["plot", *both], ["seed 0", "seed 1"]),
        (["compare", *both, "--cka"], [*LAYERS, "seed 0", "seed 1"]),
    ):
        with mpl.rc_context({"text.usetex": True, "text.parse_math": True}):
            done = satstore(*words, *where, "--out", tmp_path / "a.svg")
        assert done.returncode == 0, done.stderr
        letters = letters_of(tmp_path / "a.svg")
        whole = " ".join(letters)
        assert MODEL in whole, words
        assert DATASET in whole, words
        for text in said:
            assert text in whole if text.startswith("seed") else text in letters, (words, text)


def test_names__in_a_report_are_text(named: list[Run], tmp_path: Path) -> None:
    done = satstore("report", named[0].name, "--logs-dir", logs_of(named), "--out", tmp_path / "a.html")
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "a.html").read_text()
    for text in ("<script>", "<b> at", "<i>"):
        assert text not in content
    assert "[/a] $\\frac{ :heart: &lt;script&gt;" in content


def test_names__run_in_no_spreadsheet_and_tables_of_runs_keep_them(named: list[Run], tmp_path: Path) -> None:
    run, where = named[0], ["--logs-dir", logs_of(named)]
    done = satstore("export", run.name, "--to", "csv", "--out", tmp_path, *where)
    assert done.returncode == 0, done.stderr
    for name in ("saturation", "probe-pool2", "receptive_field"):
        path = next(Path(line) for line in done.stdout.splitlines() if Path(line).stem == name)
        with path.open(newline="") as file:
            found = [row["layer"] for row in csv.DictReader(file)]
        assert {*LAYERS[:2], f"'{LAYERS[2]}", LAYERS[3]} <= {*found}
        kept = [row["layer"] for row in run.rows(name)]
        assert [layer.removeprefix("'") for layer in found] == kept == [*run.table(name)["layer"]]
    done = satstore("status", "--csv", *where)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["run"] for row in rows] == [f"'{hostile_run.RUN_ID}", "res", "res"]
    assert [row["model"] for row in rows] == [f"'{MODEL}"] * 3
    assert [row["dataset"] for row in rows] == [f"'{DATASET}"] * 3
    satstore("compare", *(run.name for run in named), "--cka", "--out", tmp_path / "a.png", *where)
    head, *rows_of_cka = csv.reader((tmp_path / "a.csv").read_text().splitlines())
    assert head == ["layer", *LAYERS[:2], f"'{LAYERS[2]}", LAYERS[3]]
    assert [row[0] for row in rows_of_cka] == head[1:]


@pytest.fixture(scope="module")
def received_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logs folder with a run and a job, of which each test gets a copy."""
    return make_received(tmp_path_factory.mktemp("received") / "logs")


EVERY = [(place, thing) for place in PLACES for thing in THINGS]
FEW = EVERY[::19]
"""One thing after the other in the place of every other file: 19 has no factor in common with the things."""


def test_received_run__nothing_outside_of_it_changes(received_logs: Path, tmp_path: Path) -> None:
    """A few of all, in turn with each of the commands."""
    commands = [*READERS.values(), *WRITERS.values()]
    for number, (place, thing) in enumerate(FEW):
        received = receive(received_logs, tmp_path / "home")
        plant_thing(received, place, thing)
        check_reader(received)
        check_command(received, commands[number % len(commands)])


@pytest.mark.long
@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_received_run__nothing_outside_of_it_changes_whatever_is_in_it(
    received_logs: Path, tmp_path: Path, place: str, thing: Any
) -> None:
    received = receive(received_logs, tmp_path / "home")
    plant_thing(received, place, thing)
    check_reader(received)
    for words in READERS.values():
        check_command(received, words)
    for words in WRITERS.values():
        received = receive(received_logs, tmp_path / "home")
        plant_thing(received, place, thing)
        check_command(received, words)


NAMES_THAT_LEAD_OUT = [
    "../key",
    "pool2/train/../../../../../outside/key",
    "/etc/passwd",
    "a//b",
    "a/",
    "/",
    "./a",
    "a/./b",
    "..",
    "",
    "a\\..\\b",
    "C:/x",
    "a\x1bb",
    "a\nb",
    "a\0b",
    "x" * 300,
    "a/" * 1500 + "a",
]


@pytest.mark.parametrize("name", NAMES_THAT_LEAD_OUT, ids=lambda name: repr(name)[:40])
def test_names__that_lead_out_pass_no_gate(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the name of a file"):
        as_key(name)
    log = CommitLog(tmp_path / "commits.jsonl")
    good = {"store": "latents.zarr", "key": "pool2/zarr.json", "size_bytes": 1, "sha256": "00"}
    bad = [good | {"key": name}, {"store": "latents.zarr", "group": name or "/", "n_rows": 1}]
    log.path.write_text("".join(json.dumps(line) + "\n" for line in (good, *bad)))
    assert [*log.read("latents.zarr").files] == ["pool2/zarr.json"]
    assert not log.read("latents.zarr").n_rows
    assert log.count_torn() == 2
    files = {name: {"size_bytes": 1, "sha256": "00"}}
    with pytest.raises(ValueError, match="expected the name of a file"):
        Manifest.model_validate(
            {
                "run_id": "r",
                "experiment": "e",
                "created": 1,
                "config": {},
                "config_sha256": "",
                "files": files,
            }
        )


@pytest.mark.parametrize(
    "name", ["a", "pool2/train/0.conv~1/latent/c/0/0", "層/x y", "epochs/5/pool4", "%2E"]
)
def test_names__of_files_below_the_folder_pass(name: str) -> None:
    assert as_key(name) == name


def test_zip__that_holds_a_link_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        member = zipfile.ZipInfo("res/x/metrics.csv")
        member.external_attr = (kind | 0o644) << 16
        with zipfile.ZipFile(tmp_path / "r.zip", "w") as packed:
            packed.writestr(member, "/etc/passwd")
        done = satstore("import", tmp_path / "r.zip", "--logs-dir", tmp_path / "logs")
        assert (done.returncode, done.stdout) == (1, "")
        assert "is no run of satstore: it holds 'res/x/metrics.csv'" in done.stderr
        assert not (tmp_path / "logs").exists()


def test_import__writes_behind_no_link_that_lies_where_it_unpacks(
    received_logs: Path, tmp_path: Path
) -> None:
    received = receive(received_logs, tmp_path / "home")
    zipped = satstore("export", "res", "--to", "zip", "--logs-dir", received.logs, cwd=received.home / "out")
    packed, run = Path(zipped.stdout.strip()), received.run
    shutil.rmtree(run)
    (run.parent / f".{run.name}.partial").symlink_to(received.outside / "thesis")
    check_command(received, ("import", str(packed)))
    shutil.rmtree(run.parent)
    run.parent.symlink_to(received.outside / "thesis")
    check_command(received, ("import", str(packed)))


@pytest.mark.parametrize("there", ["nothing", "somebody's files", "latents of a run of the same name"])
def test_latents__are_written_nowhere_that_only_the_manifest_names(
    received_logs: Path, tmp_path: Path, there: str
) -> None:
    received = receive(received_logs, tmp_path / "home")
    place = received.outside / "place" / "res" / received.run.name / "latents.zarr"
    if there == "somebody's files":
        shutil.copytree(received.outside / "thesis", place)
    elif there != "nothing":
        shutil.copytree(received.run / "latents.zarr", place)
    content = json.loads((received.run / "manifest.json").read_text())
    del content["sha256"]
    manifest = json.dumps(content | {"latents_path": str(place)})
    for words in WRITERS.values():
        (received.run / "manifest.json").write_text(manifest)
        check_command(received, words)


def test_latents__go_where_the_user_named_until_the_run_is_somebody_elses(
    received_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    logs, copy, place = tmp_path / "logs", tmp_path / "copy", tmp_path / "place"
    shutil.copytree(received_logs, logs)
    clean = ("clean", "res", "--latents", "--yes", "--logs-dir")
    extract = ("extract", "--run", "res", "-d", "2", "--logs-dir")
    assert satstore(*clean, logs).returncode == 0
    assert satstore(*extract, logs, "--latents-dir", place).returncode == 0
    assert satstore(*extract, logs, "--overwrite").returncode == 0, "it was named once"
    shutil.copytree(logs, copy)
    done = satstore(*extract, copy, "--overwrite")
    assert done.returncode == 1
    assert "nothing is written or removed there until you name that place: satstore extract" in done.stderr
    assert done.stderr.rstrip().endswith(f" --latents-dir {place}")
    assert satstore(*clean, copy).returncode == 1
    assert any(place.rglob("zarr.json"))
    assert satstore(*extract, copy, "--latents-dir", place).returncode == 0
    assert satstore(*clean, copy).returncode == 0
    assert not any(place.rglob("zarr.json"))


def test_run_folder__that_is_a_link_is_read_and_not_written(received_logs: Path, tmp_path: Path) -> None:
    logs = Path(shutil.copytree(received_logs, tmp_path / "logs"))
    [run] = logs.glob("res/*")
    run.rename(tmp_path / run.name)
    run.symlink_to(tmp_path / run.name)
    assert satstore("show", "res", "--logs-dir", logs).returncode == 0
    done = satstore("saturation", "--run", "res", "--overwrite", "--logs-dir", logs)
    assert done.returncode == 1
    assert f"{run} is a link" in done.stderr


SPY = """
from pathlib import Path
Path("ran").touch()
"""


def test_received_run__imports_no_plugin_that_the_user_did_not_name(
    demo_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin lies beside the run, in the folder that was received."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "received_spy.py").write_text(SPY)
    [path] = demo_copy.glob("*/*/manifest.json")
    run = Run(path.parent)
    run.commit(change=lambda manifest: manifest.config.__setitem__("plugins", ["received_spy"]))
    where = ["--run", run.run_id, "--logs-dir", demo_copy]
    stages = (["probe", "-d", "1"], ["extract", "-d", "1"], ["saturation"], ["run"], ["own-stage"])
    for words in (*stages, ["estimate"]):
        done = satstore(*words, *where)
        assert done.returncode == 1, words
        assert "names the plugin 'received_spy', whose code would run" in done.stderr
        assert not (tmp_path / "ran").exists()
    for words in (["show", run.run_id], ["plot", run.run_id], ["verify", run.run_id], ["report", run.run_id]):
        assert satstore(*words, "--logs-dir", demo_copy).returncode == 0
    assert not (tmp_path / "ran").exists()
    with monkeypatch.context() as patch:
        patch.setenv("SATSTORE_PLUGINS", "other, received_spy")
        assert satstore("saturation", *where).returncode == 0
    assert (tmp_path / "ran").exists()
    sys.modules.pop("received_spy")
    (tmp_path / "ran").unlink()
    assert satstore("saturation", *where).returncode == 0, "it is remembered"
    sys.modules.pop("received_spy")
