"""The command line: a table of commands, and the files that implement them."""

from satstore.cli.entry_point import main

__all__ = ["main"]
