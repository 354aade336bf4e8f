"""What users' machines do to satstore: disks that fill up, networks that are none, kills at any time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import WORKS_S
from crashes import N_CHANGES, is_killed, kill_at_random
from limits import MIB, PROBE_LIMIT, probe_within
from tiny import CONFIG, results, run_tiny

from satstore.analysis.spectrum import eigenvalues, intrinsic_dimension
from satstore.errors import CorruptError, NumericsError
from satstore.runs.run import Run
from satstore.runs.verify import Verification
from satstore.storage.zarr import AnalysisStore, open_latents
from satstore.training import epoch_spectra

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("tiny"))


def mount_is_possible() -> bool:
    """Tell whether a file system can be mounted in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.long
def test_full_disk__loses_nothing_and_the_same_command_finishes(tiny_run: Run, tmp_path: Path) -> None:
    if not mount_is_possible():
        pytest.skip("needs a file system of its own, of a size")
    (tmp_path / "tiny.json").write_text(json.dumps({**CONFIG, "plugins": ["tiny"]}))
    disk = tmp_path / "disk"
    disk.mkdir()
    # On a disk of 250 KB, the run needs about 600; what is said and what is left comes out of the namespace.
    script = f"""
    mount -t tmpfs -o size=250k none {disk}
    run="{sys.executable} -m satstore run --config {tmp_path}/tiny.json --run-id res --logs-dir {disk}/logs"
    $run > {tmp_path}/first 2>&1; echo $? > {tmp_path}/first-code
    {sys.executable} -m satstore verify res --logs-dir {disk}/logs > {tmp_path}/verified 2>&1
    mount -o remount,size=20m {disk}
    $run > {tmp_path}/second 2>&1; echo $? > {tmp_path}/second-code
    cp -r {disk}/logs {tmp_path}/logs
    """
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    subprocess.run(["unshare", "-rm", "sh", "-c", script], check=True, env=environment, timeout=WORKS_S)
    said = (tmp_path / "first").read_text()

    assert (tmp_path / "first-code").read_text() == "1\n", said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert f"{disk}/logs/res/" in last
    assert "No space left on device" in last
    assert "bytes are to be written where" in last
    assert "make room and give the same command again" in last
    assert "is not what was committed" not in (tmp_path / "verified").read_text()
    assert (tmp_path / "second-code").read_text() == "0\n", (tmp_path / "second").read_text()
    [manifest] = tmp_path.glob("logs/res/*/manifest.json")
    run = Run(manifest.parent)
    assert [f for f in Verification(run).findings() if f.is_wrong] == []
    undisturbed = results(tiny_run)
    found = results(run)
    for name in ("checkpoint.pt", "metrics.csv", "probe-pool2.csv", "latents/pool2/eval/5", "probe/pool2/5"):
        assert found[name] == undisturbed[name]


@pytest.mark.long
def test_kill__of_real_processes_at_random_changes_ends_with_the_same_bits(
    tiny_run: Run, tmp_path: Path
) -> None:
    expected = results(tiny_run)
    assert kill_at_random(expected, tmp_path / "killed", seed=1) > 0


@pytest.mark.long
def test_kill__of_a_process_that_fails_before_is_an_error(tmp_path: Path) -> None:
    """And one that comes to its end before was not killed."""
    (tmp_path / "whole").mkdir()
    assert not is_killed(tmp_path / "whole", at_change=10 * N_CHANGES)
    (tmp_path / "taken").write_text("no folder")
    with pytest.raises(AssertionError, match="WriteError"):
        is_killed(tmp_path / "taken", at_change=10 * N_CHANGES)


def test_spectra__of_products_beyond_float64_are_nan_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(covariance: np.ndarray) -> np.ndarray:
        if len(covariance) == 4:  # the conv's
            raise NumericsError("16 of 16 entries of the covariance are not finite: no spectrum")
        return eigenvalues(covariance)

    monkeypatch.setattr(epoch_spectra, "eigenvalues", refuse)
    run = run_tiny(tmp_path, stages=["train", "saturation"])
    spectra = run.spectra("train")
    assert np.isnan(spectra["0"]).all()
    assert np.isfinite(spectra["5"]).all()
    assert run.manifest.summary.saturation["0"] is None
    assert any(line.startswith("train: layer 0: 16 of 16 entries") for line in run.manifest.warnings)


def test_eigenvalues__that_cannot_be_found_are_a_numerics_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: np.ndarray) -> np.ndarray:
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    monkeypatch.setattr(np.linalg, "eigvalsh", fail)
    with pytest.raises(NumericsError, match="can't be found"):
        eigenvalues(np.eye(3))


@pytest.mark.parametrize(
    ("covariance", "dimension"),
    [
        (np.zeros((8, 8)), 0),
        (np.ones((8, 8)), 1),
        (np.eye(8), 8),
        (np.diag([5.0] * 4 + [0.0] * 4), 4),
        (np.diag([1e-300] * 2 + [0.0] * 6), 2),
        (np.diag([1e300] * 3 + [0.0] * 5), 3),
    ],
    ids=["zero", "rank 1", "all alike", "four alike", "tiny", "huge"],
)
def test_intrinsic_dimension__of_degenerate_covariances(covariance: np.ndarray, dimension: int) -> None:
    assert intrinsic_dimension(eigenvalues(covariance), 0.99) == dimension


BOMBS = {
    "no chunks": lambda metadata: metadata["chunk_grid"]["configuration"].update(chunk_shape=False),
    "shape": lambda metadata: metadata["shape"].__setitem__(0, 10**15),
    "chunks": lambda metadata: metadata["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 10**12),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize(
    "array",
    [
        "latents.zarr/pool2/train/label",
        "latents.zarr/pool2/train/0/latent",
        "analysis.zarr/spectra/train/0/mean",
    ],
)
def test_zip_bombs__are_refused_before_memory_is_taken(
    tiny_run: Run, tmp_path: Path, bomb: str, array: str
) -> None:
    shutil.copytree(tiny_run.path, tmp_path / tiny_run.run_id / tiny_run.experiment)
    run = Run(tmp_path / tiny_run.run_id / tiny_run.experiment)
    file = run.path / array / "zarr.json"
    metadata = json.loads(file.read_text())
    BOMBS[bomb](metadata)
    file.write_text(json.dumps(metadata))
    latents = open_latents(run.latents_path).split("pool2", "train")

    def read() -> object:
        if array.startswith("analysis"):
            return AnalysisStore(run.analysis_path).moments("train", "0")
        return latents.labels if array.endswith("label") else latents["0"]

    with pytest.raises(CorruptError, match=r"zarr\.json is damaged or forged|can't be read"):
        read()
    found = [str(finding) for finding in Verification(run).findings() if finding.is_wrong]
    assert any(array in line for line in found)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's data")
def test_memory__of_a_probe_is_within_its_limit_by_the_systems_count(tmp_path: Path) -> None:
    """Of latents twice the limit; `make soak` goes to ten times, and extracts so many too."""
    probe_within(tmp_path / "large", 2 * PROBE_LIMIT, n_iter=3)
    with pytest.raises(AssertionError, match=r"[Mm]emory"):
        probe_within(tmp_path / "none", MIB, PROBE_LIMIT // 8)
