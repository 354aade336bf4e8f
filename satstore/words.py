"""How states, sizes and ages are written, wherever people read them."""

from collections.abc import Mapping

from pydantic import ByteSize

from satstore.manifest import StageStatus

MARKS: Mapping[StageStatus, str] = {"done": "✓", "running": "…", "failed": "✗", "missing": "·"}


def describe_size(size_bytes: int) -> str:
    """Return a size in its largest binary unit: ``12.3 MiB``."""
    return ByteSize(size_bytes).human_readable(separator=" ")


def describe_age(seconds: float) -> str:
    """Return an age in its largest unit: ``3 h``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
