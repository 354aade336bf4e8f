"""Features of one's own: imported from files, they are runs like any other."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import satstore as command
from faults import Disk, Tree, digest, lay_out
from feature_kinds import KINDS, write_features
from limits import MIB, run_within
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import satstore
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import ConfigError, SatstoreError
from satstore.runs.verify import Verification
from satstore.stages.record import feature_data, feature_writer

DIGITS = load_digits()
PIXELS, LABELS = DIGITS.data[:600].astype(np.float32), DIGITS.target[:600]
SHARE, SEED = 0.25, 3


def split_by_hand(n: int, share: float = SHARE, seed: int = SEED) -> tuple[NDArray[Any], NDArray[Any]]:
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[round(n * share) :]), np.sort(order[: round(n * share)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pixels of digits, their square roots, and labels."""
    folder = tmp_path_factory.mktemp("features")
    np.save(folder / "pixels.npy", PIXELS)
    np.savez(folder / "more.npz", roots=np.sqrt(PIXELS), halves=PIXELS[:, :32])
    np.save(folder / "y.npy", LABELS)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> satstore.Run:
    """Three layers of features, a part of them for evaluation."""
    found = satstore.record_features(
        [folder / "pixels.npy", folder / "more.npz"],
        "mine",
        labels=str(folder / "y.npy"),
        split=SHARE,
        seed=SEED,
        logs_dir=folder / "logs",
    )
    return satstore.apply_stages(found, "probe")


def test_import__stores_each_array_as_a_layer(run: satstore.Run) -> None:
    train, evaluation = split_by_hand(600)
    assert run.layers == ["pixels", "roots", "halves"]
    assert {record.form for record in run.manifest.layers} == {"vector"}
    for split, rows in (("train", train), ("eval", evaluation)):
        latents = run.latents("full", split)
        np.testing.assert_array_equal(latents.sample_ids, rows)
        np.testing.assert_array_equal(latents.labels, LABELS[rows])
        np.testing.assert_array_equal(latents["pixels"].numpy(), PIXELS[rows])
        np.testing.assert_allclose(latents["roots"].numpy(), np.sqrt(PIXELS[rows]), rtol=1e-3)
    assert not run.manifest.warnings
    assert [str(finding) for finding in Verification(run).findings()] == []


def test_spectra__are_those_of_numpys_covariance(run: satstore.Run) -> None:
    for split, rows in zip(("train", "eval"), split_by_hand(600), strict=True):
        for name, features in (("pixels", PIXELS), ("halves", PIXELS[:, :32])):
            found = np.sort(run.spectra(split)[name][-1])
            expected = np.linalg.eigvalsh(np.cov(features[rows].astype(np.float64), rowvar=False, ddof=0))
            np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-3 * expected.max())


def test_probes__are_as_good_as_scikit_learns(run: satstore.Run) -> None:
    train, evaluation = split_by_hand(600)
    scaler = StandardScaler().fit(PIXELS[train])
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(PIXELS[train]), LABELS[train])
    expected = model.score(scaler.transform(PIXELS[evaluation]), LABELS[evaluation])
    found = run.manifest.summary.probe_accuracy[ProbeKey(LatentsKey("full"))]
    assert found["pixels"] == pytest.approx(expected, abs=0.02)


@pytest.fixture(scope="module")
def stores_of_npy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The stores of 90 digits in a .npy file."""
    return import_kind("npy", tmp_path_factory.mktemp("npy"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "npy"])
def test_stores__are_equal_for_all_kinds_of_files(
    kind: str, stores_of_npy: dict[str, bytes], tmp_path: Path
) -> None:
    assert import_kind(kind, tmp_path) == stores_of_npy


def import_kind(kind: str, folder: Path) -> dict[str, bytes]:
    """Import 90 digits from a file of a kind, and return what is stored."""
    np.savetxt(folder / "y.txt", LABELS[:90], "%d")
    path = write_features(folder, kind, PIXELS[:90])
    labels = str(folder / "y.txt")
    satstore.record_features([path], "mine", labels=labels, split=0.3, logs_dir=folder / "logs")
    return read_stores(folder / "logs")


def read_stores(logs: Path) -> dict[str, bytes]:
    """Return the files of a run's stores, and its table of saturation."""
    [manifest] = logs.glob("*/*/manifest.json")
    files = [path for path in manifest.parent.rglob("*") if path.is_file()]
    named = {str(path.relative_to(manifest.parent)): path.read_bytes() for path in files}
    return {name: named[name] for name in named if ".zarr/" in name or name.endswith(".csv")}


def test_blocks__are_read_once_each_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_data, "BLOCK_BYTES", 70 * 4 * 64)
    asked = feature_data.FeatureParameters(split=SHARE, seed=SEED)
    with feature_data.open_data([str(folder / "pixels.npy")], asked) as data:
        for split, rows in zip(("train", "eval"), split_by_hand(600), strict=True):
            blocks = [block["pixels"] for block in data.split(split).read()]
            assert max(map(len, blocks)) <= 70
            np.testing.assert_array_equal(np.concatenate(blocks), PIXELS[rows])


def test_maps_and_tokens__are_told_apart_by_their_axes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps, tokens = rng.normal(size=(20, 3, 8, 8)), rng.normal(size=(20, 5, 7))
    np.savez(tmp_path / "a.npz", maps=maps, tokens=tokens)
    run = satstore.record_features([tmp_path / "a.npz"], "mine", logs_dir=tmp_path / "logs")
    assert {record.layer: record.form for record in run.manifest.layers} == {
        "maps": "map",
        "tokens": "tokens",
    }
    pooled = maps.reshape(20, 3, 4, 2, 4, 2).mean((3, 5))
    np.testing.assert_allclose(run.latents("pool4", "train")["maps"].numpy(), pooled, atol=1e-3)
    np.testing.assert_allclose(run.latents("mean", "eval")["tokens"].numpy(), tokens.mean(1), atol=1e-3)
    positions = {"maps": np.moveaxis(maps, 1, -1).reshape(-1, 3), "tokens": tokens.reshape(-1, 7)}
    for name, samples in positions.items():
        expected = np.linalg.eigvalsh(np.cov(samples, rowvar=False, ddof=0))
        np.testing.assert_allclose(np.sort(run.spectra("train")[name][-1]), expected, rtol=1e-4)
    assert any("the same samples are train and eval" in line for line in run.manifest.warnings)


def test_eval_features__are_the_samples_that_probes_are_tested_on(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", PIXELS[:50])
    np.savetxt(tmp_path / "y.csv", LABELS[:50], "%d", header="digit", comments="")
    run = satstore.record_features(
        [folder / "pixels.npy"],
        "mine",
        labels=str(folder / "y.npy"),
        eval_features=[str(tmp_path / "other.npy")],
        eval_labels=f"{tmp_path}/y.csv:digit",
        logs_dir=tmp_path,
    )
    assert (run.manifest.dataset.n_train, run.manifest.dataset.n_eval) == (600, 50)  # type: ignore[union-attr]
    np.testing.assert_array_equal(run.latents("full", "eval")["pixels"].numpy(), PIXELS[:50])
    np.testing.assert_array_equal(run.latents("full", "eval").labels, LABELS[:50])


def test_labels__can_come_later(run: satstore.Run, folder: Path, tmp_path: Path) -> None:
    bare = satstore.record_features(
        [folder / "pixels.npy"], "mine", split=SHARE, seed=SEED, logs_dir=tmp_path
    )
    train, evaluation = split_by_hand(600)
    bare.set_labels(LABELS[train], LABELS[evaluation], name="digit")
    satstore.apply_stages(bare, "probe")
    [found] = bare.manifest.summary.probe_accuracy.values()
    labelled = run.manifest.summary.probe_accuracy[ProbeKey(LatentsKey("full"))]
    assert found["pixels"] == labelled["pixels"]


def test_a_column_of_labels__is_no_feature(tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame(PIXELS[:60, :4], columns=list("abcd")).assign(z=LABELS[:60].astype(np.float32))
    table.to_parquet(tmp_path / "t.parquet")
    run = satstore.record_features(
        [tmp_path / "t.parquet"], "mine", labels=f"{tmp_path}/t.parquet:z", logs_dir=tmp_path
    )
    assert run.latents("full", "train")["t"].shape == (60, 4)


def test_nan__is_noted_and_not_probed(tmp_path: Path) -> None:
    features = PIXELS[:40].copy()
    features[7, 3] = np.nan
    np.savez(tmp_path / "a.npz", bad=features, good=PIXELS[:40])
    run = satstore.record_features([tmp_path / "a.npz"], "mine", logs_dir=tmp_path)
    warned = " ".join(run.manifest.warnings)
    assert "layer bad" in warned
    assert "layer good" not in warned
    assert np.isnan(run.spectra("train")["bad"]).all()


def import_digits(folder: Path, logs: Path) -> satstore.Run:
    return satstore.record_features(
        [folder / "pixels.npy"], "mine", labels=str(folder / "y.npy"), split=SHARE, logs_dir=logs
    )


def killed_states(folder: Path, logs: Path) -> tuple[dict[str, bytes], list[Tree]]:
    """Import once, and return the stores and what a kill before each operation would have left."""
    states: dict[str, Tree] = {}
    logs.mkdir()

    def before(number: int, kind: str, path: Path) -> None:
        tree = disk.files()
        states.setdefault(digest(tree), tree)

    disk = Disk(logs, before)
    with disk.installed():
        import_digits(folder, logs)
    return read_stores(logs), list(states.values())


def check_kills(folder: Path, tmp_path: Path, n_states: int | None) -> None:
    expected, states = killed_states(folder, tmp_path / "whole")
    taken = np.linspace(0, len(states) - 1, n_states or len(states)).astype(int)
    for number in taken:
        logs = tmp_path / f"{number}"
        lay_out(states[number], logs)
        run = import_digits(folder, logs)
        assert read_stores(logs) == expected, number
        assert not [str(finding) for finding in Verification(run).findings() if finding.is_wrong]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 64 samples, read in blocks of 50."""
    monkeypatch.setattr(feature_writer, "choose_shard_rows", lambda *_: 64)
    monkeypatch.setattr(feature_data, "BLOCK_BYTES", 50 * 4 * 64)


@pytest.mark.usefixtures("small_shards")
def test_a_killed_import__is_gone_on_with_by_the_same_command(folder: Path, tmp_path: Path) -> None:
    check_kills(folder, tmp_path, 3)


@pytest.mark.long
@pytest.mark.usefixtures("small_shards")
def test_an_import_killed_anywhere__is_gone_on_with(folder: Path, tmp_path: Path) -> None:
    check_kills(folder, tmp_path, None)


@pytest.mark.usefixtures("small_shards")
def test_a_killed_import__writes_no_shard_twice(folder: Path, tmp_path: Path) -> None:
    _, states = killed_states(folder, tmp_path / "whole")
    logs = tmp_path / "late"
    lay_out(next(state for state in reversed(states) if not any("csv" in name for name in state)), logs)
    before = written_shards(logs)
    assert before
    import_digits(folder, logs)
    assert {path: time for path, time in written_shards(logs).items() if path in before} == before


def written_shards(logs: Path) -> dict[Path, int]:
    """Return the shards of latents, and when each was written."""
    shards = logs.glob("*/*/latents.zarr/**/latent/c/**/*")
    return {path: path.stat().st_mtime_ns for path in shards if path.is_file()}


def test_a_finished_import__is_returned_as_it_is_and_no_other_replaces_it(
    folder: Path, tmp_path: Path
) -> None:
    first = import_digits(folder, tmp_path)
    written = first.manifest.stages["extract"].ended
    assert import_digits(folder, tmp_path).manifest.stages["extract"].ended == written
    with pytest.raises(ConfigError, match="is there already, of other files or settings, or of these before"):
        satstore.record_features([folder / "pixels.npy"], "mine", logs_dir=tmp_path)
    again = satstore.record_features([folder / "pixels.npy"], "mine", logs_dir=tmp_path, overwrite=True)
    assert again.manifest.dataset is not None
    assert not again.manifest.dataset.has_labels


@pytest.mark.long
def test_a_file_larger_than_the_memory__is_imported(tmp_path: Path) -> None:
    n_rows, n_features = 1_250_000, 512  # 2.4 GiB, zeros that take no disk
    header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, n_features)}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * n_rows * n_features)
    words = ["import", f"{tmp_path}/a.npy", "--run-id", "big", "--split", "0.1", "--logs-dir", str(tmp_path)]
    run_within(1500 * MIB, [*words, "--memory-limit", "400MiB"])
    run = satstore.open_run("big", tmp_path)
    assert run.latents("full", "train")["a"].shape == (n_rows * 9 // 10, n_features)


ERRORS: Mapping[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "labels of another length": (
        lambda folder: {"labels": f"{folder}/short.npy"},
        "short.npy has 590 labels, ",
    ),
    "no such labels": (lambda folder: {"labels": f"{folder}/none.npy"}, "no file "),
    "labels of one split": (
        lambda folder: {"labels": f"{folder}/y.npy", "eval_features": [f"{folder}/pixels.npy"]},
        "--labels are of one split; give --eval-labels too, or neither",
    ),
    "eval labels alone": (
        lambda folder: {"eval_labels": f"{folder}/y.npy"},
        "--eval-labels are those of --eval-features; give these too",
    ),
    "two ways to split": (
        lambda folder: {"split": 0.2, "eval_features": [f"{folder}/pixels.npy"]},
        "--split and --eval-features exclude each other",
    ),
    "other layers": (
        lambda folder: {"eval_features": [f"{folder}/more.npz"]},
        "--eval-features have the layers roots, halves, the others pixels; give the same names",
    ),
    "other features": (
        lambda folder: {"eval_features": [f"{folder}/more.npz:halves"]},
        "has samples of shape (32,), ",
    ),
    "no share": (lambda folder: {"split": 1.5}, "'split': input should be less than 1, found 1.5"),
    "tokens of vectors": (lambda folder: {"tokens": ["cls"]}, "has tokens; take -d"),
    "no memory": (lambda folder: {"memory_limit": 2**10}, "raise --memory-limit"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors__are_one_line_and_leave_no_run(name: str, folder: Path, tmp_path: Path) -> None:
    make, expected = ERRORS[name]
    np.save(folder / "short.npy", LABELS[:590])
    with pytest.raises(SatstoreError) as refused:
        satstore.record_features([folder / "pixels.npy"], "mine", logs_dir=tmp_path, **make(folder))
    assert expected in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_command__names_the_layers_and_what_writes_them_again(folder: Path, tmp_path: Path) -> None:
    words = [f"{folder}/pixels.npy", f"{folder}/more.npz:roots", "--labels", f"{folder}/y.npy"]
    given = [*words, "--split", "0.2", "--seed", "1", "--run-id", "mine", "--logs-dir", str(tmp_path)]
    done = command("import", *given)
    assert done.returncode == 0, done.stderr
    assert "pixels: 64 (vector)" in done.stdout
    assert "roots: 64 (vector)" in done.stdout
    run = satstore.open_run("mine", tmp_path)
    assert run.manifest.source is not None
    recorded = run.manifest.source.command
    shown = command("show", "mine", "--logs-dir", str(tmp_path))
    assert recorded in shown.stdout.replace("\n", "")
    refused = command("extract", "--run", "mine", "-d", "2", "--logs-dir", str(tmp_path))
    assert f"{recorded} --overwrite" in refused.stderr
    again = command(*recorded.split()[1:], "--logs-dir", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    assert read_stores(tmp_path / "again") == read_stores(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pixels.npy"], "features need a run id, the name of their run's folder: --run-id RES"),
        (["pixels.npy", "--latents"], "--latents is for a folder of phd-lab's logs"),
        (["a.zip", "--split", "0.2"], "--split is for files of features, and a.zip is none"),
        (["a.zip", "b.zip"], "2 paths are given, which are no files of features; give one"),
        (
            ["pixels.npy", "a.zip", "--run-id", "x"],
            "no file a.zip",
        ),
        (
            ["pixels.npy", "y.txt", "--run-id", "x"],
            "y.txt has the ending '.txt'; features are read from .npy",
        ),
        (["a.pkl", "--run-id", "x"], "a.pkl: pickles of others are not read; save it by np.save or as "),
    ],
)
def test_command__refuses_what_it_cannot_import(words: list[str], expected: str, folder: Path) -> None:
    for name in ("y.txt", "a.pkl"):
        (folder / name).touch()
    done = command("import", *words, cwd=folder)
    assert done.returncode == 1
    assert expected in done.stderr
