"""Findings of a verification."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A problem or a note, in one line.

    Attributes
    ----------
    what
        The file or array, and the problem with it.
    command
        The command that repairs it; empty for a note, and where no command can.
    is_wrong
        Whether it is a problem that needs a repair; False for a note.
    """

    what: str
    command: str = ""
    is_wrong: bool = True

    def __str__(self) -> str:
        if not self.is_wrong:
            return f"note: {self.what}"
        return f"{self.what}; repair it with: {self.command}" if self.command else self.what


def note(what: str) -> Finding:
    """Return a finding that needs no repair."""
    return Finding(what, is_wrong=False)
