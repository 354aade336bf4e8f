"""Record features that somebody computed: their latents and spectra, as those of a model's layers."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from satstore.config.experiment import RECORDED, ExperimentConfig
from satstore.config.grid import expand_grid
from satstore.config.validation import describe_invalid
from satstore.errors import ConfigError
from satstore.runs.events import Listener
from satstore.runs.logs_folder import check_run_id, find_logs_dir, make_run
from satstore.runs.manifest import SourceRecord
from satstore.runs.run import Run
from satstore.stages.extract.stage import place as place_latents
from satstore.stages.forms import flag_words
from satstore.stages.pipeline import apply_stages
from satstore.stages.record.feature_data import FeatureData, open_data
from satstore.stages.record.feature_parameters import FeatureParameters
from satstore.stages.record.feature_writer import FeatureWriter
from satstore.stages.record.record import remove_attempt
from satstore.storage.feature_files import identify_file, split_place

MODEL = "features"
"""The model's name in runs of features."""


def record_features(
    features: Sequence[str | Path],
    run: str,
    *,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
    begin: Callable[[Run], None] = lambda _: None,
    **parameters: Any,
) -> Run:
    """Store features that somebody computed, as a run that probes, plots and the terminal app take.

    The files are read block by block, one split after the other. An attempt that was stopped or killed is
    gone on with by the same call; one that was finished is returned as it is.

    Parameters
    ----------
    features
        Files of features; see :func:`satstore.storage.feature_files.open_features`. Each array is a layer:
        (sample, feature), (sample, token, feature) or (sample, channel, y, x).
    run
        The run id.
    logs_dir
        By default SATSTORE_LOGS_DIR, else ``./logs``.
    listener
        Called with every event.
    begin
        Called with the run before its first pass.
    **parameters
        ``labels``, ``eval_features``, ``eval_labels``, ``split``, ``seed``, ``pooling``, ``tokens``,
        ``max_samples``, ``latents_dir``, ``memory_limit``, ``force``, ``overwrite``, as the flags of
        ``satstore import``. Features of one axis are stored as they are, whatever the pooling.

    Returns
    -------
    Run
        With its latents, spectra and saturation. A sample's id is its row in the file.

    Raises
    ------
    NotFoundError, CorruptError
        If there is no such file, or it can't be read.
    ConfigError
        If the files don't fit each other, or the run holds something else.
    MemoryLimitError, DiskSpaceError
        If memory or disk can't suffice.

    Examples
    --------
    >>> run = satstore.record_features(["a.npy"], "mine", labels="y.npy", split=0.2)  # doctest: +SKIP
    """
    places, asked = tuple(map(str, features)), _validate(parameters)
    with open_data(places, asked) as data, ExitStack() as undo:
        config = _make_config(data, asked)
        folder = find_logs_dir(logs_dir, config) / check_run_id(run) / config.experiment
        source = describe_import(places, run, asked)
        if (folder / "manifest.json").exists():
            _check_same(Run(folder), source, overwrite=asked.overwrite)
        else:
            undo.callback(remove_attempt, folder)
        recorded = make_run(folder.parent.parent, run, config, listener)
        if asked.overwrite or not _is_finished(recorded):
            with recorded.lock():
                if asked.latents_dir is not None:
                    place_latents(recorded, asked.latents_dir)
                begin(recorded)
                writer = FeatureWriter(recorded, data, asked.memory_limit)
                writer.plan(force=asked.force)
                undo.pop_all()
                writer.write(source, overwrite=asked.overwrite)
    return apply_stages(recorded, "saturation")


def _validate(parameters: dict[str, Any]) -> FeatureParameters:
    try:
        return FeatureParameters.model_validate(parameters)
    except ValidationError as error:
        raise ConfigError(describe_invalid(error)) from error


def _make_config(data: FeatureData, asked: FeatureParameters) -> ExperimentConfig:
    is_of_vectors = all(len(layer.shape) == 2 for layer in data.split("train").layers.values())
    [config] = expand_grid(
        {
            "model": MODEL,
            "dataset": RECORDED,
            "resolution": 1,
            "epoch": 1,
            "augment": False,
            "stages": ["train", "extract", "saturation"],
            "pooling": list(asked.pooling or (["full"] if is_of_vectors else ["4"])),
            "tokens": None if asked.tokens is None else list(asked.tokens),
            "max_samples": asked.max_samples,
        }
    )
    return config


def describe_import(places: Sequence[str], run_id: str, asked: FeatureParameters) -> SourceRecord:
    """Return the manifest's record of an import; equal records are of the same files, stored the same way."""
    given = [*places, *asked.eval_features, *filter(None, (asked.labels, asked.eval_labels))]
    words = ["satstore", "import", *map(_whole_place, places), "--run-id", run_id]
    values = asked.model_dump(exclude_defaults=True, exclude={"overwrite"})
    for key in ("labels", "eval_labels"):
        if key in values:
            values[key] = _whole_place(values[key])
    if "eval_features" in values:
        values["eval_features"] = tuple(map(_whole_place, values["eval_features"]))
    return SourceRecord(
        source=MODEL,
        data=", ".join(map(_whole_place, [*places, *asked.eval_features])),
        arguments={"files": [identify_file(split_place(place)[0]) for place in given], **asked.of_files},
        command=shlex.join([*words, *flag_words(FeatureParameters, values)]),
    )


def _whole_place(place: str) -> str:
    """Return a place with the whole path of its file."""
    path, name = split_place(place)
    return f"{path.absolute()}" if name is None else f"{path.absolute()}:{name}"


def _is_finished(run: Run) -> bool:
    """Tell whether all was stored; one that was killed at its very end may not say so yet."""
    return all(run.status(stage) == "done" for stage in ("train", "extract"))


def _check_same(run: Run, source: SourceRecord, *, overwrite: bool) -> None:
    """Raise ConfigError if a run that is there is of something else, and is not to be overwritten."""
    known = run.manifest.source
    is_begun = run.is_trained or known is not None
    if overwrite or not is_begun or (known is not None and known.arguments == source.arguments):
        return
    what = (
        "of other files or settings, or of these before they changed"
        if known and known.source == MODEL
        else ""
    )
    unfinished = "" if _is_finished(run) else ", unfinished"
    raise ConfigError(
        f"{run.name} is there already{unfinished}{f', {what}' if what else ''}; import under another run id, "
        "or replace it with --overwrite"
    )
