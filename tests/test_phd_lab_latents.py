"""Latents of phd-lab's: pickles that are read without obeying them, and the stores made of them."""

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import call
from phd_lab_logs import N_IMAGES, SHAPES, STEM, write_latents, write_tree
from sklearn.linear_model import LogisticRegression

from satstore.compat.phd_lab import import_logs
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError, CorruptError, NotFoundError
from satstore.runs.logs_folder import list_runs
from satstore.runs.verify import Verification
from satstore.stages.pipeline import make_tasks, run_stages
from satstore.storage.safe_pickles import read_arrays


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A working folder of phd-lab's, with logs and latents."""
    write_tree(tmp_path / "theirs" / "logs")
    write_latents(tmp_path / "theirs" / "latent_datasets" / "VGG5_Digits_32", "./logs/VGG5/Digits_32/MyRun")
    return tmp_path / "theirs"


def folder_of(theirs: Path) -> Path:
    return theirs / "latent_datasets" / "VGG5_Digits_32"


def test_import__converts_latents_and_probes_fit_on_them(theirs: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder_of(theirs))
    written = write_latents(folder_of(theirs), "D:\\work\\logs\\VGG5\\Digits_32\\MyRun\n")
    logs = tmp_path / "ours"
    code, out, err = call("import", theirs / "logs", "--latents", "--logs-dir", logs)
    assert code == 0, err
    assert "they carry no sample ids" in err
    [run] = list_runs(logs)
    assert out.split() == [run.name]
    assert list(run.manifest.latents) == [LatentsKey("2")]
    assert run.status("extract") == "done"
    for split in N_IMAGES:
        latents = run.latents("pool2", split)
        assert list(latents) == run.layers
        assert np.array_equal(latents.labels, written[split, "labels"])
        for layer, shape in SHAPES.items():
            array = latents[layer.replace("-", ".")]
            assert array.shape == (N_IMAGES[split], *shape)
            assert np.array_equal(array.numpy(), written[split, layer].astype(np.float16))
            assert np.allclose(array.mean, array.numpy().astype(np.float64).mean(0), atol=1e-5)
        with pytest.raises(NotFoundError, match="carry no sample ids"):
            _ = latents.sample_ids
    assert [f for f in Verification(run).findings() if f.is_wrong] == []

    settings = {"pooling": ["2"], "prefix": "mine", "device": "cpu", "C": 0.01}
    [outcome] = run_stages([run], make_tasks(["probe"], settings), with_needs=False)
    assert outcome.error is None
    run.reload()
    table = run.table("probe-mine-pool2").set_index("layer")
    train, labels = written["train", "classifier-2"], written["train", "labels"]
    peer = LogisticRegression(C=0.01, max_iter=1000).fit(train.astype(np.float16), labels)
    there = peer.score(written["eval", "classifier-2"].astype(np.float16), written["eval", "labels"])
    assert table.loc["classifier.2", "eval_accuracy"] == pytest.approx(there, abs=1 / N_IMAGES["eval"])

    code, _, err = call("compare", "MyRun", "MyRun", "--cka", "-d", 2, "--logs-dir", logs)
    assert code == 1
    assert "carry no sample ids" in err
    code, _, err = call("import", theirs / "logs", "--latents", "--logs-dir", logs)
    assert code == 1
    assert "is there already" in err
    for words in (["show", "MyRun"], ["du", "MyRun"], ["ls"], ["status"]):
        code, _, err = call(*words, "--logs-dir", logs)
        assert code == 0, err


def test_import__what_float16_would_ruin_is_float32(theirs: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder_of(theirs))
    written = write_latents(folder_of(theirs), "./logs/VGG5/Digits_32/MyRun", means={"classifier-2": 1e5})
    [run] = import_logs(theirs, tmp_path / "ours", latents=True)
    for split in N_IMAGES:
        latents = run.latents("pool2", split)
        exact = written[split, "classifier-2"].astype(np.float64)
        error = np.abs(latents["classifier.2"].numpy() - exact).max(axis=0)
        assert (error <= np.ptp(exact, axis=0) / 2**9).all()
        assert {layer: latents[layer].array.dtype for layer in latents} == {
            layer: np.float32 if layer == "classifier.2" else np.float16 for layer in latents
        }
    assert [f for f in Verification(run).findings() if f.is_wrong] == []


def test_import__packed_with_its_latents_opens_elsewhere(theirs: Path, tmp_path: Path) -> None:
    from satstore.runs.archive import pack_run, unpack_run

    [run] = import_logs(theirs, tmp_path / "ours", latents=True)
    packed = pack_run(run, tmp_path / "run.zip", with_latents=True)
    again = unpack_run(packed, tmp_path / "others")
    assert np.array_equal(again.latents("pool2", "eval").labels, run.latents("pool2", "eval").labels)


def test_probe__does_not_replace_what_was_imported_unasked(theirs: Path, tmp_path: Path) -> None:
    [run] = import_logs(theirs, tmp_path / "ours", latents=True)
    before = run.table("probe-pool2")
    [outcome] = run_stages(
        [run], make_tasks(["probe"], {"pooling": ["2"], "device": "cpu"}), with_needs=False
    )
    assert isinstance(outcome.error, ConfigError)
    assert "--overwrite" in str(outcome.error)
    assert "--prefix" in str(outcome.error)
    run.reload()
    assert run.table("probe-pool2").equals(before)
    settings = {"pooling": ["2"], "device": "cpu", "overwrite": True}
    [outcome] = run_stages([run], make_tasks(["probe"], settings), with_needs=False)
    assert outcome.error is None
    run.reload()
    assert not run.table("probe-pool2").equals(before)
    assert [f for f in Verification(run).findings() if f.is_wrong] == []


def test_extract__replaces_imported_latents_only_when_told_to(theirs: Path, tmp_path: Path) -> None:
    [run] = import_logs(theirs, tmp_path / "ours", latents=True)
    [outcome] = run_stages([run], make_tasks(["extract"], {"pooling": ["2"]}), with_needs=False)
    assert (outcome.result, outcome.error) == ("skipped", None)
    damaged = next((run.path / "latents.zarr" / "pool2" / "train").rglob("c/0/0"))
    damaged.write_bytes(b"x")
    [outcome] = run_stages([run], make_tasks(["extract"], {"pooling": ["2"]}), with_needs=False)
    assert isinstance(outcome.error, ConfigError)
    assert "are of unknown weights" in str(outcome.error)
    settings = {"pooling": ["2"], "overwrite": True, "device": "cpu"}
    [outcome] = run_stages([run], make_tasks(["extract"], settings), with_needs=False)
    assert outcome.error is None
    run.reload()
    assert len(run.latents("pool2", "train").sample_ids) == 1437, "those of the digits that are here"
    assert run.manifest.latents[LatentsKey("2")].has_checkpoint
    assert [f for f in Verification(run).findings() if f.is_wrong] == []


def test_import__without_weights_can_be_probed_all_the_same(theirs: Path, tmp_path: Path) -> None:
    next(theirs.rglob(f"{STEM}.pt")).unlink()
    [run] = import_logs(theirs, tmp_path / "ours", latents=True)
    assert run.latents("pool2", "train")["features.0"].shape == (50, 64, 2, 2)
    settings = {"pooling": ["2"], "prefix": "mine", "device": "cpu"}
    [outcome] = run_stages([run], make_tasks(["probe"], settings), with_needs=False)
    assert outcome.error is None


def test_import__that_was_killed_goes_on(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import satstore.compat.phd_lab.latents as module

    [whole] = import_logs(theirs, tmp_path / "whole", latents=True)
    count, original = 0, module.convert_layer

    def fail_at_fourth(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(module, "convert_layer", fail_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        import_logs(theirs, tmp_path / "ours", latents=True)
    [run] = list_runs(tmp_path / "ours")
    assert run.status("extract") == "cancelled"
    assert run.manifest.latents == {}
    monkeypatch.undo()
    [run] = import_logs(theirs, tmp_path / "ours", latents=True)
    for split in N_IMAGES:
        for layer, array in run.latents("pool2", split).items():
            assert np.array_equal(array.numpy(), whole.latents("pool2", split)[layer].numpy())
    assert [f for f in Verification(run).findings() if f.is_wrong] == []
    with pytest.raises(ConfigError, match="is there already"):
        import_logs(theirs, tmp_path / "ours", latents=True)


def test_import__keeps_maps_of_several_sizes_whole(theirs: Path, tmp_path: Path) -> None:
    folder = folder_of(theirs)
    for split, n_images in N_IMAGES.items():
        (folder / f"{split}-classifier-2.p").unlink()
        (folder / f"{split}-features-0.p").write_bytes(pickle.dumps(np.ones((n_images, 64 * 7), np.float64)))
    [run] = import_logs(theirs, tmp_path / "ours", latents=True)
    [key] = run.manifest.latents
    assert run.latents(key.group, "train")["features.0"].shape == (50, 64 * 7), "no square: it stays flat"
    assert list(run.latents(key.group, "train")) == ["features.0", "classifier.6"]


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("owned"),)


def dump(*values: object, protocol: int = 4) -> bytes:
    content = io.BytesIO()
    for value in values:
        pickle.dump(value, content, protocol=protocol)
    return content.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", ">i4", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_read_arrays__reads_what_numpy_wrote(tmp_path: Path, protocol: int, dtype: str, order: Any) -> None:
    values = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    path = tmp_path / "batches.p"
    path.write_bytes(dump(values, values[:1], np.zeros((0, 3), dtype), protocol=protocol))
    found = list(read_arrays(path))
    assert [part.dtype for part in found] == [values.dtype] * 3
    assert np.array_equal(found[0], values)
    assert np.array_equal(found[1], values[:1])
    assert found[2].shape == (0, 3)


def test_read_arrays__reads_names_of_numpy_1(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = dump(values, protocol=2).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"numpy.core" in content
    path = tmp_path / "batches.p"
    path.write_bytes(content)
    assert np.array_equal(next(read_arrays(path)), values)


def test_read_arrays__refuses_all_else_and_runs_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = np.ones((2, 3), np.float32)
    structure = np.zeros(2, dtype=[("a", "f4")])
    ndarray_call = b"cnumpy\nndarray\n((I1000000000000\nttR."
    cases: dict[str, bytes] = {
        "names pathlib": dump(Evil()),
        "batch 2": dump(good, Evil()),
        "holds a list": dump([1, 2]),
        "holds a dict": dump({"a": 1}),
        "names torch": dump(torch.ones(2)),
        "names posix.system|names nt.system": b"cposix\nsystem\n(S'touch owned'\ntR.",
        "names builtins.eval": b'cbuiltins\neval\n(S\'open("owned", "w")\'\ntR.',
        "array of 'O8'|array of '\\|O8'": dump(np.array([Evil(), None], dtype=object)),
        "array of 'V4'": dump(structure),
        "array of 'M8'": dump(np.zeros(2, "datetime64[s]")),
        "calls numpy.ndarray": ndarray_call,
        "truncated|ran out|Ran out": dump(good)[:-40],
        "is no pickle": b"\x00\x01garbage",
        "persistent": b"Pkey\n.",
        "buffer size|reshape": dump(good).replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"),
    }
    for message, content in cases.items():
        path = tmp_path / "x.p"
        path.write_bytes(content)
        with pytest.raises(CorruptError, match=message) as caught:
            list(read_arrays(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_import__refuses_latents_that_are_not_whole(theirs: Path, tmp_path: Path) -> None:
    folder = folder_of(theirs)
    labels = pickle.dumps(np.arange(3))
    cases: dict[str, tuple[str, bytes | None, bool]] = {
        "no train-labels.p": ("train-labels.p", None, True),
        "holds no class indices": ("train-labels.p", dump(np.ones(50, np.float32)), True),
        "batch 1 is no pickle of a NumPy array": ("eval-features-0.p", dump(Evil()), True),
        "holds nothing": ("eval-features-0.p", b"", True),
        "holds int64 of shape": ("eval-features-0.p", labels, True),
        "has more images than the 50 labels": (
            "train-classifier-6.p",
            dump(np.ones((60, 10), np.float32)),
            False,
        ),
        "has 7 images; there are 50 labels": (
            "train-classifier-6.p",
            dump(np.ones((7, 10), np.float32)),
            False,
        ),
        "beside others of": (
            "train-classifier-6.p",
            dump(np.ones((7, 10), np.float32), np.ones((7, 9), np.float32)),
            False,
        ),
        "is no path of a folder": ("model_pointer.txt", b"\xff\xfe\x00", True),
    }
    for number, (message, (name, content, is_at_once)) in enumerate(cases.items()):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(theirs, copy)
        path = copy / folder.relative_to(theirs) / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        logs = tmp_path / f"ours{number}"
        with pytest.raises(CorruptError, match=message):
            import_logs(copy, logs, latents=True)
        runs = list_runs(logs)
        assert [run.status("extract") for run in runs] == ([] if is_at_once else ["failed"])
    shutil.rmtree(folder)
    with pytest.raises(NotFoundError, match="no latents of phd-lab"):
        import_logs(theirs, tmp_path / "ours", latents=True)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("receptive_field_VGG5_Digits_32.csv", "receptive_field", "is no table of receptive fields"),
        ("../../../projections_MyRun.csv", "accs", "is no table of projections"),
        ("probe_performances.csv", "eval_acc", "is no table of probes"),
        (f"{STEM}.csv", "test_accuracy", "is no table of metrics"),
        (f"{STEM}.csv", "train-saturation_features-0", "is no table of metrics"),
    ],
)
@pytest.mark.parametrize("is_missing", [False, True])
def test_import__names_the_table_that_holds_garbage(
    tmp_path: Path, name: str, column: str, message: str, is_missing: bool
) -> None:
    path = write_tree(tmp_path / "theirs") / name
    table = pd.read_csv(path, sep=";", index_col=0)
    if is_missing and name.endswith((f"{STEM}.csv", "probe_performances.csv")):
        pytest.skip("a metric may be missing; a column of probes has its own message")
    changed = table.drop(columns=column) if is_missing else table.assign(**{column: "rubbish"})
    changed.to_csv(path, sep=";")
    with pytest.raises(CorruptError, match=message) as caught:
        import_logs(tmp_path / "theirs", tmp_path / "ours")
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list_runs(tmp_path / "ours") == []
