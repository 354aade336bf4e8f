"""What training reports while it runs: to the run's folder, and to those who watch its events."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from satstore.capture.layers import LayerDescription
from satstore.capture.recorders import MomentRecorder
from satstore.protocols import Metric
from satstore.runs.manifest import CHECKPOINT, Manifest, checkpoint_name
from satstore.runs.run import Run
from satstore.storage.zarr import AnalysisStore
from satstore.training.checkpoint import serialize_checkpoint
from satstore.training.epoch_spectra import Spectra, check_moments, compute_spectra
from satstore.training.provenance import describe_session
from satstore.training.session import Session


class Reporter:
    """Reports nothing: for a process that does not write the run, and for a pass that is no epoch's."""

    def begin(self, *, force: bool) -> None:
        """Check that memory suffices, unless forced to begin, and describe the run."""

    def advance(self, n_samples: int, loss: Tensor, accuracy: Metric) -> None:
        """Count the samples of a batch; loss and accuracy are read only when a report is due."""

    def end_pass(self, split: str, recorder: MomentRecorder) -> None:
        """Compute the spectra of a pass."""

    def end_epoch(self, state: Mapping[str, Any]) -> None:
        """Write an epoch that has ended: its spectra, its metrics, and the session's state as checkpoint."""

    def finish(self) -> None:
        """Write what is known once training has ended."""


class RunReporter(Reporter):
    """Writes an epoch's spectra, checkpoint and metrics into a run, and emits its events."""

    def __init__(self, run: Run, session: Session, described: LayerDescription) -> None:
        self._run, self._session, self._described = run, session, described
        self._analysis = AnalysisStore(run.analysis_path, run.commits)
        self._spectra: dict[str, Spectra] = {}
        n_per_epoch = len(session.data.train) + len(session.data.eval)
        self._n_samples, self._n_done = session.config.epoch * n_per_epoch, session.epoch * n_per_epoch

    def begin(self, *, force: bool) -> None:
        """Refuse too little memory, unless forced; record layers, data and machine in the manifest."""
        if not force:
            check_moments(self._run, self._described.layers, self._session.device)
        describe_session(self._run, self._session, self._described)

    def advance(self, n_samples: int, loss: Tensor, accuracy: Metric) -> None:
        """Count the samples of a batch, and emit progress when it is due."""
        self._n_done += n_samples
        if self._run.events.is_due():
            self._run.emit(
                "train",
                "progress",
                f"epoch {self._session.epoch + 1}/{self._session.config.epoch}",
                done=self._n_done,
                total=self._n_samples,
                values={"loss": float(loss), "accuracy": accuracy.compute()},
            )

    def end_pass(self, split: str, recorder: MomentRecorder) -> None:
        """Compute the spectra of a pass, to be written with the epoch."""
        layers, epoch = self._described.layers, self._session.epoch
        self._spectra[split] = compute_spectra(self._run, epoch, recorder, layers, split)

    def end_epoch(self, state: Mapping[str, Any]) -> None:
        """Write spectra, then commit checkpoint, metrics and manifest: without them, the epoch is redone."""
        session = self._session
        for split, spectra in self._spectra.items():
            self._analysis.write_spectra(split, session.epoch - 1, session.config.epoch, spectra.eigenvalues)
            if session.is_finished:
                self._analysis.write_moments(split, spectra.moments)
        self._spectra = {}
        self._commit(state)

    def _commit(self, state: Mapping[str, Any]) -> None:
        import pandas as pd

        run, session = self._run, self._session
        epoch, row = session.epoch - 1, session.history[-1]
        files = {CHECKPOINT: serialize_checkpoint(state)}
        if epoch in session.config.latent_epochs and not session.is_finished:  # the last is the checkpoint
            files[checkpoint_name(epoch)] = serialize_checkpoint({"model": state["model"]})
        files["metrics.csv"] = pd.DataFrame(session.history).to_csv(index=False).encode()

        def change(manifest: Manifest) -> None:
            manifest.summary.epochs_done = session.epoch
            manifest.summary.test_accuracy = row["eval_accuracy"]

        run.commit(files, change)
        text = f"epoch {session.epoch}/{session.config.epoch}: test accuracy {row['eval_accuracy']:.2%}"
        run.emit("train", "message", text, values=row)

    def finish(self) -> None:
        """Cut the spectra to the epochs that were trained.

        After the last commit: an epoch that has to be done again needs its place in the array.
        """
        self._analysis.finish_spectra(self._session.epoch)
