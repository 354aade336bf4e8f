"""How stores are laid out: keys, encodings, and what makes a store one of ours.

The layout is that of docs/store-format.md: Zarr v3, ``dimension_names`` on every array, NaN where nothing was
written. Only this package imports zarr.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from satstore.config.keys import LatentsKey
from satstore.errors import CorruptError, MemoryLimitError, NotFoundError, SatstoreError, reason_of
from satstore.storage.files import FORMAT_VERSION
from satstore.storage.location import Location
from satstore.storage.zarr.durable_store import open_store

RESERVED_KEYS = frozenset({"label", "sample_id", "zarr.json"})

Array = zarr.Array[Any]

CHUNK_BYTES = 2 * 2**20
SHARD_BYTES = 128 * 2**20
# Shards of a split, unless those of all layers are less than this together.
MIN_SHARDS, SMALL_BYTES = 8, 64 * 2**20
FLOAT16_BYTES, FLOAT16_MANTISSA_BITS = 2, 10
FLOAT32_BYTES, FLOAT32_MANTISSA_BITS = 4, 23
MAX_ENCODERS = 4
"""Shards encoded at once, at most. Memory is reckoned with it, so that shards are alike everywhere."""
ENCODING_BYTES = 32 * 2**20
"""What a dozen chunks take on their way through the codecs, side by side."""

MAX_WHOLE_BYTES, MAX_OBJECTS = 8 * 2**30, 2**24
"""More than any chunk, and any array that is read at once, takes (a covariance of 32,768 features), and more
files than an array, and chunks than a shard, has."""

Shapes = Mapping[LatentsKey, Mapping[str, tuple[int, ...]]]
"""Key to layer to the shape of one sample's latent."""


def encode_layer(name: str) -> str:
    """Return the store key of a layer: its name where that is a plain key, else percent-encoded.

    A name that other keys of the store have, or that would leave its folder, is encoded from its first
    character on; one too long for a file name is cut and ends with a digest of the whole. Different names
    have different keys; on a file system that folds case, names that differ in nothing else would meet.
    """
    key = quote(name, safe="-_.").replace("~", "%7E")  # a "~" tells that a key was cut
    if key in RESERVED_KEYS or key.startswith((".", "__")):
        key = f"%{ord(key[0]):02X}{key[1:]}"
    if not key:  # the model itself, where it is the only layer
        return "%"
    if len(key) > 128:
        key = f"{key[:96]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return key


def shards_bytes(shapes: Shapes, shard_rows: Mapping[LatentsKey, int], n_samples: int | None = None) -> int:
    """Return the memory that writing takes with so many samples in each pooling's shards, and in the split.

    All layers' shards are filled at once, as float32, while those before them are encoded: two of each. Those
    that are encoded at once are there once more, as float16 and as bytes; where a layer turns out to need
    float32, its earlier shards are, one after the other. Moments and extent take 28 bytes of each feature.
    """
    row_sizes = {p: [math.prod(s) for s in layers.values()] for p, layers in shapes.items()}
    most = math.inf if n_samples is None else n_samples
    held = {p: int(min(2 * rows, most)) for p, rows in shard_rows.items()}
    encoded_at_once = {p: int(min(rows, most)) for p, rows in shard_rows.items()}
    shards = sum(FLOAT32_BYTES * held[p] * sum(sizes) for p, sizes in row_sizes.items())
    largest = sorted(encoded_at_once[p] * size for p, sizes in row_sizes.items() for size in sizes)
    encoded = (FLOAT16_BYTES + FLOAT32_BYTES) * sum(largest[-MAX_ENCODERS:])
    return shards + encoded + 28 * sum(map(sum, row_sizes.values())) + ENCODING_BYTES


def choose_shard_rows(
    shapes: Shapes, n_samples: int, memory_bytes: int, remedy: str = "raise --memory-limit"
) -> int:
    """Return how many samples a shard holds: a power of two, the same for all layers.

    What :func:`shards_bytes` gives has to fit the memory, and the widest layer's shard is kept to 128 MiB of
    float16. A split has a handful of shards, that one is written while the next is computed, and a resume has
    where to go on; one is all that a small split needs.

    Raises
    ------
    MemoryLimitError
        If the memory doesn't hold one sample's.
    """
    row_bytes = [FLOAT16_BYTES * math.prod(s) for layers in shapes.values() for s in layers.values()]
    rows: int = 2 ** min(
        max(1, SHARD_BYTES // max(row_bytes)).bit_length() - 1, max(0, n_samples - 1).bit_length()
    )
    while rows > 1 and n_samples < MIN_SHARDS * rows and rows * sum(row_bytes) > SMALL_BYTES:
        rows //= 2
    while rows > 1 and shards_bytes(shapes, dict.fromkeys(shapes, rows), n_samples) > memory_bytes:
        rows //= 2
    check_shards_fit(shapes, dict.fromkeys(shapes, rows), memory_bytes, remedy, n_samples)
    return rows


def plan_memory(
    shapes: Shapes, n_samples: int, limit_bytes: int, held_bytes: int, batch_size: int
) -> tuple[int, int]:
    """Return the samples of a shard that a memory limit gives, and the projected peak in bytes.

    Parameters
    ----------
    held_bytes
        What the process holds with model, data and the forward pass of one batch.
    batch_size
        Samples of a batch, whose latents are there twice at once, as float32: on the device and beside it.

    Raises
    ------
    MemoryLimitError
        If the limit doesn't leave enough for one sample.
    """
    n_features = sum(math.prod(shape) for layers in shapes.values() for shape in layers.values())
    held_bytes += batch_size * n_features * 2 * FLOAT32_BYTES
    rows = choose_shard_rows(shapes, n_samples, limit_bytes - held_bytes)
    return rows, held_bytes + shards_bytes(shapes, dict.fromkeys(shapes, rows), n_samples)


def check_shards_fit(
    shapes: Shapes,
    shard_rows: Mapping[LatentsKey, int],
    memory_bytes: int,
    remedy: str,
    n_samples: int | None = None,
) -> None:
    """Check that shards fit the memory that a limit leaves.

    Raises
    ------
    MemoryLimitError
        Naming what they take, what is left and the remedy.
    """
    needed = shards_bytes(shapes, shard_rows, n_samples)
    if needed > memory_bytes:
        rows, mebi = max(shard_rows.values()), 2**20
        raise MemoryLimitError(
            f"writing latents in shards of {rows} samples takes {needed / mebi:.0f} MiB, the memory limit "
            f"leaves {max(0, memory_bytes) / mebi:.0f} MiB beside model, data and one batch; {remedy} by "
            f"{(needed - memory_bytes) / mebi + 1:.0f} MiB, or take a smaller pooling or fewer layers"
        )


def choose_chunk_rows(
    sample_shape: tuple[int, ...], shard_rows: int, value_bytes: int = FLOAT16_BYTES
) -> int:
    """Return how many samples a chunk holds: a power of two that divides the shard, about 2 MiB of them."""
    row_bytes = value_bytes * math.prod(sample_shape)
    return int(min(shard_rows, 2 ** (max(1, CHUNK_BYTES // row_bytes).bit_length() - 1)))


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    dimensions: tuple[str, ...],
    mantissa_bits: int = FLOAT16_MANTISSA_BITS,
    **options: Any,
) -> Array:
    """Create an array in the house's encoding: Blosc, a checksum, NaN where unset."""
    floating = np.issubdtype(np.dtype(dtype), np.floating)
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        dimension_names=dimensions,
        compressors=[choose_blosc(mantissa_bits), Crc32cCodec()],
        fill_value=np.nan if floating else -1,
        **options,
    )


def choose_blosc(mantissa_bits: int) -> BloscCodec:
    """Return the compressor of values with so many bits of mantissa.

    lz4 with bitshuffle packs the bits that are there, at gigabytes per second. Who rounds some away wants few
    bytes: zstd with byte shuffle codes what sign, exponent and the rest have of order. At 5 bits, of a
    ResNet18's latents, it takes 29 % of float32 instead of 34 %, encodes ten times slower and decodes four
    times slower.
    """
    if mantissa_bits < FLOAT16_MANTISSA_BITS:
        return BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")


def open_root(location: Location) -> zarr.Group:
    """Open a store's root group for reading, and check that it is of a format that is known here."""
    if not location.exists():
        raise NotFoundError(f"no store at {location}: it has no zarr.json")
    with reading_metadata(f"the store at {location} can't be opened"):
        group = zarr.open_group(open_store(location), mode="r")
    check_version(group, location)
    return group


def check_version(group: zarr.Group, location: Location) -> None:
    """Check that a store is of a format that is known here."""
    version = group.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptError(
            f"the store at {location} has format version {version}; this one reads {FORMAT_VERSION}"
        )


def get_array(group: zarr.Group, name: str) -> Array:
    """Return an array of a group.

    Raises
    ------
    CorruptError
        If it has none of that name, or one that no store can hold.
    """
    with reading_metadata(group.store_path):
        item = group.get(name)
    if not isinstance(item, zarr.Array):
        raise CorruptError(f"{group.store_path} has no array {name!r}")
    check_claims(item, is_read_whole=name != "latent")
    return item


def check_axes(array: Array, *sizes: int | None, kinds: str = "fiu") -> Array:
    """Return an array if it has the axes, and numbers, that are written.

    Parameters
    ----------
    *sizes
        Of the axes; None where any will do but 0.
    kinds
        NumPy's letters of the types that will do: floats, integers, unsigned ones.

    Raises
    ------
    CorruptError
        Naming what it has and what is expected.
    """
    fits = len(array.shape) == len(sizes) and all(
        n > 0 and size in (None, n) for n, size in zip(array.shape, sizes, strict=True)
    )
    if not fits or array.dtype.kind not in kinds:
        axes = ", ".join("any" if size is None else f"{size}" for size in sizes)
        raise CorruptError(
            f"{array.store_path} has shape {array.shape} of {array.dtype}; expected ({axes}) of numbers; "
            "satstore verify names what makes it again"
        )
    return array


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Say of stored values that can't be decoded what they are and what to do.

    Raises
    ------
    CorruptError
        For a wrong checksum, what Blosc refuses, or a disk that does.
    """
    try:
        yield
    except SatstoreError:  # a bucket that can't be reached is not a damaged one
        raise
    except (ValueError, LookupError, TypeError, RuntimeError, OSError) as error:
        raise CorruptError(f"{what} can't be read ({' '.join(str(error).split())}); {remedy}") from error


@contextmanager
def reading_metadata(place: object) -> Iterator[None]:
    """Say of metadata that zarr does not understand where they lie.

    Raises
    ------
    CorruptError
        For whatever zarr raises: it has no common error for them.
    """
    try:
        yield
    except SatstoreError:
        raise
    except Exception as error:
        reason = reason_of(error)
        raise CorruptError(
            f"{place}: its metadata can't be read ({type(error).__name__}: {reason}); satstore verify names "
            "the file and what makes it again"
        ) from error


def check_claims(array: Array, *, is_read_whole: bool) -> None:
    """Refuse an array whose metadata claim more than any that satstore writes, before memory is taken for it.

    Raises
    ------
    CorruptError
        Naming what is claimed and what is written at most.
    """
    if any(step < 1 for step in (*array.chunks, *objects_of(array))):
        raise CorruptError(
            f"{array.store_path} claims chunks of {array.chunks}: its zarr.json is damaged or forged, and "
            "it is not read"
        )
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    n_objects = math.prod(
        -(-n // max(1, step)) for n, step in zip(array.shape, objects_of(array), strict=True)
    )
    n_chunks = math.prod(
        -(-n // max(1, step)) for n, step in zip(objects_of(array), array.chunks, strict=True)
    )
    whole_bytes = math.prod(array.shape) * array.dtype.itemsize
    claims = [
        ("chunks of", chunk_bytes, MAX_WHOLE_BYTES, "bytes"),
        ("shards of", n_chunks, MAX_OBJECTS, "chunks"),
        ("to lie in", n_objects, MAX_OBJECTS, "files"),
    ]
    if is_read_whole:
        claims.append(("values of", whole_bytes, MAX_WHOLE_BYTES, "bytes"))
    for what, found, limit, unit in claims:
        if found > limit:
            raise CorruptError(
                f"{array.store_path} claims {what} {found:,} {unit}, {limit:,} are written at most: its "
                "zarr.json is damaged or forged, and it is not read"
            )


def objects_of(array: Array) -> tuple[int, ...]:
    """Return the shape of what lies in one file of an array: a shard, or a chunk where it has no shards."""
    return tuple(array.shards or array.chunks)
