"""``satstore record``: models of libraries and of one's own code, on datasets and folders."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from command_line import satstore, satstore_process
from PIL import Image
from recorded_stores import read_stores
from small_data import write_folder, write_image
from torch import nn
from torchvision.transforms import functional

from satstore import open_run, record
from satstore.config.latent_keys import LatentsKey
from satstore.jobs.job import list_jobs
from satstore.runs.logs_folder import find_runs
from satstore.runs.repair import record_call
from satstore.runs.run import Run
from satstore.runs.verify import Verification

NETS = '''
import os
import signal

import torch
from torch import nn


def small(n_outputs=3):
    """Return a classifier of images of any size, without its recipe."""
    pooled = nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), *pooled, nn.Linear(16, n_outputs))


def embed(text):
    """Return the first bytes of a text."""
    return torch.tensor([*text.encode(), *8 * [0]][:8])


def reader():
    """Return an encoder of texts, with its recipe."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(256, 6), nn.Flatten(), nn.Linear(48, 5)), embed


class Stopping(nn.Module):
    """Passes on what it is given, and in its fifth call in this folder sends its own process SIGTERM."""

    n_calls = 0

    def forward(self, texts):
        """Return the texts."""
        self.n_calls += 1
        if self.n_calls == 5 and not os.path.exists("stopped"):
            open("stopped", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
        return texts


def stopping():
    """Return an encoder of texts that is stopped on the way, with its recipe."""
    return nn.Sequential(Stopping(), *reader()[0]), embed


class Halve(nn.Module):
    """Halves what it is given."""

    def forward(self, images):
        """Return half the images."""
        return images / 2


class Twice(nn.Module):
    """Calls one module twice."""

    def __init__(self):
        super().__init__()
        self.body = Halve()

    def forward(self, images):
        """Return a quarter of the images."""
        return self.body(self.body(images))


twice = Twice


def unsendable():
    """Return a model with a recipe that no process but this one has."""
    return reader()[0], lambda text: embed(text)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working folder with a module of models, and two folders of data."""
    (tmp_path / "nets.py").write_text(NETS)
    write_folder(tmp_path / "insects")
    for label, topic in enumerate(("sea", "sky")):
        (tmp_path / "texts" / topic).mkdir(parents=True)
        for n in range(8):
            (tmp_path / "texts" / topic / f"{n}.txt").write_text(f"{topic} {n}, {'wet' if label else 'high'}")
    return tmp_path


def record_run(folder: Path, *words: str) -> Run:
    """Run ``satstore record`` in a folder, and open the run that it names."""
    done = satstore("record", *words, "--run-id", "r", "--logs-dir", "logs", "--workers", "0", cwd=folder)
    assert done.returncode == 0, done.stderr
    return open_run(done.stdout.strip(), folder / "logs")


def test_record__of_torchvision_is_what_a_program_records(folder: Path) -> None:
    run = record_run(
        folder,
        "torchvision:mobilenet_v3_small",
        "--data",
        "insects",
        "--untrained",
        "--seed",
        "3",
        "--layers",
        "classifier|12",
    )
    torch.manual_seed(3)
    model = torchvision.models.mobilenet_v3_small(weights=None)
    transform = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.transforms()
    loaders = [
        [
            (torch.stack([transform(Image.open(path).convert("RGB")) for path in paths]), labels)
            for paths, labels in _batches(folder / "insects" / split, 32)
        ]
        for split in ("train", "val")
    ]
    expected = record(
        model,
        loaders[0],
        "by-hand",
        loaders[1],
        classes=["ant", "bee", "cat"],
        layers="classifier|12",
        logs_dir=folder / "logs",
        device="cpu",
    )
    assert run.layers == ["features.12.0", "classifier.0", "classifier.3"]
    assert read_stores(run) == read_stores(expected)
    assert run.manifest.dataset == expected.manifest.dataset
    assert run.table("saturation").equals(expected.table("saturation"))
    assert [finding for finding in Verification(run).findings() if finding.is_wrong] == []


def _batches(split: Path, size: int) -> list[tuple[list[Path], torch.Tensor]]:
    paths = sorted(split.rglob("*.*"), key=lambda path: path.relative_to(split).as_posix())
    labels = torch.tensor([["ant", "bee", "cat"].index(path.parent.name) for path in paths])
    return [(paths[at : at + size], labels[at : at + size]) for at in range(0, len(paths), size)]


def test_record__of_ones_own_model_and_texts(folder: Path) -> None:
    run = record_run(folder, "nets:reader", "--data", "texts", "--split", ".25", "--seed", "2", "-d", "full")
    chosen = np.sort(np.random.default_rng(2).permutation(16)[:4])
    assert run.manifest.dataset is not None
    assert (run.manifest.dataset.n_train, run.manifest.dataset.n_eval) == (12, 4)
    assert run.manifest.dataset.classes == ["sea", "sky"]
    latents = run.latents("full", "eval")
    np.testing.assert_array_equal(latents.sample_ids, chosen)
    np.testing.assert_array_equal(latents.labels, chosen >= 8)
    texts = [(folder / "texts" / ("sea", "sky")[n // 8] / f"{n % 8}.txt").read_text() for n in chosen]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(256, 6), nn.Flatten(), nn.Linear(48, 5))
    bytes_of = torch.tensor([list(text.encode()[:8]) for text in texts])
    np.testing.assert_allclose(latents["2"].numpy(), model(bytes_of).detach(), rtol=1e-3, atol=1e-3)
    assert satstore("probe", "--run", "r", "-d", "full", "--logs-dir", folder / "logs").returncode == 0
    more = satstore("probe", "--run", "r", "-d", "2", "--logs-dir", folder / "logs")
    command = more.stderr.partition("probe needs extract first (missing: pool2 train); run: ")[2].strip()
    assert command == record_call(run, LatentsKey("2"))
    assert satstore(*shlex.split(command)[1:], "--logs-dir", "logs", cwd=folder).returncode == 0
    run.reload()
    assert list(run.manifest.latents) == [LatentsKey("full"), LatentsKey("2")]
    again = satstore("extract", "--run", "r", "--logs-dir", folder / "logs", "-d", "2", "--overwrite")
    assert f", which extract does not open; record it again with: {record_call(run)}" in again.stderr


def test_record__without_labels(folder: Path) -> None:
    for n in range(6):
        write_image(folder / "alone" / f"{n}.png", n, (12 + n, 9))
    run = record_run(
        folder, "torchvision:mobilenet_v3_small", "--data", "alone", "--untrained", "--layers", "classifier"
    )
    assert run.manifest.dataset is not None
    assert (run.manifest.dataset.has_labels, run.manifest.dataset.classes) == (False, [])
    assert (run.manifest.dataset.n_train, run.manifest.dataset.n_eval) == (6, 6)
    assert any("alone has one split, which is train and eval" in line for line in run.manifest.warnings)
    assert [finding for finding in Verification(run).findings() if finding.is_wrong] == []


def test_source__is_noted_with_a_command_that_works(folder: Path) -> None:
    words = ["nets:small", "--data", "insects", "--untrained", "--set", "n_outputs=3", "-d", "1"]
    run = record_run(folder, *words)
    source = run.manifest.source
    assert source is not None
    assert (source.source, source.weights, source.arguments) == (
        "nets:small",
        "random, seed 0",
        {"n_outputs": 3},
    )
    assert source.data == str(folder / "insects")
    assert run.config.model == "small"
    before = read_stores(run)
    command = shlex.split(record_call(run))
    assert command[:3] == ["satstore", "record", "nets:small"]
    assert command[-1] == "--overwrite"
    done = satstore(*command[1:], "--logs-dir", "logs", cwd=folder)
    assert done.returncode == 0, done.stderr
    again = open_run(done.stdout.strip(), folder / "logs")
    assert read_stores(again) == before
    assert again.manifest.source == source
    shown = satstore("show", "r", "--logs-dir", folder / "logs").stdout
    assert "  model nets:small (nets), weights: random, seed 0\n" in shown
    assert (
        f"  data  {folder / 'insects'}, prepared by: RGB pixels in 0..1, at the image's own size\n" in shown
    )
    assert f"  by    {source.command}\n" in shown


@pytest.mark.parametrize("command", ["rm -rf x", "satstore record a --run-id r; rm x", "satstore record 'a"])
def test_command__of_a_manifest_from_elsewhere_is_no_other_than_record(folder: Path, command: str) -> None:
    run = record_run(folder, "nets:small", "--data", "insects", "--untrained", "-d", "1")
    assert run.manifest.source is not None
    run.manifest.source.command = command
    assert record_call(run) == "satstore.record(…, 'r', overwrite=True)"


def test_record__takes_modules_by_call(folder: Path) -> None:
    words = ["--data", "insects", "--untrained", "--modules", "body$", "--calls", "all", "-d", "full"]
    run = record_run(folder, "nets:twice", *words)
    assert run.layers == ["body@0", "body@1"]
    images, _ = _batches(folder / "insects" / "val", 32)[0]
    pixels = torch.stack([functional.pil_to_tensor(Image.open(path).convert("RGB")) / 255 for path in images])
    latents = run.latents("full", "eval")
    for call, factor in enumerate((0.5, 0.25)):
        found = latents[f"body@{call}"].numpy()
        np.testing.assert_allclose(found, factor * pixels, rtol=1e-3, atol=1e-3)


FAILURES = [
    (["small", "--data", "insects", "--untrained"], "no run 'small' in .*logs"),
    (["nets:small", "--data", "insects"], "nets:small returns a model alone; give its weights"),
    (["nets:small", "--data", "insect", "--untrained"], "no folder .*/insect, and no dataset 'insect'"),
    (["nets:small", "--data", "digits", "--untrained"], "and no dataset 'digits'; did you mean 'Digits'?"),
    (
        ["nets:small", "--data", "Digits", "--untrained", "--split", ".2"],
        "--split is for folders of one split",
    ),
    (["nets:small", "--data", "texts", "--untrained"], "the model takes images, and .*texts holds texts"),
    (["nets:reader", "--data", "insects"], "can't be prepared for the model: AttributeError"),
    (["nets:unsendable", "--data", "texts", "--workers", "1"], "can't be sent to loader processes"),
    (["nets:small", "--data", "insects", "--untrained", "--set", "n=2"], "nets:small takes no n"),
    (
        ["nets:small", "--data", "insects", "--untrained", "--device", "cuda:77"],
        "device 'cuda:77' is not there",
    ),
]


@pytest.mark.parametrize(("words", "message"), FAILURES, ids=[message[:30] for _, message in FAILURES])
def test_record__fails_in_one_line_and_leaves_no_run(folder: Path, words: list[str], message: str) -> None:
    workers = [] if "--workers" in words else ["--workers", "0"]
    done = satstore("record", *words, *workers, "--run-id", "r", "--logs-dir", "logs", cwd=folder)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr
    assert not list((folder / "logs").glob("r/*"))


@pytest.mark.long
def test_record__in_the_background_is_a_job(folder: Path) -> None:
    words = ["--data", "texts", "--run-id", "r", "--detach", "--logs-dir", folder / "logs"]
    done = satstore("record", "nets:reader", *words, cwd=folder)
    assert done.stdout.startswith("job 1 started; follow it with: satstore log 1"), done.stderr
    assert satstore("log", "1", "--follow", "--logs-dir", folder / "logs").returncode == 0
    [run] = find_runs("r", folder / "logs")
    [job] = list_jobs(folder / "logs")
    assert (job.state, job.progress.run if job.progress else "") == ("done", run.name)
    assert run.status("extract") == "done"


@pytest.mark.long
def test_record__that_is_stopped_leaves_no_run(folder: Path) -> None:
    words = ["--data", "texts", "--run-id", "r", "--batch-size", "2", "--logs-dir", folder / "logs"]
    done = satstore_process("record", "nets:stopping", *words, cwd=folder)
    assert done.returncode == 143
    said = "satstore: stopped; what was recorded so far is removed (--resume keeps it)"
    assert done.stderr.splitlines()[-1] == said
    assert not list((folder / "logs").glob("r*"))
    [job] = list_jobs(folder / "logs")
    assert (job.state, job.exit_code) == ("cancelled", 130)


@pytest.mark.long
def test_record__that_is_to_be_resumed_goes_on(folder: Path) -> None:
    words = ["--data", "texts", "--batch-size", "2", "-d", "1", "--logs-dir", folder / "logs", "--resume"]
    done = satstore_process("record", "nets:stopping", *words, "--run-id", "r", cwd=folder)
    assert done.returncode == 143
    assert "the same command goes on" in done.stderr
    [run] = find_runs("r", folder / "logs")
    for run_id in ("r", "whole"):
        assert satstore("record", "nets:stopping", *words, "--run-id", run_id, cwd=folder).returncode == 0
    [whole] = find_runs("whole", folder / "logs")
    run.reload()
    assert read_stores(run) == read_stores(whole)
    assert satstore("record", "nets:stopping", *words, "--run-id", "r", cwd=folder).returncode == 0
    done = satstore("record", "nets:stopping", *words, "--run-id", "r", "--split", ".5", cwd=folder)
    assert done.returncode == 1
    assert "of which weights, arguments, recipe or data were others" in done.stderr
