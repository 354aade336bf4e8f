"""The filter of the runs screen."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satstore.errors import ConfigError
from satstore.reports.listing.columns import describe_counts
from satstore.reports.listing.filters import parse_filter
from satstore.reports.listing.reader import Experiment

RESNET = Experiment(
    Path("logs/mine/resnet18-Cifar10-r32-abc123"),
    model="resnet18",
    dataset="Cifar10",
    resolution=32,
    epochs_done=30,
    epochs=30,
    test_accuracy=0.934,
    created=time.time() - 7200,
    stages={"train": "done", "probe": "done", "receptive_field": "missing"},
    size_bytes=3 * 2**30,
)
VGG = Experiment(
    Path("logs/other run/vgg16-TinyImageNet-r64-def456"),
    model="vgg16",
    dataset="TinyImageNet",
    resolution=64,
    epochs_done=3,
    epochs=60,
    created=time.time() - 5,
    stages={"train": "running", "probe": "missing", "receptive_field": "failed"},
    size_bytes=1000,
)
BROKEN = Experiment(Path("logs/bad/x"), problem="manifest.json is not a manifest")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [RESNET, VGG, BROKEN]),
        ("RESNET", [RESNET]),
        ("def456", [VGG]),
        ("res*18", [RESNET]),
        ("nothing-like-it", []),
        ("not\\ a", [BROKEN]),
        ('"other run"', [VGG]),
        ('"other ru', [VGG]),
        ("model:resnet*", [RESNET]),
        ("model:net1", [RESNET]),
        ("model:*net", []),
        ("model:", [RESNET, VGG, BROKEN]),
        ("dataset:cifar10 model:vgg", []),
        ("run:mine", [RESNET]),
        ("acc>90", [RESNET]),
        ("acc>93.5", []),
        ("acc>90%", [RESNET]),
        ("acc>.9", [RESNET]),
        ("acc>0.935", []),
        ("acc<=1", [RESNET]),
        ("acc>0.5%", [RESNET]),
        ("accuracy<=93.4%", [RESNET]),
        ("acc>", [RESNET, VGG, BROKEN]),
        ("-acc>90", [VGG, BROKEN]),
        ("!vgg -bad", [RESNET]),
        ("px=64", [VGG]),
        ("resolution:32", [RESNET]),
        ("epoch<30", [VGG]),
        ("epochs>=30", [RESNET, VGG]),
        ("age<1h", [VGG]),
        ("age>1h age<1d", [RESNET]),
        ("disk>1GiB", [RESNET]),
        ("size<1k", [VGG]),
        ("probe:done", [RESNET]),
        ("probe:missing", [VGG]),
        ("rf:f", [VGG]),
        ("receptive-field:missing", [RESNET]),
        ("project:missing", [RESNET, VGG]),
        ("is:running", [VGG]),
        ("is:failed", [VGG]),
        ("is:cancelled", []),
        ("is:done", [RESNET]),
        ("is:unreadable", [BROKEN]),
        ("model:resnet* acc>90 probe:done cifar", [RESNET]),
    ],
)
def test_filter__finds(text: str, found: list[Experiment]) -> None:
    wanted = parse_filter(text)
    assert [e for e in (RESNET, VGG, BROKEN) if wanted.matches(e)] == found


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("is:cancelled", True),
        ("is:c", True),
        ("probe:cancelled", True),
        ("is:failed", False),
        ("is:done", False),
    ],
)
def test_filter__tells_what_was_cancelled_from_what_failed(text: str, is_found: bool) -> None:
    experiment = replace(RESNET, stages={"train": "done", "probe": "cancelled"})
    assert parse_filter(text).matches(experiment) is is_found
    assert str(describe_counts([experiment])) == "1 experiment · 1 cancelled"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle:vgg", "no field 'modle'; did you mean 'model'?"),
        ("acc>high", "acc>high: expected a number or with a unit (%)"),
        ("px>3h", "px>3h: expected a number"),
        ("probe:finished", "probe:finished: expected done, running, failed, cancelled, missing"),
        ("probe>done", "probe has no order; write probe:done"),
        ("is:odd", "is:odd: expected running, failed, cancelled, done, unreadable"),
    ],
)
def test_filter__says_what_it_expected(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_filter(text)
    assert said in str(raised.value)


@given(st.text(max_size=40))
def test_filter__takes_any_text_or_says_what_is_wrong(text: str) -> None:
    try:
        wanted = parse_filter(text)
    except ConfigError:
        return
    for experiment in (RESNET, VGG, BROKEN):
        assert wanted.matches(experiment) in (True, False)


@given(st.sampled_from(["acc>90", "vgg", "model:r*", "probe:done", "is:running", "age<1h"]))
def test_filter__minus_is_the_complement(text: str) -> None:
    yes, no = parse_filter(text), parse_filter(f"-{text}")
    assert all(yes.matches(e) != no.matches(e) for e in (RESNET, VGG, BROKEN))
