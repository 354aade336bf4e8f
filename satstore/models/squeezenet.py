"""SqueezeNet 1.1 and variants of its fire modules."""

import torch
from torch import Tensor, nn

# Per fire module: channels of the squeeze conv and of each expand conv; M is a max-pool that halves the map.
PLAN: tuple[tuple[int, int] | str, ...] = (
    *("M", (16, 64), (16, 64), "M", (32, 128), (32, 128), "M"),
    *((48, 192), (48, 192), (64, 256), (64, 256)),
)


class Fire(nn.Module):
    """A 1 x 1 conv that squeezes, then 1 x 1 and 3 x 3 convs side by side.

    Parameters
    ----------
    beside
        What is concatenated with the output of the 3 x 3 convs: a 1 x 1 ``conv``, the ``input`` of both, or
        nothing.
    """

    def __init__(self, n_in: int, n_squeezed: int | None, n_out: int, beside: str | None, depth: int) -> None:
        super().__init__()
        self.squeeze = None if n_squeezed is None else nn.Conv2d(n_in, n_squeezed, 1)
        n_in = n_squeezed or n_in
        self.beside = beside
        if beside == "conv":
            self.expand1x1 = nn.Conv2d(n_in, n_out, 1)
        self.main_path = nn.Sequential()
        for i in range(depth):
            self.main_path.append(nn.Conv2d(n_in if i == 0 else n_out, n_out, 3, padding=1))
            self.main_path.append(nn.ReLU(inplace=True))
        self.n_out = n_out + {"conv": n_out, "input": n_in}.get(beside or "", 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, n_out, height, width)."""
        if self.squeeze is not None:
            x = torch.relu(self.squeeze(x))
        out: Tensor = self.main_path(x)
        if self.beside == "conv":
            return torch.cat([torch.relu(self.expand1x1(x)), out], 1)
        return torch.cat([x, out], 1) if self.beside == "input" else out


def squeezenet(
    *,
    squeezes: str = "narrow",
    beside: str | None = "conv",
    depth: int = 1,
    num_classes: int = 1000,
) -> nn.Module:
    """Build SqueezeNet 1.1, or a variant.

    Parameters
    ----------
    squeezes
        ``narrow``, the usual; ``wide``: to as many channels as each expand conv has; ``none``.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True)]
    n_features = 64
    for item in PLAN:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            continue
        narrow, n_out = item
        n_squeezed = {"narrow": narrow, "wide": n_out, "none": None}[squeezes]
        fire = Fire(n_features, n_squeezed, n_out, beside, depth)
        layers.append(fire)
        n_features = fire.n_out
    last = nn.Conv2d(n_features, num_classes, 1)
    head = nn.Sequential(nn.Dropout(0.5), last, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*layers))
    model.add_module("classifier", head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if module is last:
                nn.init.normal_(module.weight, 0.0, 0.01)
            else:
                nn.init.kaiming_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
