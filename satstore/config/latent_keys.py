"""Keys of latents and of tables of probes, as values.

Manifests, paths of stores, names of files and the command line hold them as text; all other code passes these
values. `parse` takes any text: where it is no key's, ``str`` of what it returns differs from it.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, Self

SPLITS: tuple[Literal["train", "eval"], ...] = ("train", "eval")
"""The splits of a dataset, and the groups of a store that hold the latents of each."""

EPOCHS = "epochs"
"""The group of a store that holds the latents of earlier epochs."""

_NUMBER = "(0|[1-9][0-9]{0,5})"
_EARLIER = re.compile(rf"{EPOCHS}/{_NUMBER}/(.+)", re.DOTALL)
_EPOCH = re.compile(rf"epoch{_NUMBER}")
_SIZE = re.compile("pool([0-9]+)")


@dataclass(frozen=True)
class LatentsKey:
    """The latents of one epoch at one pooling.

    Attributes
    ----------
    pooling
        As configs and ``-d`` have it: ``4``, ``full``, ``pixelwise``.
    epoch
        The epoch after which the weights were taken, counted from 0; None for the last.
    """

    pooling: str
    epoch: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a key of a manifest or a store: ``pool4``, or ``epochs/5/pool4`` of an earlier epoch."""
        earlier = _EARLIER.fullmatch(text)
        group = earlier[2] if earlier else text
        size = _SIZE.fullmatch(group)
        return cls(size[1] if size else group, int(earlier[1]) if earlier else None)

    @classmethod
    def above(cls, path: str) -> Self:
        """Return the key of the latents that a path in a store is part of."""
        parts = path.split("/")
        return cls.parse("/".join(parts[: 3 if parts[0] == EPOCHS else 1]))

    def __str__(self) -> str:
        """Return the key as manifests have it; it is a path in the store."""
        return self.group if self.epoch is None else f"{EPOCHS}/{self.epoch}/{self.group}"

    @property
    def group(self) -> str:
        """The pooling's name in a store: ``pool4``, ``full``."""
        return f"pool{self.pooling}" if self.pooling.isdecimal() else self.pooling

    @property
    def groups(self) -> list[str]:
        """The groups of the store that lead to the latents, the outermost first; the last is the key."""
        parts = str(self).split("/")
        return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]

    @property
    def title(self) -> str:
        """The key for people, who count epochs from 1: ``pool4``, ``pool4 of epoch 6``."""
        return self.group if self.epoch is None else f"{self.group} of epoch {self.epoch + 1}"

    def at(self, epoch: int | None) -> Self:
        """Return the key of the latents of another epoch at the same pooling."""
        return replace(self, epoch=epoch)


@dataclass(frozen=True)
class ProbeKey:
    """A table of probes: the latents that they were fitted on, and the prefix, empty where there is none."""

    latents: LatentsKey
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a table's name: ``pool4``, ``P-pool4``, ``epoch5-pool4`` or ``P-epoch5-pool4``."""
        before, _, group = text.rpartition("-")
        prefix, _, last = before.rpartition("-")
        epoch = _EPOCH.fullmatch(last)
        latents = LatentsKey.parse(group)
        return cls(latents.at(int(epoch[1])), prefix) if epoch else cls(latents, before)

    def __str__(self) -> str:
        """Return the table's name, as manifests, files and the store of analyses have it."""
        epoch = "" if self.latents.epoch is None else f"epoch{self.latents.epoch}"
        return "-".join(part for part in (self.prefix, epoch, self.latents.group) if part)

    @property
    def table(self) -> str:
        """The name of the table in the run folder: ``probe-pool4``."""
        return f"probe-{self}"

    @property
    def file(self) -> str:
        """The name of the table's file: ``probe-pool4.csv``."""
        return f"{self.table}.csv"
