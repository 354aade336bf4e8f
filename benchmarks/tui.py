"""The terminal app in a real terminal: first paint, key to paint, idle CPU and memory.

    python benchmarks/tui.py [--runs 10 1000 5000] [--repeats 5]

Peers, in the same run: Python's own start, and Textual's DataTable with the same rows.
"""

import argparse
import asyncio
import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# This script has the name of the package that it measures.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from satstore.config.experiment import ExperimentConfig  # noqa: E402
from satstore.config.latent_keys import LatentsKey, ProbeKey  # noqa: E402
from satstore.runs.logs_folder import make_run  # noqa: E402
from satstore.runs.manifest import LayerRecord, Manifest, ProbesRecord, StageRecord  # noqa: E402
from satstore.runs.run import Run  # noqa: E402
from satstore.storage.zarr import AnalysisStore  # noqa: E402

N_LAYERS = 100
N_EPOCHS = 30
SIZE = (160, 48)


def fill(logs_dir: Path, n_runs: int) -> None:
    """Make runs whose manifests are as large as a trained vgg16's."""
    names = [f"features.{i}" for i in range(18)]
    layers = [
        LayerRecord(layer=name, index=i, kind="Conv2d", n_features=512, output_shape=[512, 8, 8])
        for i, name in enumerate(names)
    ]

    def change(manifest: Manifest) -> None:
        manifest.layers = layers
        manifest.created = time.time() - 3 * 3600
        manifest.summary.epochs_done, manifest.summary.test_accuracy = 30, 0.93
        manifest.summary.saturation = dict.fromkeys(names, 0.5)
        manifest.summary.intrinsic_dimension = dict.fromkeys(names, 256)
        manifest.summary.probe_accuracy = {ProbeKey(LatentsKey("4")): dict.fromkeys(names, 0.9)}
        for stage in ("train", "extract", "saturation", "probe"):
            manifest.stages[stage] = StageRecord(status="done", started=1.0, ended=2.0)

    first = make_run(logs_dir, "run00000", ExperimentConfig(model="vgg16"))
    first.commit(change=change)
    content = (first.path / "manifest.json").read_bytes()
    for number in range(1, n_runs):
        path = logs_dir / f"run{number:05}" / first.experiment
        path.mkdir(parents=True)
        (path / "manifest.json").write_bytes(content)


def make_deep_run(logs_dir: Path) -> Run:
    """Make a run with spectra and probes of 100 layers over 30 epochs."""
    run = make_run(logs_dir, "deep", ExperimentConfig(model="resnet101", epoch=N_EPOCHS))
    names = [f"layer{i // 25 + 1}.{i % 25}.conv" for i in range(N_LAYERS)]
    rng = np.random.default_rng(0)
    store = AnalysisStore(run.analysis_path, run.commits)
    for split in ("train", "eval"):
        for epoch in range(N_EPOCHS):
            spectra = {name: -np.sort(-rng.lognormal(0, 3, 256)) for name in names}
            store.write_spectra(split, epoch, N_EPOCHS, spectra)
    table = "layer,eval_accuracy\n" + "".join(f"{name},{i / N_LAYERS}\n" for i, name in enumerate(names))

    def change(manifest: Manifest) -> None:
        manifest.layers = [
            LayerRecord(layer=name, index=i, kind="Conv2d", n_features=256, output_shape=[256, 8, 8])
            for i, name in enumerate(names)
        ]
        manifest.summary.epochs_done, manifest.summary.test_accuracy = N_EPOCHS, 0.9
        manifest.probes[ProbeKey(LatentsKey("4"))] = ProbesRecord(C=1, tol=1e-4, max_iter=1000)

    run.commit({"probe-pool4.csv": table.encode()}, change)
    return run


class Terminal:
    """The installed program in a terminal of its own."""

    def __init__(self, logs_dir: Path) -> None:
        import fcntl
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0))
        words = [sys.executable, "-m", "satstore", "tui", "--logs-dir", str(logs_dir)]
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.started = time.perf_counter()
        self.process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)

    def wait_for(self, text: bytes, seconds: float = 60) -> float:
        """Return when a text was drawn."""
        seen, deadline = b"", time.perf_counter() + seconds
        while text not in seen:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{text!r} was not drawn; the last was {seen[-500:]!r}")
            if select.select([self._master], [], [], 0.05)[0]:
                seen += os.read(self._master, 2**16)
        return time.perf_counter()

    def rest(self, seconds: float) -> None:
        """Read what is drawn for a while."""
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            if select.select([self._master], [], [], left)[0]:
                try:
                    os.read(self._master, 2**16)
                except OSError:  # it has ended
                    return

    def last_drawn(self, quiet_s: float) -> float:
        """Return when the last was drawn before nothing more came for a while."""
        last = time.perf_counter()
        while select.select([self._master], [], [], quiet_s)[0]:
            os.read(self._master, 2**16)
            last = time.perf_counter()
        return last

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def quit(self) -> None:
        """Press q and wait."""
        self.press(b"q")
        deadline = time.perf_counter() + 10
        while self.process.poll() is None and time.perf_counter() < deadline:
            self.rest(0.05)
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def time_python() -> float:
    """Return how long Python takes to start and end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - started


def time_first_paint(logs_dir: Path) -> float:
    """Return how long it takes until the first rows are drawn."""
    terminal = Terminal(logs_dir)
    drawn = terminal.wait_for(b"run00003") - terminal.started
    terminal.quit()
    return drawn


def measure_first_paints(folders: dict[int, Path], n_repeats: int) -> None:
    time_first_paint(next(iter(folders.values())))  # compiles, and fills the disk's cache
    python: list[float] = []
    paints: dict[int, list[float]] = {count: [] for count in folders}
    for _ in range(n_repeats):
        for count, folder in folders.items():
            python.append(time_python())
            paints[count].append(time_first_paint(folder))
    base = statistics.median(python)
    print(f"python -c pass: {base:.3f} s")
    for count, found in paints.items():
        print(
            f"first paint with {count:>5,} runs: "
            f"{statistics.median(found) - base:.2f} s beyond Python's start"
        )


def measure_keys(logs_dir: Path, n_keys: int = 40) -> None:
    terminal = Terminal(logs_dir)
    terminal.wait_for(b"resnet101")
    terminal.press(b"\r")
    terminal.wait_for(b"layer1.0.conv")
    terminal.rest(2)
    took = []
    for number in range(n_keys):
        terminal.press(b"\x1b[D" if number % 2 else b"\x1b[C")
        pressed = time.perf_counter()
        took.append(terminal.last_drawn(0.2) - pressed)
    ordered = sorted(took)
    print(
        f"key to paint, delta on {N_LAYERS} layers at {SIZE[0]} x {SIZE[1]}: median "
        f"{1000 * statistics.median(took):.0f} ms, 90 % under {1000 * ordered[int(0.9 * len(took))]:.0f} ms"
    )
    report_memory(terminal, "the run of 100 layers")
    terminal.quit()


def measure_idle(logs_dir: Path, count: int, seconds: float = 20) -> None:
    terminal = Terminal(logs_dir)
    terminal.wait_for(b"run00003")
    terminal.rest(3)
    process = psutil.Process(terminal.process.pid)
    before = process.cpu_times()
    terminal.rest(seconds)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    print(f"idle with {count:,} runs: {100 * used / seconds:.2f} % of a core")
    report_memory(terminal, f"{count:,} runs")
    terminal.quit()


def report_memory(terminal: Terminal, what: str) -> None:
    size = psutil.Process(terminal.process.pid).memory_info().rss
    print(f"memory with {what}: {size / 2**20:.0f} MiB")


async def time_tables(logs_dir: Path, n_repeats: int) -> None:
    """Time a change of order of all rows: ours, and Textual's DataTable."""
    from textual.app import App
    from textual.widgets import DataTable

    from satstore.reports.listing.columns import COLUMNS, describe_row
    from satstore.reports.listing.reader import LogsReader
    from tui.widgets.table import Table

    experiments = list(LogsReader(logs_dir).poll().experiments)

    class Both(App[None]):
        def compose(self):
            yield Table(COLUMNS, key=lambda e: e.name)
            yield DataTable()

    took: dict[str, list[float]] = {"satstore": [], "DataTable": []}
    async with Both().run_test(size=SIZE) as pilot:
        table, peer = pilot.app.query_one(Table), pilot.app.query_one(DataTable)
        for column in COLUMNS:
            peer.add_column(column.label, key=column.key, width=column.least)
        for _ in range(n_repeats):
            experiments.reverse()
            started = time.perf_counter()
            table.show(experiments)
            await pilot.pause()
            took["satstore"].append(time.perf_counter() - started)
            started = time.perf_counter()
            peer.clear()
            for experiment in experiments:
                peer.add_row(*describe_row(experiment).values(), key=experiment.name)
            await pilot.pause()
            took["DataTable"].append(time.perf_counter() - started)
    ours, theirs = (statistics.median(found) for found in took.values())
    print(
        f"another order of {len(experiments):,} rows: {ours:.2f} s, DataTable {theirs:.2f} s "
        f"({theirs / ours:.0f} times as long)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 1000, 5000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["paint", "idle", "keys", "tables"], help="measure only that")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        wanted = (options.only,) if options.only else ("paint", "idle", "keys", "tables")
        for count in options.runs:
            fill(root / f"{count}", count)
        if "paint" in wanted:
            measure_first_paints({count: root / f"{count}" for count in options.runs}, options.repeats)
        if "idle" in wanted:
            for count in options.runs[-2:]:
                measure_idle(root / f"{count}", count)
        if "keys" in wanted:
            make_deep_run(root / "deep")
            measure_keys(root / "deep")
        if "tables" in wanted:
            asyncio.run(time_tables(root / f"{options.runs[-1]}", options.repeats))


if __name__ == "__main__":
    main()
