"""What the curves of a network mean, by the criteria of the papers, and what to try.

The tail is that of :func:`satstore.analysis.tail.find_tail`; the border layer is the first whose input has a
receptive field larger than the image: layers from it on see nothing new ("(Input) Size Matters for CNN
Classifiers", Richter et al., arXiv 2102.01582).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from satstore.analysis.tail import LEAST_GAIN, TAIL_SHARE, find_tail

FEWEST_LAYERS = 4
SURE = 1.96
"""Standard errors of an accuracy within which it lies, of 20 times 19."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a network, by layer in forward order; NaN where a layer has no number.

    Attributes
    ----------
    layers
        Those of the main path.
    accuracy, saturation
        Of the probes on the eval split, and of the train split's activations, as fractions.
    unconverged
        Layers whose probes stopped early.
    border
        The border layer; None if no layer sees more than the image, or nobody knows.
    n_eval, n_classes
        Of the eval split.
    test_accuracy
        The model's.
    resolution
        In pixels.
    costs
        Each layer's parameters and FLOPs per image, empty where nobody counted.
    total
        The model's.
    """

    layers: Sequence[str]
    accuracy: Sequence[float] = ()
    saturation: Sequence[float] = ()
    unconverged: Sequence[str] = ()
    border: str | None = None
    knows_border: bool = False
    n_eval: int = 0
    n_classes: int = 0
    test_accuracy: float | None = None
    resolution: int = 0
    costs: dict[str, tuple[int, int]] = field(default_factory=dict)
    total: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Advice:
    """Sentences: what was found, what to try, and why there is too little to advise."""

    findings: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    thin: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Headings and the sentences under them."""
        parts = {"found": self.findings, "too thin to advise": self.thin, "try": self.suggestions}
        return {title: texts for title, texts in parts.items() if texts}

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        parts = self.parts.items()
        return [line for title, texts in parts for line in (f"{title}:", *(f"  {t}" for t in texts))]


def advise(known: Evidence, least_gain: float = LEAST_GAIN, tail_share: float = TAIL_SHARE) -> Advice:
    """Say what the curves mean, with the numbers that it rests on, and what to try.

    Parameters
    ----------
    least_gain
        Accuracy that a probe has to gain over the best before it, for its layer to add something.
    tail_share
        Share of the median saturation that a tail's layers stay under.
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


def find_thin(known: Evidence, least_gain: float) -> list[str]:
    """Return why the evidence is too thin to advise, if it is."""
    if not known.layers:
        return ["no layer is known yet; run satstore train"]
    thin = []
    if not any(map(math.isfinite, known.accuracy)):
        thin.append("there are no probes: without them, nobody knows what a layer adds; run satstore probe")
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
        error = SURE * math.sqrt(max(best * (1 - best), 1 / known.n_eval) / known.n_eval)
        if error > least_gain:
            thin.append(
                f"{known.n_eval} eval images tell accuracies apart to about ±{points(error)}, and a layer is "
                f"asked to gain {points(least_gain)}; take more images, or a larger --least-gain"
            )
    return thin


def describe_border(known: Evidence) -> list[str]:
    """Say where the border layer is."""
    if not known.knows_border:
        return ["border layer: not known; run satstore receptive-field"]
    if known.border is None:
        return [f"border layer: none, no layer sees more than the image of {known.resolution} px"]
    place = known.layers.index(known.border) + 1 if known.border in known.layers else None
    at = f", layer {place} of {len(known.layers)}" if place else ""
    return [f"border layer: {known.border}{at}; layers from it on see more than {known.resolution} px"]


def describe_tail(known: Evidence, tail: int | None, least_gain: float, tail_share: float) -> list[str]:
    """Say where the tail starts, by which numbers."""
    finite = [value for value in known.saturation if math.isfinite(value)]
    if not finite:
        return []
    middle = median(finite)
    rule = f"(a gain of {points(least_gain)} at most, saturation under {tail_share:g} × median {middle:.1%})"
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
    """Name the layers before the tail whose probe gains too little."""
    end = len(known.layers) if tail is None else tail
    idle = [
        known.layers[place]
        for place in range(1, end)
        if known.accuracy[place] <= _best(known, place)[0] + least_gain  # which NaN is not
    ]
    if not idle:
        return []
    before = "" if tail is None else " before the tail"
    return [f"layers{before} that add {points(least_gain)} at most to the best before: {name_some(idle, 8)}"]


def describe_saturation(known: Evidence, tail: int | None) -> list[str]:
    """Say how saturated the layers outside of the tail are."""
    rest = known.saturation[:tail]
    finite = [value for value in rest if math.isfinite(value)]
    if not finite:
        return []
    which = "all layers" if tail is None else "the layers before the tail"
    highest = max(finite)
    at = known.layers[list(rest).index(highest)]
    return [f"saturation of {which}: median {median(finite):.1%}, highest {highest:.1%} at {at}"]


def suggest_changes(known: Evidence, tail: int | None) -> list[str]:
    """Return what to try."""
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


def points(share: float) -> str:
    """Return a difference of accuracies in percentage points."""
    number = f"{100 * share:.2g}"
    return f"{number} point" + ("" if number == "1" else "s")


def describe_share(share: float) -> str:
    """Return a share in whole percent, unless that would call something nothing."""
    return "under 1%" if 0 < share < 0.005 else f"{share:.0%}"


def name_some(names: Sequence[str], n_most: int = 4) -> str:
    """Return some names, the first ones of many."""
    more = f" and {len(names) - n_most} more" if len(names) > n_most else ""
    return ", ".join(names[:n_most]) + more


def _best(known: Evidence, end: int) -> tuple[float, int]:
    """Return the best accuracy before a place, and where it is."""
    at = max(range(end), key=lambda i: _or_zero(known.accuracy[i]))
    return known.accuracy[at], at


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
