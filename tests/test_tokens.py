"""Tokens: which count, what latents they make, and which are the patches of an image; against NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from satstore.capture.patches import PatchGrid, find_grids
from satstore.capture.tokens import TokenMask, find_mask, pool_tokens
from satstore.errors import ConfigError

CPU = torch.device("cpu")

MASKS = st.integers(1, 5).flatmap(
    lambda n_tokens: st.lists(
        st.lists(st.booleans(), min_size=n_tokens, max_size=n_tokens).filter(any), min_size=1, max_size=4
    )
)
"""Masks of any form: padding on the left, on the right, and in between."""


def make_tokens(kept: NDArray[np.bool_], n_features: int = 3) -> NDArray[np.float64]:
    """Draw tokens; what doesn't count is NaN."""
    tokens = np.random.default_rng(kept.size).normal(size=(*kept.shape, n_features))
    tokens[~kept] = np.nan
    return tokens


@given(MASKS, st.sampled_from([torch.float32, torch.float64]))
def test_pool_tokens__of_any_mask_is_numpys_of_the_kept_tokens(
    mask: list[list[bool]], dtype: torch.dtype
) -> None:
    kept = np.array(mask)
    tokens = make_tokens(kept)
    samples = [sample[of_sample] for sample, of_sample in zip(tokens, kept, strict=True)]
    expected = {
        "cls": [sample[0] for sample in samples],
        "token0": [sample[0] for sample in samples],
        "last": [sample[-1] for sample in samples],
        "mean": [sample.mean(0) for sample in samples],
        "all": np.where(kept[..., None], tokens, 0),
    }
    fewest = min(map(len, samples))
    expected[f"token{fewest - 1}"] = [sample[fewest - 1] for sample in samples]
    given_mask, given_tokens = TokenMask(torch.from_numpy(kept)), torch.from_numpy(tokens).to(dtype)
    for mode, value in expected.items():
        found = pool_tokens(given_tokens, mode, 0, given_mask)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-6, err_msg=mode)
    with pytest.raises(ConfigError, match=rf"no token {fewest}, counted from 0, in a sample of {fewest};"):
        pool_tokens(given_tokens, f"token{fewest}", 0, given_mask)


@given(MASKS)
def test_mask__rows_are_the_places_of_kept_tokens_in_order(mask: list[list[bool]]) -> None:
    kept = np.array(mask)
    found = TokenMask(torch.from_numpy(kept).long())
    assert found.rows(CPU).tolist() == np.flatnonzero(kept).tolist()
    for n_samples in range(1, len(kept) + 2):
        assert found.rows(CPU, n_samples).tolist() == np.flatnonzero(kept[:n_samples]).tolist()
    assert found.is_full == kept.all()


@pytest.mark.parametrize("n_prefix", [0, 2])
def test_pool_tokens__without_a_mask_takes_all_and_the_mean_behind_the_prefix(n_prefix: int) -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 7, 3)))
    assert torch.equal(pool_tokens(tokens, "cls", n_prefix), tokens[:, 0])
    assert torch.equal(pool_tokens(tokens, "last", n_prefix), tokens[:, 6])
    assert torch.equal(pool_tokens(tokens, "token5", n_prefix), tokens[:, 5])
    assert torch.equal(pool_tokens(tokens, "all", n_prefix), tokens)
    for mask in (None, TokenMask(torch.ones(4, 7))):
        found = pool_tokens(tokens, "mean", n_prefix, mask)
        np.testing.assert_allclose(found, tokens.numpy()[:, n_prefix:].mean(1))


def test_pool_tokens__sums_half_precision_in_float32() -> None:
    tokens = torch.full((1, 4096, 2), 30.0, dtype=torch.float16)
    for mask in (None, TokenMask(torch.ones(1, 4096))):
        found = pool_tokens(tokens, "mean", 0, mask)
        assert (found.dtype, found.tolist()) == (torch.float32, [[30.0, 30.0]])
    assert pool_tokens(tokens, "cls").dtype == torch.float16


def test_pool_tokens__refuses_tokens_that_are_not_there() -> None:
    tokens = torch.zeros(2, 3, 5)
    with pytest.raises(ConfigError, match="no token 3, counted from 0, in a sample of 3; take one"):
        pool_tokens(tokens, "token3")
    with pytest.raises(ConfigError, match="no token behind the first 3"):
        pool_tokens(tokens, "mean", 3)
    with pytest.raises(ConfigError, match="no token behind the first 1"):
        pool_tokens(tokens, "mean", 1, TokenMask(torch.tensor([[1, 1, 1], [1, 0, 0]])))


KEPT = torch.tensor([[1, 1, 0], [0, 1, 1]])


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("attention_mask", KEPT),
        ("attention_mask", KEPT.bool()),
        ("attention_mask", KEPT.float()),
        ("src_key_padding_mask", ~KEPT.bool()),
        ("key_padding_mask", torch.zeros(2, 3).masked_fill(KEPT == 0, -torch.inf)),
        ("padding_mask", 1 - KEPT),
    ],
)
def test_find_mask__knows_masks_by_their_names(name: str, mask: torch.Tensor) -> None:
    inputs = {"input_ids": torch.zeros(2, 3), name: mask}
    found = find_mask(inputs, "batch 0")
    assert found is not None
    for layer in ("encoder.layer.0", "model.decoder.layers.0"):  # the latter as in models of a decoder alone
        assert found.of(layer) is found.tokens
    assert found.tokens is not None
    assert torch.equal(found.tokens.kept, KEPT.bool())


def test_find_mask__keeps_those_of_encoder_and_decoder_apart() -> None:
    inputs: dict[str, Any] = {"attention_mask": KEPT, "decoder_attention_mask": KEPT[:, :2]}
    found = find_mask(inputs, "batch 0")
    assert found is not None
    assert torch.equal(found.of("encoder.block.0").kept, KEPT.bool())  # type: ignore[union-attr]
    assert torch.equal(found.of("decoder.block.0").kept, KEPT[:, :2].bool())  # type: ignore[union-attr]
    found = find_mask({"attention_mask": KEPT, "decoder_input_ids": KEPT}, "batch 0")
    assert found is not None
    assert found.of("decoder.block.0") is None
    assert find_mask({"input_ids": KEPT, "decoder_input_ids": KEPT}, "batch 0") is None


def test_find_mask__takes_the_one_given_in_place_of_the_inputs() -> None:
    found = find_mask({"attention_mask": torch.ones(2, 9)}, "batch 0", KEPT)
    assert found is not None
    assert torch.equal(found.of("layer").kept, KEPT.bool())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.zeros(2, 1, 3, 3),
            r"attention_mask of batch 3 of loader is of shape \(2, 1, 3, 3\); expec",
        ),
        ([[1, 1]], r"attention_mask of batch 3 of loader is list; expected a tensor \(batch, token\) with 1"),
        (torch.tensor([[1, 1], [0, 0]]), "sample 1 of batch 3 of loader has no token that its mask keeps"),
        (torch.tensor([[0, -1e9], [0, 0]]), "sample 0 of batch 3 of loader has no token that its mask keeps"),
    ],
)
def test_find_mask__refuses_what_is_no_mask_of_tokens(mask: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_mask({"attention_mask": mask}, "batch 3 of loader")


def test_grid__gives_the_patches_as_maps_without_a_copy() -> None:
    tokens = torch.randn(2, 7, 4)
    maps = PatchGrid(1, (2, 3)).to_maps(tokens)
    assert maps.shape == (2, 4, 2, 3)
    for y, x in np.ndindex(2, 3):
        assert torch.equal(maps[:, :, y, x], tokens[:, 1 + 3 * y + x])
    assert maps.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()
    with pytest.raises(ConfigError, match="7 tokens are no 0 before 2 × 3 patches"):
        PatchGrid(0, (2, 3)).to_maps(tokens)


@pytest.mark.parametrize(
    ("tokens", "maps", "n_prefix", "expected"),
    [
        ([(197, 768)], [(768, 14, 14)], None, {197: PatchGrid(1, (14, 14))}),  # ViT
        ([(198, 192)], [(192, 14, 14)], 2, {198: PatchGrid(2, (14, 14))}),  # DeiT
        (
            [(261, 384), (256, 384)],
            [(384, 16, 16)],
            5,
            {261: PatchGrid(5, (16, 16)), 256: PatchGrid(0, (16, 16))},
        ),
        ([(196, 768)], [(768, 14, 14)], None, {196: PatchGrid(0, (14, 14))}),  # SigLIP
        ([(50, 768), (77, 512)], [(768, 7, 7)], None, {50: PatchGrid(1, (7, 7))}),  # CLIP and its texts
        ([(197, 768)], [(1024, 14, 14), (64, 112, 112)], None, {}),  # another width
        ([(213, 768)], [(768, 14, 14)], None, {}),  # too many before them
        ([(197, 768)], [(768, 14, 14)], 2, {}),  # and not as many as the model says
        ([(195, 768)], [(768, 14, 14)], None, {}),  # fewer than patches
        ([(12, 8)], [(8, 3, 4), (8, 3, 3), (8, 2, 5)], None, {12: PatchGrid(0, (3, 4))}),  # the fewest before
        ([(12, 8)], [(8, 3, 4), (8, 4, 3)], None, {}),  # two are possible
    ],
)
def test_find_grids__follows_the_arithmetic_of_real_models(
    tokens: Any, maps: Any, n_prefix: int | None, expected: dict[int, PatchGrid]
) -> None:
    assert find_grids(tokens, maps, n_prefix) == expected
