"""Describe pydantic's validation errors in one line for people."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from satstore.errors import SatstoreError


def describe_invalid(error: ValidationError) -> str:
    """Describe a validation error in one line: the keys, what was found and what was expected."""
    return "; ".join(map(describe_invalid_item, error.errors()))


def describe_invalid_item(item: Mapping[str, Any], flag: str = "") -> str:
    """Describe one item of a validation error, by its key, or by the flag that was typed."""
    key = flag or repr(".".join(str(place) for place in item["loc"]))
    text = item["msg"].removeprefix("Value error, ")
    # satstore's own errors name what was found, unless they must not: a URL may have a password in it.
    is_own = isinstance(item.get("ctx", {}).get("error"), SatstoreError)
    shown = f"{item['input']!r}"
    has_none = is_own or item["type"] == "missing"  # what is found then is all that is there
    found = "" if has_none else f", found {shown if len(shown) <= 200 else f'{shown[:200]}…'}"
    return f"{key}: {text[0].lower()}{text[1:]}{found}"
