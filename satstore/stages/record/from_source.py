"""Record a model of a library, of a user's own code or of a run, on a dataset or a folder."""

import pickle
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from satstore.config.experiment import ExperimentConfig
from satstore.datasets.any_folder import read_any_folder
from satstore.datasets.loaders import make_loader
from satstore.datasets.prepared_data import PreparedData
from satstore.datasets.raw_data import RawData, RawKind, RawSplit, read_dataset
from satstore.errors import ConfigError
from satstore.models.sources.source import Kind, Source, parse_arguments
from satstore.registry import DATASETS
from satstore.runs.events import Listener
from satstore.runs.logs_folder import find_logs_dir
from satstore.runs.manifest import SourceRecord
from satstore.runs.repair import describe_recorded
from satstore.runs.run import Run
from satstore.stages.extract.stage import place
from satstore.stages.forms import flag_words
from satstore.stages.record.origin import Origin
from satstore.stages.record.parameters import RecordParameters
from satstore.stages.record.record import record
from satstore.stages.record.run_source import describe_source, find_source
from satstore.training.devices import choose_device
from satstore.training.session_data import choose_workers


def record_source(
    source: str,
    parameters: RecordParameters,
    *,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
    begin: Callable[[Run], None] = lambda _: None,
) -> Run:
    """Open a model, prepare its inputs by its own recipe, and record it, as ``satstore record`` does.

    Parameters
    ----------
    source
        ``torchvision:NAME``, ``timm:NAME``, ``hf:PATH_OR_NAME``, ``module:factory``, or a run.
    begin
        Called with the run before its first pass.

    Returns
    -------
    Run
        As :func:`.record.record` writes it, but a sample's id is its index in the dataset or folder.

    Raises
    ------
    ConfigError, NotFoundError, CorruptError, UnreachableError
        If the model or the data can't be had so.
    """
    device = choose_device(parameters.device)
    opened = _open(source, parameters, find_logs_dir(logs_dir))
    data = read_data(parameters, opened.kind)
    load = partial(_make_loader, opened, parameters, data.kind, pin_memory=device.type == "cuda")
    run = record(
        opened.model,
        load(data.train),
        parameters.run_id,
        load(data.eval) if data.eval else None,
        classes=data.classes or None,
        pooling=parameters.pooling or ("4",),
        tokens=parameters.tokens,
        modules=parameters.modules,
        calls=parameters.calls,
        layers=parameters.layers,
        exclude_layers=parameters.exclude,
        max_samples=parameters.max_samples,
        device=str(device),
        memory_limit=parameters.memory_limit,
        resume=parameters.resume,
        overwrite=parameters.overwrite,
        force=parameters.force,
        logs_dir=logs_dir,
        listener=listener,
        origin=_describe_origin(opened, data, parameters, begin),
    )
    _warn_of_one_split(run, data)
    return run


def _open(source: str, parameters: RecordParameters, logs_dir: Path) -> Source:
    return find_source(
        source,
        weights=parameters.weights,
        untrained=parameters.untrained,
        seed=parameters.seed,
        arguments=parse_arguments(parameters.arguments),
        logs_dir=logs_dir,
    )


def _warn_of_one_split(run: Run, data: RawData) -> None:
    """Note that data with one split are both for training and for evaluation."""
    if data.eval is None:
        so = ", so that accuracies are those of the fit" if data.classes else ""
        with run.lock():
            run.warn(
                "record",
                f"{data.name} has one split, which is train and eval{so}; --split .2 draws a part of it for "
                "evaluation",
            )


def read_data(parameters: RecordParameters, takes: Kind) -> RawData:
    """Find the samples that ``--data`` names, before any recipe: a dataset's, or a folder's.

    ConfigError if the model doesn't take what they are, or ``--split`` is given where there are two splits.
    """
    name = parameters.data
    if name in DATASETS:
        if takes == "text":
            raise ConfigError(f"the model takes texts, and {name} has images; give a folder of texts")
        if parameters.split is not None:
            raise ConfigError(f"--split is for folders of one split; the dataset {name} has two")
        return read_dataset(name, _settings(parameters).data_dir)
    return read_any_folder(Path(name), takes, parameters.split, parameters.seed)


def _settings(parameters: RecordParameters) -> ExperimentConfig:
    """Return the config whose data folder and number of workers these parameters stand for."""
    folder = parameters.data_dir and str(parameters.data_dir)
    return ExperimentConfig(cache_dir=folder, workers=parameters.workers)


def _make_loader(
    opened: Source, parameters: RecordParameters, kind: RawKind, split: RawSplit, *, pin_memory: bool
) -> DataLoader[Any]:
    """Make a loader that prepares a split's samples in their order."""
    return make_loader(
        PreparedData(split, opened.prepare, opened.collate),
        parameters.batch_size,
        shuffle=False,
        workers=_choose_workers(opened, parameters, kind),
        pin_memory=pin_memory,
    )


def _choose_workers(opened: Source, parameters: RecordParameters, kind: RawKind) -> int:
    """Return the number of loader processes: those asked for, else none for texts, else by the cores.

    None either for a recipe that can't be sent to them, such as a function within a user's function.
    """
    try:
        pickle.dumps((opened.prepare, opened.collate))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if parameters.workers:
            raise ConfigError(
                f"the recipe of {opened.text} can't be sent to loader processes ({error}); make it a "
                "function of a module, or take --workers 0"
            ) from error
        return 0
    return choose_workers(_settings(parameters), kind == "text", parameters.memory_limit)


def _describe_origin(
    opened: Source, data: RawData, parameters: RecordParameters, begin: Callable[[Run], None]
) -> Origin:
    splits = {"train": data.train, "eval": data.eval or data.train}
    share, seed = parameters.split, parameters.seed
    drawn = "" if share is None else f", of which a share of {share:g} is drawn for evaluation by seed {seed}"
    source = describe_source(
        opened,
        data=f"{_whole_path(parameters.data)}{drawn}",
        command=describe_command(opened.text, parameters),
    )
    return Origin(
        name=re.sub(r"[^\w.-]", "_", Path(opened.text.partition(":")[2] or opened.text).name),
        source=source,
        sample_ids={split: samples.sample_ids for split, samples in splits.items()},
        begin=lambda run: _begin(run, source, parameters, begin),
    )


def _begin(
    run: Run, source: SourceRecord, parameters: RecordParameters, begin: Callable[[Run], None]
) -> None:
    """Note where latents are to lie.

    ConfigError if a run that is gone on with is of another source, or of other data.
    """
    known, given = (
        record and record.model_dump(mode="json", exclude={"command"})
        for record in (run.manifest.source, source)
    )
    if parameters.resume and known is not None and known != given:
        raise ConfigError(
            f"resume: {run.name} was recorded of {describe_recorded(run)}, of which weights, arguments, "
            "recipe or data were others; record under another run id, or with --overwrite"
        )
    if parameters.latents_dir is not None:
        with run.lock():
            place(run, parameters.latents_dir)
    begin(run)


def describe_command(source: str, parameters: RecordParameters) -> str:
    """Return the command line that records a model so, with whole paths, and does not overwrite."""
    library, colon, name = source.partition(":")
    place = f"{library}{colon}{_whole_path(name)}" if library == "hf" else source
    values: dict[str, Any] = parameters.model_dump(exclude_defaults=True, exclude={"overwrite", "resume"})
    for key in ("data", "data_dir", "weights", "latents_dir"):
        if key in values:
            values[key] = _whole_path(str(values[key]))
    return shlex.join(["satstore", "record", place, *flag_words(RecordParameters, values)])


def _whole_path(name: str) -> str:
    """Return the absolute path of a file or folder that is there; any other name as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
