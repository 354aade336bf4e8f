"""A run in training: device, data, model, and everything that a checkpoint holds."""

import io
import pickle
import platform
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from satstore.capture.layers import Layer, describe_layers, select_layers
from satstore.capture.recorders import LatentRecorder
from satstore.config.experiment import ExperimentConfig
from satstore.datasets.corrupt_images import skip_corrupt
from satstore.datasets.foreign_loaders import from_loaders, takes_loaders
from satstore.datasets.image_data import ImageData
from satstore.errors import ConfigError, CorruptError, DeviceError
from satstore.models.build import build_model as build_model_of
from satstore.models.build import explaining_misfit
from satstore.optimizers import make_optimizer
from satstore.registry import DATASETS, MODELS
from satstore.runs.manifest import DatasetRecord, LayerRecord, Manifest, checkpoint_name
from satstore.runs.run import Run
from satstore.storage.zarr import digest_labels
from satstore.system.cores import count_cores
from satstore.system.limits import loader_bytes
from satstore.system.process_group import ALONE, Ranks


def choose_device(name: str | None) -> torch.device:
    """Return the device of a name, or, of None, the first GPU if there is one, else the CPU.

    Raises
    ------
    DeviceError
        If the name is none, or no such device is there.
    """
    n_gpus = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda:0" if n_gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"no device named {name!r}; expected cpu or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        found = f"the GPUs here are cuda:0 to cuda:{n_gpus - 1}" if n_gpus else "no GPU is here"
        raise DeviceError(f"device {name!r} is not there: {found}; use --device cpu, or a GPU that is")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; expected cpu or cuda:N")
    return device


def wake(device: torch.device) -> None:
    """Compute something on a GPU, which loads its runtime and libraries."""
    square = torch.ones(64, 64, device=device)
    torch.cuda.synchronize(device)
    (square @ square).sum().item()


def load_data(config: ExperimentConfig, known: DatasetRecord | None = None) -> ImageData:
    """Build a config's dataset, without corrupt images if the config says so.

    Parameters
    ----------
    known
        What is recorded of the data, if they were used before: which images were left out.
    """
    factory = DATASETS[config.dataset]
    if takes_loaders(factory):
        return from_loaders(config.dataset, factory, config.resolution, config.batch_size, config.data_dir)
    data: ImageData = factory(
        resolution=config.resolution, data_dir=config.data_dir, augment=config.augment, seed=config.seed
    )
    return skip_corrupt(data, known.skipped if known else None) if config.on_corrupt == "skip" else data


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


def build_model(config: ExperimentConfig, n_classes: int, device: torch.device) -> nn.Module:
    """Build a config's model on a device, its weights fixed by the config's seed."""
    torch.manual_seed(config.seed)
    with explaining_misfit(config.model, config.resolution):
        model = build_model_of(config.model, n_classes, config.resolution)
    # With channels last, a map's positions are rows of its memory: the samples of spectra without a copy.
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def recorded_layers(
    model: nn.Module, config: ExperimentConfig, image: torch.Tensor | None = None
) -> dict[Layer, nn.Module]:
    """Return the layers of a model that a config records, in forward order.

    Parameters
    ----------
    image
        What the model is called with; by default a black one of three channels and the config's size.
    """
    layers = select_layers(model, config.layers, config.exclude_layers)
    device = next(model.parameters()).device
    if image is None:
        image = torch.zeros(1, 3, config.resolution, config.resolution)
    with explaining_misfit(config.model, config.resolution):
        found = describe_layers(model, image.to(device), layers)
    return {layer: layers[layer.name] for layer in found}


def choose_workers(config: ExperimentConfig, in_memory: bool, memory_limit: int | None = None) -> int:
    """Return the number of loader processes: the config's, else by the cores, but none for data in memory.

    Parameters
    ----------
    memory_limit
        Of a stage, in bytes: loaders that aren't the config's take half of it at most, but for one.
    """
    if config.workers is not None:
        return config.workers
    if in_memory:
        return 0
    n_workers = min(8, count_cores())
    while memory_limit is not None and n_workers > 1 and loader_bytes(n_workers) > memory_limit / 2:
        n_workers -= 1
    return n_workers


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


@contextmanager
def recording(
    model: nn.Module, layers: Mapping[str, nn.Module], keys: Iterable[str]
) -> Iterator[LatentRecorder]:
    """Record the latents of some of a model's layers, in eval mode, at some poolings (``pool4``)."""
    model.eval()
    sizes = tuple(int(k.removeprefix("pool")) if k.startswith("pool") else k for k in keys)
    with LatentRecorder(layers, sizes) as recorder:  # type: ignore[arg-type]
        yield recorder


class Session:
    """Everything that training changes: model, optimizer, scheduler, order of the data, history.

    Attributes
    ----------
    model
        The model, its parameters and buffers under its own names.
    trained
        What is called in training: the model, or around it what averages gradients over several ranks.
    epoch
        Epochs done.
    history
        One row of metrics per epoch done.
    """

    def __init__(
        self, config: ExperimentConfig, data: ImageData, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.config = config
        self.device = device
        self.ranks = ranks
        random.seed(config.seed)
        np.random.seed(config.seed % 2**32)  # noqa: NPY002  # third parties' augmentations may draw from it
        self.model = build_model(config, len(data.classes), device)
        if ranks.size > 1 and device.type == "cuda":
            # Statistics of the whole batch, as one process has them; torch has no such layer for the CPU.
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.trained = ranks.wrap(self.model)
        if not ranks.is_main:
            torch.manual_seed(config.seed + (ranks.rank << 32))  # dropout and augmentation of its own
        self.optimizer, self.scheduler = make_optimizer(config.optimizer, self.model)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.history: list[dict[str, float]] = []

    def state(self) -> dict[str, Any]:
        """Return all of it, in types that load with ``weights_only=True``; the ranks call this together."""
        rng, *others = self.ranks.gather(self._rng()) or [{}]
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "epoch": self.epoch,
            "history": self.history,
            "loader": self.generator.get_state(),
            "rng": rng,
            **({"rng_of_ranks": others} if others else {}),
        }

    def _rng(self) -> dict[str, Any]:
        kind, keys, *numpy_rest = np.random.get_state()  # noqa: NPY002
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "python": _as_lists(random.getstate()),
            "numpy": [kind, np.asarray(keys).tolist(), *numpy_rest],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state of :meth:`state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.epoch = state["epoch"]
        self.history = state["history"]
        self.generator.set_state(state["loader"])
        known = [state["rng"], *state.get("rng_of_ranks", ())]
        if self.ranks.rank >= len(known):
            return  # one more than there were: it goes on with its own seed
        rng = known[self.ranks.rank]
        torch.set_rng_state(rng["torch"])
        if rng["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)
        version, internal, gauss = rng["python"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(tuple(rng["numpy"]))  # noqa: NPY002


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def read_checkpoint(run: Run, epoch: int | None = None) -> dict[str, Any]:
    """Return the state of a run's checkpoint, checked against the manifest's digest.

    Of an earlier epoch, the weights were kept: ``model`` alone.

    Raises
    ------
    CorruptError
        If it isn't what was committed, or holds more than tensors, numbers, strings, lists and dicts.
    """
    name = checkpoint_name(epoch)
    content = run.read_file(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about the file, the error says
            # Random states stay on the CPU whatever the device.
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's advice, to trust the file, is none to give
        raise CorruptError(
            f"{run.path / name} holds more than tensors, numbers, strings, lists and dicts: satstore did not "
            "write it, and does not load it; restore it from a copy, or train under another run id"
        ) from error
    except Exception as error:  # torch raises zipfile's and its own errors here
        raise CorruptError(f"{run.path / name} can't be loaded: {error}") from error
    return state


def load_model(run: Run, n_classes: int, device: torch.device, epoch: int | None = None) -> nn.Module:
    """Build a run's model and load its checkpoint's weights, or those that were kept of an earlier epoch.

    Raises
    ------
    CorruptError
        If the checkpoint is of another model.
    """
    model = build_model(run.config, n_classes, device)
    load_weights(model, read_checkpoint(run, epoch)["model"], run, epoch)
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], run: Run, epoch: int | None = None) -> None:
    """Load weights into a run's model; see :func:`load_model`."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CorruptError(
            f"{run.path / checkpoint_name(epoch)} is of another model than {run.config.model}: {reason}"
        ) from error


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


def check_batches(config: ExperimentConfig, data: ImageData, ranks: Ranks = ALONE) -> None:
    """Refuse a batch size that leaves a rank one image, or none, of some batch.

    Raises
    ------
    ConfigError
        Because batch normalisation after the last pooling can't train on a batch of one.
    """
    n_train = len(data.train)
    last = n_train % config.batch_size or config.batch_size
    smallest = min(ranks.counts(size)[-1] for size in (last, min(config.batch_size, n_train)))
    last_of_eval = len(data.eval) % config.batch_size or config.batch_size
    if ranks.counts(last_of_eval)[-1] < 1:
        raise ConfigError(
            f"batch_size {config.batch_size} leaves a last batch of {last_of_eval} of {len(data.eval)} "
            f"evaluation images, of which one of {ranks.size} ranks has none; choose another"
        )
    if smallest < 2:
        of_each = f" for one of {ranks.size} ranks" if ranks.size > 1 else ""
        count = "one" if smallest else "none"
        raise ConfigError(
            f"batch_size {config.batch_size} leaves a batch of {count} of {n_train} training images"
            f"{of_each}, on which batch normalisation can't train; choose another"
        )
