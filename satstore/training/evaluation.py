"""A trained model on the evaluation split, as training measures it after every epoch."""

import torch

from satstore.capture.recorders import MomentRecorder
from satstore.datasets.in_memory import hold
from satstore.datasets.loaders import make_loader
from satstore.runs.run import Run
from satstore.training.checkpoint import read_checkpoint
from satstore.training.loop import Pass, run_pass
from satstore.training.provenance import check_data
from satstore.training.run_model import load_weights
from satstore.training.session import Session
from satstore.training.session_data import choose_workers, load_data


class Evaluation:
    """Measures a run's model, again and again.

    Parameters
    ----------
    run
        A trained run.
    device
        Where the model runs.

    Attributes
    ----------
    model
        The model, with the weights of the last epoch.
    n_samples
        Images that are measured.
    """

    def __init__(self, run: Run, device: torch.device) -> None:
        data = hold(load_data(run.config, run.manifest.dataset))
        check_data(run, data)
        self._session = Session(run.config, data, device)
        load_weights(self._session.model, read_checkpoint(run)["model"], run)
        self._split, self._workers = data.eval, choose_workers(run.config, data.in_memory)
        self.model, self.device, self.n_samples = self._session.model, device, len(data.eval)

    def measure(self) -> Pass:
        """Pass once over the split."""
        loader = make_loader(
            self._split,
            self._session.config.batch_size,
            shuffle=False,
            workers=self._workers,
            pin_memory=True,
        )
        with MomentRecorder({}) as recorder:
            return run_pass(self._session, loader, "eval", recorder, None)
