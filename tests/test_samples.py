import numpy as np
import pytest
import torch
from torch import nn

from satstore.capture import layer_samples
from satstore.capture.layer_samples import make_latent
from satstore.capture.layers import Layer
from satstore.capture.outputs import OutputLayout, arrange, expect_tensor, typed_layout
from satstore.capture.tokens import TokenMask
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError


def sorted_rows(array):
    array = np.asarray(array)
    return array[np.lexsort(array.T)]


def arranged(output, module):
    """Return an output as samples are made of it, and its layout by the module's class."""
    tensor = expect_tensor(output, None, type(module).__name__)
    layout = typed_layout(module, tensor.ndim)
    return arrange(tensor, layout), layout


def to_samples(output, module, *args, **options):
    return layer_samples.to_samples(*arranged(output, module), *args, **options)


def pool_latent(output, module, pooling):
    return layer_samples.pool_latent(*arranged(output, module), pooling)


CONV = nn.Conv2d(3, 5, 1)
MAPS = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 5, 4, 6)))
BY_HAND = {
    "channelwise": lambda maps: np.moveaxis(maps, 1, -1).reshape(-1, 5),
    "mean": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: maps.max((2, 3)),
    # of an even number of values the lower of the two in the middle
    "median": lambda maps: np.sort(maps.reshape(2, 5, -1))[..., (maps.shape[2] * maps.shape[3] - 1) // 2],
    "flatten": lambda maps: maps.reshape(2, -1),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("downsampling", [None, 3, 5])
@pytest.mark.parametrize("method", BY_HAND)
def test_to_samples__of_a_conv_is_numpys_by_hand(method, downsampling, memory_format):
    kept = MAPS.numpy()
    if downsampling == 3:
        kept = kept[:, :, [0, 2, 3]][:, :, :, [1, 3, 5]]  # floor((i + ½) · 4 / 3), floor((i + ½) · 6 / 3)
    if downsampling == 5:
        kept = kept[:, :, :, [0, 1, 3, 4, 5]]  # the height of 4 is not larger than 5
    samples = to_samples(MAPS.to(memory_format=memory_format), CONV, method, downsampling)
    np.testing.assert_allclose(sorted_rows(samples), sorted_rows(BY_HAND[method](kept)), rtol=1e-14)


def test_to_samples__of_channels_last_maps_is_a_view():
    maps = torch.rand(2, 5, 4, 6).to(memory_format=torch.channels_last)
    assert to_samples(maps, CONV).data_ptr() == maps.data_ptr()


@pytest.mark.parametrize(
    ("method", "n", "expected"),
    [
        ("centred", 1, [[4]]),
        ("nearest", 1, [[0]]),
        ("centred", 2, [[2, 6]]),
        ("nearest", 2, [[0, 4]]),
        ("average", 2, [[1.5 + 0.5, 6]]),
        ("centred", 8, [[0, 1, 2, 3, 4, 5, 6, 7, 8]]),
    ],
)
def test_to_samples__downsamples_to_centred_nearest_or_averaged_positions(method, n, expected):
    line = torch.arange(9.0).reshape(1, 1, 9)
    samples = to_samples(line, nn.Conv1d(1, 1, 1), "flatten", n, downsampling_method=method)
    if n == 8:
        expected = [[int((i + 0.5) * 9 / 8) for i in range(8)]]
    np.testing.assert_array_equal(samples, expected)


def test_to_samples__of_one_and_three_dimensions_and_without_a_batch():
    for dims, conv in ((1, nn.Conv1d(1, 4, 1)), (2, nn.ConvTranspose2d(1, 4, 1)), (3, nn.Conv3d(1, 4, 1))):
        maps = torch.rand(2, 4, *(3,) * dims)
        np.testing.assert_array_equal(
            sorted_rows(to_samples(maps, conv)), sorted_rows(np.moveaxis(maps.numpy(), 1, -1).reshape(-1, 4))
        )
        assert to_samples(maps[0], conv, "mean").shape == (1, 4)


def test_to_samples__of_a_linear_is_one_per_row_or_token():
    linear, tokens = nn.Linear(2, 4), torch.rand(2, 3, 4)
    assert torch.equal(to_samples(tokens, linear), tokens.reshape(6, 4))
    assert torch.equal(to_samples(tokens[0], linear), tokens[0])
    assert torch.equal(to_samples(tokens[0, 0], linear), tokens[0, :1])


@pytest.mark.parametrize("batch_first", [True, False])
def test_to_samples__of_an_lstm_is_the_last_step_or_every_step(batch_first):
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, batch_first=batch_first)
    steps = torch.rand(2, 5, 3)
    output = lstm(steps if batch_first else steps.transpose(0, 1))
    sequence = output[0] if batch_first else output[0].transpose(0, 1)
    torch.testing.assert_close(to_samples(output, lstm), output[1][0][0].detach())
    every = to_samples(output, lstm, timeseries_method="every")
    np.testing.assert_array_equal(sorted_rows(every), sorted_rows(sequence.detach().reshape(10, 4)))
    torch.testing.assert_close(to_samples(lstm(steps[0]), lstm)[0], lstm(steps[0])[0][-1].detach())


def test_to_samples__refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="conv_method is 'average'"):
        to_samples(MAPS, CONV, "average")
    with pytest.raises(ConfigError, match="downsampling is 0"):
        to_samples(MAPS, CONV, downsampling=0)
    with pytest.raises(ConfigError, match="downsampling_method is 'mean'"):
        to_samples(MAPS, CONV, downsampling=2, downsampling_method="mean")
    lstm = nn.LSTM(3, 4)
    with pytest.raises(ConfigError, match="timeseries_method is 'first'"):
        to_samples(lstm(torch.rand(2, 1, 3)), lstm, timeseries_method="first")
    with pytest.raises(ConfigError, match="packed"):
        to_samples(lstm(nn.utils.rnn.pack_sequence([torch.rand(2, 3)])), lstm)


@pytest.mark.parametrize(
    ("pooling", "shape"), [("1", (1, 1)), ("3", (3, 3)), ("5", (4, 5)), ("full", (4, 6))]
)
def test_pool_latent__averages_conv_maps_and_never_enlarges_them(pooling, shape):
    def window(size, n):  # adaptive pooling's: floor(i · size / n) to ceil((i + 1) · size / n)
        return [slice(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]

    rows, columns = window(4, shape[0]), window(6, shape[1])
    expected = [[MAPS.numpy()[:, :, row, column].mean((2, 3)) for column in columns] for row in rows]
    pooled = pool_latent(MAPS, CONV, pooling)
    np.testing.assert_allclose(pooled, np.moveaxis(expected, (0, 1), (2, 3)), rtol=1e-14)


def test_pool_latent__treats_tokens_as_a_line_and_channels_last_maps_as_maps():
    linear = nn.Linear(2, 5)
    assert torch.equal(pool_latent(MAPS[:, :, 0, 0], linear, "1"), MAPS[:, :, 0, 0])
    torch.testing.assert_close(pool_latent(MAPS.movedim(1, -1), linear, "2"), pool_latent(MAPS, CONV, "2"))
    tokens = MAPS.flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool_latent(tokens, linear, "1")[..., 0], tokens.mean(1))
    assert pool_latent(tokens, linear, "full").shape == (2, 5, 24)


def test_pool_latent__keeps_the_dtype():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert pool_latent(MAPS.to(dtype), CONV, "2").dtype == dtype


def make_layer(form, shape, n_prefix=0, grid=()):
    layout = OutputLayout(form, feature_axis=1 if form == "map" else -1)
    return Layer("layer", 0, "Kind", 3, shape, layout, "layer", n_prefix=n_prefix, grid=grid)


SEQUENCES = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 7, 3)))
SIDES = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 1, 0, 0]])


@pytest.mark.parametrize("mask", [None, TokenMask(SIDES)])
def test_make_latent__of_steps_is_the_last_or_as_of_tokens(mask):
    steps, tokens = make_layer("steps", (7, 3)), make_layer("tokens", (7, 3))
    last = [6, 6, 6, 6] if mask is None else [6, 2, 6, 4]
    for key in ("4", "full", "last"):
        found = make_latent(SEQUENCES, steps, LatentsKey(key), mask)
        assert torch.equal(found, SEQUENCES[torch.arange(4), last]), key
    for key in ("cls", "mean", "all", "token1"):
        found, expected = (make_latent(SEQUENCES, layer, LatentsKey(key), mask) for layer in (steps, tokens))
        assert torch.equal(found, expected)
    vectors = SEQUENCES[:, 0]
    for key in ("cls", "mean", "4", "full"):
        assert make_latent(vectors, make_layer("vector", (3,)), LatentsKey(key), mask) is vectors


def test_make_latent__with_the_grid_pools_patches_as_a_map():
    layer = make_layer("tokens", (7, 3), n_prefix=1, grid=(2, 3))
    maps = SEQUENCES.numpy()[:, 1:].reshape(4, 2, 3, 3)
    full, pixelwise, pooled = (
        make_latent(SEQUENCES, layer, LatentsKey(key)) for key in ("full", "pixelwise", "1")
    )
    np.testing.assert_array_equal(full, np.moveaxis(maps, -1, 1))
    np.testing.assert_array_equal(pixelwise, maps)
    np.testing.assert_allclose(pooled[:, :, 0, 0], maps.mean((1, 2)))


def test_make_latent__refuses_other_tokens_than_the_first_batchs():
    with pytest.raises(
        ConfigError, match="7 tokens, and 9 in the first batch; pad to one length, or take cls"
    ):
        make_latent(SEQUENCES, make_layer("tokens", (9, 3)), LatentsKey("all"))
    with pytest.raises(ConfigError, match="7 tokens are no 0 before 2 × 3 patches, as in the first batch"):
        make_latent(SEQUENCES, make_layer("tokens", (6, 3), grid=(2, 3)), LatentsKey("4"))


@pytest.mark.parametrize("form", ["tokens", "steps"])
@pytest.mark.parametrize("n_images", [None, 2, 3])
def test_to_samples__of_masked_tokens_are_those_that_count(form, n_images):
    found = layer_samples.to_samples(
        SEQUENCES, OutputLayout(form), timeseries_method="every", n_images=n_images, mask=TokenMask(SIDES)
    )
    expected = SEQUENCES.numpy()[:n_images][SIDES.numpy()[:n_images] == 1]
    np.testing.assert_array_equal(found, expected)


def test_to_samples__of_masked_steps_is_the_last_that_counts():
    for n_images in (None, 2):
        found = layer_samples.to_samples(
            SEQUENCES, OutputLayout("steps"), n_images=n_images, mask=TokenMask(SIDES)
        )
        assert torch.equal(found, SEQUENCES[torch.arange(4), [6, 2, 6, 4]][:n_images])


@pytest.mark.parametrize("pooling", ["0", "-1", "all", "1.5", ""])
def test_pool_latent__refuses_other_poolings(pooling):
    with pytest.raises(ConfigError, match="pooling is"):
        pool_latent(MAPS, CONV, pooling)
