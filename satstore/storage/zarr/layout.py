"""The layout of stores: keys, encodings, shards that fit the memory, and checks on opening.

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

from satstore.config.latent_keys import LatentsKey
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
"""The most shards encoded at once; shard sizes depend on it, so that they are the same on all machines."""
ENCODING_BYTES = 32 * 2**20
"""The memory of a dozen chunks in the codecs at once."""

MAX_WHOLE_BYTES, MAX_OBJECTS = 8 * 2**30, 2**24
"""Limits of what metadata may claim: the bytes of a chunk, or of an array that is read at once (a covariance
of 32,768 features), and the files of an array, or the chunks of a shard."""

Shapes = Mapping[LatentsKey, Mapping[str, tuple[int, ...]]]
"""Key to layer to the shape of one sample's latent."""


def encode_layer(name: str) -> str:
    """Return the store key of a layer: its name if that is a plain key, otherwise percent-encoded.

    The first character of a reserved name, or of one that would leave its folder, is encoded; a name too long
    for a file is cut and ends with a digest of the whole. Different names have different keys; on a file
    system that folds case, names that differ only in case would collide.
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
    """Compute the memory that writing takes, from the samples of a shard of each key, and of the split.

    All layers' shards are filled at once, as float32, while the previous ones are encoded: two of each. Those
    that are encoded at once take memory once more, as float16 and as bytes; if a layer turns out to need
    float32, so do its earlier shards, one after the other. Moments and extent take 28 bytes per feature.
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
    """Choose the samples of a shard: a power of two, the same for all layers.

    :func:`shards_bytes` has to fit the memory, and the widest layer's shard has at most 128 MiB of float16. A
    split has several shards, so that one is written while the next is computed, and a resumed run can
    continue between them; a small split has one. Raises MemoryLimitError if a shard of one sample doesn't
    fit.
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
    """Choose the samples of a shard for a memory limit, and estimate the peak memory in bytes.

    Parameters
    ----------
    held_bytes
        The memory of model, data and the forward pass of one batch.
    batch_size
        Samples of a batch, whose float32 latents are held twice at once: on the device and on the host.
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
    """Raise a MemoryLimitError if shards don't fit: names the needed memory, what is left, and the remedy."""
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
    """Choose the samples of a chunk: a power of two that divides the shard, of about 2 MiB."""
    row_bytes = value_bytes * math.prod(sample_shape)
    return int(min(shard_rows, 2 ** (max(1, CHUNK_BYTES // row_bytes).bit_length() - 1)))


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    dimensions: tuple[str, ...],
    *,
    mantissa_bits: int = FLOAT16_MANTISSA_BITS,
    **options: Any,
) -> Array:
    """Create an array in satstore's encoding: Blosc, a checksum, and NaN where nothing is written."""
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
    """Choose the compressor of values with so many bits of mantissa.

    lz4 with bitshuffle packs all bits at gigabytes per second. Rounded values are to take few bytes: zstd
    with byte shuffle exploits the regularity of sign and exponent too. On a ResNet18's latents at 5 bits, it
    takes 29 % of float32 instead of 34 %, encodes ten times slower and decodes four times slower.
    """
    if mantissa_bits < FLOAT16_MANTISSA_BITS:
        return BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")


def open_root(location: Location) -> zarr.Group:
    """Open a store's root group for reading, and check the version of its format.

    Raises NotFoundError if there is no store, CorruptError if it can't be opened or has another version.
    """
    if not location.exists():
        raise NotFoundError(f"no store at {location}: it has no zarr.json")
    with explaining_metadata_errors(f"the store at {location} can't be opened"):
        group = zarr.open_group(open_store(location), mode="r")
    check_version(group, location)
    return group


def check_version(group: zarr.Group, location: Location) -> None:
    """Raise a CorruptError if a store has another version of the format."""
    version = group.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptError(
            f"the store at {location} has format version {version}; this one reads {FORMAT_VERSION}"
        )


def get_array(group: zarr.Group, name: str) -> Array:
    """Return an array of a group.

    Raises CorruptError if the group has none of that name, or one whose metadata claim more than any store
    holds.
    """
    with explaining_metadata_errors(group.store_path):
        item = group.get(name)
    if not isinstance(item, zarr.Array):
        raise CorruptError(f"{group.store_path} has no array {name!r}")
    check_claims(item, is_read_whole=name != "latent")
    return item


def check_axes(array: Array, *sizes: int | None, kinds: str = "fiu") -> Array:
    """Check an array's axes (None: of any size but 0) and its kind of dtype, by NumPy's letters; return it.

    Raises CorruptError that says what was found and what was expected.
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
def explaining_decode_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn decoding errors into a CorruptError that names the array and the remedy.

    They are a wrong checksum, invalid Blosc data, or an error of the disk.
    """
    try:
        yield
    except SatstoreError:  # an unreachable bucket is not a damaged store
        raise
    except (ValueError, LookupError, TypeError, RuntimeError, OSError) as error:
        raise CorruptError(f"{what} can't be read ({reason_of(error)}); {remedy}") from error


@contextmanager
def explaining_metadata_errors(place: object) -> Iterator[None]:
    """Turn zarr's errors about metadata, which have no common type, into a CorruptError with their place."""
    try:
        yield
    except SatstoreError:
        raise
    except Exception as error:
        raise CorruptError(
            f"{place}: its metadata can't be read ({type(error).__name__}: {reason_of(error)}); satstore "
            "verify names the file and what makes it again"
        ) from error


def check_claims(array: Array, *, is_read_whole: bool) -> None:
    """Check that an array's metadata claim no more than satstore writes, before memory is taken for it.

    Raises CorruptError that names the claim and the limit.
    """
    if any(step < 1 for step in (*array.chunks, *objects_of(array))):
        raise CorruptError(
            f"{array.store_path} claims chunks of {array.chunks}: its zarr.json is damaged or forged, and "
            "it is not read"
        )
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    n_objects = math.prod(-(-n // step) for n, step in zip(array.shape, objects_of(array), strict=True))
    n_chunks = math.prod(-(-n // step) for n, step in zip(objects_of(array), array.chunks, strict=True))
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
    """Return the shape of an array's files: of its shards, or of its chunks if it has no shards."""
    return tuple(array.shards or array.chunks)
