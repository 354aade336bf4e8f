"""The table of torchvision's classification models, with the paper's names for some; no torch."""

from collections.abc import Iterator

from satstore.registry import Entry

BUILD = "satstore.models.torchvision:build"
BUILD_FOR = "satstore.models.torchvision:build_for"

# family: (torchvision's names, separated by spaces; description)
FAMILIES: dict[str, tuple[str, str]] = {
    "AlexNet": ("alexnet", "five convs, three Linear layers"),
    "ConvNeXt": (
        "convnext_tiny convnext_small convnext_base convnext_large",
        "depthwise 7x7 convs in blocks of a transformer's form",
    ),
    "DenseNet": (
        "densenet121 densenet161 densenet169 densenet201",
        "every layer reads all earlier ones of its block",
    ),
    "EfficientNet": (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 "
        "efficientnet_b6 efficientnet_b7",
        "inverted bottlenecks with squeeze and excitation, scaled as a whole",
    ),
    "EfficientNetV2": (
        "efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l",
        "EfficientNet with fused blocks early on",
    ),
    "GoogLeNet": ("googlenet", "inception blocks, without the auxiliary classifiers"),
    "Inception": ("inception_v3", "factorised inception blocks, without the auxiliary classifier"),
    "MNASNet": ("mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3", "searched inverted bottlenecks, by width"),
    "MobileNet": (
        "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large",
        "inverted bottlenecks of depthwise convs",
    ),
    "RegNet": (
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf "
        "regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf "
        "regnet_y_16gf regnet_y_32gf regnet_y_128gf",
        "bottlenecks of group convs, widths on a line; y with squeeze and excitation; by MACs",
    ),
    "ResNeXt": (
        "resnext50_32x4d resnext101_32x8d resnext101_64x4d",
        "ResNet with group convs, by groups and width",
    ),
    "ShuffleNet": (
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        "channels split and shuffled between depthwise convs, by width",
    ),
    "SqueezeNet": ("squeezenet1_0 squeezenet1_1", "1x1 convs squeeze, 1x1 and 3x3 convs expand"),
    "Swin": (
        "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
        "transformer with attention in shifted windows",
    ),
    "VGG": (
        "vgg11_bn vgg13_bn vgg16_bn vgg19_bn",
        "torchvision's: batch norm, three Linear layers on a map of 7x7",
    ),
    "Wide ResNet": ("wide_resnet50_2 wide_resnet101_2", "ResNet with bottlenecks of twice the width"),
}

# name: (family, torchvision's argument for the resolution, the step of resolutions, description)
SIZED: dict[str, tuple[str, str, int, str]] = {
    "vit_b_16": ("ViT", "image_size", 16, "vision transformer, base, patches of 16x16"),
    "vit_b_32": ("ViT", "image_size", 32, "vision transformer, base, patches of 32x32"),
    "vit_l_16": ("ViT", "image_size", 16, "vision transformer, large, patches of 16x16"),
    "vit_l_32": ("ViT", "image_size", 32, "vision transformer, large, patches of 32x32"),
    "vit_h_14": ("ViT", "image_size", 14, "vision transformer, huge, patches of 14x14"),
    "maxvit_t": ("MaxViT", "input_size", 224, "convs, attention in blocks of 7x7 and over a grid"),
}
"""Models that are built for one resolution, a multiple of the step."""

OTHER_NAMES = {
    "squeezenet10": "squeezenet1_0",
    "squeezenet11": "squeezenet1_1",
    "mobilenetV2": "mobilenet_v2",
    "mnasnet05": "mnasnet0_5",
    "mnasnet075": "mnasnet0_75",
    "mnasnet10": "mnasnet1_0",
    "mnasnet13": "mnasnet1_3",
    "inceptionv3": "inception_v3",
    "inception3": "inception_v3",
    "efficentnet_b0": "efficientnet_b0",
    # The paper's VGGs, which have another classifier, took torchvision's names.
    "torchvision_vgg11": "vgg11",
    "torchvision_vgg13": "vgg13",
    "torchvision_vgg16": "vgg16",
    "torchvision_vgg19": "vgg19",
}
"""The names that configs use for some, and satstore's names for those that the paper's models have taken."""


def torchvision_entries() -> Iterator[Entry]:
    """Yield the entry of each name."""
    families = {name: family for family, (names, _) in FAMILIES.items() for name in names.split()}
    for name, family in families.items():
        yield Entry(name, BUILD, {"name": name}, family, FAMILIES[family][1])
    for name, (family, size, _, text) in SIZED.items():
        yield Entry(name, BUILD_FOR, {"name": name, "size": size}, family, text)
    for other, name in OTHER_NAMES.items():
        family = families.get(name, "VGG")
        text = f"another name of {name}" if name in families else f"torchvision's {name}, without batch norm"
        yield Entry(other, BUILD, {"name": name}, family, text)
