"""The data that a session trains on: a config's dataset, the number of loader processes, the batch size."""

from satstore.config.experiment import ExperimentConfig
from satstore.datasets.corrupt_images import skip_corrupt
from satstore.datasets.foreign_loaders import from_loaders, takes_loaders
from satstore.datasets.image_data import ImageData
from satstore.errors import ConfigError
from satstore.registry import DATASETS
from satstore.runs.manifest import DatasetRecord
from satstore.system.cores import count_cores
from satstore.system.limits import loader_bytes
from satstore.system.process_group import SINGLE_PROCESS, ProcessGroup


def load_data(config: ExperimentConfig, known: DatasetRecord | None = None) -> ImageData:
    """Build a config's dataset, without corrupt images if the config says so.

    The manifest's record of the data, if they were used before, names the images to leave out.
    """
    factory = DATASETS[config.dataset]
    if takes_loaders(factory):
        return from_loaders(config.dataset, factory, config.resolution, config.batch_size, config.data_dir)
    data: ImageData = factory(
        resolution=config.resolution, data_dir=config.data_dir, augment=config.augment, seed=config.seed
    )
    return skip_corrupt(data, known.skipped if known else None) if config.on_corrupt == "skip" else data


def choose_workers(config: ExperimentConfig, in_memory: bool, memory_limit: int | None = None) -> int:
    """Return the number of loader processes: the config's, else 0 for data in memory, else one per core.

    Where the config names no number, loaders take half of a stage's memory limit at most, but for one.
    """
    if config.workers is not None:
        return config.workers
    if in_memory:
        return 0
    n_workers = min(8, count_cores())
    while memory_limit is not None and n_workers > 1 and loader_bytes(n_workers) > memory_limit / 2:
        n_workers -= 1
    return n_workers


def check_batches(config: ExperimentConfig, data: ImageData, group: ProcessGroup = SINGLE_PROCESS) -> None:
    """Check that a process's share of every training batch has two images, and of every evaluation batch one.

    ConfigError if not: batch normalisation after the last pooling can't train on a batch of one.
    """
    n_train = len(data.train)
    last = n_train % config.batch_size or config.batch_size
    smallest = min(group.counts(size)[-1] for size in (last, min(config.batch_size, n_train)))
    last_of_eval = len(data.eval) % config.batch_size or config.batch_size
    if group.counts(last_of_eval)[-1] < 1:
        raise ConfigError(
            f"batch_size {config.batch_size} leaves a last batch of {last_of_eval} of {len(data.eval)} "
            f"evaluation images, of which one of {group.size} ranks has none; choose another"
        )
    if smallest < 2:
        of_each = f" for one of {group.size} ranks" if group.size > 1 else ""
        count = "one" if smallest else "none"
        raise ConfigError(
            f"batch_size {config.batch_size} leaves a batch of {count} of {n_train} training images"
            f"{of_each}, on which batch normalisation can't train; choose another"
        )
