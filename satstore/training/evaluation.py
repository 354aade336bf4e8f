"""Measure a trained model on the evaluation split, as training does after every epoch."""

import torch

from satstore.capture.recorders import MomentRecorder
from satstore.datasets.in_memory import hold_in_memory
from satstore.runs.run import Run
from satstore.training.loop import run_pass
from satstore.training.metrics import PassResult
from satstore.training.provenance import check_data
from satstore.training.reporter import Reporter
from satstore.training.run_model import load_model
from satstore.training.session import Session
from satstore.training.session_data import load_data


class ModelEvaluation:
    """Measures a trained run's model, with the weights of its last epoch, on the evaluation split."""

    def __init__(self, run: Run, device: torch.device) -> None:
        data = hold_in_memory(load_data(run.config, run.manifest.dataset))
        check_data(run, data)
        self.model = load_model(run, len(data.classes), device)
        self.device, self.n_samples = device, len(data.eval)
        self._session = Session(run.config, self.model, data, device)

    def measure(self) -> PassResult:
        """Pass once over the split."""
        with MomentRecorder({}) as recorder:
            return run_pass(self._session, "eval", recorder, Reporter())
