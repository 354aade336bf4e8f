"""The models that configs name: a file per family, and the table of names, which imports no torch."""

from satstore.models.catalogue import ROWS

__all__ = ["ROWS"]
