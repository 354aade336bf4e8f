"""The table of models, a row per variant; it imports nothing slow.

A VGG's plan is written as in the paper's tables: ``64*4`` is four convs of 64 channels, ``64/2`` a conv of
stride 2, ``64@7`` one with a kernel of 7, ``M`` a max-pool that halves the map.
"""

from itertools import combinations
from typing import Any

from satstore.models.phd_lab_entries import DIVISORS, phd_lab_entries
from satstore.models.torchvision_entries import torchvision_entries
from satstore.registry import Entry

VGG_PLANS = {
    "vgg5": "64 M",
    "vgg6": "64 M 128 M",
    "vgg7": "64 M 128 M 256 M",
    "vgg8": "64 M 128 M 256 M 512 M",
    "vgg9": "64 M 128 M 256 M 512 M 512 M",
    "vgg11": "64 M 128 M 256*2 M 512*2 M 512*2 M",
    "vgg13": "64*2 M 128*2 M 256*2 M 512*2 M 512*2 M",
    "vgg16": "64*2 M 128*2 M 256*3 M 512*3 M 512*3 M",
    "vgg19": "64*2 M 128*2 M 256*4 M 512*4 M 512*4 M",
    "vgg13_early": "64*2 128*2 256*2 M 512 M 512 M 512 M 512 M",
    "vgg13_late": "64 M 64 M 128 M 128 M 256*2 512*4 M",
    "vgg13_wide": "128 M 256 M 512 M 1024 M 1024 M",
    "vgg13_thin": "32*4 M 64*4 M 128*4 M 256*4 M 256*4 M",
    "vgg13_strides": "64 64/2 128 128/2 256 256/2 512 512/2 512 512/2",
    "vgg16_p": "64*2 M 128*2 M 256*2 M 256 512 M 512*5 M",
    "vgg16_p2": "64 M 64 M 128 M 128 M 256*3 512*6 M",
    "vgg16AlteredPooling1": "64*2 M 128*2 M 256*3 M 512*6 M",
    "vgg16AlteredPooling2": "64*2 128*2 M 256*3 M 512*3 M 512*3 M",
    "vgg16AlteredPooling3": "64*2 128*2 256*3 M 512*3 M 512*3 M",
    "vgg16AlteredPooling4": "64*2 128*2 256*3 512*3 M 512*3 M",
    "vgg16AlteredPooling5": "64*2 128*2 256*3 512*6 M",
    "vgg16AlteredPooling6": "64*2 128*2 M 256*3 512*3 M 512*3 M",
    "vgg16_ap7": "64*2 128*2 M 256*3 M 512*3 M 512*3 M",
    "vgg19p0": "64*3 M 128*3 M 256*3 M 512*3 M 512*3 M",
    "vgg19p1": "64*3 M 128*3 256 M 256*2 512*2 M 512*4 M",
    "vgg19p2": "64*3 128*2 M 128 256*3 512 M 512*5 M",
    "vgg19r0": "64*4 M 128*4 M 256*4 M 512*4 M",
    "vgg19r1": "128*6 M 256*5 M 512*5 M",
    "vgg19r2": "256*8 M 512*8 M",
    "vgg19r3": "64*2 M 128*2 M 256*3 M 512*3 M 512*3 M 512*3",
    "vgg19r4": "64*2 M 128*2 M 256*2 M 256 512*3 M 512*3 M 512*3",
    "vggresnet": "64@7/2 M 128*4 M 256*4 M 512*4 M 512*4",
}

VGG_WIDTHS = {
    "vgg5": ("S",),
    "vgg6": ("S",),
    "vgg7": ("S",),
    "vgg8": ("S", "XS"),
    "vgg9": ("S", "XS", "XXS"),
    "vgg11": ("S", "XS", "XXS", "XXXS"),
    "vgg13": ("S", "XS", "XXS", "XXXS"),
    "vgg16": ("S", "XS", "XXS", "XXXS"),
    "vgg19": ("S", "XS", "XXS", "XXXS"),
}

# (name, the plan's name, arguments, the difference)
VGG_VARIANTS: list[tuple[str, str, dict[str, Any], str]] = [
    *(
        (f"{plan}_{suffix}", plan, {"divisor": DIVISORS[suffix]}, f"channels divided by {DIVISORS[suffix]}")
        for plan, suffixes in VGG_WIDTHS.items()
        for suffix in suffixes
    ),
    *(
        (f"{plan}_d{dilation}", plan, {"dilation": dilation}, f"every conv dilated by {dilation}")
        for plan, dilations in {
            "vgg11": (2, 3),
            "vgg13": (2, 3, 4),
            "vgg16": (1, 2, 3, 4),
            "vgg19": (2, 3),
        }.items()
        for dilation in dilations
    ),
    ("vgg19r2d3", "vgg19r2", {"dilation": 3}, "every conv dilated by 3"),
    *(
        (f"vgg16_{size}", "vgg16", {"kernel_size": size}, f"kernels of {size} x {size}")
        for size in (5, 7, 9, 11)
    ),
]

RESNET18: dict[str, Any] = {"n_blocks": (2, 2, 2, 2)}
RESNET34: dict[str, Any] = {"n_blocks": (3, 4, 6, 3)}
RESNET50: dict[str, Any] = {"n_blocks": (3, 4, 6, 3), "bottleneck": True}
DSPL2: dict[str, Any] = {"n_blocks": (4, 4)}
EP0: dict[str, Any] = {"stem_pool": False}
EP01: dict[str, Any] = {"stem_stride": 1}
EP00: dict[str, Any] = {**EP0, **EP01}
NO_SKIP: dict[str, Any] = {"shortcut": "none"}
PC: dict[str, Any] = {**EP00, "stem_kernel_size": 3}

# (name, arguments, description)
RESNETS: list[tuple[str, dict[str, Any], str]] = [
    ("resnet18", RESNET18, "as in torchvision"),
    ("resnet34", RESNET34, "as in torchvision"),
    ("resnet50", RESNET50, "as in torchvision"),
    ("resnet101", {"n_blocks": (3, 4, 23, 3), "bottleneck": True}, "as in torchvision"),
    ("resnet152", {"n_blocks": (3, 8, 36, 3), "bottleneck": True}, "as in torchvision"),
    *(
        (
            f"{name}_{suffix}",
            {**base, "width": 64 // DIVISORS[suffix]},
            f"{name}, channels divided by {DIVISORS[suffix]}",
        )
        for name, base in {"resnet18": RESNET18, "resnet34": RESNET34}.items()
        for suffix in ("S", "XS", "XXS")
    ),
    ("resnet18noskip", {**RESNET18, **NO_SKIP}, "resnet18 without skips"),
    ("resnet34noskip", {**RESNET34, **NO_SKIP}, "resnet34 without skips"),
    ("resnet50noskip", {**RESNET50, **NO_SKIP}, "resnet50 without skips"),
    ("resnet18_ep0", {**RESNET18, **EP0}, "resnet18 without the stem's max-pool"),
    ("resnet18_ep01", {**RESNET18, **EP01}, "resnet18 with a stem of stride 1"),
    ("resnet18_ep00", {**RESNET18, **EP00}, "resnet18 with a stem of stride 1 and no max-pool"),
    ("resnet18_noskip_ep0", {**RESNET18, **NO_SKIP, **EP0}, "resnet18_ep0 without skips"),
    ("resnet18_noskip_ep01", {**RESNET18, **NO_SKIP, **EP01}, "resnet18_ep01 without skips"),
    ("resnet18_noskip_ep00", {**RESNET18, **NO_SKIP, **EP00}, "resnet18_ep00 without skips"),
    ("resnet18_dspl2", DSPL2, "stages of 4, 4 blocks"),
    ("resnet18_dspl3", {"n_blocks": (2, 3, 3)}, "stages of 2, 3, 3 blocks"),
    ("resnet18_dspl5", {"n_blocks": (1, 1, 2, 2, 2)}, "stages of 1, 1, 2, 2, 2 blocks"),
    ("resnet18_dspl6", {"n_blocks": (1, 1, 1, 1, 2, 2)}, "stages of 1, 1, 1, 1, 2, 2 blocks"),
    ("resnet18_dspl8", {"n_blocks": (1,) * 8}, "eight stages of one block"),
    ("resnet18_dp00_dspl2", {**DSPL2, **EP00}, "resnet18_dspl2 with the stem of resnet18_ep00"),
    ("resnet18noskip_dp00_dspl2", {**DSPL2, **EP00, **NO_SKIP}, "resnet18_dp00_dspl2 without skips"),
    ("resnet18_early", {"n_blocks": (1, 1, 1, 5)}, "stages of 1, 1, 1, 5 blocks: early down-sampling"),
    ("resnet18_late", {"n_blocks": (5, 1, 1, 1)}, "stages of 5, 1, 1, 1 blocks: late down-sampling"),
    ("resnet18_thin", {"n_blocks": (4, 4, 4, 4), "width": 32}, "twice the blocks at half the width"),
    ("resnet18_wide", {"n_blocks": (1, 1, 1, 1), "width": 128}, "half the blocks at twice the width"),
    *(
        (
            f"resnet18_nr{n}_{''.join(map(str, stages))}",
            {**RESNET18, "plain_stages": stages},
            f"resnet18 without skips in stages {', '.join(map(str, stages))}",
        )
        for n in (1, 2, 3)
        for stages in combinations((1, 2, 3, 4), n)
    ),
    ("resnet34_nr1", {**RESNET34, "plain_stages": (1,)}, "resnet34 without skips in stage 1"),
    ("resnet34_nr2", {**RESNET34, "plain_stages": (1, 2)}, "resnet34 without skips in stages 1, 2"),
    ("resnet18highway", {**RESNET18, "shortcut": "conv"}, "resnet18 with a 1x1 conv on every skip"),
    (
        "resnet18nodownsample",
        {**RESNET18, "shortcut": "identity"},
        "resnet18 without skips where the stride changes",
    ),
    ("resnet18_bottleneck", {**RESNET18, "bottleneck": True}, "bottleneck blocks, two a stage"),
    ("ResNet18_PC", {**RESNET18, **PC}, "resnet18 with a 3x3 stem of stride 1 and no max-pool"),
    ("ResNet34_PC", {**RESNET34, **PC}, "resnet34 with a 3x3 stem of stride 1 and no max-pool"),
    ("ResNet50_PC", {**RESNET50, **PC}, "resnet50 with a 3x3 stem of stride 1 and no max-pool"),
]

ALIASES = {
    "resnet18bottleneck": "resnet18_bottleneck",
    "resnet18noskip_ep0": "resnet18_noskip_ep0",
    "resnet18noskip_ep01": "resnet18_noskip_ep01",
    "resnet18noskip_ep00": "resnet18_noskip_ep00",
    "dp00_dspl2": "resnet18_dp00_dspl2",
}
"""Other spellings of ResNets: their makers did not agree with themselves where an underscore goes."""

VGG = "satstore.models.vgg:vgg"
VGG_PCA = "satstore.models.pca:vgg_pca"
RESNET = "satstore.models.resnet:ResNet"

# (name, arguments, what is kept)
PCA_VARIANTS: list[tuple[str, dict[str, Any], str]] = [
    ("vgg13PCA", {}, "99.9 % of the variance after convs, 99 % after the Linear layer"),
    ("vgg13PCA_centered", {"centred": True}, "as vgg13PCA, of the variance about the mean"),
    *(
        (
            f"vgg13PCA{percent}",
            {"conv_delta": percent / 100, "linear_delta": percent / 100},
            f"{percent} % of the variance",
        )
        for percent in (*range(98, 89, -1), *range(80, 10, -10))
    ),
]

ROWS: tuple[Entry, ...] = (
    *(Entry(name, VGG, {"plan": plan}, "VGG", f"convs {plan}") for name, plan in VGG_PLANS.items()),
    *(
        Entry(name, VGG, {"plan": VGG_PLANS[plan], **arguments}, "VGG", f"{plan}, {difference}")
        for name, plan, arguments, difference in VGG_VARIANTS
    ),
    *(
        Entry(name, VGG_PCA, {"plan": VGG_PLANS["vgg13"], **arguments}, "VGG", f"vgg13, projected: {kept}")
        for name, arguments, kept in PCA_VARIANTS
    ),
    *(Entry(name, RESNET, arguments, "ResNet", description) for name, arguments, description in RESNETS),
    *(
        Entry(alias, RESNET, arguments, "ResNet", f"another name of {name}")
        for alias, original in ALIASES.items()
        for name, arguments, _ in RESNETS
        if name == original
    ),
    *phd_lab_entries(),
    *torchvision_entries(),
)
"""The built-in rows of :data:`satstore.registry.MODELS`."""
