"""The models that configs name: a file per family, and a table of names that imports no torch."""

from satstore.models.catalogue import ROWS

ABSENT = {
    r"(resnet|densenet)\d+_pretrained|pretrained.*": (
        "satstore trains from random weights: it has the models without _pretrained in their names"
    ),
    r"vit_\d+_\d+": "its source takes it from a package of its own; vit_b_16 and vit_b_32 are torchvision's",
    r"vgg19_g[23]": "its own source can't build it, as 3 input channels are no 2 groups, and 64 no 3",
    r"resnet18_ri_hybrid2": "its last stage has a block of one conv; resnet18_ri_hybrid has blocks of two",
    r"resnet18_nr(1|2|3|32)": "its source doesn't define it; resnet18_nr1_1, resnet18_nr2_12, … name stages",
    r"resnet18_XXXL": "its source doesn't define it; resnet18_XXL has half the channels",
    r"mpnet18_1_11d2": "its source doesn't define it; mpnet36_1_11d2 has one path of those convs",
    r"(se)?iresnet18(_dw)?": "satstore has no ResNet of inverted bottlenecks; mobilenet_v2 is built of them",
    r"resnet(18|34)_involution": "satstore has no involutions",
    r"better_mobilenet_v3_small": "satstore has torchvision's mobilenet_v3_small",
    r"efficientnet_b0_(eff|perf\d*)": "satstore has torchvision's efficientnet_b0, with its strides",
    r"msnet(18|22).*|fatnet": "satstore has no such network; mpnet18_1_2_3_7 has paths of two kernel sizes",
    r"alainfc|ThreeNet\d+": "satstore has no networks of Linear layers alone; a plugin can register one",
}
"""Models that phd-lab's configs name and satstore lacks: a pattern of names to a reason or substitute."""

__all__ = ["ABSENT", "ROWS"]
