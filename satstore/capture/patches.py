"""Which tokens of a model are the patches of an image, and how many others come before them."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from satstore.errors import ConfigError

MOST_PREFIX_TOKENS = 16
"""The most tokens (class, distillation, register) that are looked for before the patches of an image."""


@dataclass(frozen=True)
class PatchGrid:
    """The tokens of an image: ``n_prefix`` before its patches, and the patches (y, x) row by row."""

    n_prefix: int
    shape: tuple[int, int]

    @property
    def n_tokens(self) -> int:
        """Tokens of a sample."""
        return self.n_prefix + self.shape[0] * self.shape[1]

    def to_maps(self, tokens: Tensor) -> Tensor:
        """Return the patches of (batch, token, feature) as maps (batch, feature, y, x), without a copy.

        ConfigError if there are other tokens than the grid has.
        """
        if tokens.shape[1] != self.n_tokens:
            raise ConfigError(
                f"{tokens.shape[1]} tokens are no {self.n_prefix} before {self.shape[0]} × {self.shape[1]} "
                "patches, as in the first batch; give images of one size"
            )
        return tokens[:, self.n_prefix :].transpose(1, 2).view(len(tokens), -1, *self.shape)


def find_grids(
    tokens: Collection[tuple[int, int]], maps: Collection[tuple[int, int, int]], n_prefix: int | None = None
) -> dict[int, PatchGrid]:
    """Find which tokens of a model are the patches of an image.

    Patches come out of a convolution whose maps have as many channels as the tokens have features. Where maps
    of several shapes are possible, those with the fewest tokens before the patches are taken, and none if
    that leaves two.

    Parameters
    ----------
    tokens
        (token, feature) of outputs of the model's modules.
    maps
        (channel, y, x) of outputs of its convolutions.
    n_prefix
        The tokens before the patches, where the model says so.

    Returns
    -------
    dict
        Number of tokens to their grid.
    """
    found: dict[int, set[PatchGrid]] = {}
    for n_tokens, n_features in tokens:
        for n_channels, *shape in maps:
            n_before = n_tokens - shape[0] * shape[1]
            is_known = n_before in (0, n_prefix) if n_prefix is not None else n_before <= MOST_PREFIX_TOKENS
            if n_channels == n_features and n_before >= 0 and is_known:
                found.setdefault(n_tokens, set()).add(PatchGrid(n_before, (shape[0], shape[1])))
    grids = {}
    for n_tokens, possible in found.items():
        fewest = min(grid.n_prefix for grid in possible)
        [first, *further] = [grid for grid in possible if grid.n_prefix == fewest]
        if not further:
            grids[n_tokens] = first
    return grids


@dataclass
class OutputShapes:
    """The shapes of outputs of a model's modules that patches are found by; see `find_grids`."""

    tokens: set[tuple[int, int]] = field(default_factory=set)
    maps: set[tuple[int, int, int]] = field(default_factory=set)

    def see(self, _: object, module: nn.Module, output: Any) -> None:
        """Add an output's shape, if it may be one of tokens or of patches."""
        if not isinstance(output, Tensor):
            return
        if isinstance(module, nn.Conv2d) and output.ndim == 4:
            self.maps.add((output.shape[1], output.shape[2], output.shape[3]))
        elif output.ndim == 3:  # with the samples first, or second
            self.tokens |= {(output.shape[1], output.shape[2]), (output.shape[0], output.shape[2])}

    def find_grids(self, model: nn.Module) -> dict[int, PatchGrid]:
        """Return the grids of the model's tokens; timm's models say how many come before the patches."""
        n_prefix = getattr(model, "num_prefix_tokens", None)
        return find_grids(self.tokens, self.maps, n_prefix if isinstance(n_prefix, int) else None)
