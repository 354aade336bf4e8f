"""Jobs that do nothing but wait, in processes of their own."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from command_line import HANGS_S

from satstore.jobs.job import Job, read_job
from satstore.jobs.start import start_job

PLUGIN = '''
import select, signal
from satstore.stages.stage import stage

N_STEPS, PACE_S = 4000, 0.05

@stage("sleepy", needs=(), pending=lambda run, parameters: ["sleep"])
def sleepy(run, parameters):
    """Tell of steps, and wait."""
    how = run.config.note
    if how == "fail":
        raise ValueError("the bed\\nbroke")
    if how == "short":
        for step in range(4):
            run.emit("sleepy", "progress", "asleep", done=step + 1, total=4)
        return
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for step in range(N_STEPS - 1):
        run.emit("sleepy", "progress", "asleep", done=step + 1, total=N_STEPS)
        select.select([], [], [], PACE_S)  # the pace of the work, by which no test is timed
    while True:
        signal.pause()
'''


def start_sleeping(folder: Path, how: str) -> Job:
    """Start a job on the logs of a folder that waits: ``long``, until it is stopped; ``deaf`` to SIGTERM,
    until it is killed; or one that takes four steps, ``short``, or fails at once, ``fail``.
    """
    (folder / "sleeping.py").write_text(PLUGIN)
    config = {"plugins": ["sleeping"], "stages": ["sleepy"], "note": how}
    (folder / f"{how}.json").write_text(json.dumps(config))
    words = ["run", "--config", str(folder / f"{how}.json"), "--run-id", how]
    return start_job([*words, "--logs-dir", str(folder / "logs")], folder / "logs", folder)


def wait_until(job: Job, condition: Callable[[Job], bool]) -> Job:
    """Return a job once a condition holds: of another's child, no system call tells."""
    deadline = time.monotonic() + HANGS_S
    while True:
        found = read_job(job.path)
        assert found is not None
        if condition(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
