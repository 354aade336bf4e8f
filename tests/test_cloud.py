"""Stores elsewhere: under another folder, and on object storage, a real S3 server on loopback."""

import http.server
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import xarray
from command_line import HANGS_S, SMALL, satstore_process
from command_line import satstore as cli
from obstore.store import LocalStore
from torch.utils.data import DataLoader
from zarr.storage import ObjectStore

import satstore
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError, CorruptError, NotFoundError, UnreachableError
from satstore.runs.logs_folder import open_run
from satstore.runs.run import Run
from satstore.stages.pipeline import make_tasks, run_experiments, run_stages
from satstore.storage.location import Bucket, Folder, Location, locate
from satstore.storage.zarr import LatentWriter, layout
from satstore.storage.zarr.durable_store import open_store

CONFIG: dict[str, Any] = {
    **SMALL,
    "plugins": ["tiny", "few_digits"],
    "model": "TinyNet",
    "dataset": "FewDigits",
    "resolution": 8,
}
KEY_ID, SECRET = "AKIAUNDERTEST0000001", "wJalrXUtnFEMI-K7MDENG-bPxRfiCYSECRET"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Kind = Literal["local", "server"]
KINDS = ["local", pytest.param("server", marks=pytest.mark.long)]
"""Of buckets: obstore on a folder, or a server that speaks S3."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that speaks S3, with a bucket ``latents``."""
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        found = [re.search(r"Running on (http://\S+)", line) for line in until_it_runs(process.stdout)]
        assert found[-1] is not None, "the S3 server ended"
        rest = threading.Thread(target=process.stdout.read)  # or it would wait for a reader
        rest.start()
        DIRECT.open(urllib.request.Request(f"{found[-1][1]}/latents", method="PUT"), timeout=HANGS_S).close()
        yield found[-1][1]
        process.terminate()
        rest.join()


def until_it_runs(lines: Iterable[str]) -> Iterator[str]:
    """Pass on what a server says until it tells its address."""
    for line in lines:
        yield line
        if "Running on" in line:
            return


@pytest.fixture(scope="module")
def no_buckets() -> Iterator[str]:
    """A server that has none of the buckets that it is asked for."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(404)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"<Error><Code>NoSuchBucket</Code></Error>")

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as found:
        threading.Thread(target=found.serve_forever).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def set_environment(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_ALLOW_HTTP", "true")
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("no_proxy", "127.0.0.1")


def use_buckets(kind: Kind, request: pytest.FixtureRequest) -> str:
    """Let ``s3://`` be reached; return a prefix of a bucket for one test."""
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    if kind == "server":
        set_environment(patch, request.getfixturevalue("server"))
    else:
        set_environment(patch, "http://127.0.0.1:9")
        folder: Path = request.getfixturevalue("tmp_path_factory").mktemp("buckets")
        patch.setattr(
            "obstore.store.from_url",
            lambda url, **_: LocalStore(folder / url.removeprefix("s3://"), mkdir=True),
        )
    return f"s3://latents/{request.node.originalname}"


@pytest.fixture(params=KINDS)
def cloud(request: pytest.FixtureRequest) -> str:
    """A prefix of a bucket, for one test, with what the environment has to say to reach it."""
    return use_buckets(request.param, request)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    run_experiments(CONFIG, "res", ["train"], logs_dir=logs)
    return logs


@pytest.fixture
def trained(logs: Path, tmp_path: Path) -> Run:
    """A copy of a trained run that has no latents yet."""
    shutil.copytree(logs / "res", tmp_path / "res")
    run = open_run("res", tmp_path)
    run.commit(change=lambda manifest: manifest.latents.clear())
    run.commits.remove("latents.zarr")
    shutil.rmtree(run.path / "latents.zarr")
    return run


@pytest.fixture
def here(logs: Path, tmp_path: Path) -> Run:
    """A copy of the same that has its latents in its folder."""
    shutil.copytree(logs / "res", tmp_path / "here" / "res")
    return open_run("res", tmp_path / "here")


def start(run: Run, stage: str, **parameters: Any) -> Run:
    [outcome] = run_stages([Run(run.path)], make_tasks([stage], parameters), with_needs=False)
    if outcome.error is not None:
        raise outcome.error
    return Run(run.path)


def contents(location: Location) -> dict[str, bytes]:
    return {key: location.read(key) for key in location.sizes()}


# Locations


@pytest.fixture(params=["folder", *KINDS])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    is_folder = request.param == "folder"
    return locate(f"{tmp_path if is_folder else use_buckets(request.param, request)}/x.zarr")


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
    result = cli("train", "--config", "demo", "--run-id", "r", "--logs-dir", tmp_path, "--latents-dir", url)
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
    with pytest.raises(ConfigError, match="pip install obstore"):
        Bucket("s3://bucket/a").exists()


@pytest.mark.parametrize("who", ["no_buckets", pytest.param("server", marks=pytest.mark.long)])
def test_bucket__that_is_not_there_is_named(
    who: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, request.getfixturevalue(who))
    for call in (lambda b: b.sizes(), lambda b: b.write("k", b""), lambda b: b.remove()):
        with pytest.raises(NotFoundError, match="no bucket for s3://nowhere/a: make it first"):
            call(locate("s3://nowhere/a"))
    with pytest.raises(NotFoundError, match="no store at s3://nowhere/a"):
        satstore.open_latents("s3://nowhere/a")


@pytest.mark.parametrize("kind", ["refuses", "silent"])
def test_bucket__whose_endpoint_is_dead_is_named_after_its_retries(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satstore.storage.location.MAX_RETRIES", 1)
    monkeypatch.setattr("satstore.storage.location.RETRY_TIMEOUT_S", HANGS_S)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":  # connections are taken, and never answered
            listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        set_environment(monkeypatch, endpoint)
        monkeypatch.setenv("AWS_TIMEOUT", "500ms")
        with pytest.raises(
            UnreachableError, match=r"s3://latents/a can't be reached: .*after 1 retries"
        ) as e:
            satstore.open_latents("s3://latents/a")
        if kind == "silent":
            assert count_connections(listener) == 2, "the first, and one retry"
    text = str(e.value)
    assert "\n" not in text
    assert "AWS_ENDPOINT_URL" in text
    for value in (KEY_ID, SECRET, endpoint):
        assert value not in text


def count_connections(listener: socket.socket) -> int:
    """Return how many connections were made that nobody has taken yet."""
    listener.setblocking(False)
    n_found = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            n_found += 1
    return n_found


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


@pytest.mark.parametrize("kind", KINDS)
def test_extract__writes_to_a_bucket_what_it_writes_to_a_folder(
    trained: Run, here: Run, kind: Kind, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = use_buckets(kind, request)
    # What reaches a server is a process that knows nothing but its environment.
    run_cli = satstore_process if kind == "server" else cli
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("SATSTORE_PLUGINS", "tiny,few_digits")  # the run is a copy, made elsewhere
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    result = run_cli("extract", "--run", "res", "--logs-dir", trained.path.parents[1], "--latents-dir", cloud)
    assert result.returncode == 0, result.stderr
    run = Run(trained.path)
    url = f"{cloud}/res/{run.experiment}/latents.zarr"
    assert run.manifest.latents_path == run.latents_path == url
    assert not (run.path / "latents.zarr").exists()
    assert contents(run.latents_location) == contents(here.latents_location)

    result = run_cli("probe", "--run", "res", "--logs-dir", trained.path.parents[1])
    assert result.returncode == 0, result.stderr
    start(here, "probe")
    columns = ["layer", "eval_accuracy", "objective", "n_iter"]
    found, known = (Run(r.path).table("probe-pool4")[columns] for r in (run, here))
    assert found.equals(known)

    store = satstore.open_latents(url)  # it needs nothing of its run
    assert (store.layers, store.poolings) == (run.layers, ["pool4"])
    latents = store.split("pool4", "eval")["0"]
    assert latents.shape == (200, 4, 4, 4)
    np.testing.assert_array_equal(latents.dask().compute(), here.latents("pool4", "eval")["0"].numpy())

    import obstore.store

    tree = xarray.open_datatree(
        ObjectStore(obstore.store.from_url(url), read_only=True),  # type: ignore[arg-type]
        engine="zarr",
        consolidated=False,
        chunks={},
    )
    assert tree["pool4/eval/0"]["latent"].dims == ("sample", "channel", "y", "x")
    np.testing.assert_array_equal(tree["pool4/eval/0"]["latent"].values, latents.numpy())

    written = b"".join(path.read_bytes() for path in trained.path.parents[1].rglob("*") if path.is_file())
    written += b"".join(contents(run.latents_location).values())
    for value in (KEY_ID, SECRET, endpoint):
        assert value.encode() not in written + result.stdout.encode() + result.stderr.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_dataset__of_latents_in_a_bucket_has_the_batches_of_a_folder(
    trained: Run, here: Run, kind: Kind, request: pytest.FixtureRequest
) -> None:
    run = start(trained, "extract", latents_dir=use_buckets(kind, request))

    def make(of: Run) -> Any:
        dataset = of.latents("pool4", "train")["0"].dataset(batch_size=100, seed=1)
        dataset.set_epoch(2)
        return dataset

    def check_equal(found: Iterable[Any], expected: Iterable[Any]) -> None:
        for ours, theirs in zip(found, expected, strict=True):
            assert all(map(torch.equal, ours, theirs))

    check_equal(make(run), make(here))
    with pytest.raises(ConfigError, match=r"s3://.* was forked off one that uses object storage.*forkserver"):
        list(DataLoader(make(run), batch_size=None, num_workers=1, multiprocessing_context="fork"))
    if kind == "server":  # which other processes reach, too
        with_workers = [
            DataLoader(make(of), batch_size=None, num_workers=2, multiprocessing_context="spawn")
            for of in (run, here)
        ]
        check_equal(*with_workers)


def test_extract__stopped_on_the_way_to_a_bucket_goes_on_and_ends_bit_equal(
    trained: Run, here: Run, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 2**15)  # shards of 256 samples
    append, left = LatentWriter.append, [5]

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
    assert committed.n_rows["pool4/train/0"] == 512, "of 640 that were computed"
    assert LatentsKey("4") not in Run(trained.path).manifest.latents
    first = f'"{next(k for k in committed.files if "latent/c/0" in k)}"'
    n_lines = trained.commits.path.read_text().count(first)
    done = start(trained, "extract")  # the manifest says where
    assert str(done.latents_location).startswith(cloud)
    assert done.commits.path.read_text().count(first) == n_lines, "what was committed is not written again"
    start(here, "extract", overwrite=True)
    assert contents(done.latents_location) == contents(here.latents_location)


def test_latents__gone_from_a_bucket_are_named_and_written_again(trained: Run, cloud: str) -> None:
    run = start(trained, "extract", latents_dir=cloud)
    location = run.latents_location
    key = next(key for key in location.sizes() if key.startswith("pool4/eval/0/latent/c/"))
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


def test_train__to_a_bucket_that_is_not_there_fails_before_it_trains(
    no_buckets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, no_buckets)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    target = ["--config", config, "--run-id", "r", "--logs-dir", tmp_path]
    result = cli("train", *target, "--latents-dir", "s3://nowhere/a")
    assert result.returncode == 1
    assert "no bucket for s3://nowhere/a" in result.stderr
    assert open_run("r", tmp_path).manifest.summary.epochs_done == 0


def test_train__overwrite_removes_the_store_from_its_bucket(trained: Run, cloud: str) -> None:
    location = start(trained, "extract", latents_dir=cloud).latents_location
    assert location.exists()
    start(trained, "train", overwrite=True, latents=False)
    assert location.sizes() == {}
