"""The filter of the runs screen: ``model:resnet* acc>90 probe:done text``, all of which must hold."""

import operator
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import translate

from satstore.errors import ConfigError
from satstore.registry import suggest
from satstore.reports.listing.reader import Experiment
from satstore.runs.manifest import STAGE_KEYS, StageStatus

Predicate = Callable[[Experiment], bool]

TEXTS: Mapping[str, Callable[[Experiment], str]] = {
    "run": lambda e: e.run_id,
    "experiment": lambda e: e.path.name,
    "model": lambda e: e.model,
    "dataset": lambda e: e.dataset,
}
NUMBERS: Mapping[str, Callable[[Experiment], float | None]] = {
    "acc": lambda e: e.test_accuracy,
    "epoch": lambda e: e.epochs_done,
    "epochs": lambda e: e.epochs,
    "px": lambda e: e.resolution,
    "age": lambda e: None if e.created is None else time.time() - e.created,
    "disk": lambda e: e.size_bytes,
}
OTHER_NAMES = {"accuracy": "acc", "resolution": "px", "size": "disk", "rf": "receptive_field"}
UNITS: Mapping[str, Mapping[str, float]] = {
    "acc": {"%": 0.01},
    "age": {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400},
    "disk": {
        unit + end: 1024**power
        for power, unit in enumerate(("", "k", "m", "g", "t"))
        for end in ("", "b", "ib")
    },
}
OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
    ":": operator.eq,
}
STATES: tuple[StageStatus, ...] = ("done", "running", "failed", "cancelled", "missing")
TERM = re.compile(r"(?P<field>[A-Za-z][\w-]*)(?P<operator>>=|<=|>|<|=|:)(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """Terms that experiments must meet, all of them."""

    tests: tuple[Predicate, ...] = ()

    def matches(self, experiment: Experiment) -> bool:
        """Tell whether an experiment meets all terms."""
        return all(test(experiment) for test in self.tests)


def parse_filter(text: str) -> Filter:
    """Read a filter, finished or still being typed.

    Parameters
    ----------
    text
        Terms between blanks, quoted as in a shell; ``-`` before one negates it. A term is a text found in the
        names, ``model:resnet*`` (also run, experiment, dataset), ``acc>90%``, which ``acc>.9`` and ``acc>90``
        are, too (also epoch, epochs, px, age<2h, disk>1GiB), ``probe:done`` (any stage: done, running,
        failed, cancelled, missing), or ``is:running`` (also failed, cancelled, done, unreadable).

    Raises
    ------
    ConfigError
        If a field or value is not known.
    """
    return Filter(tuple(test for word in split_words(text) if (test := _parse_word(word)) is not None))


def split_words(text: str) -> list[str]:
    """Split at blanks, as a shell does; a quote that is still open is closed at the end."""
    for closing in ("", '"', "'"):
        try:
            return shlex.split(text + closing)
        except ValueError:
            continue
    return text.split()


def _parse_word(word: str) -> Predicate | None:
    if len(word) > 1 and word[0] in "-!":
        test = _parse_word(word[1:])
        return None if test is None else lambda e: not test(e)
    found = TERM.fullmatch(word)
    if found is None:
        return _match_anywhere(word)
    given, sign, value = found["field"].lower().replace("-", "_"), found["operator"], found["value"]
    field = OTHER_NAMES.get(given, given)
    if not value:
        _check_field(field, given)
        return None
    if field in NUMBERS:
        return _compare(field, sign, value)
    if field in TEXTS and sign in (":", "="):
        matches, read = _matcher(value), TEXTS[field]
        return lambda e: matches(read(e))
    if field == "is":
        return _match_state(value)
    _check_field(field, given)
    if sign not in (":", "="):
        raise ConfigError(f"{given} has no order; write {given}:{value}")
    state = _complete(value.lower(), STATES, f"{given}:")
    return lambda e: e.stages.get(field, "missing") == state and not e.problem


def _check_field(field: str, given: str) -> None:
    known = [*TEXTS, *NUMBERS, *STAGE_KEYS, "is"]
    if field not in known:
        raise ConfigError(f"no field {given!r}{suggest(given, [*known, *OTHER_NAMES])}")


def _complete(value: str, known: tuple[str, ...], before: str) -> str:
    for name in known:
        if name.startswith(value):
            return name
    raise ConfigError(f"{before}{value}: expected {', '.join(known)}")


def _match_state(value: str) -> Predicate:
    known = ("running", "failed", "cancelled", "done", "unreadable")
    state = _complete(value.lower(), known, "is:")
    if state == "unreadable":
        return lambda e: bool(e.problem)
    if state == "done":
        others = set(known) - {"done"}
        return lambda e: e.stages.get("train") == "done" and others.isdisjoint(e.stages.values())
    return lambda e: state in e.stages.values()


def _matcher(pattern: str) -> Callable[[str], bool]:
    pattern = pattern.lower()
    if any(c in pattern for c in "*?["):
        compiled = re.compile(translate(pattern))
        return lambda text: compiled.match(text.lower()) is not None
    return lambda text: pattern in text.lower()


def _match_anywhere(word: str) -> Predicate:
    matches = _matcher(word)
    return lambda e: any(matches(t) for t in (e.run_id, e.path.name, e.model, e.dataset, e.problem))


def _compare(field: str, sign: str, value: str) -> Predicate:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)([a-z%]*)", value.lower())
    units = UNITS.get(field, {})
    if found is None or (found[2] and found[2] not in units):
        some = f" or with a unit ({', '.join(u for u in units if u)})" if units else ""
        raise ConfigError(f"{field}{sign}{value}: expected a number{some}")
    number, unit, compare, read = float(found[1]), found[2], OPERATORS[sign], NUMBERS[field]
    if field == "acc" and number > 1:  # no share is: per cent, with their sign or without
        unit = "%"
    # Divided, so that 97.5% is the share that 0.975 is, to the last bit.
    bound = number / 100 if unit == "%" else number * units.get(unit, 1)
    return lambda e: (number := read(e)) is not None and compare(number, bound)
