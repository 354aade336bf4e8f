"""Writes the table of docs/configuration.md from the schema: ``python docs/make_configuration.py``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from satstore.config.grid import LIST_KEYS, NAMED_KEYS
from satstore.config.schema import config_schema

PAGE = Path(__file__).parent / "configuration.md"
BEGIN, END = "<!-- made by docs/make_configuration.py -->", "<!-- end -->"


def make_table() -> str:
    """Return the table: a row per key."""
    rows = ["| key | values | default | what it is |", "|---|---|---|---|"]
    for key, schema in config_schema()["properties"].items():
        if key == "$schema":  # said above the table
            continue
        default = json.dumps(schema["default"], ensure_ascii=False)
        rows.append(f"| `{key}` | {describe_values(key, schema)} | `{default}` | {schema['description']} |")
    return "\n".join(rows)


def describe_values(key: str, schema: dict[str, Any]) -> str:
    """Return what a key's value may be: of those that multiply out, what one of them may be."""
    if key in NAMED_KEYS:  # the command that lists them is said beside
        return "list of names" if key in LIST_KEYS else "name"
    kinds = [schema] if "items" in schema else schema["anyOf"]
    if key not in LIST_KEYS:  # a list of them multiplies out, as of all these keys
        kinds = [kind for kind in kinds if "items" not in kind]
    return ", ".join(dict.fromkeys(part for kind in kinds for part in describe_kind(kind)))


def describe_kind(schema: dict[str, Any]) -> Iterator[str]:
    """Yield the values of a part of a schema."""
    if "items" in schema:
        yield f"list of: {', '.join(dict.fromkeys(describe_kind(schema['items'])))}"
    elif "anyOf" in schema:
        for part in schema["anyOf"]:
            yield from describe_kind(part)
    elif "enum" in schema:
        yield " ".join(f"`{json.dumps(name)}`" for name in schema["enum"])
    elif isinstance(schema.get("type"), list):
        yield " or ".join(schema["type"])
    else:
        yield schema.get("type", "any") + describe_range(schema)


def describe_range(schema: dict[str, Any]) -> str:
    """Return the range of a number."""
    low = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {describe_bound(schema[name])}" for name, sign in low.items() if name in schema]
    return f" {', '.join(found)}" if found else ""


def describe_bound(bound: float) -> str:
    """Return a bound of a range; large ones are powers of two."""
    return f"{bound:g}" if bound < 1e6 else f"2^{int(bound).bit_length() - 1}"


def make_page(page: str) -> str:
    """Return the page with its table made anew."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{make_table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(make_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
