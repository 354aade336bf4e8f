"""``python -m satstore.jobs.supervisor FOLDER`` runs a job's command and records its exit code.

It is a process of its own because only a parent learns the exit code of a process that was killed: by
``kill -9``, by the system for lack of memory, by a crash in native code. It must outlive the terminal and the
connection that started it, and stay small while the job runs for days.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from satstore.storage.files import write_file


def write_json(path: Path, content: object) -> None:
    """Replace a small file as a whole, without syncing it: after a power loss, nobody needs it."""
    write_file(path, json.dumps(content).encode(), durable=False)


def identify_process(pid: int | None = None) -> dict[str, Any]:
    """Return the id of a process and when it was created; pids are reused, the pair is not."""
    process = psutil.Process(pid)
    return {"pid": process.pid, "created": process.create_time()}


def supervise(folder: Path) -> int:
    """Run the command of a job's folder to its end, and return its exit code."""
    for number in (signal.SIGHUP, signal.SIGINT):
        # A handler, as the command would inherit SIG_IGN.
        signal.signal(number, lambda *_: None)
    job = json.loads((folder / "job.json").read_text())
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "satstore", *job["words"]],
        cwd=job["cwd"],
        env=os.environ | {"SATSTORE_JOB": str(folder)},
    )
    known = identify_process(process.pid) | {"supervisor": identify_process()}
    write_json(folder / "process.json", known)
    code = process.wait()
    write_json(folder / "exit.json", {"code": code, "ended": time.time()})
    return code


if __name__ == "__main__":
    sys.exit(max(0, supervise(Path(sys.argv[1]))))
