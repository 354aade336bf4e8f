"""Residual networks with torchvision's module names, with or without skips.

torchvision's own class has no other widths of basic blocks, no other numbers of stages, and no blocks without
a skip. This class has them all, and torchvision's state dicts load into it.
"""

import re
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from satstore.models.attention import Attention, build_attention

Shortcut = Literal["downsample", "conv", "identity", "none"]
"""Which blocks have a skip, and what is on it.

``downsample``, the usual: all, with a 1 x 1 conv where the shape changes. ``conv``: all, with a 1 x 1 conv on
each. ``identity``: only those that keep the shape. ``none``: none.
"""


class Block(nn.Module):
    """The base of both kinds of block: the skip.

    Attributes
    ----------
    expansion
        Output channels per channel of the 3 x 3 convs.
    """

    expansion: ClassVar[int] = 1

    def add_skip(self, downsample: nn.Module | None, *, skip: bool, attention: nn.Module) -> None:
        """Take over the module on the skip (None: the identity), whether there is one, and the attention."""
        self.relu = nn.ReLU(inplace=True)
        self.downsample, self.skip, self.attention = downsample, skip, attention

    def merge(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the block's output from that of its last batch norm and the block's input."""
        out = self.attention(out)
        if self.skip:
            out += x if self.downsample is None else self.downsample(x)
        merged: Tensor = self.relu(out)
        return merged


class BasicBlock(Block):
    """Two 3 x 3 convs."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, width, height / stride, width / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.merge(self.bn2(self.conv2(out)), x)


class Bottleneck(Block):
    """A 1 x 1, a 3 x 3 (which has the stride) and a 1 x 1 conv."""

    expansion: ClassVar[int] = 4

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 4 * width, height / stride, width / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.merge(self.bn3(self.conv3(out)), x)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling and a Linear layer.

    Takes (batch, 3, height, width) of any size from 32 x 32 on.

    Parameters
    ----------
    n_blocks
        Blocks of each stage. The first stage keeps the map's size, each later one halves it and doubles the
        channels, up to 8 * width.
    width
        Channels of the first stage's 3 x 3 convs, and of the stem, unless ``stem_width`` is given.
    plain_stages
        The stages, counted from 1, that have no skips whatever ``shortcut`` says.
    """

    def __init__(
        self,
        n_blocks: Sequence[int],
        *,
        bottleneck: bool = False,
        width: int = 64,
        stem_kernel_size: int = 7,
        stem_stride: int = 2,
        stem_pool: bool = True,
        stem_width: int | None = None,
        shortcut: Shortcut = "downsample",
        shortcut_kernel_size: int = 1,
        attention: Sequence[Attention] = (),
        plain_stages: Collection[int] = (),
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        block = Bottleneck if bottleneck else BasicBlock
        n_features = stem_width or width
        self.conv1 = nn.Conv2d(
            3, n_features, stem_kernel_size, stem_stride, stem_kernel_size // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(n_features)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem_pool else nn.Identity()
        self.stage_names = [f"layer{number}" for number in range(1, len(n_blocks) + 1)]
        make_stage = partial(
            build_stage, block, shortcut_kernel_size=shortcut_kernel_size, attention=attention
        )
        for number, (name, n) in enumerate(zip(self.stage_names, n_blocks, strict=True), start=1):
            channels = width * min(2 ** (number - 1), 8)
            stride = 1 if number == 1 else 2
            kind: Shortcut = "none" if number in plain_stages else shortcut
            stage = make_stage(n_features, channels, n, stride=stride, shortcut=kind)
            self.add_module(name, stage)
            n_features = channels * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n_features, num_classes)
        self._draw_weights()
        self.register_load_state_dict_pre_hook(rename_keys)  # type: ignore[no-untyped-call]  # torch has no hints here

    def _draw_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def build_stage(
    block: type[BasicBlock] | type[Bottleneck],
    n_in: int,
    width: int,
    n_blocks: int,
    *,
    stride: int,
    shortcut: Shortcut,
    shortcut_kernel_size: int = 1,
    attention: Sequence[Attention] = (),
) -> nn.Sequential:
    """Build the blocks of one stage, the first of which has the stride and changes the channels."""
    n_out = width * block.expansion
    blocks: list[Block] = []
    for _ in range(n_blocks):
        changes = stride != 1 or n_in != n_out
        has_conv = shortcut == "conv" or (shortcut == "downsample" and changes)
        skip = has_conv or (shortcut != "none" and not changes)
        downsample = None
        if has_conv:
            size = shortcut_kernel_size
            conv = nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False)
            downsample = nn.Sequential(conv, nn.BatchNorm2d(n_out))
        weighing = build_attention(attention, n_out, n_hidden=n_in // 4)
        blocks.append(block(n_in, width, stride))
        blocks[-1].add_skip(downsample, skip=skip, attention=weighing)
        n_in, stride = n_out, 1
    return nn.Sequential(*blocks)


def rename_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the keys of the original models to those of this class, in place."""
    for key in list(state):
        name = key.removeprefix(prefix)
        known = name.replace(".shortcut.", ".downsample.")
        known = re.sub(r"(?<!attention)\.(se|sa)\.", r".attention.\1.", known)
        if name.startswith("linear."):
            known = name.replace("linear.", "fc.", 1)
        if key.startswith(prefix) and known != name:
            state[prefix + known] = state.pop(key)
