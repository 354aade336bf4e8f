"""A stage's parameters as texts that people type: which fields there are, what is wrong, and the flags."""

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel, ByteSize, ValidationError
from pydantic.fields import FieldInfo

from satstore.config.validation import describe_invalid_item
from satstore.errors import ConfigError
from satstore.registry import STAGES
from satstore.stages.parameters import join_parameters


@dataclass(frozen=True)
class FormEntry:
    """A parameter as a form shows it.

    Attributes
    ----------
    default
        How its default reads; empty where it has none.
    choices
        The values that it can have, where these are few; of a switch, none.
    is_switch
        Whether it is on or off.
    takes_many
        Whether it is a list, whose items commas or blanks separate.
    """

    name: str
    flag: str
    description: str
    default: str
    choices: tuple[str, ...] = ()
    is_switch: bool = False
    takes_many: bool = False


def find_usable_stages() -> tuple[list[str], list[ConfigError]]:
    """Return the names of the stages that load, and the errors of those that don't: of broken packages."""
    names, errors = [], []
    for name in STAGES:
        try:
            STAGES[name]
        except ConfigError as error:
            errors.append(error)
        else:
            names.append(name)
    return names, errors


def stage_model(stage: str) -> type[BaseModel]:
    """Return the model of a stage's parameters, or of all stages' for ``run``."""
    if stage == "run":
        return join_parameters(find_usable_stages()[0])
    model: type[BaseModel] = STAGES[stage].parameters
    return model


def describe_entries(model: type[BaseModel]) -> list[FormEntry]:
    """Return a model's parameters as a form shows them."""
    return [_describe(name, info) for name, info in model.model_fields.items()]


def _describe(name: str, info: FieldInfo) -> FormEntry:
    kind = _without_none(info.annotation)
    is_optional_bool = kind is bool and info.default is None
    choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
    return FormEntry(
        name,
        flag_of(name, info),
        info.description or name.replace("_", " "),
        _write_default(info.default),
        ("yes", "no") if is_optional_bool else choices,
        is_switch=kind is bool and not is_optional_bool,
        takes_many=get_origin(kind) is tuple,
    )


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        [kind] = [arg for arg in get_args(annotation) if arg is not type(None)]
        return kind if not hasattr(kind, "__metadata__") else get_args(kind)[0]
    return annotation


def flag_of(name: str, info: FieldInfo) -> str:
    """Return the flag of a parameter, as its command has it."""
    named = [meta.name for meta in info.metadata if isinstance(meta, Parameter) and meta.name]
    return next(iter(named[0])) if named else f"--{name.replace('_', '-')}"


def _write_default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, ByteSize):
        return value.human_readable()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_texts(
    model: type[BaseModel], texts: Mapping[str, str | bool]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the parameters that texts stand for, those at their default left out, and what is wrong.

    An empty text stands for the default; a switch's value is whether it is on. Values are as
    :func:`flag_words` takes them; errors, by parameter, are those of the command.
    """
    values: dict[str, Any] = {}
    for entry in describe_entries(model):
        text = texts.get(entry.name, "")
        if entry.is_switch:
            if isinstance(text, bool) and text != model.model_fields[entry.name].default:
                values[entry.name] = text
        elif str(text).strip() not in ("", entry.default):
            words = tuple(re.split(r"[\s,]+", str(text).strip()))
            values[entry.name] = words if entry.takes_many else str(text).strip()
    errors: dict[str, str] = {}
    try:
        model.model_validate(values)
    except ValidationError as error:
        for item in error.errors():
            name = str(item["loc"][0])
            errors.setdefault(name, describe_invalid_item(item, flag_of(name, model.model_fields[name])))
    return values, errors


def flag_words(model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Return the flags that give a command those parameters."""
    words: list[str] = []
    for name, value in values.items():
        flag = flag_of(name, model.model_fields[name])
        if value is True or value == "yes":
            words.append(flag)
        elif value is False or value == "no":
            words.append(flag.replace("--", "--no-", 1))
        else:
            for item in value if isinstance(value, tuple) else (value,):
                words += [flag, str(item)]
    return words
