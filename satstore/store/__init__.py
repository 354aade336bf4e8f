"""The disk format: stores of latents and of what was computed from them."""

from satstore.store.analysis import AnalysisStore
from satstore.store.check import StoredArray
from satstore.store.latents import LatentArray, LatentSplit, LatentStore, digest_labels, open_latents
from satstore.store.layout import choose_shard_rows, plan_memory
from satstore.store.writer import LatentWriter, copy_split, describe_anew, discard

__all__ = [
    "AnalysisStore",
    "LatentArray",
    "LatentSplit",
    "LatentStore",
    "LatentWriter",
    "StoredArray",
    "choose_shard_rows",
    "copy_split",
    "describe_anew",
    "digest_labels",
    "discard",
    "open_latents",
    "plan_memory",
]
