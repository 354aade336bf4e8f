"""Attention modules, which weigh a feature map by channel or by position."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Attention = Literal["channel", "position"]


class ChannelAttention(nn.Module):
    """Weighs channels, by weights from the means of all channels: squeeze and excitation.

    Hu, Shen, Sun: "Squeeze-and-Excitation Networks", 2018.
    """

    def __init__(self, n_channels: int, n_hidden: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(n_channels, n_hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(n_hidden, n_channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channel, y, x), weighed."""
        weights: Tensor = self.fc(x.mean((2, 3)))
        return x * weights[:, :, None, None]


class PositionAttention(nn.Module):
    """Weighs positions, by weights from the mean and the maximum over channels around them.

    Woo, Park, Lee, Kweon: "CBAM: Convolutional Block Attention Module", 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channel, y, x), weighed."""
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv1(both))


def build_attention(kinds: Sequence[Attention], n_channels: int, n_hidden: int) -> nn.Module:
    """Build attention modules in a row; the identity for none; n_hidden features within ``channel``'s."""
    parts = nn.Sequential()
    for kind in kinds:
        if kind == "channel":
            parts.add_module("se", ChannelAttention(n_channels, max(1, n_hidden)))
        else:
            parts.add_module("sa", PositionAttention())
    return parts if len(parts) else nn.Identity()
