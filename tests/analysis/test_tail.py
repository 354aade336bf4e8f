"""The tail."""

import math

import pytest

from satstore.analysis.tail import find_tail


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
