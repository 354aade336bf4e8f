"""The command line: what it prints, what it imports, and how it fails."""

import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import SMALL, fail, satstore
from small_data import write_folder

from satstore import registry
from satstore.cli import app
from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import read_config
from satstore.config.latent_keys import LatentsKey
from satstore.runs.logs_folder import make_run
from satstore.runs.run import Run

SLOW = ("torch", "torchvision", "dask", "sklearn", "matplotlib", "zarr", "pandas", "numpy", "scipy", "xarray")
LIGHT = (
    ["--help"],
    ["ls"],
    *(["list", what] for what in ("models", "datasets", "optimizers", "metrics")),
    ["list", "configs"],
    ["probe", "--help"],
    ["config", "defaults"],
)


def test_light_commands__import_nothing_slow(tmp_path: Path) -> None:
    """One after the other, in one process: what the last has loaded, all have."""
    code = (
        "import sys; from satstore.cli import main\n"
        f"for words in {LIGHT!r}:\n"
        "    try: main(words)\n"
        "    except SystemExit as stop: assert not stop.code, (words, stop.code)\n"
        "    print('\\n--')\n"
        f"    loaded = sorted(set({SLOW!r}) & set(sys.modules)); assert not loaded, (words, loaded)"
    )
    make_run(tmp_path / "logs", "res", ExperimentConfig())
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    *said, rest = result.stdout.split("\n--\n")
    assert (len(said), rest) == (len(LIGHT), "")
    assert all(said)


def test_help__imports_no_module_of_a_command() -> None:
    code = (
        "import sys; from satstore.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*(name for name in sys.modules if name.startswith('satstore.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands = app.COMMANDS | app.CONFIG_COMMANDS | app.DATASET_COMMANDS
    files = {row[0].partition(":")[0] for row in commands.values() if isinstance(row, tuple)}
    assert len(files) > 10
    loaded = {name.rpartition(".")[2] for name in done.stdout.splitlines()[-1].split()}
    assert "app" in loaded
    assert files & loaded == set()


def test_table__names_functions_that_exist() -> None:
    for parent in (app.app, app.config_app, app.dataset_app):
        assert all(command.help for command in parent.resolved_commands().values() if command.default_command)


BAD_CONFIGS = [
    ("{", "config.json is not JSON: Expecting property name"),
    ("[]", "config.json holds a JSON list; expected an object of config keys"),
    ('{"modle": "vgg11"}', "unknown config key 'modle'; did you mean 'model'?"),
    ('{"model": "resnet81"}', "no model named 'resnet81'; did you mean 'resnet18'?"),
    ('{"dataset": "cifar10"}', "no dataset named 'cifar10'; did you mean 'Cifar10'?"),
    ('{"optimizer": "adamm"}', "no optimizer named 'adamm'; did you mean 'adam'?"),
    ('{"metrics": ["Acuracy"]}', "no metric named 'Acuracy'; did you mean 'Accuracy'?"),
    ('{"metrics": "Accuracy"}', "'metrics' takes a list, found 'Accuracy'"),
    ('{"stages": ["trian"]}', "no stage named 'trian'; did you mean 'train'?"),
    ('{"epoch": 0}', "'epoch': input should be greater than or equal to 1, found 0"),
    ('{"delta": 1.5}', "'delta': input should be less than or equal to 1, found 1.5"),
    ('{"pooling": ["0"]}', "'pooling.0': expected a number from 1 to 9999, full, or pixelwise, found '0'"),
    ('{"model": "vgg5", "model": "vgg6"}', "the key 'model' is there twice"),
    ('{"dataset": "ImageFolder:"}', "dataset 'ImageFolder:' needs a value: ImageFolder:PATH"),
    ('{"plugins": ["no_such_module_"]}', "plugin 'no_such_module_' can't be imported"),
    ('{"layers": "("}', "'layers': '(' is no regular expression"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CONFIGS)
def test_train__refuses_a_bad_config(content: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(content)
    code, error = fail("train", "--config", config, "--run-id", "res", "--logs-dir", tmp_path / "logs")
    assert code == 1
    assert message in error
    assert not (tmp_path / "logs").exists()


def test_train__refuses_a_bad_run_id(tmp_path: Path) -> None:
    for run_id in ("a/b", "..", "a\x1bb"):
        code, error = fail("train", "--config", "demo", "--run-id", run_id, "--logs-dir", tmp_path)
        assert (code, "can't be used" in error, "\x1b" in error) == (1, True, False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--config", "nowhere.json", "--run-id", "a"], "no config file 'nowhere.json'"),
        (["train", "--config", "dem", "--run-id", "a"], "did you mean 'demo'?"),
        (["train", "--config", "demo"], "--config needs --run-id"),
        (["train", "--config", "demo", "--run", "a", "--run-id", "a"], "exclude each other"),
        (["probe"], "nothing to work on"),
        (["probe", "--run", "res"], "no run 'res' in "),
        (["show", "res"], "no run 'res' in "),
        (["plot", "res"], "no run 'res' in "),
    ],
)
def test_commands__say_what_is_missing(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = fail(*words)
    assert code == 1
    assert message in error
    if message == "no run 'res' in ":
        assert str(tmp_path / "logs") in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe", "--run", "res", "--poling", "4"], "--poling"),
        (["prob", "--run", "res"], "probe"),
        (["probe", "--run", "res", "-mp", "0"], "greater than or equal to 1"),
        (["probe", "--run", "res", "-d", "four"], "four"),
        (["saturation", "--run", "res", "--delta", "1.5"], "less than or equal to 1"),
        (["extract", "--run", "res", "--memory-limit", "much"], "much"),
        (["list", "cats"], "cats"),
    ],
)
def test_commands__exit_with_2_on_a_wrong_usage(words: list[str], message: str) -> None:
    code, error = fail(*words)
    assert code == 2
    assert message in error


def test_commands__show_the_traceback_with_debug(tmp_path: Path) -> None:
    result = satstore("show", "res", "--debug", "--logs-dir", tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("satstore: no run 'res'")


def test_train__names_the_device_that_is_not_there(tmp_path: Path) -> None:
    result = satstore(
        "train", "--config", "demo", "--run-id", "a", "--device", "cuda:99", "--logs-dir", tmp_path
    )
    assert result.returncode == 1
    assert result.stderr.startswith("satstore: device 'cuda:99' is not there")
    assert result.stderr.count("\n") == 1


def test_train__names_the_dataset_folder_that_is_not_there(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"dataset": "ImageFolder:birds", "model": "vgg5", "cache_dir": str(tmp_path)})
    )
    result = satstore("train", "--config", config, "--run-id", "a", "--device", "cpu", "--logs-dir", tmp_path)
    assert result.returncode == 1
    assert str(tmp_path / "birds") in result.stderr
    assert result.stderr.count("\n") == 1

    shown = satstore("show", "a", "--logs-dir", tmp_path)
    assert "✗ train" in shown.stdout
    assert f"train failed: {result.stderr.removeprefix('satstore: ').strip()}" in shown.stdout


def test_probe__names_the_command_that_is_to_run_first(tmp_path: Path) -> None:
    run = make_run(tmp_path, "res", ExperimentConfig(model="vgg5", dataset="Digits"))
    code, error = fail("probe", "--run", "res", "--logs-dir", tmp_path)
    assert code == 1
    missing = "probe needs train first (missing: epochs 1 to 30)"
    assert error == f"{run.name}: {missing}; run: satstore train --run {run.name}"


def test_config_defaults__is_a_config() -> None:
    assert read_config(json.loads(satstore("config", "defaults").stdout)) == [ExperimentConfig()]


@pytest.mark.parametrize("what", ["models", "datasets", "optimizers", "metrics", "stages", "configs"])
def test_list__prints_every_name(what: str) -> None:
    lines = satstore("list", what).stdout.splitlines()
    names = [line.split()[0].split(":")[0] for line in lines]
    expected = ["demo"] if what == "configs" else list(getattr(registry, what.upper()))
    assert set(expected) <= set(names)


# The demo, end to end


def test_demo__shows_every_layer_and_says_where_things_are(demo_logs: Path, demo_run: Run) -> None:
    text = demo_logs.with_name("stdout").read_text()
    shown = [line.split()[0] for line in text.splitlines() if line.startswith(("features.", "classifier."))]
    assert shown == demo_run.layers
    assert demo_run.manifest.summary.test_accuracy is not None
    assert demo_run.manifest.summary.test_accuracy >= 0.95
    assert f"test accuracy  {demo_run.manifest.summary.test_accuracy:.2%}" in text
    assert str(demo_run.path) in text
    assert (demo_run.path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_demo__split_is_that_of_the_digits(demo_run: Run) -> None:
    dataset = demo_run.manifest.dataset
    assert dataset is not None
    assert (dataset.n_train, dataset.n_eval, dataset.classes) == (1437, 360, list("0123456789"))


def test_demo__opens_no_socket(shared_demo: Path) -> None:
    """It runs where each connection raises, and where a socket was tried before, to no avail."""
    assert "\ntest accuracy  9" in (shared_demo / "stdout").read_text()


def next_commands(demo_logs: Path, logs: Path) -> list[str]:
    """Return the commands that the demo says to try next, on another logs folder."""
    lines = demo_logs.with_name("stdout").read_text().split("try next:\n")[1].splitlines()
    assert all(str(demo_logs) in line for line in lines)
    return [line.replace(str(demo_logs), str(logs)).strip() for line in lines]


def test_demo__command_to_try_next_is_this_program(demo_logs: Path, demo_copy: Path) -> None:
    first, *others = next_commands(demo_logs, demo_copy)
    shown = subprocess.run(shlex.split(first), capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    program = first.partition("show ")[0]
    assert all(line.startswith(program) for line in others)


@pytest.mark.parametrize("index", [0, 1, pytest.param(2, marks=pytest.mark.long)])
def test_demo__commands_to_try_next_work(index: int, demo_logs: Path, demo_copy: Path) -> None:
    lines = next_commands(demo_logs, demo_copy)
    assert len(lines) == 3
    result = satstore(*shlex.split(lines[index].rpartition("satstore ")[2]))
    assert result.returncode == 0, result.stderr


def files_of(folder: Path) -> dict[Path, tuple[int, str]]:
    """Return when each file was written, and the digest of what is in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def test_demo__second_run_finds_all_done(demo_copy: Path) -> None:
    """It says so, and has written nothing but that it was there."""
    before = files_of(demo_copy / "demo")
    result = satstore("demo", "--logs-dir", demo_copy)
    assert result.returncode == 0, result.stderr
    assert [line.split()[1:] for line in result.stderr.splitlines()] == [
        [f"{stage}:", "found", "done"] for stage in ("train", "extract", "saturation", "probe")
    ]
    after = files_of(demo_copy / "demo")
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {"events.jsonl"}


def test_demo__of_a_device_that_is_none_makes_no_folder(tmp_path: Path) -> None:
    for words in (("demo", "--logs-dir", tmp_path), ("estimate", "--config", "demo")):
        code, error = fail(*words, "--device", "gpu")
        assert code == 2
        assert error == "--device: expected cpu or cuda:N, found 'gpu'"
    assert not any(tmp_path.iterdir())


def test_show__spells_stages_as_their_commands_are_spelt(demo_logs: Path) -> None:
    shown = satstore("show", "demo", "--logs-dir", demo_logs).stdout.splitlines()
    assert {"train", "probe", "receptive-field", "project"} < set(shown[3].split())


def test_ls__json_has_the_documented_form(demo_logs: Path, demo_run: Run) -> None:
    result = satstore("ls", "--json", "--logs-dir", demo_logs)
    [row] = [row for row in json.loads(result.stdout) if row["run_id"] == "demo"]
    assert row == {
        "run_id": "demo",
        "experiment": demo_run.experiment,
        "path": str(demo_run.path),
        "model": "vgg11_XS",
        "dataset": "Digits",
        "resolution": 32,
        "epochs": 10,
        "epochs_done": demo_run.manifest.summary.epochs_done,
        "test_accuracy": demo_run.table("metrics")["eval_accuracy"].iloc[-1],
        "stages": {
            **dict.fromkeys(("train", "extract", "saturation", "probe", "flops"), "done"),
            **dict.fromkeys(("receptive_field", "project"), "missing"),
        },
    }


def test_show__json_has_a_row_per_layer(demo_logs: Path, demo_run: Run) -> None:
    result = satstore("show", "demo", "--json", "--logs-dir", demo_logs)
    content = json.loads(result.stdout)
    table = demo_run.table("probe-pool4").set_index("layer")
    saturation = demo_run.saturation(delta=0.99, split="train").groupby("layer").last()
    assert content["config"] == demo_run.config.model_dump(mode="json")
    assert {stage: record["status"] for stage, record in content["stages"].items()} == dict.fromkeys(
        ("train", "flops", "extract", "saturation", "probe"), "done"
    )
    for index, row in enumerate(content["layers"]):
        assert row["index"] == index
        assert row["kind"] in ("Conv2d", "Linear")
        assert row["probe_accuracy"]["pool4"] == table.loc[row["layer"], "eval_accuracy"]
        assert row["intrinsic_dimension"] == saturation.loc[row["layer"], "intrinsic_dimension"]
        assert row["saturation"] == row["intrinsic_dimension"] / row["n_features"]


def test_probe__with_other_settings_needs_overwrite(demo_copy: Path) -> None:
    code, error = fail("probe", "--run", "demo", "-C", "0.1", "--logs-dir", demo_copy)
    assert code == 1
    assert "were fitted with C 1.0" in error
    assert "--overwrite" in error


def run_grid(folder: Path, run_id: str, *words: object) -> list[Run]:
    """Run a grid of two experiments, and return them."""
    config = folder / "config.json"
    content = {"model": "vgg5_S", "dataset": "ImageFolder:insects", "cache_dir": str(folder), "resolution": 8}
    config.write_text(json.dumps({**content, "epoch": 1, "workers": 0, "delta": [0.9, 0.99], "seed": [0, 1]}))
    if not (folder / "insects").exists():
        write_folder(folder / "insects")
    words = ("run", "--config", config, "--run-id", run_id, "--logs-dir", folder, "--device", "cpu", *words)
    result = satstore(*words)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("train: found done") == 2
    return [Run(path.parent) for path in sorted(folder.glob(f"{run_id}/*/manifest.json"))]


def test_run__takes_a_grid_and_poolings_from_the_command_line(tmp_path: Path) -> None:
    runs = run_grid(tmp_path, "res", "-d", 2)
    assert len(runs) == 2, "delta is no part of what an experiment is"
    for run in runs:
        assert sorted(run.table("saturation")["delta"].unique()) == [0.9, 0.99]
        assert list(run.manifest.latents) == [LatentsKey("2")]


@pytest.mark.long
def test_run__probes_in_two_processes_are_those_of_one(tmp_path: Path) -> None:
    two, one = (run_grid(tmp_path, str(n_workers), "-d", 2, "-mp", n_workers) for n_workers in (2, 1))
    assert len(two) == 2
    columns = ["layer", "eval_accuracy", "objective", "n_iter"]
    for run, other in zip(two, one, strict=True):
        assert run.experiment == other.experiment
        assert run.table("probe-pool2")[columns].equals(other.table("probe-pool2")[columns])


def test_run__ends_with_a_table_and_one_failed_experiment_does_not_stop_the_others(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    write_folder(tmp_path / "insects")
    datasets = ["ImageFolder:nowhere", "ImageFolder:insects"]
    content = {**SMALL, "model": "vgg5_S", "resolution": 8, "cache_dir": str(tmp_path), "workers": 0}
    config.write_text(json.dumps({**content, "dataset": datasets, "stages": ["train", "saturation"]}))
    words = ["run", "--config", config, "--run-id", "res", "--logs-dir", tmp_path]
    rows = []
    for _ in range(2):
        result = satstore(*words)
        assert result.returncode == 1
        assert "1 of 2 experiments failed" in result.stderr
        assert "no folder" in result.stderr
        assert "Traceback" not in result.stderr
        rows.append([" ".join(line.split()) for line in result.stdout.splitlines()])
    [failed], [whole] = ([p.name for p in tmp_path.glob(f"res/*{name}*")] for name in ("nowhere", "insects"))
    heads, lost = "experiment train saturation", f"res/{failed} failed –"
    assert rows[0] == [heads, lost, f"res/{whole} done done", "2 done, 0 found done, 1 failed"]
    assert rows[1] == [heads, lost, f"res/{whole} found done found done", "0 done, 2 found done, 1 failed"]
    run = Run(tmp_path / "res" / whole)
    assert not run.manifest.latents, "the config's stages have no extract"
    found = satstore("train", "--run", run.name, "--logs-dir", tmp_path)
    assert "train: found done" in found.stderr
    assert satstore("train", "--run", run.name, "--latents", "--logs-dir", tmp_path).returncode == 0
    run.reload()
    assert list(run.manifest.latents) == [LatentsKey("4")]


PLUGIN = """
import torch
from torch import nn
from satstore.registry import MODELS


@MODELS.register("Mixed")
class Mixed(nn.Module):
    '''A net with a transposed conv, tokens and an LSTM.'''

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.tokens = nn.Linear(6, 12)
        self.lstm = nn.LSTM(12, 10, batch_first=True)
        self.fc = nn.Linear(10, num_classes)

    def forward(self, x):
        maps = self.up(torch.relu(self.conv(x)))
        steps = self.tokens(maps.mean(2).transpose(1, 2))
        return self.fc(self.lstm(steps)[0][:, -1])
"""


def test_plugin__brings_a_model_with_layers_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(PLUGIN)
    write_folder(tmp_path / "insects")
    config = {"model": "Mixed", "plugins": ["my_models"], "dataset": "ImageFolder:insects", "cache_dir": "."}
    config |= {"epoch": 1, "batch_size": 8, "workers": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    trained = satstore("run", "--config", "config.json", "--run-id", "a", "--device", "cpu", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    again = satstore("extract", "--run", "a", "-d", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    [manifest] = tmp_path.glob("logs/a/*/manifest.json")
    run = Run(manifest.parent)
    assert run.layers == ["conv", "up", "tokens", "lstm", "fc"]
    assert [record.n_features for record in run.manifest.layers] == [8, 6, 12, 10, 3]
    assert [record.form for record in run.manifest.layers] == ["map", "map", "tokens", "steps", "vector"]
    assert list(run.table("probe-pool4")["layer"]) == ["conv", "up", "lstm", "fc"]
    assert list(run.table("probe-mean")["layer"]) == ["tokens", "lstm", "fc"]
    assert len(run.manifest.summary.saturation) == 5


def test_commands__name_what_they_do_not_take() -> None:
    expected = "show takes nothing more, but found: other words; see satstore show --help"
    assert fail("show", "res", "other", "words") == (2, expected)
