"""What pydantic finds wrong with a value from outside, in one line for people."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from satstore.errors import SatstoreError


def describe_invalid(error: ValidationError) -> str:
    """Return what pydantic found wrong, in one line: the key, what was found and what was expected."""
    return "; ".join(map(describe_invalid_item, error.errors()))


def describe_invalid_item(item: Mapping[str, Any], flag: str = "") -> str:
    """Return one of the things that pydantic found wrong, by its key, or by the flag that was typed."""
    key = flag or repr(".".join(str(place) for place in item["loc"]))
    text = item["msg"].removeprefix("Value error, ")
    # An error of our own says what was found, or must not say it: a URL with a password in it.
    is_own = isinstance(item.get("ctx", {}).get("error"), SatstoreError)
    shown = f"{item['input']!r}"
    found = "" if is_own else f", found {shown if len(shown) <= 200 else f'{shown[:200]}…'}"
    return f"{key}: {text[0].lower()}{text[1:]}{found}"
