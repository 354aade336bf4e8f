"""Networks whose blocks have parallel paths of different kernel sizes and depths."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class Path(nn.Module):
    """Convs of one kernel size with batch norm and ReLU; the last has the stride."""

    def __init__(self, n_in: int, width: int, *, depth: int, size: int, dilation: int, stride: int) -> None:
        super().__init__()
        padding = (size + (size - 1) * (dilation - 1)) // 2
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(
                        n_in if i == 0 else width,
                        width,
                        size,
                        stride if i == depth - 1 else 1,
                        padding,
                        dilation,
                        bias=False,
                    ),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
                for i in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, width, height / stride, width / stride)."""
        out: Tensor = self.layers(x)
        return out


class MultipathBlock(nn.Module):
    """Parallel paths of convs on the same input, whose outputs are added."""

    def __init__(self, paths: Sequence[tuple[int, int, int]], n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.path_names = [f"pathway{i}" for i in range(len(paths))]
        for name, (depth, size, dilation) in zip(self.path_names, paths, strict=True):
            self.add_module(name, Path(n_in, width, depth=depth, size=size, dilation=dilation, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, (batch, width, height / stride, width / stride)."""
        return torch.stack([self.get_submodule(name)(x) for name in self.path_names]).sum(0)


class MultipathNet(nn.Module):
    """A conv, up to four stages of multipath blocks that halve the map at their end, and a Linear layer.

    Parameters
    ----------
    paths
        For each path of a block: the number of convs, their kernel size, their dilation.
    """

    def __init__(
        self, n_blocks: Sequence[int], paths: Sequence[tuple[int, int, int]], *, num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        n_in = 64
        self.stage_names = [f"stage{number}" for number in range(1, len(n_blocks) + 1)]
        for name, n, width in zip(self.stage_names, n_blocks, WIDTHS, strict=True):
            blocks = []
            for i in range(n):
                blocks.append(MultipathBlock(paths, n_in, width, 2 if i == n - 1 else 1))
                n_in = width
            self.add_module(name, nn.Sequential(*blocks))
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(n_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.linear(torch.flatten(self.pooling(x), 1))
        return logits
