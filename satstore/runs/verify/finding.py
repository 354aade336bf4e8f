"""Findings of a verification."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A problem or a note, in one line; `command` repairs it, and is empty for notes and where none can."""

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
