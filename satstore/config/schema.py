"""The JSON Schema of config files, whose keys take a value or a list of values."""

from typing import Any

from satstore.config.experiment import ExperimentConfig
from satstore.config.grid import LIST_KEYS, NAMED_KEYS


def config_schema() -> dict[str, Any]:
    """Build the JSON Schema of a config file.

    Names are suggested, not required: plugins add others, and ``ImageFolder:PATH`` takes any path.
    """
    found = ExperimentConfig.model_json_schema()
    properties: dict[str, Any] = {}
    for key, schema in found["properties"].items():
        schema = {name: value for name, value in schema.items() if name != "title"}
        if key in NAMED_KEYS:
            names = [entry.name for entry in NAMED_KEYS[key].entries()]
            schema = _suggest(schema, names)
        if key in ("pooling", "tokens"):  # numbers are as good as digits in a config
            array = next(part for part in (schema, *schema.get("anyOf", ())) if part.get("type") == "array")
            array["items"] = {"type": ["string", "integer"]}
        if key == "modules":  # one is as good as a list of one
            schema["anyOf"].append({"type": "string"})
        if key in LIST_KEYS:
            properties[key] = schema
            continue
        extra = {name: schema.pop(name) for name in ("default", "description") if name in schema}
        one = schema.pop("anyOf", None) or [schema]
        many = {"type": "array", "items": schema if schema else {"anyOf": one}, "minItems": 1}
        properties[key] = {"anyOf": [*one, many], **extra}
    properties["$schema"] = {"type": "string", "description": "where this schema lies, for editors"}
    content = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "satstore config",
        "description": "Lists multiply out into a grid of experiments.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    return content | ({"$defs": found["$defs"]} if "$defs" in found else {})


def _suggest(schema: dict[str, Any], names: list[str]) -> dict[str, Any]:
    if "items" in schema:
        return {**schema, "items": {"anyOf": [{"enum": names}, schema["items"]]}}
    kept = {key: value for key, value in schema.items() if key in ("default", "description")}
    return {"anyOf": [{"enum": names}, {"type": "string"}], **kept}
