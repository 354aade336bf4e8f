"""Advice: what is said of made-up curves, with which numbers, and when nothing is."""

import math
from dataclasses import replace

import pytest

from satstore.analysis.advice import Evidence, advise, find_tail

LAYERS = [f"conv{i}" for i in range(1, 9)]
TAILED = Evidence(
    layers=LAYERS,
    accuracy=[0.4, 0.6, 0.75, 0.85, 0.9, 0.905, 0.9, 0.9],
    saturation=[0.2, 0.5, 0.6, 0.6, 0.5, 0.1, 0.05, 0.04],
    border="conv5",
    knows_border=True,
    n_eval=10_000,
    n_classes=10,
    test_accuracy=0.9,
    resolution=32,
    costs={layer: (100 * i, 1000 * i) for i, layer in enumerate(LAYERS, start=1)},
    total=(4000, 40_000),
)


def test_advise__names_the_tail_its_numbers_and_what_cutting_it_saves() -> None:
    advice = advise(TAILED)
    assert advice.thin == ()
    border, tail, saturation = advice.findings
    assert border == "border layer: conv5, layer 5 of 8; layers from it on see more than 32 px"
    assert tail == (
        "tail: from conv6 on, 3 of 8 layers; their best probe has 90.5%, the best before 90.0% at conv5; "
        "their saturation is 10.0% at most (a gain of 1 point at most, saturation under 0.5 × median 35.0%)"
    )
    assert saturation == ("saturation of the layers before the tail: median 50.0%, highest 60.0% at conv3")
    larger, fewer, cut = advice.suggestions
    assert "larger input than 32 px" in larger
    assert "the tail starts 1 layer after it" in larger
    assert "downsampling" in fewer
    assert cut == (
        "cut the tail: put the classifier behind conv5 and train again; its layers have 2,100 parameters "
        "(52% of the model's) and take 21,000 FLOP per image (52%)"
    )


def test_advise__keeps_to_the_thresholds_that_it_is_given() -> None:
    none = advise(TAILED, least_gain=0.001)
    assert any(line.startswith("tail: from conv7 on") for line in none.findings)
    wide = advise(TAILED, least_gain=0.06, tail_share=2)
    assert any(line.startswith("tail: from conv5 on") for line in wide.findings)
    assert any(line.startswith("tail: none") for line in advise(TAILED, tail_share=0.1).findings)
    assert advise(TAILED, tail_share=0.1).suggestions == (
        "nothing to cut: every stretch of layers adds something, or is saturated",
    )


def test_advise__names_layers_that_add_nothing_before_the_tail() -> None:
    idle = replace(TAILED, accuracy=[0.4, 0.39, 0.75, 0.85, 0.9, 0.905, 0.9, 0.9])
    assert (
        "layers before the tail that add 1 point at most to the best before: conv2" in advise(idle).findings
    )


def test_advise__says_of_the_border_what_it_knows() -> None:
    assert advise(replace(TAILED, border=None)).findings[0].startswith("border layer: none, no layer sees")
    unknown = replace(TAILED, border=None, knows_border=False)
    assert advise(unknown).findings[0] == "border layer: not known; run satstore receptive-field"
    assert not any("larger input" in line for line in advise(unknown).suggestions)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"accuracy": ()}, "there are no probes"),
        ({"saturation": ()}, "there is no saturation"),
        ({"n_eval": 400}, "400 eval images tell accuracies apart to about ±2.9 points"),
        ({"unconverged": ["conv2"]}, "conv2: the probes did not converge"),
        ({"test_accuracy": 0.12}, "the model's accuracy of 12.0% is near chance"),
        ({"accuracy": [0.4, math.nan, *TAILED.accuracy[2:]]}, "conv2: no number of either curve"),
        ({"layers": LAYERS[:3]}, "3 layers have no tail"),
        ({"layers": []}, "no layer is known yet; run satstore train"),
    ],
)
def test_advise__says_when_the_evidence_is_too_thin(change: dict[str, object], reason: str) -> None:
    known = replace(TAILED, **change)  # type: ignore[arg-type]
    if "layers" in change:
        n = len(known.layers)
        known = replace(known, accuracy=known.accuracy[:n], saturation=known.saturation[:n], border=None)
    advice = advise(known)
    assert any(line.startswith(reason) for line in advice.thin)
    assert advice.suggestions == ()
    assert "too thin to advise:" in advice.lines()


@pytest.mark.parametrize(
    ("probes", "saturation", "expected"),
    [
        ([0.5, 0.7, 0.9, 0.9, 0.905], [0.4, 0.5, 0.4, 0.1, 0.1], 3),
        ([0.5, 0.7, 0.9, 0.9, 0.93], [0.4, 0.5, 0.4, 0.1, 0.1], None),  # the last one gains
        ([0.5, 0.7, 0.9, 0.95, 0.9], [0.4, 0.5, 0.4, 0.1, 0.1], 4),
        ([0.5, 0.7, 0.9, 0.9, 0.9], [0.4, 0.5, 0.4, 0.1, 0.3], None),  # saturation is not low
        ([0.5, 0.6, 0.7], [0.4, 0.4, 0.4], None),
        ([0.9, 0.9, None], [0.4, 0.4, 0.1], None),
        ([None, None, None], [0.4, 0.4, 0.1], None),
        ([0.9, 0.9, 0.9], [0.4, 0.4, math.nan], None),
        ([], [], None),
        ([0.9], [None], None),
    ],
)
def test_find_tail__is_where_no_probe_gains_and_saturation_is_low(
    probes: list[float | None], saturation: list[float | None], expected: int | None
) -> None:
    assert find_tail(probes, saturation) == expected


def test_find_tail__takes_other_thresholds() -> None:
    probes, saturation = [0.5, 0.9, 0.93, 0.93], [0.4, 0.4, 0.25, 0.25]
    assert find_tail(probes, saturation) is None
    assert find_tail(probes, saturation, least_gain=0.05, share=0.9) == 2
