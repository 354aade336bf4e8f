"""Registries: the named models, datasets, optimizers, metrics and stages.

A registry's own entries are rows that name a function as ``"module:function"``; the module is imported when
the entry is used, so that listing names imports neither torch nor anything else that is slow. Third parties
add entries with :meth:`Registry.register`, through entry points, or through a config's ``"plugins"``.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from satstore.errors import ConfigError, UnknownNameError


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
    target: str | Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    description: str = ""
    argument: str | None = None

    def load(self) -> Any:
        """Import the target and bind the arguments."""
        target: Any = self.target
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
        return partial(target, **self.arguments) if self.arguments else target


class Registry(Mapping[str, Any]):
    """A mapping from names to the objects behind them, loaded when they are asked for.

    Parameters
    ----------
    kind
        What an entry is, in the singular, for messages: ``"model"``.
    rows
        ``"module:attribute"`` of the built-in rows, an iterable of :class:`Entry`.
    group
        The entry-point group through which installed packages add theirs.
    """

    def __init__(self, kind: str, rows: str, group: str) -> None:
        self.kind = kind
        self._rows = rows
        self._group = group
        self._entries: dict[str, Entry] = {}
        self._filled = False

    def _fill(self) -> dict[str, Entry]:
        if not self._filled:
            rows: Iterable[Entry] = Entry("", self._rows).load()
            points = entry_points(group=self._group)
            third = [Entry(p.name, f"{p.module}:{p.attr}", family=p.module) for p in points]
            # The first of a name stays: no package that happens to be installed changes what a config means.
            for entry in (*rows, *third):
                self._entries.setdefault(entry.name, entry)
            self._filled = True
        return self._entries

    def register(
        self, name: str, *, family: str = "", description: str = "", **arguments: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Add the decorated object under a name.

        Raises
        ------
        ConfigError
            If the name is taken by another object.
        """

        def add(target: Callable[..., Any]) -> Callable[..., Any]:
            known = self._fill().get(name)
            if known is not None and known.target is not target:
                raise ConfigError(f"a {self.kind} named {name!r} is registered already; choose another name")
            lines = (target.__doc__ or "").strip().splitlines()
            text = description or (lines[0] if lines else "")
            self._entries[name] = Entry(name, target, arguments, family or target.__module__, text)
            return target

        return add

    def entry(self, name: str) -> Entry:
        """Return the row of a name, an argument after a colon bound to it.

        Raises
        ------
        UnknownNameError
            If there is no such name; the message suggests the nearest.
        """
        entries = self._fill()
        base, _, argument = name.partition(":")
        row = entries.get(name) or entries.get(base)
        if row is None:
            raise UnknownNameError(f"no {self.kind} named {name!r}{suggest(base, entries)}")
        if row.name == name:
            if row.argument:
                raise UnknownNameError(f"{self.kind} {name!r} needs a value: {name}:{row.argument.upper()}")
            return row
        if row.argument and not argument:
            raise UnknownNameError(f"{self.kind} {name!r} needs a value: {base}:{row.argument.upper()}")
        if row.argument is None:
            raise UnknownNameError(f"no {self.kind} named {name!r}{suggest(base, entries)}")
        bound = {**row.arguments, row.argument: argument}
        return Entry(name, row.target, bound, row.family, row.description)

    def entries(self) -> list[Entry]:
        """Return all rows, in the order of their registration."""
        return list(self._fill().values())

    def __getitem__(self, name: str) -> Any:
        entry = self.entry(name)
        try:
            return entry.load()
        except Exception as error:  # a third party's module may raise anything while it is imported
            found = " ".join(f"{type(error).__name__}: {error}".split())
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
        return iter(self._fill())

    def __len__(self) -> int:
        return len(self._fill())


def suggest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of some names, else where to look."""
    folded = {known.casefold(): known for known in names}
    near = get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {folded[near[0]]!r}?"
    shown = ", ".join(list(folded.values())[:8])
    return f"; known are {shown}{', …' if len(folded) > 8 else ''}" if shown else ""


def load_plugins(modules: Iterable[str]) -> None:
    """Import the modules of a config's ``"plugins"``, which register what they bring.

    Modules are looked for where Python looks, and last in the working folder.

    Raises
    ------
    ConfigError
        If one can't be imported.
    """
    for module in modules:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            importlib.import_module(module)
        except Exception as error:  # a third party's module may raise anything while it is imported
            found = " ".join(f"{type(error).__name__}: {error}".split())  # in one line
            raise ConfigError(f"plugin {module!r} can't be imported: {found}") from error


MODELS = Registry("model", "satstore.models:ROWS", "satstore.models")
DATASETS = Registry("dataset", "satstore.datasets:ROWS", "satstore.datasets")
OPTIMIZERS = Registry("optimizer", "satstore.optimizers:ROWS", "satstore.optimizers")
METRICS = Registry("metric", "satstore.metrics:ROWS", "satstore.metrics")
STAGES = Registry("stage", "satstore.stages:ROWS", "satstore.stages")
