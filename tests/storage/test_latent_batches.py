"""Minibatches of stored latents: each sample once, with its label, as seed and epoch order them."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from splits import Split
from torch.utils.data import DataLoader
from zarr.storage import LocalStore

from satstore.errors import ConfigError, CorruptError
from satstore.storage.zarr import LatentArray, open_latents

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning",  # more workers than cores
    "ignore:.*multi-threaded.*fork:DeprecationWarning",
)

SHAPE = (64, 32, 32)
"""Of a map that gives chunks of 16 samples."""


def open_train(root: Path, layer: str = "fc", pooling: str = "pool2") -> LatentArray:
    return open_latents(root).split(pooling, "train")[layer]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentArray, Split]:
    """A layer of 101 samples in 7 chunks, the last of which is short; and what was written."""
    root = tmp_path_factory.mktemp("stored") / "latents.zarr"
    split = Split(101, {"pool2": {"fc": SHAPE}})
    split.write(root, 50, shard_rows=64)
    array = open_train(root)
    assert array.array.chunks[0] == 16
    return array, split


def find_root(array: LatentArray) -> Path:
    store = array.array.store
    assert isinstance(store, LocalStore)
    return store.root


def load(dataset: Any, workers: int = 0, **options: Any) -> "DataLoader[Any]":
    context = options.pop("context", "fork") if workers else None
    return DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=context, **options
    )


def check_pass(batches: list[Any], values: NDArray[Any], samples: NDArray[np.int64]) -> None:
    """Check that each sample came once, with its own latents; batches have sample numbers for labels."""
    places = np.concatenate([labels.numpy() for _, labels in batches])
    np.testing.assert_array_equal(np.sort(places), samples)
    for latents, labels in batches:
        assert latents.dtype == torch.float16
        np.testing.assert_array_equal(latents.numpy(), values[labels.numpy()])


@settings(max_examples=12, deadline=None)
@given(
    n_samples=st.integers(1, 70),
    batch_size=st.integers(1, 80),
    shard_rows=st.sampled_from([1, 2, 8, 16, 64]),
    n_chunks=st.integers(1, 5),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
@example(n_samples=33, batch_size=33, shard_rows=8, n_chunks=1, shuffle=True, epoch=0)
@example(n_samples=64, batch_size=7, shard_rows=16, n_chunks=1, shuffle=True, epoch=1)
def test_pass__has_each_sample_once_with_its_label(
    tmp_path_factory: pytest.TempPathFactory,
    n_samples: int,
    batch_size: int,
    shard_rows: int,
    n_chunks: int,
    shuffle: bool,
    epoch: int,
) -> None:
    root = tmp_path_factory.mktemp("pass") / "latents.zarr"
    split = Split(n_samples, {"pool2": {"fc": (5, 2)}}, seed=n_samples)
    split.write(root, shard_rows=shard_rows)
    array, numbers = open_train(root), np.arange(n_samples)
    dataset = array.dataset(
        batch_size=batch_size,
        shuffle=shuffle,
        labels=numbers,
        buffer_bytes=n_chunks * array.array.chunks[0] * 20,
    )
    dataset.set_epoch(epoch)
    batches = list(dataset)
    check_pass(batches, split.stored("pool2", "fc"), numbers)
    lengths = [len(latents) for latents, _ in batches]
    full, rest = divmod(n_samples, batch_size)
    assert lengths == [batch_size] * full + [rest] * bool(rest)
    if not shuffle:
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), numbers)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [10, 300])
def test_workers__share_out_the_samples(
    stored: tuple[LatentArray, Split], workers: int, batch_size: int
) -> None:
    array, split = stored
    numbers = np.arange(101)
    dataset = array.dataset(batch_size=batch_size, labels=numbers, buffer_bytes=2**22)
    batches = list(load(dataset, workers))
    check_pass(batches, split.stored("pool2", "fc"), numbers)
    assert sum(len(latents) < batch_size for latents, _ in batches) <= workers


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [6, 40])
def test_order__without_shuffling_is_that_of_the_store(
    stored: tuple[LatentArray, Split], workers: int, batch_size: int
) -> None:
    array, split = stored
    dataset = array.dataset(batch_size=batch_size, shuffle=False, buffer_bytes=2**22)
    found = list(load(dataset, workers))
    assert [len(latents) for latents, _ in found[:-1]] == [batch_size] * (101 // batch_size)
    np.testing.assert_array_equal(torch.cat([latents for latents, _ in found]), split.stored("pool2", "fc"))
    np.testing.assert_array_equal(torch.cat([labels for _, labels in found]), split.labels)


def read_order(batches: Any) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_order__is_determined_by_seed_and_epoch(stored: tuple[LatentArray, Split], workers: int) -> None:
    """Workers that live on between passes are told of the epoch, too."""
    array, _ = stored

    def open_loader(seed: int, **options: Any) -> tuple[Any, "DataLoader[Any]"]:
        dataset = array.dataset(batch_size=20, seed=seed, labels=np.arange(101), buffer_bytes=2**22)
        return dataset, load(dataset, workers, **options)

    dataset, loader = open_loader(5, persistent_workers=workers > 0)
    found = []
    for epoch in (0, 1, 1, 0):
        dataset.set_epoch(epoch)
        found.append(read_order(loader))
    assert dataset.epoch == 0
    assert found[0] == found[3]
    assert found[1] == found[2]
    assert found[0] != found[1]
    again, fresh = open_loader(5)
    again.set_epoch(1)
    assert read_order(fresh) == found[1]
    assert read_order(open_loader(6)[1]) not in found


@pytest.mark.long
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers__however_they_are_started_give_the_same_batches(
    stored: tuple[LatentArray, Split], context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a relative path, too, though spawned processes begin in the folder that this one began in."""
    array, split = stored
    root = find_root(array)
    monkeypatch.chdir(root.parent)
    there = open_train(Path(root.name))
    datasets = [of.dataset(batch_size=20, labels=np.arange(101), buffer_bytes=2**22) for of in (array, there)]
    loaders = [
        load(dataset, 2, context=how, persistent_workers=True)
        for dataset, how in zip(datasets, ("fork", context), strict=True)
    ]
    for epoch in range(2):
        for dataset in datasets:
            dataset.set_epoch(epoch)
        expected, found = (list(loader) for loader in loaders)
        assert read_order(found) == read_order(expected)
        check_pass(found, split.stored("pool2", "fc"), np.arange(101))


def split_buffers(labels: list[NDArray[Any]], n_rows: int) -> Iterator[list[NDArray[Any]]]:
    """Yield the batches of each full buffer; a buffer has a whole number of them."""
    per_buffer = n_rows // len(labels[0])
    for first in range(0, len(labels) - per_buffer + 1, per_buffer):
        yield labels[first : first + per_buffer]


def test_order__mixes_samples_that_are_stored_class_by_class(tmp_path: Path) -> None:
    """Chunks are drawn for a buffer, and its samples for a batch: both without replacement.

    The mean of such a sample of n of N has the variance var / n · (N − n) / (N − 1).
    """
    root, (n_samples, chunk, n_chunks, batch_size) = tmp_path / "latents.zarr", (4096, 64, 16, 64)
    split = Split(n_samples, {"pool2": {"fc": (2,)}})
    split.labels = np.arange(n_samples) // 128  # 32 classes of 2 chunks
    split.write(root, 512, shard_rows=chunk)
    dataset = open_train(root).dataset(batch_size=batch_size, buffer_bytes=n_chunks * chunk * 4)

    def check_mean(drawn: NDArray[Any], population: NDArray[Any]) -> None:
        n, n_all = len(drawn), len(population)
        deviation = np.sqrt(population.var() / n * (n_all - n) / (n_all - 1))
        assert abs(drawn.mean() - population.mean()) < 5 * deviation

    chunk_labels = split.labels[::chunk]
    seen = 0
    for epoch in range(4):
        dataset.set_epoch(epoch)
        labels = [found.numpy() for _, found in dataset]
        for buffer in split_buffers(labels, n_chunks * chunk):
            rows = np.concatenate(buffer)
            drawn = np.sort(rows)[::chunk]  # whole chunks, each of one class
            np.testing.assert_array_equal(np.sort(rows), np.repeat(drawn, chunk))
            check_mean(drawn, chunk_labels)
            for batch in buffer:
                check_mean(batch, rows)
                assert len(np.unique(batch)) > 7, "of 16 chunks, in nearly as many classes"
                seen += 1
    assert seen == 4 * n_samples // batch_size


def test_batches__keep_shape_and_type_or_are_converted(tmp_path: Path) -> None:
    root = tmp_path / "latents.zarr"
    split = Split(29, {"pixelwise": {"conv0": (7, 6, 4)}})
    split.latents["pixelwise"]["conv0"] += 1e6  # float16 would not keep their spread
    split.write(root)
    array = open_train(root, "conv0", "pixelwise")
    assert array.array.dtype == np.float32
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        [(latents, labels)] = array.dataset(batch_size=29, shuffle=False, dtype=dtype)
        assert (latents.shape, latents.dtype) == ((29, 7, 6, 4), expected)
        values = torch.from_numpy(split.latents["pixelwise"]["conv0"]).to(expected)
        assert torch.equal(latents, values)
        np.testing.assert_array_equal(labels, split.labels)


def test_labels__of_any_numbers_may_be_given(stored: tuple[LatentArray, Split]) -> None:
    array, _ = stored
    given_labels = np.random.default_rng(0).normal(size=(101, 3)).astype(np.float32)
    for labels in (given_labels, torch.from_numpy(given_labels), given_labels.tolist()):
        found = torch.cat([each for _, each in array.dataset(batch_size=50, shuffle=False, labels=labels)])
        np.testing.assert_array_equal(found.numpy().astype(np.float32), given_labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1 on"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected"),
        ({"batch_size": True}, "batch_size is True; expected"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 on"),
        ({"buffer_bytes": 0}, "buffer_bytes is 0; expected"),
        ({"dtype": torch.int64}, r"dtype is torch.int64; expected a floating-point dtype"),
        ({"dtype": "float32"}, "dtype is 'float32'; expected a floating-point dtype of torch"),
        ({"labels": np.arange(90)}, "labels: 90 of 101 samples of layer fc; give one for each"),
        ({"labels": 3}, "labels: 0 of 101 samples"),
        ({"labels": ["cat"] * 101}, "labels are of dtype <U3; expected numbers"),
    ],
)
def test_dataset__refuses_what_it_can_not_do(
    stored: tuple[LatentArray, Split], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stored[0].dataset(**{"batch_size": 8} | options)


def test_set_epoch__refuses_a_negative_one(stored: tuple[LatentArray, Split]) -> None:
    dataset = stored[0].dataset(batch_size=8)
    with pytest.raises(ConfigError, match="epoch is -1; expected a whole number from 0 on"):
        dataset.set_epoch(-1)
    assert dataset.epoch == 0


def count_readers() -> int:
    return sum("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_damage__of_a_chunk_is_named(tmp_path: Path, workers: int) -> None:
    root = tmp_path / "latents.zarr"
    Split(29).write(root)
    path = root / "pool2/train/fc/latent/c/1/0"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    before = count_readers()
    loader = load(open_train(root).dataset(batch_size=4), workers)
    with pytest.raises(CorruptError, match=r"samples 8 to 15 of layer fc can't be read .*satstore extract"):
        list(loader)
    assert count_readers() == before


def test_pass__that_is_left_early_ends_its_threads(stored: tuple[LatentArray, Split]) -> None:
    array, split = stored
    dataset = array.dataset(batch_size=4, labels=np.arange(101), buffer_bytes=2**22)
    before = count_readers()
    batches = iter(dataset)
    next(batches)
    assert count_readers() > before
    del batches
    assert count_readers() == before
    check_pass(list(dataset), split.stored("pool2", "fc"), np.arange(101))


def test_passes__at_the_same_time_do_not_disturb_each_other(stored: tuple[LatentArray, Split]) -> None:
    array, split = stored
    dataset = array.dataset(batch_size=4, labels=np.arange(101), buffer_bytes=2**22)
    list(dataset)  # what a pass leaves behind is used by the next one
    both = list(zip(dataset, dataset, strict=True))
    for batches in zip(*both, strict=True):
        check_pass(list(batches), split.stored("pool2", "fc"), np.arange(101))


def test_latents__are_read_without_torch(stored: tuple[LatentArray, Split]) -> None:
    root = find_root(stored[0])
    code = (
        f"import sys, satstore; found = satstore.open_latents({str(root)!r}).split('pool2', 'train')['fc']; "
        "found.numpy(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
