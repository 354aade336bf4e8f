"""The command line, as tests call it."""

import contextlib
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from satstore.cli import main
from satstore.cli.app import add_stages
from satstore.registry import REGISTRIES

SMALL: dict[str, Any] = {
    "model": "vgg7_S",
    "dataset": "Digits",
    "epoch": 1,
    "batch_size": 128,
    "optimizer": "sgd",
    "device": "cpu",
    "augment": False,
}
"""A config that trains in seconds."""

HANGS_S = 60
"""Seconds after which a process that should have ended, or a state that should have come, is given up."""

WORKS_S = 600
"""Seconds after which a process that trains or probes is given up."""

Result = subprocess.CompletedProcess[str]


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Work in a folder, whose modules can be imported, as ``python -m`` does.

    They are forgotten after, with all that they registered, as they are where a process ends.
    """
    entries = [(registry, dict(registry._entries)) for registry in REGISTRIES.values()]
    with contextlib.chdir(folder):
        sys.path.insert(0, str(folder))
        try:
            yield
        finally:
            sys.path.remove(str(folder))
            brought = [name for name, module in list(sys.modules.items()) if _is_in(module, folder)]
            for name in brought:
                del sys.modules[name]
            for registry, before in entries if brought else ():
                registry._entries = before
            add_stages()


def _is_in(module: ModuleType, folder: Path) -> bool:
    return str(getattr(module, "__file__", "")).startswith(f"{folder}/")


def satstore(*words: object, cwd: Path | None = None) -> Result:
    """Run the command line in this process: in one of its own, importing torch alone takes seconds."""
    tokens, out, err = [str(word) for word in words], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.ExitStack() as stack:
        if cwd is not None:
            stack.enter_context(_working_in(cwd))
        try:
            main(tokens)
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(tokens, code, out.getvalue(), err.getvalue())


def satstore_process(*words: object, **options: Any) -> Result:
    """Run the command line in a process of its own, for what only a whole process shows."""
    command = [sys.executable, "-m", "satstore", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WORKS_S, check=False, **options)


def satstore_until_ctrl_c(*words: object) -> Result:
    """Run a command that goes on for ever until it has printed something, and press Ctrl-C."""
    command = [sys.executable, "-m", "satstore", *map(str, words)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=HANGS_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, first + out, err)


def call(*words: object) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, output and errors."""
    done = satstore(*words)
    return done.returncode, done.stdout, done.stderr


def fail(*words: object) -> tuple[int, str]:
    """Run a command line that fails, and return its exit code and its one line."""
    done = satstore(*words)
    assert done.stdout == ""
    lines = [
        line for line in done.stderr.splitlines() if not line.startswith("satstore: importing the plugin ")
    ]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("satstore: ")
    return done.returncode, lines[0].removeprefix("satstore: ").strip()
