"""The tokens of a batch: which of them count, and the latents made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from satstore.errors import ConfigError
from satstore.system.text import list_first

MASKS: Mapping[str, str] = {
    "attention_mask": "keeps",
    "decoder_attention_mask": "keeps",
    "src_key_padding_mask": "drops",
    "tgt_key_padding_mask": "drops",
    "key_padding_mask": "drops",
    "padding_mask": "drops",
}
"""The inputs that hold a mask (batch, token), and what a token does whose value is true or 1."""

FOR_DECODERS = ("decoder_", "tgt")
"""How the names of a decoder's inputs begin."""


class TokenMask:
    """The tokens of a batch that count; the others are padding.

    A place is that of a token among all tokens of the batch, those of one sample after those of the other.
    Places are found on the CPU and copied to a device once, so that no layer waits for a device.

    Parameters
    ----------
    kept
        (batch, token), true or nonzero for each token that counts.
    batch
        Names the batch in messages.

    Raises
    ------
    ConfigError
        If no token of a sample counts.
    """

    def __init__(self, kept: Tensor, batch: str = "the batch") -> None:
        self.kept = kept.detach().cpu().bool()
        self.n_kept = self.kept.sum(1)
        if not self.n_kept.all():
            sample = int(self.n_kept.argmin())
            raise ConfigError(f"sample {sample} of {batch} has no token that its mask keeps; leave it out")
        self._rows = self.kept.flatten().nonzero()[:, 0]
        self._ends = self.n_kept.cumsum(0)
        self._copies: dict[tuple[str | int, torch.device], Tensor] = {}

    @property
    def is_full(self) -> bool:
        """Whether all tokens count."""
        return len(self._rows) == self.kept.numel()

    def rows(self, device: torch.device, n_samples: int | None = None) -> Tensor:
        """Return the places of the tokens that count, ascending; of the first samples, by default of all."""
        rows = self._on("rows", self._rows, device)
        return rows if n_samples is None else rows[: int(self._ends[:n_samples][-1])]

    def places(self, position: int, device: torch.device) -> Tensor:
        """Return the place of one token of each sample, of those that count: 0 the first, −1 the last.

        ConfigError if a sample has too few.
        """
        _check_position(position, int(self.n_kept.min()))
        starts = self._ends if position < 0 else self._ends - self.n_kept
        return self._on(position, self._rows[starts + position], device)

    def kept_on(self, device: torch.device) -> Tensor:
        """Return ``kept`` on a device."""
        return self._on("kept", self.kept, device)

    def _on(self, name: str | int, tensor: Tensor, device: torch.device) -> Tensor:
        if (name, device) not in self._copies:
            self._copies[name, device] = tensor.to(device, non_blocking=True)
        return self._copies[name, device]


@dataclass(frozen=True)
class BatchMask:
    """The masks of a batch: of its tokens, and of those of a decoder, where the model is called with some."""

    tokens: TokenMask | None
    decoder: TokenMask | None = None
    has_decoder: bool = False

    def of(self, layer: str) -> TokenMask | None:
        """Return the mask of the tokens that a layer of that name works on."""
        return self.decoder if self.has_decoder and "decoder" in layer else self.tokens


def find_mask(inputs: Mapping[str, Any], batch: str, given: Tensor | None = None) -> BatchMask | None:
    """Find the masks among a model's inputs, by their names; None if there is none.

    Parameters
    ----------
    inputs
        Name to value.
    batch
        Names the batch in messages.
    given
        (batch, token), true or nonzero for each token that counts: taken in place of those of the inputs.

    Raises
    ------
    ConfigError
        If a mask is no tensor (batch, token), or keeps no token of a sample.
    """
    if given is not None:
        return BatchMask(_read_mask("mask", given, "keeps", batch))
    found: dict[bool, TokenMask] = {}
    for name, effect in MASKS.items():
        if inputs.get(name) is not None:
            is_of_decoder = name.startswith(FOR_DECODERS)
            found.setdefault(is_of_decoder, _read_mask(name, inputs[name], effect, batch))
    has_decoder = any(name.startswith(FOR_DECODERS) for name in inputs)
    return BatchMask(found.get(False), found.get(True), has_decoder) if found else None


def _read_mask(name: str, mask: Any, effect: str, batch: str) -> TokenMask:
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        found = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError(
            f"{name} of {batch} is {found}; expected a tensor (batch, token) with 1 for each token that "
            "counts: give one (adapt)"
        )
    # A mask that is added to scores has 0 for what counts, and large negative numbers for what doesn't.
    return TokenMask(mask > 0 if effect == "keeps" else mask == 0, batch)


def describe_unmasked(unmasked: Mapping[str, tuple[int, int]]) -> list[str]:
    """Describe layers whose tokens are others than the mask's: layer to the numbers of both."""
    layers: dict[tuple[int, int], list[str]] = {}
    for layer, numbers in unmasked.items():
        layers.setdefault(numbers, []).append(layer)
    return [
        f"layers {list_first(names, 3)} have {n_tokens} tokens, the mask {n_masked}: their padding counts; "
        f"give a mask of {n_tokens} (adapt)"
        for (n_tokens, n_masked), names in layers.items()
    ]


def pool_tokens(tokens: Tensor, mode: str, n_prefix: int = 0, mask: TokenMask | None = None) -> Tensor:
    """Make latents of a layer's tokens.

    Parameters
    ----------
    tokens
        (batch, token, feature).
    mode
        "cls": the first token. "last": the last. "token5": the one at position 5, counted from 0. "mean":
        the mean of those behind the prefix. "all": all of them.
    n_prefix
        The tokens before the patches of an image.
    mask
        The tokens that count. Positions are counted among them, the mean is theirs, and in "all" the others
        are 0. What others hold, such as NaN, has no effect.

    Returns
    -------
    Tensor
        (batch, feature), for "mean" in float32 at least; for "all" (batch, token, feature). It may share
        memory with the tokens.

    Raises
    ------
    ConfigError
        If a sample has no such token.
    """
    if mode == "all":
        return tokens if mask is None else _without_padding(tokens, mask)
    if mode == "mean":
        return _mean_behind(tokens, n_prefix, mask)
    position = int(mode.removeprefix("token")) if mode.startswith("token") else {"cls": 0, "last": -1}[mode]
    if mask is not None:
        return tokens.flatten(0, 1).index_select(0, mask.places(position, tokens.device))
    _check_position(position, tokens.shape[1])
    return tokens[:, position]


def _mean_behind(tokens: Tensor, n_prefix: int, mask: TokenMask | None) -> Tensor:
    behind = torch.ones(1, tokens.shape[1], dtype=torch.bool) if mask is None else mask.kept
    if not behind[:, n_prefix:].any(1).all():
        raise ConfigError(f"a sample has no token behind the first {n_prefix}, and no mean")
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    if mask is None:
        return tokens[:, n_prefix:].mean(1, dtype=dtype)
    sums = _without_padding(tokens, mask)[:, n_prefix:].sum(1, dtype=dtype)
    return sums / mask.kept_on(tokens.device)[:, n_prefix:].sum(1, keepdim=True)


def _without_padding(tokens: Tensor, mask: TokenMask) -> Tensor:
    """Set tokens that don't count to 0; a product would leave NaN what it is."""
    return torch.where(mask.kept_on(tokens.device)[..., None], tokens, 0)


def _check_position(position: int, n_tokens: int) -> None:
    if position >= n_tokens:
        raise ConfigError(
            f"there is no token {position}, counted from 0, in a sample of {n_tokens}; take one that all "
            "samples have, or cls, mean or last"
        )
