"""Runs of data without labels: all works that needs none, and what needs some says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from torch import Tensor, nn

import satstore
from satstore.errors import ConfigError
from satstore.runs.manifest import DatasetRecord, LayerRecord, Manifest, drawn_layers
from satstore.runs.verify import Verification
from satstore.storage.zarr.latent_reader import NO_LABEL


class Backbone(nn.Module):
    """A model without a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.last = nn.Conv2d(1, 6, 3), nn.Linear(24, 8), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.adaptive_avg_pool2d(self.conv(images), 2)
        return self.last(torch.relu(self.first(maps.flatten(1))))


IMAGES = torch.randn(40, 1, 9, 14, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> satstore.Run:
    torch.manual_seed(0)
    logs = tmp_path_factory.mktemp("logs")
    return satstore.record(Backbone(), IMAGES.split(16), "bare", [IMAGES[:20]], logs_dir=logs)


def test_record__without_labels_stores_all_but_accuracies(run: satstore.Run) -> None:
    record = run.manifest.dataset
    assert record is not None
    assert (record.has_labels, record.classes, record.n_train, record.n_eval) == (False, [], 40, 20)
    for split, n in (("train", 40), ("eval", 20)):
        latents = run.latents("pool4", split)
        np.testing.assert_array_equal(latents.labels, np.full(n, NO_LABEL))
        np.testing.assert_array_equal(latents.sample_ids, np.arange(n))
        assert list(run.spectra(split)) == ["conv", "first", "last"]
    assert run.table("metrics").columns.tolist() == ["epoch"]
    assert run.manifest.summary.test_accuracy is None
    assert set(run.manifest.summary.saturation) == {"conv", "first", "last"}
    assert not run.manifest.warnings
    assert drawn_layers(run.manifest) == ["conv", "first", "last"], "no layer is a classifier's"
    assert [str(finding) for finding in Verification(run).findings()] == []


def test_verify__finds_a_label_where_there_should_be_none(
    run: satstore.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_labels = run.manifest.model_copy(deep=True)
    assert has_labels.dataset is not None
    has_labels.dataset.has_labels = True
    has_labels.dataset.classes = ["a", "b"]
    verification = Verification(run)
    monkeypatch.setattr(run, "reload", lambda: None)
    monkeypatch.setattr(run, "manifest", has_labels)
    lines = [str(finding) for finding in verification.findings()]
    assert any("label has a class -1; there are 2" in line for line in lines)


def test_commands__work_without_labels(run: satstore.Run, tmp_path: Path) -> None:
    logs = run.path.parents[1]
    for words in (
        ["show", "bare"],
        ["show", "bare", "--advice"],
        ["saturation", "--run", "bare", "--overwrite"],
        ["plot", "bare", "--out", tmp_path],
        ["report", "bare", "--out", tmp_path / "report.html"],
        ["verify", "bare"],
    ):
        code, out, err = call(*words, "--logs-dir", logs)
        assert code == 0, err
        if words == ["show", "bare"]:
            assert "recorded, no labels" in out
        if words[-1] == "--advice":
            said = " ".join(out.split())
            assert "run satstore probe --labels FILE, as there are no labels" in said
            assert "border layer: not known; a recorded model has one for square images" in said
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_receptive_field__of_images_that_are_not_square_is_refused(run: satstore.Run) -> None:
    code, _, err = call("receptive-field", "--run", "bare", "--logs-dir", run.path.parents[1])
    assert code == 1
    assert "has no receptive fields: those of a recorded model are found while it is recorded" in err


def test_compare__says_that_ids_alone_tell_the_samples_the_same(run: satstore.Run, tmp_path: Path) -> None:
    torch.manual_seed(1)
    logs, labels = run.path.parents[1], torch.arange(40) % 2
    satstore.record(Backbone(), [(IMAGES, labels)], "labelled", [(IMAGES[:20], labels[:20])], logs_dir=logs)
    words = ["compare", "bare", "labelled", "--cka", "--out", tmp_path / "cka.png", "--logs-dir", logs]
    code, _, err = call(*words)
    assert code == 0, err
    assert f"warning: {run.name}: no labels, so that the number of samples and their ids alone tell" in err
    satstore.record(Backbone(), [IMAGES[:30]], "fewer", logs_dir=logs)
    code, _, err = call("compare", "bare", "fewer", "--cka", "--logs-dir", logs)
    assert code == 1
    assert "have other sample ids" in err


@pytest.mark.parametrize(
    ("loader", "eval_loader", "message"),
    [
        (
            [IMAGES[:8], (IMAGES[8:16], torch.zeros(8))],
            None,
            "batch 1 of loader has labels, the ones before had none",
        ),
        (
            [IMAGES[:8]],
            [(IMAGES[8:16], torch.zeros(8))],
            "eval_loader has labels, loader has none; give both labels, or neither",
        ),
        (
            [(IMAGES[:8], torch.zeros(8))],
            [IMAGES[8:16]],
            "eval_loader has no labels, loader has some; give both labels, or neither",
        ),
    ],
)
def test_record__wants_labels_everywhere_or_nowhere(
    loader: object, eval_loader: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        satstore.record(Backbone(), loader, "a", eval_loader, logs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_record__wants_labels_for_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loader yields no labels for the classes given; leave them out"):
        satstore.record(Backbone(), [IMAGES], "a", classes=["a", "b"], logs_dir=tmp_path)


@pytest.mark.parametrize(
    ("form", "n_classes", "shown"),
    [
        ("vector", 5, ["conv", "first"]),
        ("vector", 3, ["conv", "first", "last"]),
        ("vector", 0, ["conv", "first", "last"]),
        ("", 3, ["conv", "first"]),
    ],
    ids=["classifier", "more logits than classes", "no labels", "old run"],
)
def test_drawn_layers__leave_out_the_last_linear_of_a_classifier(
    form: str, n_classes: int, shown: list[str]
) -> None:
    kinds = {
        "conv": ("Conv2d", 6),
        "down.shortcut": ("Conv2d", 6),
        "first": ("Linear", 8),
        "last": ("Linear", 5),
    }
    layers = [
        LayerRecord(layer=name, index=i, kind=kind, n_features=n, output_shape=[n], form=form)
        for i, (name, (kind, n)) in enumerate(kinds.items())
    ]
    classes = [f"class {i}" for i in range(n_classes)]
    dataset = DatasetRecord(name="Recorded", n_train=9, n_eval=9, classes=classes, fingerprint="")
    manifest = Manifest(
        run_id="a", experiment="b", created=1, config={}, config_sha256="", dataset=dataset, layers=layers
    )
    assert drawn_layers(manifest) == shown
