"""A split of unknown length, whose writer was killed: what goes on from it ends with the same bytes."""

from pathlib import Path

import numpy as np
import pytest
from splits import ATTRIBUTES, SHAPES, SOURCE, Split, contents, log_of

from satstore.config.latent_keys import LatentsKey
from satstore.storage.location import Folder
from satstore.storage.zarr import LatentWriter, open_latents
from satstore.storage.zarr.layer_arrays import KeptRows

N_SAMPLES = 43


def make_split() -> Split:
    """Return a split of which a layer needs float32 from its third shard on, from its fourth more bits."""
    split = Split(N_SAMPLES)
    for pooling in SHAPES:
        for row, mean in ((16, 3e4), (24, 3e5)):
            split.latents[pooling]["conv0"][row:] += mean
    return split


def open_writer(root: Path, split: Split, kept: KeptRows | None = None) -> LatentWriter:
    root.parent.mkdir(parents=True, exist_ok=True)
    return LatentWriter(
        Folder(root),
        log_of(root),
        attributes=ATTRIBUTES,
        source=SOURCE,
        shapes={LatentsKey.parse(pooling): layers for pooling, layers in split.shapes.items()},
        split="train",
        shard_rows=8,
        kept=kept,
    )


def write(writer: LatentWriter, split: Split, start: int, stop: int) -> None:
    for row in range(start, stop, 3):
        split.append(writer, row, min(row + 3, stop))


def precision_after(root: Path, split: Split, n_rows: int) -> tuple[str, int]:
    """Return the precision that a layer has after some rows."""
    writer = open_writer(root, split)
    write(writer, split, 0, n_rows)
    return writer.committed_rows().precisions["full/train/conv0"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root, split = tmp_path_factory.mktemp("whole") / "latents.zarr", make_split()
    with open_writer(root, split) as writer:
        write(writer, split, 0, N_SAMPLES)
        writer.finish(split.labels, split.sample_ids)
    stored = open_latents(root).split("full", "train")
    assert stored["conv0"].array.dtype == np.float32
    assert stored["fc"].array.dtype == np.float16
    precisions = [precision_after(root.with_name(f"{n}.zarr"), split, n) for n in (16, 24, 32)]
    assert [dtype for dtype, _ in precisions] == ["float16", "float32", "float32"]
    assert precisions[1][1] < precisions[2][1], "the fourth shard raises the bits that are kept"
    return contents(root)


@pytest.mark.parametrize(
    ("n_noted", "n_written", "is_finished"),
    [
        (0, 43, True),
        (9, 12, False),
        (9, 40, False),
        (24, 24, False),
        (24, 43, True),
        (40, 43, False),
        (43, 43, True),
    ],
)
def test_writer__goes_on_from_kept_rows_to_the_same_bytes(
    undisturbed: dict[str, bytes], tmp_path: Path, n_noted: int, n_written: int, is_finished: bool
) -> None:
    root, split = tmp_path / "latents.zarr", make_split()
    killed = open_writer(root, split)
    write(killed, split, 0, n_noted)
    kept = killed.committed_rows()
    assert (kept.n_rows, kept.shard_rows) == (n_noted // 8 * 8, 8)
    write(killed, split, n_noted, n_written)
    if is_finished:
        killed.finish(split.labels, split.sample_ids)
    killed.drain()
    with open_writer(root, split, kept) as writer:
        start = writer.n_committed
        is_float32_since = n_noted < 24 <= n_written
        assert start == (0 if is_float32_since else kept.n_rows), "a layer of another dtype is written anew"
        write(writer, split, max(0, start - 2), N_SAMPLES)  # rows that are there may come again
        writer.finish(split.labels, split.sample_ids)
    assert contents(root) == undisturbed
    log_of(root).read(root.name).check(Folder(root), "", "again")


def test_writer__writes_again_what_was_lost_of_the_rows_kept(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root, split = tmp_path / "latents.zarr", make_split()
    killed = open_writer(root, split)
    write(killed, split, 0, 18)
    kept = killed.committed_rows()
    (root / "pool2" / "train" / "fc" / "latent" / "c" / "1" / "0").unlink()
    with open_writer(root, split, kept) as writer:
        assert writer.n_committed == 8
        write(writer, split, 8, N_SAMPLES)
        writer.finish(split.labels, split.sample_ids)
    assert contents(root) == undisturbed
