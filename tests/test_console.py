"""What commands print where the encoding of stdout lacks their marks: ASCII marks, and nothing fails."""

import io
import re
import sys
from pathlib import Path

import pytest
from tiny import run_tiny

import satstore.cli
from satstore.cli import console, main

COMMANDS = (
    ("ls",),
    ("status",),
    ("show", "res"),
    ("doctor",),
    ("jobs",),
    ("du",),
    ("verify", "res"),
    ("probe", "--run", "a name of ☃"),
)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("logs")).path.parents[1]


def print_in(encoding: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Return what a command prints on stdout and stderr that have an encoding."""
    file = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding=encoding, write_through=True))
    with pytest.raises(SystemExit):
        main(list(words))
    return file.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "cp1252"])
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_command__replaces_the_marks_that_an_encoding_lacks(
    logs: Path, encoding: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = print_in(encoding, monkeypatch, *words, "--logs-dir", str(logs))
    assert "Traceback" not in found
    assert found.strip()
    if words == ("ls",):
        assert "+train +extract +saturation +probe" in found
    if words == ("show", "res") and encoding == "ascii":
        assert "########" in found
    if words[0] == "probe":
        assert r"run id 'a name of \u2603' can't be used" in found


def test_command__prints_the_marks_themselves_in_utf_8(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = print_in("utf-8", monkeypatch, "ls", "--logs-dir", str(logs))
    assert "✓train ✓extract ✓saturation ✓probe" in found


def test_ascii_marks__replace_all_marks_that_commands_print() -> None:
    folder = Path(satstore.cli.__file__).parent
    sources = [
        *folder.glob("*.py"),
        folder.parent / "system" / "text.py",
        folder.parent / "reports" / "evidence.py",
    ]
    marks = {mark for path in sources for mark in re.findall(r"[^\x00-\x7f]", path.read_text())}
    assert marks - console.ASCII_MARKS.keys() <= {"\ufffd"}, "what stands for a character that is none"
    assert all(mark.isascii() for mark in console.ASCII_MARKS.values())
