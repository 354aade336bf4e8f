"""The data that a session trains on: the dataset of a config, its loaders' workers and batches."""

from satstore.config.experiment import ExperimentConfig
from satstore.datasets.corrupt_images import skip_corrupt
from satstore.datasets.foreign_loaders import from_loaders, takes_loaders
from satstore.datasets.image_data import ImageData
from satstore.errors import ConfigError
from satstore.registry import DATASETS
from satstore.runs.manifest import DatasetRecord
from satstore.system.cores import count_cores
from satstore.system.limits import loader_bytes
from satstore.system.process_group import ALONE, Ranks


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
