"""Linear CKA against its other form, over similarities of samples, and what it must not depend on."""

import numpy as np
import pytest
from numpy.typing import NDArray

from satstore.analysis.cka import linear_cka
from satstore.analysis.row_source import ArrayRows
from satstore.errors import ConfigError, MemoryLimitError

Array = NDArray[np.float32]


def make_layers(seed: int, widths: tuple[int, ...], n: int = 300, mean: float = 0.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(9).normal(size=(n, 6))
    return {
        f"layer{i}": (mean + shared @ rng.normal(size=(6, w)) + rng.normal(size=(n, w))).astype(np.float32)
        for i, w in enumerate(widths)
    }


def by_similarities(x: Array, y: Array) -> float:
    """HSIC of the centred Gram matrices, normalised: no product of features in it."""
    n = len(x)
    centre = np.eye(n) - np.full((n, n), 1 / n)
    k, m = (centre @ (part.astype(float) @ part.T.astype(float)) @ centre for part in (x, y))
    return float(np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m)))


def cka(first: dict[str, Array], second: dict[str, Array], **options: int) -> NDArray[np.float64]:
    made = [{n: (lambda a=a: ArrayRows(a)) for n, a in part.items()} for part in (first, second)]
    return linear_cka(made[0], made[1], **options)


@pytest.mark.parametrize("mean", [0.0, 50.0])
@pytest.mark.parametrize("block_bytes", [2**25, 4 * 40 * 17])
def test_linear_cka__is_that_of_the_samples_similarities(
    mean: float, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satstore.analysis.cka.BLOCK_BYTES", block_bytes)
    first, second = make_layers(1, (8, 40, 3), mean=mean), make_layers(2, (12, 5), mean=-mean)
    expected = [[by_similarities(x, y) for y in second.values()] for x in first.values()]
    np.testing.assert_allclose(cka(first, second), expected, rtol=1e-4)
    assert np.ptp(expected) > 0.1, "pairs differ, or this would show nothing"


def test_linear_cka__knows_no_rotation_and_no_scale() -> None:
    first = make_layers(1, (8,))
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))[0].astype(np.float32)
    turned = {"layer0": 7 * first["layer0"] @ rotation + 3}
    np.testing.assert_allclose(cka(first, turned), [[1.0]], rtol=1e-5)
    stretched = {"layer0": first["layer0"] * np.array([9, 1, 1, 1, 1, 1, 1, 1], np.float32)}
    assert cka(first, stretched)[0, 0] < 0.95


def test_linear_cka__in_groups_is_the_same() -> None:
    first, second = make_layers(1, (8, 16)), make_layers(2, (12, 5, 16))
    np.testing.assert_array_equal(cka(first, second), cka(first, second, memory_bytes=16 * 16 * 8))
    with pytest.raises(MemoryLimitError, match="take a smaller pooling"):
        cka(first, second, memory_bytes=16 * 16 * 8 - 1)


def test_linear_cka__of_what_has_none_is_nan() -> None:
    first = {"constant": np.ones((50, 3), np.float32), "nan": np.full((50, 2), np.nan, np.float32)}
    first["good"] = make_layers(1, (4,), 50)["layer0"]
    found = cka(first, {"good": first["good"]})
    assert np.isnan(found[:2]).all()
    assert found[2, 0] == pytest.approx(1)


def test_linear_cka__refuses_other_numbers_of_samples() -> None:
    with pytest.raises(ConfigError, match="the same samples"):
        cka(make_layers(1, (4,), 50), make_layers(1, (4,), 51))
