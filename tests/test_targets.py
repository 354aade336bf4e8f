"""Targets: labels that are added to a run, and probes on them."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from command_line import satstore as satstore_command
from crashes import spread
from damages import delete, flip, truncate
from distributed import LocalCluster
from faults import Disk, Tree, digest, lay_out
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.utils.data import DataLoader

import satstore
from satstore.config.latent_keys import SPLITS, LatentsKey, ProbeKey
from satstore.errors import ConfigError, CorruptError, MissingStageError, NotFoundError, UnknownNameError
from satstore.registry import STAGES
from satstore.reports.evidence import gather
from satstore.reports.html import write_report
from satstore.reports.plots import plot_comparison, plot_evolution, plot_layers
from satstore.reports.run_curves import read_curves
from satstore.runs.archive import pack_run, unpack_run
from satstore.runs.disk_usage import measure_disk_usage, remove_latents
from satstore.runs.logs_folder import open_run
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.stages.pipeline import apply_stages
from tui.layers import View, make_curves

N_TRAIN, N_EVAL = 60, 30
SEEDS = (N_TRAIN, 1), (N_EVAL, 2)
SHAPES = ["disc", "cross", "ring"]


def make_samples(n: int, seed: int) -> list[tuple[torch.Tensor, int]]:
    """Return samples whose classes shift their mean."""
    inputs = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return [(x + i % 2, i % 2) for i, x in enumerate(inputs)]


def make_labels() -> tuple[list[str], list[str]]:
    """Return labels of three shapes for both splits, by a feature of the samples, not by their classes."""
    train, evaluated = (
        [SHAPES[i] for i in np.digitize([float(x[2]) for x, _ in make_samples(*seed)], [0, 1])]
        for seed in SEEDS
    )
    return train, evaluated


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs folder of a run that was recorded once with the labels of its data, and once without."""
    logs = tmp_path_factory.mktemp("recorded")
    samples = [make_samples(*seed) for seed in SEEDS]
    for name, data in (("res", samples), ("bare", [[x for x, _ in of_split] for of_split in samples])):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        train, evaluated = (DataLoader(of_split, 20) for of_split in data)  # type: ignore[arg-type]
        satstore.record(model, train, name, evaluated, logs_dir=logs)
    return logs


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Run:
    """A copy of the run with labels, for one test."""
    shutil.copytree(recorded / "res", tmp_path / "logs/res")
    return open_run("res", tmp_path / "logs")


@pytest.fixture
def unlabelled(recorded: Path, tmp_path: Path) -> Run:
    """A copy of the run without labels, for one test."""
    shutil.copytree(recorded / "bare", tmp_path / "unlabelled/bare")
    return open_run("bare", tmp_path / "unlabelled")


def probe(run: Run, **parameters: Any) -> Run:
    return apply_stages(run, "probe", device="cpu", **parameters)


def classify_by_sklearn(run: Run, layer: str, target: str) -> NDArray[np.int64]:
    """Return the eval samples' classes by scikit-learn's probe on stored latents and a target's labels."""
    train, evaluated = (run.latents("pool4", split)[layer].numpy().astype(float) for split in SPLITS)
    fitted = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(train, run.labels(target, "train"))
    return np.asarray(fitted.predict(evaluated))


def test_probe__is_fitted_to_the_labels_of_its_target(run: Run) -> None:
    run.set_labels(*make_labels(), name="shape")
    probe(run)
    probe(run, target="shape", tol=1e-7)
    assert run.probe_tables() == ["pool4", "shape-pool4"]
    accuracy = run.table("probe-shape-pool4").set_index("layer")["eval_accuracy"]
    for layer in run.layers:
        expected, labels = classify_by_sklearn(run, layer, "shape"), run.labels("shape", "eval")
        assert accuracy[layer] == (expected == labels).mean()
        confusion = run.confusion(layer, "shape-pool4")
        assert list(confusion) == sorted(SHAPES)
        assert np.array_equal(confusion, confusion_matrix(labels, expected))
    assert list(run.confusion(run.layers[0])) == ["0", "1"], "those of the data's own labels"


def test_probe__of_an_unlabelled_run_and_its_labels_as_a_target_is_that_of_the_labelled(
    run: Run, unlabelled: Run
) -> None:
    probe(run)
    own = [run.latents("pool4", split).labels for split in SPLITS]
    unlabelled.set_labels(*own, name="own")
    probe(unlabelled)
    assert unlabelled.probe_tables() == ["own-pool4"]
    columns = ["layer", "train_accuracy", "eval_accuracy", "top5", "objective", "n_iter", "converged"]
    assert unlabelled.table("probe-own-pool4")[columns].equals(run.table("probe-pool4")[columns])
    for layer in run.layers:
        assert unlabelled.confusion(layer).equals(run.confusion(layer))


def test_probe__on_a_cluster_is_the_same(run: Run) -> None:
    run.set_labels(*make_labels(), name="shape")
    probe(run, target="shape")
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": None}
    with LocalCluster(1, threads_per_worker=1, processes=False, protocol="tcp://", **options) as cluster:
        probe(run, target="shape", scheduler=cluster.scheduler_address, prefix="spread")
    columns = ["layer", "train_accuracy", "eval_accuracy", "objective", "n_iter"]
    assert run.table("probe-spread-pool4")[columns].equals(run.table("probe-shape-pool4")[columns])
    assert run.manifest.probes[ProbeKey(LatentsKey("4"), "spread")].target == "shape"


@pytest.mark.long
def test_probe__of_processes_is_the_same(run: Run) -> None:
    run.set_labels(*make_labels(), name="shape")
    probe(run, target="shape")
    probe(run, target="shape", workers=2, prefix="spread")
    columns = ["layer", "train_accuracy", "eval_accuracy", "objective", "n_iter"]
    assert run.table("probe-spread-pool4")[columns].equals(run.table("probe-shape-pool4")[columns])


def test_labels__are_read_as_they_were_given(run: Run) -> None:
    train, evaluated = make_labels()
    run.set_labels(train, np.array(evaluated), name="shape")
    codes = {name: number for number, name in enumerate(sorted(SHAPES))}
    assert run.labels("shape", "train").tolist() == [codes[name] for name in train]
    run.set_labels(train, evaluated, name="shape", classes=["ring", "disc", "cross", "cone"])
    again = open_run("res", run.path.parents[1])
    assert again.labels("shape", "eval").tolist() == [["ring", "disc", "cross"].index(n) for n in evaluated]
    assert again.manifest.targets["shape"].classes == ["ring", "disc", "cross", "cone"]
    with np.load(run.path / "target-shape.npz") as stored:
        assert {name: (stored[name].dtype, len(stored[name])) for name in stored} == {
            "train": (np.int64, N_TRAIN),
            "eval": (np.int64, N_EVAL),
        }


def test_labels__of_one_loader_are_those_of_both_splits(tmp_path: Path) -> None:
    loader: Any = DataLoader(make_samples(*SEEDS[0]), 20)  # type: ignore[arg-type]
    run = satstore.record(nn.Linear(6, 2), loader, "res", logs_dir=tmp_path)
    run.set_labels(make_labels()[0])
    assert run.labels("labels", "eval").tolist() == run.labels("labels", "train").tolist()
    probe(run, target="labels")
    table = run.table("probe-labels-pool4")
    assert table["eval_accuracy"].equals(table["train_accuracy"])


TRAIN, EVAL = [0, 1] * (N_TRAIN // 2), [1, 0] * (N_EVAL // 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"train": TRAIN[:-1], "eval": EVAL},
            "labels (train) has 59 labels, the train split 60 samples; give a",
        ),
        ({"train": TRAIN, "eval": [*EVAL, 1]}, "labels (eval) has 31 labels, the eval split 30 samples"),
        (
            {"train": TRAIN},
            "has 30 eval samples of their own; give their labels too (eval=, or --eval-labels)",
        ),
        (
            {"train": [0.5, *TRAIN[1:]], "eval": EVAL},
            "labels (train) holds 0.5; expected class indices, whole",
        ),
        ({"train": TRAIN, "eval": ["a"] * N_EVAL}, "labels (train) holds numbers, labels (eval) texts"),
        ({"train": TRAIN, "eval": EVAL, "classes": ["a"]}, "labels up to 1, for which 1 classes are too few"),
        (
            {"train": TRAIN, "eval": EVAL, "name": "pool4"},
            "target 'pool4': expected a name that no pooling has",
        ),
        ({"train": TRAIN, "eval": EVAL, "name": "a/b"}, "target 'a/b': expected at most 40 letters"),
    ],
)
def test_labels__that_fit_no_run_are_refused(run: Run, given: dict[str, Any], message: str) -> None:
    before = run.manifest.model_dump()
    with pytest.raises(ConfigError, match=re.escape(message)):
        run.set_labels(**given)
    assert Run(run.path).manifest.model_dump() == before


def test_targets__that_are_not_there_are_told(unlabelled: Run) -> None:
    run = unlabelled
    with pytest.raises(ConfigError, match=r"has no labels; add some: run\.set_labels\(…\), or --labels FILE"):
        probe(run)
    run.set_labels(TRAIN, EVAL, name="animal")
    with pytest.raises(UnknownNameError, match=r"has no target 'anmal'; did you mean 'animal'\?"):
        run.labels("anmal", "train")
    with pytest.raises(UnknownNameError, match="no split named 'test'; known are train, eval"):
        run.labels("animal", "test")
    with pytest.raises(UnknownNameError, match=r"has no target 'colour'; known are animal"):
        probe(run, target="colour")
    run.set_labels(TRAIN, EVAL, name="colour")
    with pytest.raises(ConfigError, match="has the targets animal, colour; name one: --target"):
        probe(run)


def pending(run: Run, **parameters: Any) -> list[str]:
    return STAGES["probe"].plan(Run(run.path), STAGES["probe"].parameters(**parameters)).missing


def test_labels__that_are_replaced_make_their_probes_pending(run: Run) -> None:
    run.set_labels(TRAIN, EVAL, name="animal")
    probe(run)
    for parameters in ({"target": "animal"}, {"target": "animal", "prefix": "strong", "C": 9.0}):
        probe(run, **parameters)
    assert not pending(run, target="animal")
    run.set_labels(TRAIN, EVAL, name="animal", classes=["cat", "dog"])
    assert not pending(run, target="animal"), "the classes have other names and the labels are the same"
    assert list(run.confusion("0", "animal-pool4")) == ["cat", "dog"]
    run.set_labels(TRAIN[::-1], EVAL, name="animal")
    assert len(pending(run, target="animal")) == 3
    assert len(pending(run, target="animal", prefix="strong")) == 3
    assert run.probe_tables() == ["pool4"]
    assert not run.has_file("probe-animal-pool4.csv")
    with pytest.raises(NotFoundError, match=r"no probe of layer 0 at 'animal-pool4'.* -d 4 --target animal$"):
        run.confusion("0", "animal-pool4")
    assert run.confusion("0").to_numpy().sum() == N_EVAL
    with xr.open_datatree(run.analysis_path, engine="zarr", consolidated=False) as stored:
        assert set(stored["probes"].children) == {"pool4"}
    assert not [finding for finding in Verification(run).findings() if finding.is_wrong]


def test_probe__of_another_target_in_the_place_of_one_is_refused(run: Run) -> None:
    run.set_labels(TRAIN, EVAL, name="animal")
    run.set_labels(TRAIN[::-1], EVAL, name="colour")
    probe(run, target="animal", prefix="P")
    with pytest.raises(ConfigError, match=r"at P-pool4 were fitted to animal with C 1.0.*--prefix NAME"):
        probe(run, target="colour", prefix="P")
    with pytest.raises(ConfigError, match=r"at P-pool4 were fitted to animal with C 1.0"):
        probe(run, prefix="P")
    probe(run, target="colour", prefix="P", overwrite=True)
    assert run.manifest.probes[ProbeKey(LatentsKey("4"), "P")].target == "colour"


def write_labels(folder: Path) -> dict[str, str]:
    """Write tables of labels, and return the parameters that name a column of theirs."""
    for split, labels in zip(SPLITS, make_labels(), strict=True):
        pd.DataFrame({"id": range(len(labels)), "shape": labels}).to_csv(folder / f"{split}.csv")
    return {"labels": f"{folder}/train.csv:shape", "eval_labels": f"{folder}/eval.csv:shape"}


def test_probe__adds_labels_of_files_once(run: Run, tmp_path: Path) -> None:
    files = write_labels(tmp_path)
    assert pending(run, **files) == [
        "labels shape",
        "0 at shape-pool4",
        "2 at shape-pool4",
        "4 at shape-pool4",
    ]
    probe(run, **files)
    assert run.probe_tables() == ["shape-pool4"]
    assert not pending(run, **files)
    pd.DataFrame({"shape": make_labels()[0][::-1]}).to_csv(tmp_path / "train.csv")
    assert len(pending(run, **files)) == 4
    probe(run, **files)
    assert [sorted(SHAPES)[code] for code in run.labels("shape", "train")] == make_labels()[0][::-1]
    with pytest.raises(ConfigError, match=r"eval\.csv:id has 30 labels, the train split 60 samples"):
        probe(run, labels=f"{tmp_path}/eval.csv:id")
    with pytest.raises(ConfigError, match="give --labels FILE too"):
        probe(run, eval_labels="y.npy")


def test_command__adds_labels_and_fits(run: Run, tmp_path: Path) -> None:
    files = write_labels(tmp_path)
    words = [word for name, file in files.items() for word in (f"--{name.replace('_', '-')}", file)]
    place = ("--run", "res", "--logs-dir", run.path.parents[1], "--device", "cpu")
    assert satstore_command("probe", *place, *words, "--target", "form").returncode == 0
    run.reload()
    assert run.probe_tables() == ["form-pool4"]
    said = satstore_command("probe", *place, "--labels", tmp_path / "gone.npy")
    assert (said.returncode, said.stderr.strip()) == (1, f"satstore: no file {tmp_path}/gone.npy")
    shown = satstore_command("show", "res", "--logs-dir", run.path.parents[1]).stdout
    assert "targets, with their numbers of classes: form (3)" in shown
    assert "probe form-pool4" in shown


def labels_of(figure: Figure) -> list[str]:
    """Return the labels of the lines of a figure's axes."""
    return [str(line.get_label()) for axes in figure.axes for line in axes.lines]


def test_figures__show_the_probes_of_one_target(run: Run, unlabelled: Run) -> None:
    for found, name in ((run, "shape"), (unlabelled, "shape"), (unlabelled, "form")):
        found.set_labels(*make_labels(), name=name)
        probe(found, target=name)
    probe(run)
    assert [label for label in labels_of(plot_layers(run)) if "probe" in label] == ["probe accuracy (pool4)"]
    assert any("model accuracy" in label for label in labels_of(plot_layers(run)))
    shown = labels_of(plot_layers(run, target="shape"))
    assert [label for label in shown if "accuracy" in label] == ["probe accuracy (shape, pool4)"]
    assert "probe accuracy (shape, pool4)" in labels_of(plot_layers(unlabelled)), "the first one"
    assert "probe accuracy (form, pool4)" in labels_of(plot_layers(unlabelled, target="form"))
    lines = plot_layers(run, True, target="shape").axes[0].lines
    [drawn] = [line for line in lines if "shape" in str(line.get_label())]
    assert drawn.get_ydata().tolist() == run.table("probe-shape-pool4")["eval_accuracy"].tolist()
    titles = [axes.get_title() for axes in plot_evolution(run, target="shape").axes]
    assert "probe accuracy (shape, pool4)" in titles
    curves = plot_comparison([run, unlabelled], all_layers=True, target="shape").axes[1].lines
    assert [len(line.get_ydata()) for line in curves] == [3, 3]
    assert [*read_curves(run.path).probes] == ["pool4", "shape-pool4"], "those of figures first"
    view = View(0, 0, (0, 1, 2))
    drawn_in_app = {curve.label for curve in make_curves(read_curves(run.path), view)}
    assert {"probe pool4", "probe shape-pool4"} <= drawn_in_app
    assert "Probes of target form" in write_report([unlabelled])
    evidence = gather(unlabelled)
    assert (len(evidence.accuracy), evidence.n_classes, evidence.test_accuracy) == (3, 3, None)


def test_figures__of_targets_that_have_no_probes_are_refused(run: Run) -> None:
    run.set_labels(*make_labels(), name="shape")
    with pytest.raises(
        NotFoundError, match=rf"no probes of target shape yet.*--run {run.name} --target shape$"
    ):
        plot_layers(run, target="shape")
    with pytest.raises(UnknownNameError, match=r"has no target 'form'; known are shape"):
        plot_evolution(run, target="form")
    done = satstore_command(
        "plot", "res", "--target", "x", "--kind", "training", "--logs-dir", run.path.parents[1]
    )
    assert "--target: what is drawn shows no probes; leave it out" in done.stderr


@pytest.mark.parametrize("n_tried", [6, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("synced", [False, True], ids=["kill", "power loss"])
def test_labels__are_replaced_or_not_at_all(run: Run, tmp_path: Path, synced: bool, n_tried: int) -> None:
    """Whatever operation is the last, labels and the probes that were fitted to them fit each other."""
    run.set_labels(TRAIN, EVAL, name="animal")
    probe(run, target="animal")
    logs, states = run.path.parents[1], dict[str, Tree]()

    def before(number: int, kind: str, path: Path) -> None:
        tree = disk.synced_files() if synced else disk.files()
        states.setdefault(digest(tree), tree)

    disk = Disk(logs, before)
    with disk.installed():
        run.set_labels(TRAIN[::-1], EVAL[::-1], name="animal")
    assert len(states) > 4
    trees, found = list(states.values()), []
    for n in spread(list(range(len(trees))), min(n_tried, len(trees))):
        lay_out(trees[n], tmp_path / str(n))
        left = open_run("res", tmp_path / str(n))
        with left.lock():
            pass
        is_new = left.labels("animal", "train").tolist() == TRAIN[::-1]
        assert left.labels("animal", "train").tolist() == (TRAIN[::-1] if is_new else TRAIN)
        assert left.labels("animal", "eval").tolist() == (EVAL[::-1] if is_new else EVAL)
        assert left.probe_tables() == ([] if is_new else ["animal-pool4"])
        assert not [str(finding) for finding in Verification(left).findings() if finding.is_wrong]
        assert not [*left.path.glob("*.new")]
        found.append(is_new)
    assert found == sorted(found)
    assert {*found} == {False, True}


def test_labels__travel_with_their_run(run: Run, tmp_path: Path) -> None:
    run.set_labels(*make_labels(), name="shape")
    probe(run, target="shape")
    packed = pack_run(run, tmp_path / "run.zip", with_latents=True)
    found = unpack_run(packed, tmp_path / "elsewhere", "other")
    assert found.labels("shape", "eval").tolist() == run.labels("shape", "eval").tolist()
    assert found.confusion("2", "shape-pool4").equals(run.confusion("2", "shape-pool4"))
    size_bytes = (run.path / "target-shape.npz").stat().st_size
    used = measure_disk_usage(run).other_bytes
    run.set_labels(*make_labels(), name="form")
    assert measure_disk_usage(run).other_bytes - used >= size_bytes


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_labels__that_are_damaged_are_named_with_the_command(run: Run, damage: Any) -> None:
    run.set_labels(*make_labels(), name="shape")
    command = f"satstore probe --run {run.name} --target shape --labels FILE --eval-labels FILE"
    path = run.path / "target-shape.npz"
    for content in damage(path, []):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CorruptError, match=f"{re.escape(command)}$"):
            run.labels("shape", "train")
        [finding] = [finding for finding in Verification(run).findings() if finding.is_wrong]
        assert "target-shape.npz" in finding.what
        assert finding.command == command
        with pytest.raises(CorruptError, match=r"target-shape\.npz"):
            probe(run, target="shape")
        run.set_labels(*make_labels(), name="shape")
        assert not [finding for finding in Verification(run).findings() if finding.is_wrong]


def test_labels__are_gone_with_what_is_recorded_anew(run: Run) -> None:
    run.set_labels(*make_labels(), name="shape")
    torch.manual_seed(0)
    loader: Any = DataLoader(make_samples(*SEEDS[1]), 20)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    again = satstore.record(model, loader, "res", overwrite=True, logs_dir=run.path.parents[1])
    assert again.path == run.path
    assert again.manifest.targets == {}
    assert not (run.path / "target-shape.npz").exists()


def test_labels__stay_when_latents_are_removed(demo_copy: Path) -> None:
    run = open_run("demo", demo_copy)
    dataset = run.manifest.dataset
    assert dataset is not None
    labels = [[i % 2 for i in range(n)] for n in (dataset.n_train, dataset.n_eval)]
    run.set_labels(*labels, name="odd")
    remove_latents(run)
    assert [run.labels("odd", split).tolist() for split in SPLITS] == labels
    with pytest.raises(MissingStageError, match="probe needs extract first"):
        probe(run, target="odd")
