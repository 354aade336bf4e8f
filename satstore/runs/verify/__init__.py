"""Checking an experiment: all that is committed is read and compared with what its manifest and log say."""

from satstore.runs.verify.experiment import Verification
from satstore.runs.verify.finding import Finding

__all__ = ["Finding", "Verification"]
