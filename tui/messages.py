"""What the app's threads tell it."""

from textual.message import Message

from satstore.reports.listing.reader import Snapshot
from satstore.system.usage import Usage


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
