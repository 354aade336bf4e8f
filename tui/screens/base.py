"""What all screens share."""

from typing import TYPE_CHECKING, cast

from textual.screen import Screen

if TYPE_CHECKING:
    from tui.app import SatstoreApp

STARTS = frozenset({"new_job", "start", "cancel", "export", "demo"})
"""The actions that ``--read-only`` leaves out: all that start, end or write anything."""


class AppScreen(Screen[None]):
    """A screen of the app."""

    @property
    def satstore(self) -> "SatstoreApp":
        """The app that it is a screen of."""
        return cast("SatstoreApp", self.app)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey out what ``--read-only`` forbids."""
        return None if action in STARTS and self.satstore.read_only else True

    def job_target(self) -> str | None:
        """Return the run that a new job is likely to be about."""
        return None
