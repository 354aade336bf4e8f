"""The Zarr stores: latents, and the results that are computed from them."""

from satstore.storage.zarr.analysis_store import AnalysisStore
from satstore.storage.zarr.array_check import StoredArray
from satstore.storage.zarr.latent_reader import (
    LatentArray,
    LatentSplit,
    LatentStore,
    digest_labels,
    open_latents,
)
from satstore.storage.zarr.latent_writer import LatentWriter, copy_split, discard, replace_attributes
from satstore.storage.zarr.layout import choose_shard_rows, plan_memory

__all__ = [
    "AnalysisStore",
    "LatentArray",
    "LatentSplit",
    "LatentStore",
    "LatentWriter",
    "StoredArray",
    "choose_shard_rows",
    "copy_split",
    "digest_labels",
    "discard",
    "open_latents",
    "plan_memory",
    "replace_attributes",
]
