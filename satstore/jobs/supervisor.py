"""``python -m satstore.jobs.supervisor FOLDER`` starts a job's command, waits, and writes down how it ended.

A process of its own, because only a parent is told a child's exit code. It must outlive the terminal and the
connection that it was started from, and stay small while the job runs for days.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from satstore.storage.files import write_file


def write_json(path: Path, content: object) -> None:
    """Replace a small file whole; what it says is for watching, and need not survive a power loss."""
    write_file(path, json.dumps(content).encode(), durable=False)


def supervise(folder: Path) -> int:
    """Run the command of a job's folder to its end, and return its exit code."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    job = json.loads((folder / "job.json").read_text())
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "satstore", *job["words"]],
            cwd=job["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"SATSTORE_JOB": str(folder)},
            preexec_fn=_hear_again,
        )
    this = psutil.Process()
    known = {
        "pid": process.pid,
        "created": psutil.Process(process.pid).create_time(),
        "supervisor": {"pid": this.pid, "created": this.create_time()},
    }
    write_json(folder / "process.json", known)
    code = process.wait()
    write_json(folder / "exit.json", {"code": code, "ended": time.time()})
    return code


def _hear_again() -> None:
    """Undo what a child would inherit: a command that is deaf to Ctrl-C."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(max(0, supervise(Path(sys.argv[1]))))
