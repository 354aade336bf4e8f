"""Registries of the named models, datasets, optimizers, metrics and stages.

A registry's own entries are rows that name a function as ``"module:function"``; the module is imported when
the entry is used, so that listing names imports neither torch nor anything else that is slow. Third parties
add entries with :meth:`Registry.register`, through entry points, or through a config's ``"plugins"``; from
Python, any object whose ``__dict__`` maps names to factories can stand in (:meth:`Registry.stand_in`).
"""

import importlib
import logging
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from satstore.errors import ConfigError, UnknownNameError, reason_of

T = TypeVar("T")

_log = logging.getLogger("satstore.plugins")


@dataclass(frozen=True)
class Entry:
    """One row of a registry.

    Attributes
    ----------
    name
        The name that configs use.
    target
        ``"module:attribute"``, imported when the entry is loaded, or the object itself.
    arguments
        Keyword arguments bound to the target.
    family
        The group that lists show the entry under.
    description
        One line on what it is.
    argument
        The keyword that takes what follows a colon in the name, as in ``ImageFolder:PATH``.
    """

    name: str
    target: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    description: str = ""
    argument: str | None = None

    def load(self) -> Any:
        """Import the target and bind the arguments."""
        target = self.target
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
        return partial(target, **self.arguments) if self.arguments else target

    @property
    def origin(self) -> str:
        """The origin of the entry, as ``module:attribute``."""
        if isinstance(self.target, str):
            return self.target
        named = self.target if hasattr(self.target, "__qualname__") else type(self.target)
        return f"{named.__module__}:{named.__qualname__}"

    @property
    def is_own(self) -> bool:
        """Whether it is one of satstore's own rows."""
        return isinstance(self.target, str) and self.target.startswith("satstore.")


class Registry(Mapping[str, Any]):
    """A mapping from names to the objects behind them, loaded when they are asked for.

    Parameters
    ----------
    kind
        The kind of its entries in the singular, for messages: ``"model"``.
    rows
        ``"module:attribute"`` of the built-in rows, an iterable of :class:`Entry`.
    group
        The entry-point group through which installed packages add theirs.
    absent
        ``"module:attribute"`` of explanations for names that phd-lab's configs have and the registry lacks:
        a pattern of names to a reason, or to a substitute.
    """

    def __init__(self, kind: str, rows: str, group: str, absent: str | None = None) -> None:
        self.kind = kind
        self._rows = rows
        self._absent = absent
        self._group = group
        self._stand_ins: dict[str, Entry] = {}

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        """The built-in rows and the entries of installed packages, to which others are added."""
        rows: Iterable[Entry] = Entry("", self._rows).load()
        points = entry_points(group=self._group)
        third = [Entry(p.name, f"{p.module}:{p.attr}", family=p.module) for p in points]
        found: dict[str, Entry] = {}
        # The first entry of a name stays: an installed package must not change the meaning of a config.
        for entry in (*rows, *third):
            found.setdefault(entry.name, entry)
        return found

    def _known(self) -> Mapping[str, Entry]:
        return ChainMap(self._stand_ins, self._entries)

    def register(
        self, name: str, *, family: str = "", description: str = "", **arguments: Any
    ) -> Callable[[T], T]:
        """Add the decorated object under a name; ConfigError if another object has it."""

        def add(target: T) -> T:
            known = self._entries.get(name)
            if known is not None and known.target is not target:
                raise ConfigError(f"a {self.kind} named {name!r} is registered already; choose another name")
            text = description or _first_line(target)
            self._entries[name] = Entry(name, target, arguments, family or target.__module__, text)
            return target

        return add

    @contextmanager
    def stand_in(self, owner: object) -> Iterator[None]:
        """Look names up among the factories of a module, class or object first, until the block ends.

        Its factories are the callables in its ``__dict__`` whose names don't begin with an underscore; other
        names are looked up in the registry's own entries. ConfigError if it has none.
        """
        found = {k: v for k, v in getattr(owner, "__dict__", {}).items() if callable(v) and k[:1] != "_"}
        family = getattr(owner, "__name__", type(owner).__name__)
        if not found:
            raise ConfigError(
                f"{family!r} can't stand in for the registry of {self.kind}s: expected an object whose "
                "__dict__ maps names to factories"
            )
        before = self._stand_ins
        entries = {k: Entry(k, v, family=family, description=_first_line(v)) for k, v in found.items()}
        self._stand_ins = {**before, **entries}
        try:
            yield
        finally:
            self._stand_ins = before

    def entry(self, name: str) -> Entry:
        """Return the entry of a name, with an argument after a colon bound to it.

        UnknownNameError suggests the nearest name if there is no such one.
        """
        entries = self._known()
        name = self._spell(name)
        base, _, argument = name.partition(":")
        row = entries.get(name) or entries.get(base)
        if row is None or (row.argument is None and row.name != name):
            raise UnknownNameError(f"no {self.kind} named {name!r}{self._instead(base, entries)}")
        if row.argument is None:
            return row
        if not argument:
            raise UnknownNameError(f"{self.kind} {name!r} needs a value: {base}:{row.argument.upper()}")
        bound = {**row.arguments, row.argument: argument}
        return Entry(name, row.target, bound, row.family, row.description)

    def _instead(self, name: str, entries: Iterable[str]) -> str:
        """Explain an unknown name: the reason if there is one, otherwise the nearest name."""
        reasons: Mapping[str, str] = Entry("", self._absent).load() if self._absent else {}
        reason = next((text for pattern, text in reasons.items() if re.fullmatch(pattern, name)), None)
        return suggest(name, entries) if reason is None else f": {reason}"

    def _spell(self, name: str) -> str:
        """Return a stage's name in the spelling of its command: tables and keys write ``_`` for ``-``."""
        known = self._known()
        if self.kind != "stage" or name in known:
            return name
        return next((other for other in known if other.replace("-", "_") == name.replace("-", "_")), name)

    def entries(self) -> list[Entry]:
        """Return all rows, in the order of their registration."""
        return list(self._known().values())

    def __getitem__(self, name: str) -> Any:
        entry = self.entry(name)
        try:
            return entry.load()
        except Exception as error:  # a plugin's module may raise anything while it is imported
            found = reason_of(error, with_type=True)
            raise ConfigError(
                f"{self.kind} {name!r} can't be loaded from {entry.target!r}: {found}"
            ) from error

    def __contains__(self, name: object) -> bool:
        try:
            self.entry(str(name))
        except UnknownNameError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


def _first_line(target: object) -> str:
    lines = (target.__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""


def suggest(name: str, names: Iterable[str], n_shown: int = 8) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of some names, else the first of them."""
    folded = {known.casefold(): known for known in names}
    near = get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    if near:
        swapped = [key for key in near if sorted(key) == sorted(name.casefold())]  # letters in another order
        return f"; did you mean {folded[[*swapped, *near][0]]!r}?"
    shown = ", ".join(list(folded.values())[:n_shown])
    return f"; known are {shown}{', …' if len(folded) > n_shown else ''}" if shown else ""


def load_plugins(modules: Iterable[str]) -> None:
    """Import the modules of a config's ``"plugins"``, which register their entries.

    Modules are searched for on Python's path, and last in the working folder. Each import is logged
    (``satstore.plugins``): it is the one way in which a config runs code. ConfigError if one can't be.
    """
    for module in modules:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        if module not in sys.modules:
            _log.info("importing the plugin %r, which the config names", module)
        try:
            importlib.import_module(module)
        except Exception as error:  # a plugin's module may raise anything while it is imported
            found = reason_of(error, with_type=True)  # in one line
            raise ConfigError(f"plugin {module!r} can't be imported: {found}") from error


MODELS = Registry("model", "satstore.models:ROWS", "satstore.models", "satstore.models:ABSENT")
DATASETS = Registry("dataset", "satstore.datasets:ROWS", "satstore.datasets", "satstore.datasets:ABSENT")
OPTIMIZERS = Registry("optimizer", "satstore.training.optimizers:ROWS", "satstore.optimizers")
METRICS = Registry(
    "metric", "satstore.training.metrics:ROWS", "satstore.metrics", "satstore.training.metrics:ABSENT"
)
STAGES = Registry("stage", "satstore.stages:ROWS", "satstore.stages")

REGISTRIES: Mapping[str, Registry] = {
    "models": MODELS,
    "datasets": DATASETS,
    "optimizers": OPTIMIZERS,
    "metrics": METRICS,
    "stages": STAGES,
}


@contextmanager
def stand_in(owners: Mapping[str, object]) -> Iterator[None]:
    """Look names up in objects first, by registry, such as ``models``; see :meth:`Registry.stand_in`."""
    with ExitStack() as stack:
        for name, owner in owners.items():
            if name not in REGISTRIES:
                raise UnknownNameError(f"no registry named {name!r}{suggest(name, REGISTRIES)}")
            stack.enter_context(REGISTRIES[name].stand_in(owner))
        yield
