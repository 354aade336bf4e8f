"""Two small transformers with the structure and the names of real ones: a vision one and a text encoder.

They are of widths and lengths that differ from each other, so that no axis can be taken for another one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, N_HEADS = 12, 3


class Attention(nn.Module):
    """Self-attention; `mask` (batch, token) has 1 for each token that is attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n_samples, n_tokens, _ = x.shape
        heads = self.qkv(x).reshape(n_samples, n_tokens, 3, N_HEADS, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape)
        return self.proj(mixed)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class VisionBlock(nn.Module):
    """A block as timm's: norm, attention; norm, MLP; each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """A vision transformer: images (batch, 3, 8, 12) are 2 × 3 patches behind `n_prefix` learned tokens.

    The result is the first token's logits; without prefix tokens those of the patches' mean; without classes
    that of the features (batch, 12).
    """

    def __init__(self, num_classes: int = 0, n_prefix: int = 1, depth: int = 2, grid: Any = (2, 3)) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, n_prefix, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, grid[0] * grid[1] + n_prefix, WIDTH))
        self.blocks = nn.ModuleList(VisionBlock() for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, num_classes) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.prefix.shape[1] else x.mean(1))  # type: ignore[no-any-return]


class TextLayer(nn.Module):
    """A layer as BERT's, which returns a tuple: the hidden states, and their norms (batch, token)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.intermediate = Attention(), Mlp()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden = self.norm1(hidden + self.attention(hidden, mask))
        hidden = self.norm2(hidden + self.intermediate(hidden))
        return hidden, hidden.norm(dim=-1)


class TextEncoder(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TextLayer() for _ in range(depth))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layer:
            hidden, _ = layer(hidden, mask)
        return hidden


@dataclass
class TextOutput:
    last_hidden_state: Tensor
    pooler_output: Tensor


class TinyBert(nn.Module):
    """A text encoder without head: token ids (batch, token) below 30, by keyword, to hidden states.

    Positions count from the first token that is attended to, so that it does not matter on which side and to
    which length a text is padded.
    """

    def __init__(self, depth: int = 2, n_words: int = 30) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(n_words, WIDTH)
        self.positions = nn.Embedding(100, WIDTH)
        self.encoder = TextEncoder(depth)
        self.pooler = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TextOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        places = (mask.cumsum(1) - 1).clamp_min(0)
        hidden = self.encoder(self.embeddings(input_ids) + self.positions(places), mask)
        first = hidden[torch.arange(len(hidden)), mask.argmax(1)]
        return TextOutput(hidden, self.pooler(first).tanh())


def make_texts(n_texts: int, length: int, *, side: str = "right", seed: int = 0) -> dict[str, Tensor]:
    """Return ids and mask of texts of 3 to 9 tokens, the same ones whatever they are padded to."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.full((n_texts, length), 29)
    mask = torch.zeros(n_texts, length, dtype=torch.int64)
    for row in range(n_texts):
        n = int(torch.randint(3, 10, (), generator=rng))
        span = slice(n) if side == "right" else slice(length - n, length)
        ids[row, span] = torch.randint(0, 29, (n,), generator=rng)
        mask[row, span] = 1
    return {"input_ids": ids, "attention_mask": mask}
