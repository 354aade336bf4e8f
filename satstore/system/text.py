"""Writing states, sizes, ages and counts for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from satstore.errors import printable

MARKS: Mapping[str, str] = {"done": "✓", "running": "…", "failed": "✗", "cancelled": "■", "missing": "·"}
UNKNOWN, FAILED = "–", "✗"
"""Shown instead of a number: it was not measured; the measurement failed."""


def printable_content(content: Any) -> Any:
    """Make all texts and keys of a JSON file's content printable; see :func:`printable`."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, dict):
        return {printable(key): printable_content(value) for key, value in content.items()}
    return [printable_content(part) for part in content] if isinstance(content, list) else content


def clean(text: str) -> str:
    """Return a text in one line, without control characters that a terminal would obey."""
    return printable(" ".join(text.split()))


def list_first(texts: Sequence[str], n_shown: int) -> str:
    """Return the first of some texts in one line, with an ellipsis where there are more."""
    return ", ".join([*texts[:n_shown], "…"] if len(texts) > n_shown else texts)


def stage_name(key: str) -> str:
    """Return the name of a stage's command, given its key in manifests and events."""
    return key.replace("_", "-")


def describe_age(seconds: float) -> str:
    """Return an age in its largest unit: ``3 h``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def describe_duration(seconds: float) -> str:
    """Return a duration in two digits and a fitting unit: ``40 s``, ``3.5 h``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{_two_digits(seconds / length)} {unit}"
    return f"{_two_digits(seconds)} s"


def describe_durations(low_s: float, high_s: float) -> str:
    """Return a range of durations, with one unit if both have the same: ``2 to 6 min``, ``50 s to 3 min``."""
    low, high = describe_duration(low_s), describe_duration(high_s)
    number, unit = low.split()
    return f"{number if high.endswith(f' {unit}') else low} to {high}"


def describe_size(size_bytes: float) -> str:
    """Return a size in bytes in a binary unit: ``2 GiB``, ``13.4 MiB``."""
    for unit, length in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= 0.95 * length:
            return f"{size_bytes / length:.1f}".removesuffix(".0") + f" {unit}"
    return f"{int(size_bytes)} B"


def counted(number: int, thing: str) -> str:
    """Return a number of things: ``1 run``, ``2 runs``."""
    return f"{number} {thing}" + "s" * (number != 1)


def describe_count(number: float) -> str:
    """Return a large number with the prefix of the unit that follows it: ``3.63 G``."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} "


def describe_costs(costs: Mapping[str, Any]) -> str:
    """Return the counts of ``satstore flops`` in one line."""
    flops, training = describe_count(costs["flops"]), describe_count(costs["training_flops"])
    return f"{costs['n_parameters']:,} parameters; {flops}FLOP per image, {training}FLOP in all of training"


def describe_number(found: Mapping[str, float | None], key: str, form: str) -> str:
    """Return a formatted number, or the mark for one that was not measured or has no value."""
    if key not in found:
        return UNKNOWN
    value = found[key]
    return FAILED if value is None else form.format(value)


def _two_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
