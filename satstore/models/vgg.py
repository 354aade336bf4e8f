"""VGG-style networks: stages of convs and max-pools, then one hidden Linear layer."""

import re

import torch
from torch import Tensor, nn

from satstore.errors import ConfigError
from satstore.models.attention import ChannelAttention

CONV = re.compile(
    r"(?P<channels>[1-9]\d*)(@(?P<kernel_size>[1-9]\d*))?(/(?P<stride>[1-9]\d*))?(\*(?P<n>[1-9]\d*))?"
)


class VGG(nn.Module):
    """Features, global average pooling and a classifier of two Linear layers.

    Takes (batch, 3, height, width) of any size from 32 x 32 on. In training mode the batch needs two images,
    for the classifier normalises over it.

    Parameters
    ----------
    drawn
        Whether weights are drawn by :meth:`reset_parameters`; otherwise as torch does.
    """

    def __init__(
        self, features: nn.Sequential, n_features: int, num_classes: int, *, drawn: bool = True
    ) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        n_hidden = n_features // 2
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(n_features),
            nn.Dropout(0.25),
            nn.Linear(n_features, n_hidden),
            # Not in place: hooks keep the Linear layer's output, which must not change.
            nn.ReLU(),
            nn.BatchNorm1d(n_hidden),
            nn.Dropout(0.25),
            nn.Linear(n_hidden, num_classes),
        )
        if drawn:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights: Kaiming (fan out) for convs, N(0, .01) for Linear layers; biases are 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes)."""
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        logits: Tensor = self.classifier(x)
        return logits


def vgg(
    plan: str,
    *,
    divisor: int = 1,
    multiple: int = 1,
    kernel_size: int = 3,
    dilation: int = 1,
    depthwise: bool = False,
    channel_attention: bool = False,
    drawn: bool = True,
    num_classes: int = 1000,
) -> VGG:
    """Build a VGG from its plan.

    Parameters
    ----------
    plan
        Convs and pools, separated by spaces: ``64`` is a conv of 64 channels (with batch norm and ReLU),
        ``64*4`` four of them, ``64/2`` one of stride 2, ``64@7`` one with a kernel of 7 x 7, and ``M`` a
        2 x 2 max-pool.
    kernel_size
        Of convs whose plan names none; odd.
    depthwise
        Whether convs whose input has a multiple of their channels are grouped by channel.
    channel_attention
        Whether squeeze and excitation follows every conv.

    Raises
    ------
    ConfigError
        If the plan can't be read, or a kernel size is even.
    """
    layers: list[nn.Module] = []
    channels = 3
    for token in plan.split():
        if token == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        conv = CONV.fullmatch(token)
        if conv is None:
            raise ConfigError(
                f"{token!r} in the plan {plan!r} is neither 'M' nor a conv such as '64', '64*4' or '64@7/2'"
            )
        size = int(conv["kernel_size"] or kernel_size)
        if size % 2 == 0:
            raise ConfigError(f"a kernel of {size} can't keep the size of a map; choose an odd one")
        for _ in range(int(conv["n"] or 1)):
            n_in, channels = channels, int(conv["channels"]) * multiple // divisor
            groups = channels if depthwise and n_in % channels == 0 else 1
            # Half the dilated kernel: without a stride, the map keeps its size.
            padding = dilation * (size - 1) // 2
            layers += [
                nn.Conv2d(n_in, channels, size, int(conv["stride"] or 1), padding, dilation, groups),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            if channel_attention:
                layers.append(ChannelAttention(channels, channels // 4))
    return VGG(nn.Sequential(*layers), channels, num_classes, drawn=drawn)
