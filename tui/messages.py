"""What the app's threads tell it."""

from textual.message import Message

from tui.reader import Snapshot


class SnapshotTaken(Message):
    """The logs folder is not what it was; this is what it is now."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot
