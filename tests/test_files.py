"""Durable files, the commit log and the event log, on real files and with disks that refuse."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satstore.errors import CorruptError, SatstoreError
from satstore.runs.events import Event, EventLog, read_events
from satstore.storage.commit_log import CommitLog, Committed
from satstore.storage.files import Digest, WriteError, append_file, write_file
from satstore.storage.location import Folder

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of b"abc", FIPS 180-2, appendix B.1."""


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Files


def test_digest__is_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert Digest.of(b"abc") == Digest(3, ABC) == Digest.of_file(tmp_path / "abc")
    numbers = array("d", [1.0, 2.0])
    assert Digest.of(memoryview(numbers)) == Digest.of(numbers.tobytes())


def test_write_file__makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    write_file(path, b"old")
    assert path.read_bytes() == b"old"
    write_file(path, memoryview(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file.json"]  # noqa: PTH208


def test_write_file__syncs_the_file_and_then_every_folder_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order, or a power loss finds an empty file under the name, or a name that is gone."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "a" / "b" / "file", b"content")
    folders = [tmp_path, tmp_path / "a"]
    assert synced[:2] == [str(folder) for folder in folders], "new folders are entries of their parents"
    assert synced[2].startswith(f"{tmp_path}/a/b/.file.")
    assert synced[2].endswith(".partial")
    assert synced[3:] == [f"{tmp_path}/a/b"]


@pytest.mark.parametrize("fails", ["fsync", "rename"])
def test_write_file__keeps_the_old_content_when_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    if fails == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(WriteError) as caught:
        write_file(path, b"new")
    free = r"[0-9,]+"  # others write to this disk, too
    assert re.fullmatch(
        f"{re.escape(str(path))} can't be written: No space left on device: 3 bytes are to be written where "
        f"{free} are free; what was committed stays, make room and give the same command again",
        str(caught.value),
    )
    assert isinstance(caught.value, SatstoreError)
    assert isinstance(caught.value, OSError)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "no .partial is left"


def test_write_file__names_the_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "below"
    with pytest.raises(WriteError, match=f"{path} can't be written: "):
        write_file(path, b"")


def test_write_file__killed_at_any_time_leaves_whole_content(tmp_path: Path) -> None:
    """In the midst of the writing that it had announced, as a rule."""
    code = (
        "import sys; from pathlib import Path; from satstore.storage.files import write_file\n"
        "while True:\n"
        "    for byte in (b'a', b'b'):\n"
        "        print('writes', flush=True)\n"
        "        write_file(Path(sys.argv[1]), byte * 1_000_000)\n"
    )
    path = tmp_path / "file"
    for n_lines in (2, 3, 6):  # by then, one was written
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(n_lines):
                assert process.stdout.readline() == b"writes\n"
            process.kill()
        assert path.read_bytes() in (b"a" * 1_000_000, b"b" * 1_000_000)


def test_append_file__appends(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_file(path, b"one\n")
    append_file(path, b"two\n", durable=False)
    append_file(path, b"")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("durable", [True, False])
def test_append_file__a_full_disk_is_an_error_naming_the_path(durable: bool) -> None:
    with pytest.raises(WriteError, match="/dev/full can't be written: No space left on device"):
        append_file(Path("/dev/full"), b"line\n", durable=durable)


def test_append_file__a_disk_that_takes_a_part_is_asked_for_the_rest(tmp_path: Path) -> None:
    """The system may write less than it was given, without an error: here at a limit on the file's size."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from satstore.storage.files import append_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "append_file(Path(sys.argv[1]), b'x' * 150)\n"
    )
    path = tmp_path / "log"
    result = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert path.stat().st_size == 100
    assert f"WriteError: {path} can't be written: File too large" in result.stderr


# The commit log


def digest(content: bytes) -> Digest:
    return Digest(len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def log(tmp_path: Path) -> CommitLog:
    return CommitLog(tmp_path / "commits.jsonl")


def test_commit_log__without_a_file_nothing_is_committed(log: CommitLog) -> None:
    assert log.read("latents.zarr") == Committed({}, {})


def test_commit_log__reads_what_was_appended_the_last_line_winning(log: CommitLog) -> None:
    log.append("latents.zarr", {"a/x": digest(b"1"), "a/y": digest(b"2")}, {"a": 8})
    log.append("analysis.zarr", {"a/x": digest(b"other")})
    log.append("latents.zarr", {"a/y": digest(b"3")}, {"a": 16, "b": 4})
    assert log.read("latents.zarr") == Committed(
        {"a/x": digest(b"1"), "a/y": digest(b"3")}, {"a": 16, "b": 4}
    )
    assert log.read("analysis.zarr") == Committed({"a/x": digest(b"other")}, {})
    assert CommitLog(log.path).read("latents.zarr") == log.read("latents.zarr")


def test_commit_log__removes_a_group_but_none_whose_name_begins_alike(log: CommitLog) -> None:
    content = {"pool4/train/x": digest(b"1"), "pool40/train/x": digest(b"2"), "pool4": digest(b"3")}
    log.append("latents.zarr", content, {"pool4/train": 1, "pool40/train": 2})
    log.append("analysis.zarr", content)
    log.remove("latents.zarr", "pool4")
    assert log.read("latents.zarr") == Committed({"pool40/train/x": digest(b"2")}, {"pool40/train": 2})
    assert log.read("analysis.zarr").files == content
    log.append("latents.zarr", {"pool4": digest(b"4")})
    log.remove("analysis.zarr")
    assert log.read("latents.zarr").files["pool4"] == digest(b"4"), "what is written again counts again"
    assert log.read("analysis.zarr") == Committed({}, {})


def test_commit_log__is_one_json_object_per_line(log: CommitLog) -> None:
    log.append("s", {"k\n\u2028é": digest(b"1")}, {"g": 3})
    lines = [json.loads(line) for line in log.path.read_bytes().split(b"\n") if line]
    assert lines == [
        {"store": "s", "key": "k\n\u2028é", "size_bytes": 1, "sha256": digest(b"1").sha256},
        {"store": "s", "group": "g", "n_rows": 3},
    ]


def test_commit_log__a_torn_commit_counts_no_rows_and_swallows_no_later_line(log: CommitLog) -> None:
    """Cut at every byte: what stands before stays, what is named after is whole or absent."""
    log.append("s", {"a/0": digest(b"0")}, {"a": 8})
    whole = log.read("s")
    size = log.path.stat().st_size
    log.append("s", {"a/1": digest(b"1"), "a/2": digest(b"2")}, {"a": 16})
    content = log.path.read_bytes()
    for cut in range(size, len(content)):
        log.path.write_bytes(content[:cut])
        torn = log.read("s")
        assert torn.files.items() >= whole.files.items()
        assert torn.n_rows == {"a": 8} or cut == len(content) - 1
        log.append("s", {"a/3": digest(b"3")}, {"b": 1})
        after = log.read("s")
        assert after.files == torn.files | {"a/3": digest(b"3")}
        assert after.n_rows == torn.n_rows | {"b": 1}


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x00" * 4096, id="zeros"),
        b"\xff\xfe garbage",
        b"[1, 2]",
        b"null",
        b'{"store": "s"}',
        b'{"store": "s", "key": "a/1"}',
        b'{"store": "s", "group": "a"}',
        b'{"store": "s", "something": "of a newer version"}',
        b'{"key": "a/1", "size_bytes": 1, "sha256": ""}',
    ],
)
def test_commit_log__passes_over_garbage(log: CommitLog, garbage: bytes) -> None:
    log.append("s", {"a/0": digest(b"0")}, {"a": 8})
    with log.path.open("ab") as file:
        file.write(garbage)
    log.append("s", {"a/2": digest(b"2")})
    assert log.read("s") == Committed({"a/0": digest(b"0"), "a/2": digest(b"2")}, {"a": 8})


def test_commit_log__a_full_disk_is_an_error() -> None:
    with pytest.raises(WriteError, match="/dev/full can't be written"):
        CommitLog(Path("/dev/full")).append("s", {"a": digest(b"")})


class Group:
    """A committed group of a store, to be damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = {"g/zarr.json": b'{"shape": [8]}', "g/c/0": b"shard", "h/c/0": b"another group's"}
        for key, content in self.files.items():
            write_file(root / key, content)
        self.committed = Committed({key: digest(content) for key, content in self.files.items()})

    def check(self) -> None:
        self.committed.check(Folder(self.root), "g", "repeat it")


def test_committed__check_passes_what_is_whole(tmp_path: Path) -> None:
    group = Group(tmp_path)
    (tmp_path / "h/c/0").unlink()
    (tmp_path / "g/uncommitted").write_bytes(b"")
    group.check()
    assert group.committed.under("g").keys() == {"g/zarr.json", "g/c/0"}


@pytest.mark.parametrize(
    ("key", "content", "found"),
    [
        ("g/c/0", None, "is committed but not there"),
        ("g/zarr.json", None, "is committed but not there"),
        ("g/c/0", b"shar", "has 4 bytes, 5 were committed"),
        ("g/c/0", b"", "has 0 bytes, 5 were committed"),
        ("g/c/0", b"shard+", "has 6 bytes, 5 were committed"),
        ("g/zarr.json", b'{"shape": [9]}', "is not what was committed: its metadata changed"),
    ],
)
def test_committed__check_finds(tmp_path: Path, key: str, content: bytes | None, found: str) -> None:
    group = Group(tmp_path)
    (tmp_path / key).unlink()
    if content is not None:
        (tmp_path / key).write_bytes(content)
    with pytest.raises(CorruptError) as caught:
        group.check()
    assert str(caught.value) == f"{tmp_path / key} {found}; repeat it"


# Events


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)


def test_event_log__is_read_back_as_it_was_emitted(tmp_path: Path) -> None:
    heard: list[Event] = []
    log = EventLog(tmp_path / "events.jsonl", heard.append)
    events = [
        Event("train", "started"),
        Event("train", "progress", "epoch 1\nof 3 – é", done=0, total=3, values={"loss": 0.5}),
        Event("train", "warning", "careful", time=12.5),
        Event("train", "done"),
    ]
    for event in events:
        log.emit(event)
    found, offset = read_events(log.path)
    assert found == events == heard
    assert offset == log.path.stat().st_size
    assert found[0].time > 1.7e9, "seconds since 1970, where nothing else is said"
    assert len(log.path.read_bytes().splitlines()) == 4


def test_event_log__throttles_progress_but_never_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    log = EventLog(tmp_path / "events.jsonl")
    for done in range(101):  # 10 seconds, ten a second, then the last at once
        log.emit(Event("probe", "progress", done=done, total=101))
        clock.now_s += 0.1
    clock.now_s -= 0.1
    log.emit(Event("probe", "message", "in between"))
    log.emit(Event("probe", "progress", done=101, total=101))
    events, _ = read_events(log.path)
    found = [event.done for event in events if event.kind == "progress"]
    assert found == [*range(0, 101, 3), 101], "0.25 s have passed at every third"
    assert [e.kind for e in events][-2:] == ["message", "progress"]


def test_event_log__throttles_what_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    log = EventLog(tmp_path / "events.jsonl")
    for _ in range(100):
        log.emit(Event("probe", "progress", "still at it"))
        clock.now_s += 0.01
    assert len(read_events(log.path)[0]) == 4


def test_event_log__a_clock_that_is_set_back_stops_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    log = EventLog(tmp_path / "events.jsonl")
    log.emit(Event("probe", "progress", done=1, total=9, time=2e9))
    assert not log.is_due()
    clock.now_s += 1
    assert log.is_due()
    log.emit(Event("probe", "progress", done=2, total=9, time=1e9))
    assert [event.done for event in read_events(log.path)[0]] == [1, 2]


def test_event_log__a_full_disk_is_an_error() -> None:
    with pytest.raises(WriteError, match="/dev/full can't be written"):
        EventLog(Path("/dev/full")).emit(Event("train", "started"))


def test_read_events__follows_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path) == ([], 0)
    log, offset = EventLog(path), 0
    for text in ("one", "two"):
        log.emit(Event("train", "message", text))
        found, offset = read_events(path, offset)
        assert [event.text for event in found] == [text]
    assert read_events(path, offset) == ([], offset)


def test_read_events__waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"stage": "train", "kind": "message", "text": "hello"}).encode() + b"\n"
    offset = 0
    for end in range(len(line)):
        path.write_bytes(line[:end])
        found, offset = read_events(path, offset)
        assert (found, offset) == ([], 0)
    path.write_bytes(line)
    found, offset = read_events(path, offset)
    assert [event.text for event in found] == ["hello"]
    assert offset == len(line)


def test_read_events__starts_anew_where_the_log_did(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for _ in range(3):
        log.emit(Event("train", "message", "old"))
    _, offset = read_events(path)
    path.unlink()
    EventLog(path).emit(Event("train", "message", "new"))
    found, offset = read_events(path, offset)
    assert [event.text for event in found] == ["new"]
    assert offset == path.stat().st_size


@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=8))
def test_read_events__passes_over_lines_that_are_no_events(
    tmp_path_factory: pytest.TempPathFactory, garbage: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbled.jsonl"
    known = [b'{"stage": "train"', b"null", b"[]", b"3", b'{"stage": "train"}', b'{"other": 1}', b"\x00" * 9]
    event: dict[str, Any] = {"stage": "train", "kind": "done", "time": 1.0}
    lines = [*garbage, *known, json.dumps(event).encode()]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    found, offset = read_events(path)
    assert found == [Event("train", "done", time=1.0)]
    assert offset == path.stat().st_size
