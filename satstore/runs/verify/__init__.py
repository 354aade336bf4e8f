"""Verifying an experiment: reading all committed files and comparing them with manifest and commit log."""

from satstore.runs.verify.experiment import Verification
from satstore.runs.verify.finding import Finding

__all__ = ["Finding", "Verification"]
