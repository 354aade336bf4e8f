"""Stores elsewhere: under another folder, and on object storage, a real S3 server on loopback."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from conftest import SMALL
from zarr.storage import ObjectStore

import satstore
from satstore.errors import ConfigError, CorruptError, NotFoundError, UnreachableError
from satstore.location import Bucket, Folder, Location, locate
from satstore.logs import open_run
from satstore.pipeline import make_plan, run_experiments, run_stages
from satstore.run import Run
from satstore.store import LatentWriter, layout
from satstore.store.durable import open_store

CONFIG: dict[str, Any] = {**SMALL, "layers": "features.0|classifier"}
KEY_ID, SECRET = "AKIAUNDERTEST0000001", "wJalrXUtnFEMI-K7MDENG-bPxRfiCYSECRET"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A server that speaks S3, with a bucket ``latents``."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    request = urllib.request.Request(f"http://127.0.0.1:{port}/latents", method="PUT")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(300):
            try:
                direct.open(request, timeout=10).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server ended"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def set_environment(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_ALLOW_HTTP", "true")
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def cloud(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of the bucket, for one test, with what the environment has to say to reach it."""
    set_environment(monkeypatch, endpoint)
    return f"s3://latents/{request.node.originalname}"


def run_cli(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "satstore", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    run_experiments(CONFIG, "res", ["train"], logs_dir=logs)
    return logs


@pytest.fixture
def trained(logs: Path, tmp_path: Path) -> Run:
    """A copy of a trained run that has no latents yet, and the folder of one that has."""
    shutil.copytree(logs / "res", tmp_path / "res")
    run = open_run("res", tmp_path)
    run.commit(change=lambda manifest: manifest.latents.clear())
    run.commits.remove("latents.zarr")
    shutil.rmtree(run.path / "latents.zarr")
    return run


def start(run: Run, stage: str, **parameters: Any) -> Run:
    [outcome] = run_stages([Run(run.path)], make_plan([stage], parameters), with_needs=False)
    if outcome.error is not None:
        raise outcome.error
    return Run(run.path)


def contents(location: Location) -> dict[str, bytes]:
    return {key: location.read(key) for key in location.sizes()}


# Locations


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path, cloud: str) -> Location:
    return locate(tmp_path / "x.zarr" if request.param == "folder" else f"{cloud}/x.zarr")


def test_location__holds_objects(location: Location) -> None:
    assert (location.name, location.exists(), location.sizes(), location.remove()) == ("x.zarr", False, {}, 0)
    large = os.urandom(11 * 2**20)  # several parts of an upload
    objects = {"zarr.json": b"{}", "a/b/c": b"12345", "a/big": large, "ab/c": b""}
    for key, content in objects.items():
        location.write(key, content)
    location.write("a/b/c", b"123")
    objects["a/b/c"] = b"123"
    assert location.exists()
    assert contents(location) == objects
    assert location.sizes("a") == {"a/b/c": 3, "a/big": len(large)}
    with pytest.raises(NotFoundError, match=f"{location} has no a/none"):
        location.read("a/none")
    location.delete(["ab/c", "nowhere"])
    assert location.remove("a") == 3 + len(large)
    assert location.sizes() == {"zarr.json": 2}
    assert location.remove() == 2
    assert not location.exists()


def test_locate__tells_paths_from_urls() -> None:
    assert isinstance(locate("s3://bucket/a/b/"), Bucket)
    assert str(locate("s3://bucket/a/b/")) == "s3://bucket/a/b"
    for place in ("a/b", "/a/b", Path("a/b"), "file:///a/b%20c"):
        assert isinstance(locate(place), Folder)
    assert str(locate("file:///a/b%20c")) == "/a/b c"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY_ID}:{SECRET}@bucket/a",
        f"s3://bucket/a?X-Amz-Signature={SECRET}",
        f"https://bucket/a?sig={SECRET}",
        f"s3://bucket/a#{SECRET}",
    ],
)
def test_locate__refuses_credentials_and_does_not_repeat_them(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in the environment") as caught:
        locate(url)
    result = run_cli(
        "train", "--config", "demo", "--run-id", "r", "--logs-dir", tmp_path, "--latents-dir", url
    )
    assert result.returncode != 0
    for text in (str(caught.value), result.stdout, result.stderr):
        assert SECRET not in text
    assert "in the environment" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["ftp://host/a", "https://host/a", "s3:///a", "memory://a/b"])
def test_locate__refuses_what_holds_no_store(url: str) -> None:
    with pytest.raises(ConfigError, match="no store can lie at"):
        locate(url)


def test_bucket__needs_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"pip install 'satstore\[cloud\]'"):
        Bucket("s3://bucket/a").exists()


def test_bucket__that_is_not_there_is_named(cloud: str) -> None:
    for call in (lambda b: b.sizes(), lambda b: b.write("k", b""), lambda b: b.remove()):
        with pytest.raises(NotFoundError, match="no bucket for s3://nowhere/a: make it first"):
            call(locate("s3://nowhere/a"))
    with pytest.raises(NotFoundError, match="no store at s3://nowhere/a"):
        satstore.open_latents("s3://nowhere/a")


@pytest.mark.parametrize("kind", ["refuses", "silent"])
def test_bucket__whose_endpoint_is_dead_is_named_in_bounded_time(
    kind: str, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":  # connections are taken, and never answered
            listener.listen()
        monkeypatch.setattr("satstore.location.MAX_RETRIES", 1)
        monkeypatch.setenv("AWS_TIMEOUT", "500ms")
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        started = time.monotonic()
        with pytest.raises(
            UnreachableError, match=r"s3://latents/a can't be reached: .*after 1 retries"
        ) as e:
            satstore.open_latents("s3://latents/a")
    assert time.monotonic() - started < 10
    text = str(e.value)
    assert "\n" not in text
    assert "AWS_ENDPOINT_URL" in text
    for value in (KEY_ID, SECRET, endpoint):
        assert value not in text


def test_bucket__carries_no_credentials(cloud: str) -> None:
    """Neither does the Zarr store over it, which dask hands to its workers."""
    location = locate(f"{cloud}/a")
    location.write("k", b"1")
    store = open_store(location)
    for thing in (location, store):
        seen = [str(thing).encode(), repr(thing).encode(), pickle.dumps(thing)]
        assert not [text for text in seen for value in (KEY_ID, SECRET) if value.encode() in text]
    assert pickle.loads(pickle.dumps(location)).read("k") == b"1"


# Latents elsewhere


def test_extract__writes_to_a_bucket_what_it_writes_to_a_folder(
    trained: Run, logs: Path, cloud: str, endpoint: str
) -> None:
    result = run_cli("extract", "--run", "res", "--logs-dir", trained.path.parents[1], "--latents-dir", cloud)
    assert result.returncode == 0, result.stderr
    run = Run(trained.path)
    url = f"{cloud}/res/{run.experiment}/latents.zarr"
    assert run.manifest.latents_path == run.latents_path == url
    assert not (run.path / "latents.zarr").exists()
    here = open_run("res", logs)
    assert contents(run.latents_location) == contents(here.latents_location)

    result = run_cli("probe", "--run", "res", "--logs-dir", trained.path.parents[1])
    assert result.returncode == 0, result.stderr
    start(here, "probe")
    columns = ["layer", "eval_accuracy", "objective", "n_iter"]
    found, known = (Run(r.path).table("probe-pool4")[columns] for r in (run, here))
    assert found.equals(known)

    store = satstore.open_latents(url)  # it needs nothing of its run
    assert (store.layers, store.poolings) == (run.layers, ["pool4"])
    latents = store.split("pool4", "eval")["features.0"]
    assert latents.shape == (360, 32, 4, 4)
    np.testing.assert_array_equal(
        latents.dask().compute(), here.latents("pool4", "eval")["features.0"].numpy()
    )

    import obstore.store

    tree = xarray.open_datatree(
        ObjectStore(obstore.store.from_url(url), read_only=True),  # type: ignore[arg-type]
        engine="zarr",
        consolidated=False,
        chunks={},
    )
    assert tree["pool4/eval/features.0"]["latent"].dims == ("sample", "channel", "y", "x")
    np.testing.assert_array_equal(tree["pool4/eval/features.0"]["latent"].values, latents.numpy())

    written = b"".join(path.read_bytes() for path in trained.path.parents[1].rglob("*") if path.is_file())
    written += b"".join(contents(run.latents_location).values())
    for value in (KEY_ID, SECRET, endpoint):
        assert value.encode() not in written + result.stdout.encode() + result.stderr.encode()


def test_extract__stopped_on_the_way_to_a_bucket_goes_on_and_ends_bit_equal(
    trained: Run, logs: Path, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**20)  # shards of 256 samples and more
    append, left = LatentWriter.append, [10]

    def stop(self: LatentWriter, latents: Any, start: int) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, latents, start)

    with monkeypatch.context() as context:
        context.setattr(LatentWriter, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            start(trained, "extract", latents_dir=cloud)
    committed = trained.commits.read("latents.zarr")
    assert 0 < committed.n_rows["pool4/train/features.0"] < 1437
    assert "pool4" not in Run(trained.path).manifest.latents
    first = f'"{next(k for k in committed.files if "latent/c/0" in k)}"'
    n_lines = trained.commits.path.read_text().count(first)
    done = start(trained, "extract")  # the manifest says where
    assert str(done.latents_location).startswith(cloud)
    assert done.commits.path.read_text().count(first) == n_lines, "what was committed is not written again"
    here = start(open_run("res", logs), "extract", overwrite=True)
    assert contents(done.latents_location) == contents(here.latents_location)


def test_latents__gone_from_a_bucket_are_named_and_written_again(trained: Run, cloud: str) -> None:
    run = start(trained, "extract", latents_dir=cloud)
    location = run.latents_location
    key = next(key for key in location.sizes() if key.startswith("pool4/eval/features.0/latent/c/"))
    content = location.read(key)
    location.delete([key])
    with pytest.raises(CorruptError, match=f"{location}/{key} is committed but not there"):
        run.latents("pool4", "eval")
    assert start(run, "extract").latents_location.read(key) == content


def test_latents_dir__a_folder(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = start(trained, "extract", latents_dir="elsewhere")
    path = tmp_path / "elsewhere/res" / run.experiment / "latents.zarr"
    assert run.latents_path == path
    assert (path / "zarr.json").is_file()
    assert satstore.open_latents(path).layers == run.layers
    assert start(run, "extract", latents_dir="elsewhere").latents_path == path
    with pytest.raises(
        ConfigError, match=f"has its latents at {path}, not at {tmp_path}/other/.*satstore clean"
    ):
        start(run, "extract", latents_dir="other")
    assert start(run, "train", latents_dir="other", overwrite=True).latents_path == (
        tmp_path / "other/res" / run.experiment / "latents.zarr"
    )
    assert not path.exists()


def test_train__to_a_bucket_that_is_not_there_fails_before_it_trains(cloud: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    result = run_cli(
        "train",
        "--config",
        config,
        "--run-id",
        "r",
        "--logs-dir",
        tmp_path,
        "--latents-dir",
        "s3://nowhere/a",
    )
    assert result.returncode == 1
    assert "no bucket for s3://nowhere/a" in result.stderr
    assert open_run("r", tmp_path).manifest.summary.epochs_done == 0


def test_train__overwrite_removes_the_store_from_its_bucket(trained: Run, cloud: str) -> None:
    location = start(trained, "extract", latents_dir=cloud).latents_location
    assert location.exists()
    start(trained, "train", overwrite=True, latents=False)
    assert location.sizes() == {}
