"""Keys of latents and of tables of probes, as values.

Manifests, paths of stores, names of files and the command line hold them as text; all other code passes these
values. `parse` takes any text: where it is no key's, ``str`` of what it returns differs from it.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, Protocol, Self

from satstore.errors import ConfigError
from satstore.system.text import list_first

SPLITS: tuple[Literal["train", "eval"], ...] = ("train", "eval")
"""The splits of a dataset, and the groups of a store that hold the latents of each."""

EPOCHS = "epochs"
"""The group of a store that holds the latents of earlier epochs."""

_NUMBER = "(0|[1-9][0-9]{0,5})"
_EARLIER = re.compile(rf"{EPOCHS}/{_NUMBER}/(.+)", re.DOTALL)
_EPOCH = re.compile(rf"epoch{_NUMBER}")
_SIZE = re.compile("pool([0-9]+)")
_TOKENS = re.compile(r"cls|mean|last|all|token(?:0|[1-9][0-9]{0,4})")

GRID = "grid"
"""The value of ``tokens`` that asks for no latents of its own: an image's patches are then maps too."""


@dataclass(frozen=True)
class LatentsKey:
    """The latents of one epoch at one pooling.

    Attributes
    ----------
    pooling
        How an output becomes a latent. Of maps, as configs and ``-d`` have it: ``4``, ``full``,
        ``pixelwise``. Of tokens: ``cls``, ``mean``, ``last``, ``all``; ``token5`` is that at position 5.
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
    def of_tokens(cls, mode: str) -> Self:
        """Return the key of what configs and ``--tokens`` ask for: ``cls``, ``mean``, ``5``, …"""
        return cls(f"token{mode}" if mode.isdecimal() else mode)

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
    def is_of_tokens(self) -> bool:
        """Whether they are latents of tokens, not of maps."""
        return _TOKENS.fullmatch(self.pooling) is not None

    @property
    def flags(self) -> str:
        """The flags that ask for the pooling: ``-d 4``, ``--tokens cls``, ``--tokens 5``."""
        if self.is_of_tokens:
            return f"--tokens {self.pooling.removeprefix('token')}"
        return f"-d {self.pooling}"

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


class ArrangedLayer(Protocol):
    """The attributes of a recorded layer that its latents depend on."""

    @property
    def form(self) -> str:
        """How its output is arranged: vector, map, tokens or steps; empty where an old run doesn't say."""

    @property
    def n_axes(self) -> int:
        """The axes of positions of a map."""

    @property
    def n_prefix(self) -> int:
        """The tokens before an image's patches."""

    @property
    def grid(self) -> Sequence[int]:
        """The patches (y, x) of an image that its tokens are; empty if they are none."""


def has_latents(layer: ArrangedLayer, key: LatentsKey, *, with_grid: bool) -> bool:
    """Tell whether a layer has latents of a key; with the grid, patches are a map too."""
    if key.is_of_tokens:
        has_class = key.pooling != "cls" or not layer.grid or layer.n_prefix > 0
        return layer.form in ("vector", "tokens", "steps") and has_class
    if with_grid and layer.grid:
        return True
    if key.pooling == "pixelwise":
        return layer.form in ("", "map") and layer.n_axes > 1
    return layer.form != "tokens"


def layers_with_latents(
    layers: Mapping[str, ArrangedLayer], key: LatentsKey, *, with_grid: bool
) -> list[str]:
    """Return the layers of a model that have latents of a key.

    A vector is a latent of any key; where there are no others than vectors, it has to be one of maps.
    """
    found = [name for name, layer in layers.items() if has_latents(layer, key, with_grid=with_grid)]
    forms, found_forms = ({layers[name].form for name in names} for names in (layers, found))
    is_of_vectors_alone = found_forms <= {"vector"} and (key.is_of_tokens or forms != {"vector"})
    return [] if is_of_vectors_alone else found


def explain_no_latents(layers: Mapping[str, ArrangedLayer], key: LatentsKey, owner: str) -> str:
    """Say why layers have no latents of a key, and what to take; `owner` is whose layers they are."""
    patches = [name for name, layer in layers.items() if layer.grid and not layer.n_prefix]
    if key.pooling == "cls" and patches:
        n_tokens = prod(layers[patches[-1]].grid)
        return (
            f"cls: layer {patches[-1]} of {owner} has no class token, its {n_tokens} tokens are patches; "
            "take mean"
        )
    kind, remedy = ("tokens", "take -d") if key.is_of_tokens else ("maps", "take --tokens")
    if key.pooling == "pixelwise":
        kind, remedy = "positions", "take convolutions (--layers), or another pooling"
    return f"{key.flags}: none of the layers {list_first(list(layers), 3)} of {owner} has {kind}; {remedy}"


@dataclass(frozen=True)
class LatentsRequest:
    """Which latents are asked for, whatever layers there are.

    Attributes
    ----------
    poolings
        Of maps, as the config's ``pooling``.
    tokens
        As the config's ``tokens``, without ``grid``; None: the mean, where a layer has tokens.
    with_grid
        Whether patches are to be taken as maps too.
    """

    poolings: tuple[str, ...]
    tokens: tuple[str, ...] | None
    with_grid: bool = False

    @classmethod
    def of(cls, poolings: Iterable[str], tokens: Iterable[str] | None) -> Self:
        """Return the request of a config's or flags' values."""
        modes = None if tokens is None else tuple(tokens)
        of_tokens = None if modes is None else tuple(mode for mode in modes if mode != GRID)
        return cls(tuple(poolings), of_tokens, GRID in (modes or ()))

    @property
    def all_keys(self) -> list[LatentsKey]:
        """The keys that are asked for by name."""
        of_tokens = [LatentsKey.of_tokens(mode) for mode in self.tokens or ()]
        return [LatentsKey(pooling) for pooling in self.poolings] + of_tokens

    def check_tokens(self, layers: Mapping[str, ArrangedLayer], owner: str) -> None:
        """Raise ConfigError if tokens are asked for that no layer has; `owner` is whose layers they are."""
        for key in self.all_keys:
            if key.is_of_tokens and not layers_with_latents(layers, key, with_grid=self.with_grid):
                raise ConfigError(explain_no_latents(layers, key, owner))
        if self.with_grid and not any(layer.grid for layer in layers.values()):
            raise ConfigError(
                f"--tokens grid: none of the layers {list_first(list(layers), 3)} of {owner} has tokens that "
                "are positions of a convolution; take cls, mean or last"
            )

    def keys(self, layers: Collection[ArrangedLayer]) -> list[LatentsKey]:
        """Return the keys that some layers give rise to.

        Those of maps need a layer with a map, or none with tokens; those of tokens one with tokens or steps.
        """
        forms = {layer.form for layer in layers}
        if self.with_grid and any(layer.grid for layer in layers):
            forms.add("map")
        request = self
        if self.tokens is None and "tokens" in forms:
            request = replace(self, tokens=("mean",))
        has_maps, has_tokens = "map" in forms or "tokens" not in forms, bool(forms & {"tokens", "steps"})
        return [key for key in request.all_keys if (has_tokens if key.is_of_tokens else has_maps)]


def check_prefix(prefix: str) -> str:
    """Check a name that may stand before a pooling's in the name of a table of probes; return it.

    ValueError if it has other characters, or would be read as something else.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}", prefix):
        raise ValueError("expected at most 40 letters, digits, _ . + and -, the first a letter or a digit")
    if re.fullmatch(r"pool[0-9]+|full|pixelwise", prefix) or LatentsKey(prefix).is_of_tokens:
        raise ValueError("expected a name that no pooling has")
    key = ProbeKey(LatentsKey("full"), prefix)
    if ProbeKey.parse(str(key)) != key:
        raise ValueError("expected a name that does not end as tables of an earlier epoch begin")
    return prefix


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

    def at(self, epoch: int | None) -> Self:
        """Return the key of the table of another epoch's latents."""
        return replace(self, latents=self.latents.at(epoch))

    @property
    def table(self) -> str:
        """The name of the table in the run folder: ``probe-pool4``."""
        return f"probe-{self}"

    @property
    def file(self) -> str:
        """The name of the table's file: ``probe-pool4.csv``."""
        return f"{self.table}.csv"
