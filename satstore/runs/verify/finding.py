"""What a check finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that was found, in one line.

    Attributes
    ----------
    what
        The file or array, and what is the matter with it.
    command
        What repairs it; nothing for a note, and where no command can.
    is_wrong
        False for a note: nothing that has to be repaired.
    """

    what: str
    command: str = ""
    is_wrong: bool = True

    def __str__(self) -> str:
        if not self.is_wrong:
            return f"note: {self.what}"
        return f"{self.what}; repair it with: {self.command}" if self.command else self.what


def note(what: str) -> Finding:
    """Return a finding that nothing has to be done about."""
    return Finding(what, is_wrong=False)
