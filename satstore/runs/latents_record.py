"""The attributes of a store of latents, and the manifest's record of latents."""

from collections.abc import Iterable, Mapping
from typing import Any

from satstore.config.latent_keys import LatentsKey
from satstore.runs.manifest import LatentsRecord, Manifest
from satstore.storage.commit_log import Committed
from satstore.storage.files import FORMAT_VERSION
from satstore.storage.zarr.layout import encode_layer


def describe_store(manifest: Manifest) -> dict[str, Any]:
    """Return the attributes of a run's store of latents."""
    assert manifest.dataset is not None
    return {
        "format_version": FORMAT_VERSION,
        "run_id": manifest.run_id,
        "experiment": manifest.experiment,
        "config": manifest.config,
        "layers": [record.layer for record in manifest.layers],
        "classes": manifest.dataset.classes,
    }


def describe_latents(
    committed: Committed,
    key: LatentsKey,
    layers: Mapping[str, Iterable[str]],
    *,
    checkpoint_sha256: str,
    mantissa_bits: int,
    n_samples: Mapping[str, int],
) -> LatentsRecord:
    """Return the manifest's record of the latents of a key, from the store's committed files.

    Parameters
    ----------
    layers
        Split to the layers that are completely written.
    n_samples
        Split to the number of its samples, stored or not.
    """
    digests = {
        split: {
            layer: committed.digest(
                f"{key}/{split}/{encode_layer(layer)}", f"{key}/{split}/label", f"{key}/{split}/sample_id"
            )
            for layer in of_split
        }
        for split, of_split in layers.items()
    }
    return LatentsRecord(
        checkpoint_sha256=checkpoint_sha256,
        mantissa_bits=mantissa_bits,
        layers=digests,
        digest=committed.digest(str(key)),
        size_bytes=sum(found.size_bytes for found in committed.under(str(key)).values()),
        n_train=n_samples["train"],
        n_eval=n_samples["eval"],
    )
