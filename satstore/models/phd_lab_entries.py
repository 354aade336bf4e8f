"""The table of models that phd-lab's configs name besides those of the paper; it imports no torch.

Where a name and its definition differ (``mpnet18_1_4_1_7`` has kernels of 3 and 7), the definition counts.
"""

from collections.abc import Iterator
from typing import Any

from satstore.registry import Entry

VGG = "satstore.models.vgg:vgg"
RESNET = "satstore.models.resnet:ResNet"
MULTIPATH = "satstore.models.multipath:MultipathNet"
SQUEEZENET = "satstore.models.squeezenet:squeezenet"
DENSENET = "satstore.models.torchvision:densenet"

VGG11 = "64 M 128 M 256*2 M 512*2 M"
VGG13 = "64*2 M 128*2 M 256*2 M 512*2 M"
VGG16 = "64*2 M 128*2 M 256*3 M"
VGG19 = "64*2 M 128*2 M 256*4 M"

# In the notation of the catalogue's plans.
VGG_PLANS = {
    "vgg11t": VGG11,
    "vgg13t": VGG13,
    "vgg16t": f"{VGG16} 512",
    "vgg19t": VGG19,
    "vgg19t2": VGG16,
    "vgg11_3": f"{VGG11} 512*5 M",
    "vgg13_3": f"{VGG13} 512*5 M",
    "vgg16_pruned": f"{VGG16} 512*2",
    "vgg19_EuroSat": f"{VGG19} 512",
    "vgg19_EuroSat_Hybrid": "64*2 128*2 M 256*4 M 512*4 M",
    "vgg19_EuroSat_Performance": "64*2 128*2 256*4 M 512*4 M 512*4 M",
    "vgg19_EuroSat_Performance2": "64*2 128*2 256*2 M 256*2 512*4 M 512*4 M",
    "vggresnet2": "64@7/2 M 128*4 M 256*4 M 512*4 M 512*4",
}

FULL_VGGS = {
    "vgg11": f"{VGG11} 512*2 M",
    "vgg13": f"{VGG13} 512*2 M",
    "vgg16": f"{VGG16} 512*3 M 512*3 M",
    "vgg19": f"{VGG19} 512*4 M 512*4 M",
}

MULTIPLES = {"L": 2, "XL": 4, "XXL": 8, "XXXL": 16}
DIVISORS = {"S": 2, "XS": 4, "XXS": 8, "XXXS": 16}
"""The factors that multiply or divide the channels, by width suffix."""

BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}
PC: dict[str, Any] = {"stem_kernel_size": 3, "stem_stride": 1, "stem_pool": False}
SMALL_STEM: dict[str, Any] = {"stem_kernel_size": 3}
ATTENTION: dict[str, tuple[str, ...]] = {
    "se": ("channel",),
    "sa": ("position",),
    "sesa": ("channel", "position"),
}

# name: (arguments, what it is)
RESNETS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"resnet{depth}_{suffix}": (
            {"n_blocks": BLOCKS[depth], "width": width},
            f"resnet{depth}, {width} channels at first",
        )
        for depth in BLOCKS
        for suffix, width in {"L": 128, "XL": 256, "XXL": 512, "XXXS": 4}.items()
    },
    "resnet34_XXXL": ({"n_blocks": BLOCKS["34"], "width": 1024}, "resnet34, 1024 channels at first"),
    **{
        f"ResNet{depth}_PC_{suffix}": (
            {"n_blocks": n_blocks, **PC, "stem_width": 64, "width": 64 * factor // divisor},
            f"ResNet{depth}_PC, channels but the stem's times {factor} / {divisor}",
        )
        for depth, n_blocks in BLOCKS.items()
        for suffix, (factor, divisor) in {
            **{suffix: (1, divisor) for suffix, divisor in DIVISORS.items()},
            **{suffix: (factor, 1) for suffix, factor in MULTIPLES.items()},
        }.items()
    },
    "PC_ResNet18": ({"n_blocks": BLOCKS["18"], **PC}, "another name of ResNet18_PC"),
    "PC_ResNet34": ({"n_blocks": BLOCKS["34"], **PC}, "another name of ResNet34_PC"),
    "PC_ResNet50": ({"n_blocks": BLOCKS["34"], "bottleneck": True, **PC}, "another name of ResNet50_PC"),
    "PC_ResNet18T": ({"n_blocks": (2, 2, 2), **PC}, "ResNet18_PC without its last stage"),
    "PC_ResNet34T": ({"n_blocks": (3, 4, 1), **PC}, "ResNet34_PC, cut after its eighth block"),
    "resnet18t": ({"n_blocks": (2, 2, 1)}, "resnet18, cut after its fifth block"),
    "resnet18t2": ({"n_blocks": (2,)}, "the first stage of resnet18"),
    "resnet18tnoskip": ({"n_blocks": (2,), "shortcut": "none"}, "resnet18t2 without skips"),
    "resnet34t": ({"n_blocks": (3, 4, 1)}, "resnet34, cut after its eighth block"),
    "resnet34t2": ({"n_blocks": (2,)}, "two blocks of the first stage of resnet34"),
    "resnet50t": ({"n_blocks": (3, 4, 1), "bottleneck": True}, "resnet50, cut after its eighth block"),
    "resnet18_ri_performance": ({"n_blocks": (2, 3, 3), **PC}, "resnet18_dspl3 with a 3x3 stem of stride 1"),
    "resnet18_ri_performance2": ({"n_blocks": (2, 3, 3), **PC}, "another name of resnet18_ri_performance"),
    "resnet18_ri_hybrid": (
        {"n_blocks": (2, 2, 1), **PC, "stem_stride": 2},
        "stages of 2, 2, 1 blocks after a 3x3 stem without max-pool",
    ),
    "resnet18_ri_efficiency": ({"n_blocks": (2, 1), **SMALL_STEM}, "stages of 2, 1 blocks, a 3x3 stem"),
    "resnet18noskip_dspl2": ({"n_blocks": (4, 4), "shortcut": "none"}, "resnet18_dspl2 without skips"),
    "resnet18noskip_dspl3": ({"n_blocks": (2, 3, 3), "shortcut": "none"}, "resnet18_dspl3 without skips"),
    "resnet24": ({"n_blocks": BLOCKS["18"], "bottleneck": True}, "another name of resnet18_bottleneck"),
    "resnet24_noskip": (
        {"n_blocks": BLOCKS["18"], "bottleneck": True, "shortcut": "none"},
        "resnet24 without skips",
    ),
    "resnet36": ({"n_blocks": (4, 4, 4, 4)}, "stages of 4 blocks"),
    "resnet36_dspl8": ({"n_blocks": (2,) * 8}, "eight stages of two blocks"),
    "resnet1001": (
        {"n_blocks": (111,) * 4, "bottleneck": True, "width": 32},
        "stages of 111 bottleneck blocks at half the width",
    ),
    **{
        f"resnet{depth}_{key}{suffix}": (
            {
                "n_blocks": BLOCKS["18"],
                "attention": attention,
                **({"bottleneck": True} if depth == 24 else {}),
                **shortcut,
            },
            f"resnet{depth}{text} with attention by {' and '.join(attention)}",
        )
        for depth in (18, 24)
        for key, attention in ATTENTION.items()
        for suffix, shortcut, text in (("", {}, ""), ("_noskip", {"shortcut": "none"}, " without skips"))
    },
    **{
        f"resnet18_o{size}": (
            {"n_blocks": BLOCKS["18"], "shortcut": "conv", "shortcut_kernel_size": size},
            f"resnet18 with a {size}x{size} conv on every skip",
        )
        for size in (1, 3, 5, 7)
    },
}

# name: blocks of the stages: paths of a block, a number of convs @ their kernel size d their dilation
MULTIPATH_PLANS = {
    "mpnet12_2_2_3_7": "2 2 1 0: 2@3 + 2@7",
    "mpnet12_2_3": "2 2 1 0: 2@3",
    "mpnet12_2_7": "2 2 1 0: 2@7",
    "mpnet18_1_1": "2 2 2 2: 1@1",
    "mpnet18_1_2_1_3": "2 2 2 2: 1@1 + 2@3",
    "mpnet18_1_2_1_7": "2 2 2 2: 1@1 + 2@7",
    "mpnet18_1_2_3_7": "2 2 2 2: 1@3 + 2@7",
    "mpnet18_1_3": "2 2 2 2: 1@3",
    "mpnet18_1_4_1_7": "1 1 1 1: 1@3 + 4@7",
    "mpnet18_1_4_3_7": "1 1 1 1: 1@3 + 4@7",
    "mpnet18_1_7": "1 1 1 1: 1@7",
    "mpnet18_2_1": "2 2 2 2: 2@1",
    "mpnet18_2_2_1_7": "2 2 2 2: 2@1 + 2@7",
    "mpnet18_2_2_3_7": "2 2 2 2: 2@3 + 2@7",
    "mpnet18_2_3": "2 2 2 2: 2@3",
    "mpnet18_2_7": "2 2 2 2: 2@7",
    "mpnet18_3_5_2_1": "1 1 1 1: 2@3 + 1@5",
    "mpnet18_4_1": "1 1 1 1: 4@1",
    "mpnet18_4_1_3_7": "1 1 1 1: 4@3 + 1@7",
    "mpnet18_4_3": "1 1 1 1: 4@3",
    "mpnet18_4_4_1_7": "1 1 1 1: 4@1 + 4@7",
    "mpnet18_4_4_3_7": "1 1 1 1: 4@3 + 4@7",
    "mpnet18_4_7": "1 1 1 1: 4@7",
    "mpnet18_8_1_3_11d2": "1 1 1 1: 8@3 + 1@11d2",
    "mpnet18_8_1_3_7": "1 1 1 1: 8@3 + 1@7",
    "mpnet18_8_3": "1 1 1 1: 8@3",
    "mpnet29_1_2_3_7": "4 4 3 0: 1@3 + 2@7",
    "mpnet36_1_11d2": "1 1 1 1: 1@11d2",
    "mpnet36_1_1_3_11d2": "2 2 2 2: 1@3 + 1@11d2",
    "mpnet36_1_2_3_7": "4 4 4 4: 1@3 + 2@7",
    "mpnet36_1_3": "4 4 4 4: 1@3",
    "mpnet36_1_4_3_7": "2 2 2 2: 1@3 + 4@7",
    "mpnet36_1_7": "2 2 2 2: 1@7",
    "mpnet36_1_7d3": "2 2 2 2: 1@7d3",
    "mpnet36_2_7": "4 4 4 4: 2@7",
    "mpnet36_4_1_3_7": "2 2 2 2: 4@3 + 1@7",
    "mpnet36_4_1_3_7d3": "2 2 2 2: 4@3 + 1@7d3",
    "mpnet36_4_3": "2 2 2 2: 4@3",
    "mpnet36_4_7": "2 2 2 2: 4@7",
    "mpnet36_8_1_3_11d2": "2 2 2 2: 8@3 + 1@11d2",
    "mpnet36_8_1_3_7": "2 2 2 2: 8@3 + 1@7",
    "mpnet36_8_3": "2 2 2 2: 8@3",
    "mpnet72_2_2_3_3": "4 4 4 4: 3@3 + 3@7",
}

# name: (arguments, in what it differs from SqueezeNet 1.1)
SQUEEZENETS: dict[str, tuple[dict[str, Any], str]] = {
    "squeezenet11as": ({"squeezes": "wide"}, "squeezes that keep the width"),
    "squeezenet11ns": ({"squeezes": "none"}, "no squeezes"),
    "squeezenet11mp": ({"beside": None}, "no 1x1 convs beside the 3x3 convs"),
    "squeezenet11mpns": ({"beside": None, "squeezes": "none"}, "neither squeezes nor 1x1 convs"),
    "squeezenet11res": ({"beside": "input"}, "a fire module's squeezed input beside its 3x3 convs"),
    "squeezenet11dc": ({"depth": 2}, "two 3x3 convs in a row"),
}

DENSENETS = {"densenet9": (2, 2, 2, 2), "densenet18": (4, 4, 4, 4), "densenet65": (6, 8, 12, 6)}


def phd_lab_entries() -> Iterator[Entry]:
    """Yield the entry of each name."""
    for name, plan in VGG_PLANS.items():
        yield Entry(name, VGG, {"plan": plan}, "VGG", f"convs {plan}")
    for name, plan in FULL_VGGS.items():
        for suffix in ("L", "XL", "XXL"):
            multiple = MULTIPLES[suffix]
            text = f"{name}, channels times {multiple}"
            yield Entry(f"{name}_{suffix}", VGG, {"plan": plan, "multiple": multiple}, "VGG", text)
    plan = FULL_VGGS["vgg19"]
    yield Entry("vgg19_gx", VGG, {"plan": plan, "depthwise": True}, "VGG", "vgg19, depthwise where it can be")
    attended = {"plan": plan, "channel_attention": True}
    yield Entry("vgg19_se", VGG, attended, "VGG", "vgg19 with attention by channel after every conv")
    plain = {"plan": VGG_PLANS["vggresnet2"], "drawn": False}
    yield Entry("vggresnet3", VGG, plain, "VGG", "vggresnet with the weights that torch draws")
    for name, (arguments, text) in RESNETS.items():
        yield Entry(name, RESNET, arguments, "ResNet", text)
    for name, plan in MULTIPATH_PLANS.items():
        yield Entry(name, MULTIPATH, _read_paths(plan), "Multipath", f"blocks and their paths: {plan}")
    for name, (arguments, text) in SQUEEZENETS.items():
        yield Entry(name, SQUEEZENET, arguments, "SqueezeNet", f"squeezenet1_1, {text}")
    for name, blocks in DENSENETS.items():
        text = f"blocks of {', '.join(map(str, blocks))} layers"
        yield Entry(name, DENSENET, {"block_config": blocks}, "DenseNet", text)


def _read_paths(plan: str) -> dict[str, Any]:
    n_blocks, _, paths = plan.partition(": ")
    found = []
    for path in paths.split(" + "):
        depth, _, kernel = path.partition("@")
        size, _, dilation = kernel.partition("d")
        found.append((int(depth), int(size), int(dilation or 1)))
    return {"n_blocks": tuple(map(int, n_blocks.split())), "paths": tuple(found)}
