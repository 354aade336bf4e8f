"""What the app's threads tell it."""

from textual.message import Message

from satstore.system.usage import Usage
from tui.reader import Snapshot


class SnapshotTaken(Message):
    """The logs folder is not what it was; this is what it is now."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot


class UsageMeasured(Message):
    """What the running jobs use, by number."""

    def __init__(self, usages: dict[int, Usage]) -> None:
        super().__init__()
        self.usages = usages
