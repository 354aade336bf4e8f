"""What a manifest records of a run's model, data and machine, and whether it is still so."""

import platform
from collections.abc import Iterable, Mapping

import torch
import torchvision
from torch import nn

from satstore.capture.layers import Layer
from satstore.config.experiment import ExperimentConfig
from satstore.datasets.image_data import ImageData
from satstore.errors import ConfigError, CorruptError
from satstore.registry import DATASETS, MODELS
from satstore.runs.manifest import DatasetRecord, LayerRecord, Manifest
from satstore.runs.run import Run
from satstore.storage.zarr import digest_labels
from satstore.training.run_model import load_model, recorded_layers
from satstore.training.session import Session
from satstore.training.session_data import choose_workers


def third_parties(config: ExperimentConfig) -> dict[str, str]:
    """Return where a config's model and dataset come from, if not from satstore."""
    rows = {"model": MODELS.entry(config.model), "dataset": DATASETS.entry(config.dataset)}
    return {kind: row.origin for kind, row in rows.items() if not row.is_own}


def check_origins(run: Run) -> None:
    """Check that the names of a run's model and dataset stand for what it was trained with.

    Raises
    ------
    ConfigError
        If one comes from elsewhere now.
    """
    found = third_parties(run.config)
    known: dict[str, str] = run.manifest.environment.get("third_parties", found)
    for kind in ("model", "dataset"):
        if known.get(kind) != found.get(kind):
            was, now = (origins.get(kind, "satstore") for origins in (known, found))
            raise ConfigError(
                f"{run.name} was trained with the {kind} {getattr(run.config, kind)!r} of {was}, which is "
                f"now that of {now}; give the same plugins or registries, or use another run id"
            )


def check_data(run: Run, data: ImageData) -> None:
    """Check that data are those that a run was trained on.

    Raises
    ------
    CorruptError
        If the fingerprints differ.
    ConfigError
        If its model or dataset comes from elsewhere now.
    """
    known = run.manifest.dataset
    check_origins(run)
    if known and known.fingerprint not in (data.fingerprint, ""):  # of an import, it is not known
        raise CorruptError(
            f"{run.name} was trained on other data than {data.name} in {run.config.data_dir} is now "
            f"(fingerprint {known.fingerprint[:12]}, found {data.fingerprint[:12]}); use another run id"
        )


def note_layers(manifest: Manifest, layers: Iterable[Layer]) -> None:
    """Record in a manifest the layers of an experiment."""
    manifest.layers = [
        LayerRecord(
            layer=layer.name,
            index=layer.index,
            kind=layer.kind,
            n_features=layer.n_features,
            output_shape=list(layer.output_shape),
        )
        for layer in layers
    ]


def note_data(manifest: Manifest, config: ExperimentConfig, data: ImageData, layers: Iterable[Layer]) -> None:
    """Record in a manifest the layers and the data of an experiment."""
    note_layers(manifest, layers)
    manifest.dataset = DatasetRecord(
        name=config.dataset,
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


def adopt(run: Run, data: ImageData, device: torch.device) -> None:
    """Record of an imported run what its files don't tell: its layers' shapes, and the data that is here."""
    model = load_model(run, len(data.classes), device)
    layers = recorded_layers(model, run.config)
    run.commit(change=lambda manifest: note_data(manifest, run.config, data, layers))
    run.warn("extract", f"it was imported, and is taken to be of the {data.name} that is here")


def describe_run(run: Run, session: Session, data: ImageData, layers: Mapping[Layer, nn.Module]) -> None:
    """Record layers, data and environment in the manifest; say so if the data or the machine changed.

    Raises
    ------
    CorruptError
        If the run was trained on other data.
    """
    config = session.config
    check_data(run, data)
    environment = {
        **run.manifest.environment,
        "host": platform.node(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": str(session.device),
        "n_threads": torch.get_num_threads(),
        "n_ranks": session.ranks.size,
        "n_workers": choose_workers(config, data.in_memory),
        "third_parties": third_parties(config),
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
        note_data(manifest, config, data, layers)

    run.commit(change=change)
    for split, names in data.skipped.items():
        if names:
            shown = ", ".join(names[:3]) + (", …" if names[3:] else "")
            run.warn("train", f"{len(names)} corrupt {split} images are left out: {shown}")
