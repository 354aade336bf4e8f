"""A run folder under whatever is done to it, in any order, against a model of what must be true."""

import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from crashes import check_whole, fails
from faults import Disk
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tiny import results, run_tiny

from satstore.errors import SatstoreError
from satstore.runs.disk_usage import remove_latents
from satstore.runs.logs_folder import list_runs
from satstore.runs.run import Run
from satstore.runs.verify import Verification

STAGES = ("train", "extract", "saturation", "probe")
LOSABLE = ("latents.zarr/pool2/train/*/latent/c/**/*", "latents.zarr/pool2/eval/label/c/*", "saturation.csv")


@cache
def expected() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return results(run_tiny(Path(folder)))


def committed(run: Run) -> set[str]:
    """Return the files of the folder and of the latents that must be there."""
    return {*run.manifest.files, *(f"latents.zarr/{key}" for key in run.commits.read("latents.zarr").files)}


class RunFolder(RuleBasedStateMachine):
    """The model: which stages came to their end, and which files were taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.logs = self.root / "logs"
        self.logs.mkdir()
        self.done: set[str] = set()
        self.lost: set[str] = set()

    @property
    def run(self) -> Run | None:
        return next(iter(list_runs(self.logs)), None)

    @rule(n_stages=st.integers(1, 4))
    def work(self, n_stages: int) -> None:
        """Do, or go on with, the first stages; what was lost is redone, or refused by name."""
        try:
            run_tiny(self.logs, stages=list(STAGES[:n_stages]))
        except SatstoreError as raised:
            error = str(raised)
        else:
            error = None
        if error is not None:
            assert any(name.partition("/")[0] in error for name in self.lost), error
            return
        self.done.update(STAGES[:n_stages])

    @rule(n=st.integers(0, 1200), stages=st.integers(1, 4))
    def die(self, n: int, stages: int) -> None:
        """Work on a disk that dies at some operation."""
        with Disk(self.logs, fails(n, forever=True)).installed(), suppress(SatstoreError):
            run_tiny(self.logs, stages=list(STAGES[:stages]))
            self.done.update(STAGES[:stages])

    @precondition(lambda self: self.run is not None and self.run.manifest.latents and not self.lost)
    @rule()
    def clean(self) -> None:
        """Remove the latents: they can be extracted again, and probes know what they were fitted on."""
        run = self.run
        assert run is not None
        remove_latents(run)
        assert not run.latents_location.sizes()
        self.done.discard("extract")

    @precondition(lambda self: self.run is not None and self.run.manifest.latents and not self.lost)
    @rule(which=st.sampled_from(LOSABLE))
    def lose(self, which: str) -> None:
        """Take a committed file away."""
        run = self.run
        assert run is not None
        files = [path for path in sorted(run.path.glob(which)) if path.is_file()]
        names = committed(run) & {str(path.relative_to(run.path)) for path in files}
        for name in sorted(names)[:1]:
            (run.path / name).unlink()
            self.lost.add(name)

    @precondition(lambda self: self.lost)
    @rule()
    def repair(self) -> None:
        """Verify names what was lost; making everything anew brings it back."""
        run = self.run
        assert run is not None
        found = [str(finding) for finding in Verification(run).findings() if finding.is_wrong]
        still_lost = [name for name in self.lost if not (run.path / name).exists()]
        for name in committed(run).intersection(still_lost):
            assert any(name in line for line in found), (name, found)
        shutil.rmtree(run.path)
        self.done.clear()
        self.lost.clear()

    @invariant()
    def is_whole(self) -> None:
        """What is committed is there, but for what was taken away."""
        run = self.run
        if run is None or self.lost:
            return
        check_whole(run)
        if not run.is_being_written:
            for stage in self.done:
                assert stage in run.manifest.stages

    def teardown(self) -> None:
        """Go on to the end: the result is that of an undisturbed run."""
        try:
            if self.lost:
                self.repair()
            run = run_tiny(self.logs)
            found = results(run)
            # The store's attributes hold the config of the first command, which may name fewer stages.
            names = expected().keys() - {"attributes"}
            different = [name for name in names if found.get(name) != expected()[name]]
            assert not different, different
        finally:
            shutil.rmtree(self.root)


FEW = settings(
    max_examples=3,
    stateful_step_count=6,
    deadline=None,
    phases=(Phase.generate,),  # an example takes seconds: it is not shrunk
    suppress_health_check=list(HealthCheck),
)
"""Some short orders, a few seconds each."""
