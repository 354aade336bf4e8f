"""Record a run's model, data and machine in its manifest, and check later ones against that record."""

import platform
from collections.abc import Iterable
from typing import Any

import torch
import torchvision

from satstore.capture.layers import Layer, LayerDescription
from satstore.config.experiment import ExperimentConfig
from satstore.datasets.image_data import ImageData
from satstore.errors import ConfigError, CorruptError
from satstore.models.plan import describe_model
from satstore.registry import DATASETS, MODELS
from satstore.runs.manifest import DatasetRecord, LayerRecord, Manifest
from satstore.runs.run import Run
from satstore.storage.zarr import digest_labels
from satstore.system.text import list_first
from satstore.training.run_model import load_model
from satstore.training.session import Session


def find_origins(config: ExperimentConfig) -> dict[str, str]:
    """Return ``module:name`` of a config's model and dataset, of each that is not satstore's own."""
    rows = {"model": MODELS.entry(config.model), "dataset": DATASETS.entry(config.dataset)}
    return {kind: row.origin for kind, row in rows.items() if not row.is_own}


def check_origins(run: Run) -> None:
    """Raise ConfigError if a run's model or dataset comes from another module than in training."""
    found = find_origins(run.config)
    known: dict[str, str] = run.manifest.environment.get("third_parties", found)
    for kind in ("model", "dataset"):
        if known.get(kind) != found.get(kind):
            was, now = (origins.get(kind, "satstore") for origins in (known, found))
            raise ConfigError(
                f"{run.name} was trained with the {kind} {getattr(run.config, kind)!r} of {was}, which is "
                f"now that of {now}; give the same plugins or registries, or use another run id"
            )


def check_data(run: Run, data: ImageData) -> None:
    """Check that a run was trained on these data.

    CorruptError if the fingerprints differ; ConfigError if its model or dataset is of another module now.
    """
    known = run.manifest.dataset
    check_origins(run)
    if known and known.has_fingerprint and known.fingerprint != data.fingerprint:
        raise CorruptError(
            f"{run.name} was trained on other data than {data.name} in {run.config.data_dir} is now "
            f"(fingerprint {known.fingerprint[:12]}, found {data.fingerprint[:12]}); use another run id"
        )


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the manifest's record of this machine."""
    return {
        "host": platform.node(),
        "torch": torch.__version__,
        "device": str(device),
        "n_threads": torch.get_num_threads(),
    }


def set_layers(manifest: Manifest, layers: Iterable[Layer]) -> None:
    """Set a manifest's layers, in forward order."""
    manifest.layers = [
        LayerRecord(
            layer=layer.name,
            index=layer.index,
            kind=layer.kind,
            n_features=layer.n_features,
            output_shape=list(layer.output_shape),
            form=layer.layout.form,
            block=layer.block,
            n_prefix=layer.n_prefix,
            grid=list(layer.grid),
        )
        for layer in layers
    ]


def set_data(manifest: Manifest, name: str, data: ImageData) -> None:
    """Set a manifest's record of the dataset of that name in the config."""
    manifest.dataset = DatasetRecord(
        name=name,
        n_train=len(data.train),
        n_eval=len(data.eval),
        classes=list(data.classes),
        fingerprint=data.fingerprint,
        labels_sha256={
            split: digest_labels(images.labels, images.sample_ids)
            for split, images in (("train", data.train), ("eval", data.eval))
        },
        skipped={split: list(names) for split, names in data.skipped.items()},
    )


def assume_data(run: Run, data: ImageData, device: torch.device) -> None:
    """Record the data that are here, and the layers' shapes, for a run of which they are not known."""
    model = load_model(run, len(data.classes), device)
    layers = describe_model(model, run.config).layers

    def change(manifest: Manifest) -> None:
        set_layers(manifest, layers)
        set_data(manifest, run.config.dataset, data)

    run.commit(change=change)
    run.warn(
        "extract", f"it has no fingerprint of its data, and is taken to be of the {data.name} that is here"
    )


def describe_session(run: Run, session: Session, described: LayerDescription) -> None:
    """Record a session's layers, data and machine in the manifest; warn if the machine changed.

    CorruptError if the run was trained on other data.
    """
    config, data = session.config, session.data
    check_data(run, data)
    environment = {
        **run.manifest.environment,
        **describe_machine(session.device),
        "torchvision": torchvision.__version__,
        "n_ranks": session.group.size,
        "n_workers": session.workers,
        "third_parties": find_origins(config),
    }
    if session.epoch:
        for key in ("device", "n_threads", "n_workers", "n_ranks"):
            if run.manifest.environment.get(key) != environment[key]:
                run.warn(
                    "train",
                    f"gone on after epoch {session.epoch} with {key} {environment[key]}, begun with "
                    f"{run.manifest.environment.get(key)}: bits may differ from an undisturbed run",
                )

    def change(manifest: Manifest) -> None:
        manifest.environment = environment
        set_layers(manifest, described.layers)
        set_data(manifest, config.dataset, data)

    run.commit(change=change)
    for text in described.warnings:
        run.warn("train", text)
    for split, names in data.skipped.items():
        if names:
            shown = list_first(names, 3)
            run.warn("train", f"{len(names)} corrupt {split} images are left out: {shown}")
