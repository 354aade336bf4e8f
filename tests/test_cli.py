"""The command line: what it prints, what it imports, and how it fails."""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL, satstore

from satstore.cli import main
from satstore.config import ExperimentConfig, read_config
from satstore.logs import make_run
from satstore.run import Run

SLOW = ("torch", "torchvision", "dask", "sklearn", "matplotlib", "zarr", "pandas", "numpy", "scipy", "xarray")
LIGHT = (
    ["--help"],
    ["ls"],
    *(["list", what] for what in ("models", "datasets", "optimizers", "metrics")),
    ["list", "configs"],
    ["probe", "--help"],
    ["config", "defaults"],
)


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_commands__import_nothing_slow(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from satstore.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"loaded = sorted(set({SLOW!r}) & set(sys.modules)); assert not loaded, loaded"
    )
    make_run(tmp_path / "logs", "res", ExperimentConfig())
    command = [sys.executable, "-c", code, *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_light_commands__start_quickly(tmp_path: Path) -> None:
    def seconds(*words: str) -> float:
        """CPU time of a command, which waiting for a core that others use does not add to."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def slowness() -> float:
        """How many times longer a million additions take than the 50 ms of an idle core."""
        started, total = time.process_time(), 0
        for number in range(10**6):
            total += number
        return max(1.0, (time.process_time() - started) / 0.05)

    seconds("-m", "satstore", "ls")  # compiles what a new installation hasn't yet
    for words in (("--help",), ("ls",), ("list", "models")):
        # Interleaved, and the smallest of differences, each by how slow the machine was at that moment.
        more = [(seconds("-m", "satstore", *words) - seconds("-c", "pass")) / slowness() for _ in range(5)]
        # 0.35 s on an idle core; what is slow to import takes seconds, or fails in the test above.
        assert min(more) < 0.8, f"{words}: {statistics.median(more):.2f} s more than python -c pass"


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Run a command line that fails, and return its exit code and its one line."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("satstore: importing the plugin ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("satstore: ")
    assert isinstance(stop.value.code, int)
    return stop.value.code, lines[0].removeprefix("satstore: ").strip()


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
def test_train__refuses_a_bad_config(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(content)
    code, error = fails(
        capsys, "train", "--config", config, "--run-id", "res", "--logs-dir", tmp_path / "logs"
    )
    assert code == 1
    assert message in error
    assert not (tmp_path / "logs").exists()


def test_train__refuses_a_bad_run_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run_id in ("a/b", "..", "a\x1bb"):
        code, error = fails(capsys, "train", "--config", "demo", "--run-id", run_id, "--logs-dir", tmp_path)
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
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = fails(capsys, *words)
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
def test_commands__exit_with_2_on_a_wrong_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = fails(capsys, *words)
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


def test_probe__names_the_command_that_is_to_run_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "res", ExperimentConfig(model="vgg5", dataset="Digits"))
    code, error = fails(capsys, "probe", "--run", "res", "--logs-dir", tmp_path)
    assert code == 1
    missing = "probe needs train first (missing: epochs 1 to 30)"
    assert error == f"{run.name}: {missing}; run: satstore train --run {run.name}"


def test_config_defaults__is_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["config", "defaults"])
    assert read_config(json.loads(capsys.readouterr().out)) == [ExperimentConfig()]


@pytest.mark.parametrize("what", ["models", "datasets", "optimizers", "metrics", "stages", "configs"])
def test_list__prints_every_name(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    from satstore import registry

    with pytest.raises(SystemExit):
        main(["list", what])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0].split(":")[0] for line in lines]
    expected = ["demo"] if what == "configs" else list(getattr(registry, what.upper()))
    assert set(expected) <= set(names)


# The demo, end to end


def test_demo__shows_every_layer_and_says_where_things_are(demo_logs: Path, demo_run: Run) -> None:
    text = (demo_logs / "stdout").read_text()
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


def test_demo__commands_to_try_next_work(demo_logs: Path, tmp_path: Path) -> None:
    lines = (demo_logs / "stdout").read_text().split("try next:\n")[1].splitlines()
    assert len(lines) == 3
    # They add to the run, which other tests read: so to a copy of it.
    logs = shutil.copytree(demo_logs, tmp_path / "logs")
    for line in (line.replace(str(demo_logs), str(logs)) for line in lines):
        assert str(logs) in line
        result = subprocess.run(line.split(), capture_output=True, text=True, check=False)
        assert result.returncode == 0, (line, result.stderr)


def test_demo__second_run_finds_all_done(demo_logs: Path, demo_run: Run) -> None:
    before = demo_run.read_file("checkpoint.pt")
    started = time.perf_counter()
    result = satstore("demo", "--logs-dir", demo_logs)
    assert result.returncode == 0, result.stderr
    assert [line.split()[1:] for line in result.stderr.splitlines()] == [
        [f"{stage}:", "found", "done"] for stage in ("train", "extract", "saturation", "probe")
    ]
    assert time.perf_counter() - started < 10
    assert Run(demo_run.path).read_file("checkpoint.pt") == before


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


def test_probe__with_other_settings_needs_overwrite(
    demo_logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = fails(capsys, "probe", "--run", "demo", "-C", "0.1", "--logs-dir", demo_logs)
    assert code == 1
    assert "were fitted with C 1.0" in error
    assert "--overwrite" in error


def test_run__stages_and_workers_from_the_command_line(tmp_path: Path, demo_logs: Path) -> None:
    """Two experiments of one grid, probes in two processes: the same numbers as in one."""
    config = tmp_path / "config.json"
    content = {"model": "vgg5_S", "dataset": "Digits", "resolution": 8, "epoch": 1}
    config.write_text(json.dumps({**content, "delta": [0.9, 0.99], "seed": [0, 1]}))
    words = ["run", "--config", config, "--logs-dir", tmp_path, "--device", "cpu", "-d", "2"]
    result = satstore(*words, "--run-id", "two", "-mp", "2")
    assert result.returncode == 0, result.stderr
    one = satstore(*words, "--run-id", "one", "-mp", "1")
    assert one.returncode == 0, one.stderr

    runs = [Run(path.parent) for path in sorted(tmp_path.glob("two/*/manifest.json"))]
    assert len(runs) == 2, "delta is no part of what an experiment is"
    for run in runs:
        assert sorted(run.table("saturation")["delta"].unique()) == [0.9, 0.99]
        assert list(run.manifest.latents) == ["pool2"]
        other = Run(tmp_path / "one" / run.experiment)
        columns = ["layer", "eval_accuracy", "objective", "n_iter"]
        assert run.table("probe-pool2")[columns].equals(other.table("probe-pool2")[columns])
    assert result.stderr.count("train: found done") == 2


def test_run__ends_with_a_table_and_one_failed_experiment_does_not_stop_the_others(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    datasets = ["ImageFolder:nowhere", "Digits"]
    config.write_text(
        json.dumps({**SMALL, "resolution": 8, "dataset": datasets, "stages": ["train", "saturation"]})
    )
    words = ["run", "--config", config, "--run-id", "res", "--logs-dir", tmp_path]
    rows = []
    for _ in range(2):
        result = satstore(*words)
        assert result.returncode == 1
        assert "1 of 2 experiments failed" in result.stderr
        assert "no folder" in result.stderr
        assert "Traceback" not in result.stderr
        rows.append([" ".join(line.split()) for line in result.stdout.splitlines()])
    (failed, digits), heads = sorted(p.name for p in tmp_path.glob("res/*")), "experiment train saturation"
    failed, digits = (failed, digits) if "ImageFolder" in failed else (digits, failed)
    lost = f"res/{failed} failed –"
    assert rows[0] == [heads, lost, f"res/{digits} done done", "2 done, 0 found done, 1 failed"]
    assert rows[1] == [heads, lost, f"res/{digits} found done found done", "0 done, 2 found done, 1 failed"]
    [run] = [Run(p.parent) for p in tmp_path.glob("res/*Digits*/manifest.json")]
    assert not run.manifest.latents, "the config's stages have no extract"
    found = satstore("train", "--run", run.name, "--logs-dir", tmp_path)
    assert "train: found done" in found.stderr
    assert satstore("train", "--run", run.name, "--latents", "--logs-dir", tmp_path).returncode == 0
    run.reload()
    assert list(run.manifest.latents) == ["pool4"]


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
    config = {"model": "Mixed", "plugins": ["my_models"], "dataset": "Digits", "epoch": 1, "batch_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    trained = satstore("run", "--config", "config.json", "--run-id", "a", "--device", "cpu", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    again = satstore("extract", "--run", "a", "-d", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    [manifest] = tmp_path.glob("logs/a/*/manifest.json")
    run = Run(manifest.parent)
    assert run.layers == ["conv", "up", "tokens", "lstm", "fc"]
    assert [record.n_features for record in run.manifest.layers] == [8, 6, 12, 10, 10]
    assert list(run.table("probe-pool4")["layer"]) == run.layers
    assert len(run.manifest.summary.saturation) == 5


def test_commands__name_what_they_do_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "show takes nothing more, but found: other words; see satstore show --help"
    assert fails(capsys, "show", "res", "other", "words") == (2, expected)
