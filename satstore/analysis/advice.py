"""Advice from saturation and probe accuracy: which layers do no work, and what to change.

The tail is the last layers of a network, which do no work that the ones before did not do. The border layer
is the first whose input has a receptive field larger than the image: layers from it on see nothing new
("(Input) Size Matters for CNN Classifiers", Richter et al., arXiv 2102.01582).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

LEAST_GAIN, TAIL_SHARE = 0.01, 0.5
FEWEST_LAYERS = 4
CONFIDENCE = 1.96
"""Standard errors in a 95 % confidence interval of an accuracy."""


@dataclass(frozen=True)
class Evidence:
    """The measurements of a network that advice rests on, by layer in forward order; NaN where there is none.

    Attributes
    ----------
    layers
        The layers of the main path.
    accuracy, saturation
        Accuracy of the probes on the eval split, and saturation on the train split, as fractions.
    unconverged
        Layers whose probes stopped early.
    border
        The border layer; None if no layer sees more than the image, or it was not computed.
    knows_border
        Whether receptive fields were computed.
    n_eval, n_classes
        Samples of the eval split, and classes of the dataset.
    has_labels
        Whether the data have labels.
    is_recorded
        Whether model and data are the user's own, which no command can build again.
    test_accuracy
        The model's accuracy; None if it was not measured.
    resolution
        Height and width of the input, in pixels.
    costs
        Each layer's parameters and FLOPs per image; empty if they were not counted.
    total
        The whole model's parameters and FLOPs per image.
    blocks
        The block that a layer is part of; empty where layers are not grouped by block.
    """

    layers: Sequence[str]
    accuracy: Sequence[float] = ()
    saturation: Sequence[float] = ()
    unconverged: Sequence[str] = ()
    border: str | None = None
    knows_border: bool = False
    n_eval: int = 0
    n_classes: int = 0
    has_labels: bool = True
    is_recorded: bool = False
    test_accuracy: float | None = None
    resolution: int = 0
    costs: dict[str, tuple[int, int]] = field(default_factory=dict)
    total: tuple[int, int] = (0, 0)
    blocks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """Findings, suggestions, and reasons why the evidence is too thin to advise, as sentences."""

    findings: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    thin: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Sentences by the heading that they are shown under."""
        parts = {"found": self.findings, "too thin to advise": self.thin, "try": self.suggestions}
        return {title: texts for title, texts in parts.items() if texts}

    def lines(self) -> list[str]:
        """Return headings and sentences as lines of text."""
        parts = self.parts.items()
        return [line for title, texts in parts for line in (f"{title}:", *(f"  {t}" for t in texts))]


def advise(known: Evidence, least_gain: float = LEAST_GAIN, tail_share: float = TAIL_SHARE) -> Advice:
    """Describe what the curves mean, with their numbers, and suggest changes.

    Parameters
    ----------
    least_gain
        The accuracy that a probe has to gain over the best before it for its layer to add something.
    tail_share
        The share of the median saturation that a tail's layers stay under.
    """
    thin = tuple(find_thin(known, least_gain))
    findings: list[str] = []
    tail = find_tail(known.accuracy, known.saturation, least_gain, tail_share) if known.accuracy else None
    findings += describe_border(known)
    if known.accuracy and known.saturation:
        findings += describe_tail(known, tail, least_gain, tail_share)
        findings += describe_idle(known, tail, least_gain)
    findings += describe_saturation(known, tail)
    suggestions = () if thin else tuple(suggest_changes(known, tail))
    return Advice(tuple(findings), suggestions, thin)


def find_tail(
    probe_accuracy: Sequence[float | None],
    saturation: Sequence[float | None],
    least_gain: float = LEAST_GAIN,
    share: float = TAIL_SHARE,
) -> int | None:
    """Find the first layer of the tail.

    From it on, no probe gains more than `least_gain` over the best before it, and saturation stays under
    `share` of the median of all layers. None if there is no tail. A layer without either number ends the
    search.

    Parameters
    ----------
    probe_accuracy, saturation
        Fractions by layer, in forward order; None or NaN if unknown.
    """
    accuracy, saturated = (np.array(values, dtype=float) for values in (probe_accuracy, saturation))
    if len(accuracy) != len(saturated) or not np.isfinite(saturated).any():
        return None
    low = saturated < share * np.nanmedian(saturated)
    start = None
    for place in range(len(accuracy) - 1, 0, -1):
        before = accuracy[:place]
        best = np.nanmax(before) if np.isfinite(before).any() else math.nan
        if not (low[place] and accuracy[place] <= best + least_gain):  # false for NaN
            break
        start = place
    return start


def find_thin(known: Evidence, least_gain: float) -> list[str]:
    """Return the reasons why the evidence is too thin to advise; empty if it is not."""
    if not known.layers:
        return ["no layer is known yet; run satstore train"]
    thin = []
    if not any(map(math.isfinite, known.accuracy)):
        remedy = "satstore probe" + ("" if known.has_labels else " --labels FILE, as there are no labels")
        thin.append(f"there are no probes: without them, nobody knows what a layer adds; run {remedy}")
    if not any(map(math.isfinite, known.saturation)):
        thin.append("there is no saturation; run satstore saturation")
    if len(known.layers) < FEWEST_LAYERS:
        thin.append(f"{len(known.layers)} layers have no tail; {FEWEST_LAYERS} at least are needed")
    bad = [
        layer
        for layer, *values in zip(known.layers, known.accuracy, known.saturation, strict=False)
        if any(map(math.isnan, values))
    ]
    if bad:
        thin.append(f"{name_some(bad)}: no number of either curve; the run's warnings say why")
    if known.unconverged:
        thin.append(f"{name_some(known.unconverged)}: the probes did not converge; raise --max-iter")
    best = max(filter(math.isfinite, known.accuracy), default=math.nan)
    reached = known.test_accuracy
    if reached is not None and known.n_classes and reached < 2 / known.n_classes:
        thin.append(f"the model's accuracy of {reached:.1%} is near chance: train it further first")
    if known.n_eval and math.isfinite(best):
        error = CONFIDENCE * math.sqrt(max(best * (1 - best), 1 / known.n_eval) / known.n_eval)
        if error > least_gain:
            thin.append(
                f"{known.n_eval} eval images tell accuracies apart to about ±{describe_points(error)}, and a "
                f"layer is asked to gain {describe_points(least_gain)}; take more images, or a larger "
                "--least-gain"
            )
    return thin


def describe_border(known: Evidence) -> list[str]:
    """Describe where the border layer is."""
    if not known.knows_border and known.blocks:
        return []  # tokens may be of texts, say
    if not known.knows_border and known.is_recorded:
        return ["border layer: not known; a recorded model has one for square images through Conv layers"]
    if not known.knows_border:
        return ["border layer: not known; run satstore receptive-field"]
    if known.border is None:
        return [f"border layer: none, no layer sees more than the image of {known.resolution} px"]
    place = known.layers.index(known.border) + 1 if known.border in known.layers else None
    at = f", layer {place} of {len(known.layers)}" if place else ""
    return [f"border layer: {known.border}{at}; layers from it on see more than {known.resolution} px"]


def describe_tail(known: Evidence, tail: int | None, least_gain: float, tail_share: float) -> list[str]:
    """Describe where the tail starts, and by which numbers."""
    finite = [value for value in known.saturation if math.isfinite(value)]
    if not finite:
        return []
    middle = median(finite)
    gain = describe_points(least_gain)
    rule = f"(a gain of {gain} at most, saturation under {tail_share:g} × median {middle:.1%})"
    if tail is None:
        return [f"tail: none {rule}"]
    best, at = _best(known, tail)
    last, highest = max(known.accuracy[tail:]), max(known.saturation[tail:])
    return [
        f"tail: from {known.layers[tail]} on, {len(known.layers) - tail} of {len(known.layers)} layers; "
        f"their best probe has {last:.1%}, the best before {best:.1%} at {known.layers[at]}; "
        f"their saturation is {highest:.1%} at most {rule}"
    ]


def describe_idle(known: Evidence, tail: int | None, least_gain: float) -> list[str]:
    """Name the layers before the tail whose probes gain too little; of a whole block of them, the block."""
    end = len(known.layers) if tail is None else tail
    idle = [
        known.layers[place]
        for place in range(1, end)
        if known.accuracy[place] <= _best(known, place)[0] + least_gain  # false for NaN
    ]
    if not idle:
        return []
    idle = name_blocks(known, idle)
    before, gain = "" if tail is None else " before the tail", describe_points(least_gain)
    return [f"layers{before} that add {gain} at most to the best before: {name_some(idle, 8)}"]


def name_blocks(known: Evidence, layers: Sequence[str]) -> list[str]:
    """Return the names of layers; first those of blocks, in place of their layers where all are there."""
    members: dict[str, list[str]] = {}
    for layer in known.layers:
        if layer in known.blocks:
            members.setdefault(known.blocks[layer], []).append(layer)
    whole = {block for block, inside in members.items() if len(inside) > 1 and {*inside} <= {*layers}}
    blocks = [f"{block} ({len(inside)} layers)" for block, inside in members.items() if block in whole]
    return [*blocks, *(layer for layer in layers if known.blocks.get(layer) not in whole)]


def describe_saturation(known: Evidence, tail: int | None) -> list[str]:
    """Describe how saturated the layers outside the tail are."""
    rest = known.saturation[:tail]
    finite = [value for value in rest if math.isfinite(value)]
    if not finite:
        return []
    which = "all layers" if tail is None else "the layers before the tail"
    highest = max(finite)
    at = known.layers[list(rest).index(highest)]
    return [f"saturation of {which}: median {median(finite):.1%}, highest {highest:.1%} at {at}"]


def suggest_changes(known: Evidence, tail: int | None) -> list[str]:
    """Return suggestions: a larger input, less downsampling, or fewer layers."""
    if tail is None:
        return ["nothing to cut: every stretch of layers adds something, or is saturated"]
    border = known.layers.index(known.border) if known.border in known.layers else None
    found = []
    if border is not None and tail >= border:
        where = "at" if tail == border else f"{tail - border} layer{'s' * (tail > border + 1)} after"
        found.append(
            f"a larger input than {known.resolution} px, which moves the border layer back: the tail starts "
            f"{where} it, where layers see nothing new; the objects must get larger with it"
        )
        found.append("fewer downsampling layers, or smaller strides early on: fields grow more slowly then")
    cut = f"cut the tail: put the classifier behind {known.layers[tail - 1]} and train again"
    saved = [known.costs[layer] for layer in known.layers[tail:] if layer in known.costs]
    n_parameters, flops = (sum(cost[i] for cost in saved) for i in (0, 1))
    if saved and all(known.total):
        shares = n_parameters / known.total[0], flops / known.total[1]
        cut += (
            f"; its layers have {n_parameters:,} parameters ({describe_share(shares[0])} of the model's) "
            f"and take {flops:,} FLOP per image ({describe_share(shares[1])})"
        )
    return [*found, cut]


def describe_points(share: float) -> str:
    """Return a difference of accuracies in percentage points, as text."""
    number = f"{100 * share:.2g}"
    return f"{number} point" + ("" if number == "1" else "s")


def describe_share(share: float) -> str:
    """Return a share in whole percent; ``under 1%`` for a small one, which would round to 0%."""
    return "under 1%" if 0 < share < 0.005 else f"{share:.0%}"


def name_some(names: Sequence[str], n_most: int = 4) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - n_most} more" if len(names) > n_most else ""
    return ", ".join(names[:n_most]) + more


def _best(known: Evidence, end: int) -> tuple[float, int]:
    """Return the best accuracy before a layer, and the index of its layer."""
    at = max(range(end), key=lambda i: known.accuracy[i] if math.isfinite(known.accuracy[i]) else 0.0)
    return known.accuracy[at], at
