"""`satstore verify`: each kind of damage is found and named, with the command that repairs it."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from command_line import call, satstore
from tiny import run_tiny

from satstore.config.latent_keys import LatentsKey
from satstore.runs.logs_folder import list_runs
from satstore.runs.manifest import Manifest
from satstore.runs.run import Run
from satstore.runs.verify import Finding, Verification
from satstore.stages.pipeline import apply_stages
from satstore.storage.commit_log import CommitLog
from satstore.storage.files import Digest, write_file
from satstore.storage.location import Folder
from satstore.storage.safe_names import Key
from satstore.storage.zarr.durable_store import open_store

LATENT = "latents.zarr/pool2/train/0/latent"
SHARD = f"{LATENT}/c/0/0/0/0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Run:
    """A copy of a small run, to be damaged."""
    path = tmp_path / "logs" / whole.run_id / whole.experiment
    shutil.copytree(whole.path, path)
    return Run(path)


def wrong(run: Run) -> list[Finding]:
    return [finding for finding in Verification(Run(run.path)).findings() if finding.is_wrong]


def notes(run: Run) -> list[str]:
    return [finding.what for finding in Verification(Run(run.path)).findings() if not finding.is_wrong]


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 8
    path.write_bytes(content)


def swap(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_verify__reads_all_of_an_undamaged_run_and_finds_nothing(run: Run) -> None:
    verification = Verification(run)
    assert list(verification.findings()) == []
    committed = [run.commits.read(store).files for store in ("latents.zarr", "analysis.zarr")]
    sizes = [d.size_bytes for files in committed for d in files.values()]
    sizes += [record.size_bytes for record in run.manifest.files.values()]
    assert (verification.n_files, verification.size_bytes) == (len(sizes), sum(sizes))


EXTRACT = "satstore extract --run {run} -d 2"
PROBE = "satstore probe --run {run} -d 2 --overwrite"
TRAIN = "satstore train --run {run} --overwrite"
EIGENVALUES = "analysis.zarr/spectra/eval/0/eigenvalues"
COEF = "analysis.zarr/probes/pool2/5/coef"

DAMAGES: list[tuple[str, Callable[[Path], object], str, str]] = [
    (SHARD, flip, "its content changed", EXTRACT),
    (SHARD, lambda path: flip(path, 0.999), "its content changed", EXTRACT),
    (SHARD, lambda path: os.truncate(path, 100), "has 100 bytes, ", EXTRACT),
    (SHARD, lambda path: os.truncate(path, 0), "has 0 bytes, ", EXTRACT),
    (SHARD, Path.unlink, "is committed but not there", EXTRACT),
    (f"{LATENT}/zarr.json", lambda path: edit(path, "40", "41"), "its metadata changed", EXTRACT),
    (f"{LATENT}/zarr.json", lambda path: edit(path, "NaN", "0.0"), "its metadata changed", EXTRACT),
    ("latents.zarr/pool2/zarr.json", Path.unlink, "is committed but not there", EXTRACT),
    ("latents.zarr/zarr.json", lambda path: edit(path, '"res"', '"ras"'), "its metadata changed", EXTRACT),
    ("latents.zarr/pool2/eval/label/c/0", flip, "its content changed", EXTRACT),
    (f"{EIGENVALUES}/c/0/0", flip, "its content changed", TRAIN),
    (f"{COEF}/c/0/0", flip, "its content changed", PROBE),
    (f"{COEF}/zarr.json", lambda path: path.write_text("{}"), "has 2 bytes, ", PROBE),
    ("analysis.zarr/probes/zarr.json", lambda path: path.write_text("{"), "has 1 bytes, ", PROBE),
    ("analysis.zarr/zarr.json", Path.unlink, "is committed but not there", TRAIN),
    ("checkpoint.pt", flip, "is not what was committed", TRAIN),
    ("metrics.csv", lambda path: edit(path, "0.", "1."), "is not what was committed", TRAIN),
    ("probe-pool2.csv", Path.unlink, "is committed but not there", PROBE),
    (
        "saturation.csv",
        lambda path: edit(path, "train", "trans"),
        "is not what was committed",
        "satstore saturation --run {run} --overwrite",
    ),
    ("config.json", lambda path: edit(path, "TinyImages", "TinyImagos"), "is not what was committed", ""),
]


@pytest.mark.parametrize(("name", "damage", "what", "command"), DAMAGES)
def test_verify__finds_damage(
    run: Run, name: str, damage: Callable[[Path], object], what: str, command: str
) -> None:
    damage(run.path / name)
    [finding] = wrong(run)
    assert finding.what.startswith(f"{name} ")
    assert what in finding.what
    assert finding.command == command.format(run=run.name)


def test_verify__finds_swapped_shards(run: Run) -> None:
    names = (SHARD, SHARD.replace("train", "eval"))
    swap(*(run.path / name for name in names))
    assert {finding.what.split()[0] for finding in wrong(run)} == set(names)


def test_verify__finds_a_store_that_is_gone(run: Run) -> None:
    shutil.rmtree(run.path / "latents.zarr")
    [finding] = wrong(run)
    assert finding == Finding("latents.zarr is committed but not there", EXTRACT.format(run=run.name))


def rewrite(run: Run, array: str, change: Callable[[zarr.Array], None]) -> None:
    """Change an array and commit what it then holds, as software with a fault would."""
    store = open_store(run.latents_location, run.commits)
    item = zarr.open_group(store, mode="r+")[array]
    assert isinstance(item, zarr.Array)
    change(item)
    store.commit()
    key = LatentsKey.above(array)
    digest = run.commits.read("latents.zarr").digest(str(key))

    def repeat(manifest: Manifest) -> None:
        manifest.latents[key].digest = digest

    run.commit(change=repeat)


@pytest.mark.parametrize(
    ("split", "name", "values", "what"),
    [
        ("eval", "label", {0: 1, 1: 2, 2: 0}, "not those of the data of the training"),
        ("train", "sample_id", {0: 7}, "has samples twice"),
        ("train", "label", {5: 3}, "has a class 3; there are 3"),
    ],
)
def test_verify__finds_labels_that_are_not_the_datas(
    run: Run, split: str, name: str, values: dict[int, int], what: str
) -> None:
    def change(array: zarr.Array) -> None:
        for index, value in values.items():
            array[index] = value

    rewrite(run, f"pool2/{split}/{name}", change)
    found = wrong(run)
    assert any(what in finding.what for finding in found), found
    for finding in found:
        assert finding.what.startswith(f"pool2/{split}")
        assert finding.command == f"{EXTRACT} --overwrite".format(run=run.name)


def test_verify__without_a_digest_of_labels_says_so(run: Run) -> None:
    def forget(manifest: Manifest) -> None:
        assert manifest.dataset is not None
        manifest.dataset.labels_sha256 = {}

    run.commit(change=forget)
    assert wrong(run) == []
    assert [note.split(":")[0] for note in notes(run)] == ["pool2/eval", "pool2/train"]


def test_verify__a_chunk_of_nothing_but_nan_is_lost(demo_copy: Path) -> None:
    """In a store whose shards have several chunks."""
    [run] = list_runs(demo_copy)

    def lose(array: zarr.Array) -> None:
        array[: array.chunks[0]] = np.nan

    rewrite(run, "pool4/train/features.15/latent", lose)
    [finding] = wrong(run)
    lost = "a chunk (1 in all) is lost, nothing but NaN where mean is finite"
    assert finding.what == f"pool4/train/features.15/latent: {lost}"


def test_verify__a_shard_that_the_log_lost_is_lost(run: Run) -> None:
    key = f"{SHARD}".removeprefix("latents.zarr/")
    run.commits.remove("latents.zarr", key)
    found = [finding.what for finding in wrong(run)]
    assert found[0] == "pool2 has other files in the commit log than the manifest says"
    assert found[1].startswith("pool2/train/0/latent: c/0/0/0/0 is lost")
    assert f"the commit log knows nothing of {key}" in notes(run)[0]


def test_verify__nan_that_are_the_layers_own_are_a_note(run: Run) -> None:
    layer = "pool2/train/5"
    rewrite(run, f"{layer}/latent", lambda array: array.__setitem__((3, slice(1, 3)), np.nan))
    [finding] = wrong(run)
    assert finding.what == f"{layer}/mean is not finite where the latents are, or the reverse"
    for name in ("mean", "std"):
        rewrite(run, f"{layer}/{name}", lambda array: array.__setitem__(slice(1, 3), np.nan))
    assert wrong(run) == []
    assert notes(run) == [f"{layer}/latent has 2 values that are NaN or infinite, its layer's own"]


def test_extract__reads_what_is_stored_once_to_find_what_is_damaged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(run.path / SHARD)
    read: Counter[str] = Counter()
    digest = Folder.digest

    def count(place: Folder, key: Key) -> Digest:
        read[key] += 1
        return digest(place, key)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "digest", count)
        apply_stages(run, "extract")
    assert read["pool2/eval/0/latent/c/0/0/0/0"] == 1
    assert wrong(run) == []
    flip(run.path / SHARD)
    apply_stages(run, "extract")
    assert wrong(run) == [], "what was found before is not remembered"


def test_verify__an_extraction_that_was_stopped_is_not_finished(run: Run) -> None:
    run.commits.append("latents.zarr", {}, {"pool1/train": 16})
    [finding] = wrong(run)
    assert finding.what == "pool1 is not finished (16 of 40 rows of train, 0 of 20 rows of eval)"
    assert finding.command == f"satstore extract --run {run.name} -d 1"
    with run.lock():
        assert wrong(run) == []
        assert "it is being written right now" in notes(run)[0]


def test_verify__latents_of_another_checkpoint_are_named(run: Run) -> None:
    other = b"another checkpoint"
    run.commit({"checkpoint.pt": other})
    [finding] = wrong(run)
    assert finding.what == "pool2 is of another checkpoint than the run's"


def test_verify__rows_that_the_log_lost_are_found(run: Run) -> None:
    run.commits.append("latents.zarr", {}, {"pool2/train": 16})
    assert "'train': 16" in wrong(run)[0].what


def test_verify__spectra_and_probes_have_all_layers(run: Run) -> None:
    run.commits.remove("analysis.zarr", "spectra/eval/0")
    run.commits.remove("analysis.zarr", "probes/pool2/5")
    assert [(finding.what, finding.command) for finding in wrong(run)] == [
        ("analysis.zarr/spectra/eval has nothing of layer 0", TRAIN.format(run=run.name)),
        ("analysis.zarr/probes/pool2 has nothing of layer 5", PROBE.format(run=run.name)),
    ]


def test_verify__a_file_that_waits_for_its_renaming_is_whole(run: Run) -> None:
    (run.path / "metrics.csv").rename(run.path / "metrics.csv.new")
    assert wrong(run) == []


def test_verify__leftovers_and_torn_lines_are_notes(run: Run) -> None:
    write_file(run.path / "latents.zarr/pool2/train/0/latent/c/9", b"left over")
    with run.commits.path.open("ab") as file:
        file.write(b'{"store": "latents.zarr", "key": "pool2/tr')
    assert wrong(run) == []
    assert notes(run) == [
        "commits.jsonl has torn lines (1); what they named counts as not written",
        "latents.zarr: the commit log knows nothing of pool2/train/0/latent/c/9",
    ]


def test_verify__a_store_that_lies_about_its_content_is_no_traceback(run: Run) -> None:
    """Digests that fit content which is no array: what a fault of the writer could leave."""
    garbage = {f"{LATENT}/zarr.json": b"{}", SHARD: b"no shard", "latents.zarr/pool2/zarr.json": b"\xff"}
    for name, content in garbage.items():
        (run.path / name).write_bytes(content)
    written = {name.removeprefix("latents.zarr/"): Digest.of(content) for name, content in garbage.items()}
    CommitLog(run.commits.path).append("latents.zarr", written)
    found = [finding.what for finding in wrong(run)]
    assert any("is not the metadata of a group or an array" in what for what in found)
    write_file(
        run.path / f"{LATENT}/zarr.json",
        (run.path / LATENT.replace("train", "eval") / "zarr.json").read_bytes(),
    )


def test_verify__names_the_command_that_repairs_probes(run: Run) -> None:
    analysis = run.path / "analysis.zarr"
    for name in ("zarr.json", "pool2/0/zarr.json", "pool2/0/coef/zarr.json"):
        (analysis / "probes" / name).write_text("{")
    flip(analysis / "probes/pool2/5/coef/c/0/0")
    found = wrong(run)
    assert len(found) == 4
    assert {finding.command for finding in found} == {PROBE.format(run=run.name)}
    result = satstore(*PROBE.format(run=run.name).split()[1:], "--logs-dir", run.path.parents[1])
    assert result.returncode == 0, result.stderr
    assert wrong(run) == []


# The command


def test_verify_command__exits_with_0_on_what_is_whole(demo_logs: Path, demo_run: Run) -> None:
    result = satstore("verify", "demo", "--logs-dir", demo_logs)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith(f"{demo_run.name}: ")
    assert result.stdout.endswith(" MiB read, nothing wrong\n")


def test_verify_command__names_what_is_wrong_and_exits_with_1(run: Run) -> None:
    logs_dir = run.path.parents[1]
    flip(run.path / SHARD)
    broken = logs_dir / "res" / "broken" / "manifest.json"
    write_file(broken, b"{")
    code, out, err = call("verify", "res", "--logs-dir", logs_dir)
    assert code == 1
    lines = out.splitlines()
    command = f"satstore extract --run {run.name} -d 2"
    assert lines[0] == (
        f"{run.name}: {SHARD} is not what was committed: its content changed; repair it with: {command}"
    )
    assert lines[1].startswith(f"{run.name}: ")
    assert lines[1].endswith("1 thing is wrong")
    assert lines[2].startswith(f"{broken} is not a manifest")
    assert err == "satstore: 2 things are wrong with res\n"


def test_verify_command__json_has_the_findings(run: Run) -> None:
    os.truncate(run.path / "metrics.csv", 3)
    code, out, _ = call("verify", run.name, "--json", "--logs-dir", run.path.parents[1])
    [report] = json.loads(out)
    assert code == 1
    assert (report["run"], report["n_wrong"]) == (run.name, 1)
    assert report["findings"] == [
        {
            "what": "metrics.csv is not what was committed",
            "command": TRAIN.format(run=run.name),
            "is_wrong": True,
        }
    ]
