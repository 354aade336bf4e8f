"""What of a run a stage's parameters ask for: layers, poolings, epochs."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from satstore.config.experiment import ExperimentConfig
from satstore.config.latent_keys import (
    LatentsKey,
    LatentsRequest,
    explain_no_latents,
    layers_with_latents,
)
from satstore.errors import ConfigError, NotFoundError
from satstore.registry import suggest
from satstore.runs.manifest import checkpoint_name
from satstore.runs.run import Run


def layers_of(run: Run, parameters: Any) -> list[str]:
    """Return the run's layers that parameters ask for, in forward order.

    ConfigError if that is none, or a regular expression is not one.
    """
    given = {"--layers": parameters.layers, "--exclude": parameters.exclude}
    for flag, text in given.items():
        try:
            re.compile(text or "")
        except re.error as error:
            raise ConfigError(f"{flag} {text!r} is no regular expression: {error}") from error
    chosen = [layer for layer in run.layers if re.search(parameters.layers or "", layer)]
    if parameters.exclude:
        chosen = [layer for layer in chosen if not re.search(parameters.exclude, layer)]
    if not chosen:
        filters = " and ".join(f"{flag} {text!r}" for flag, text in given.items() if text)
        raise ConfigError(
            f"{run.name} has no layer left by {filters}{suggest(parameters.layers or '', run.layers)}"
        )
    return chosen


def epochs_of(run: Run, parameters: Any) -> tuple[int | None, ...]:
    """Return the epochs whose latents parameters ask for, else the config's; None, the first, is the last.

    Epochs of the config that training did not come to are left out: it stopped early. ConfigError if an epoch
    asked for was not trained, NotFoundError if the weights after one were not kept.
    """
    last = run.last_epoch
    asked = parameters.epoch or (last, *(n for n in run.config.latent_epochs if n <= last))
    late = [epoch for epoch in asked if epoch > last]
    if late:
        raise ConfigError(
            f"there is no epoch {late[0] + 1} of {run.name}: its epochs are counted from 1 to {last + 1}"
        )
    earlier = sorted({epoch for epoch in asked if epoch != last})
    check_kept(run, earlier)
    return (*([None] if last in asked else []), *earlier)


def check_kept(run: Run, epochs: Iterable[int]) -> None:
    """Raise NotFoundError unless training kept the weights after some epochs."""
    gone = [epoch for epoch in epochs if not run.has_file(checkpoint_name(epoch))]
    if gone:
        kept = [n for n in range(run.last_epoch) if run.has_file(checkpoint_name(n))]
        raise NotFoundError(
            f"{run.name} did not keep the weights after epoch {list_epochs(gone)} when trained "
            f"(kept: {list_epochs(kept) or 'none'}); to have latents of them, train a config with "
            f'"latent_epochs": {gone}, where they are counted from 0, under another run id, or this one with '
            "it and --overwrite"
        )


def list_epochs(epochs: Iterable[int]) -> str:
    """Return epochs, counted from 0, as people count them."""
    return ", ".join(str(epoch + 1) for epoch in epochs)


def latents_of(run: Run, parameters: Any) -> dict[LatentsKey, list[str]]:
    """Return the keys of the latents that parameters ask for, and each one's layers, in forward order.

    Keys are of each epoch, the last first, each pooling; those of the config are left out where the layers
    asked for have no such latents.

    Raises
    ------
    ConfigError
        If no layer is asked for, or none has latents of a key that is; if an epoch was not trained.
    NotFoundError
        If the weights after an epoch were not kept.
    """
    request, layers = request_of(run, parameters), {record.layer: record for record in run.manifest.layers}
    is_named, names = has_named_latents(parameters), layers_of(run, parameters)
    if is_named:
        LatentsRequest.of((), parameters.tokens or ()).check_tokens(layers, run.name)
    of_key: dict[LatentsKey, list[str]] = {}
    for key in request.all_keys if is_named else request.keys(layers.values()):
        having = layers_with_latents(layers, key, with_grid=request.with_grid)
        of_key[key] = [name for name in names if name in having]
    wrong = [key for key, found in of_key.items() if not found]
    if wrong and (is_named or len(wrong) == len(of_key)):
        raise ConfigError(explain_no_latents({name: layers[name] for name in names}, wrong[0], run.name))
    return {
        key.at(epoch): found for epoch in epochs_of(run, parameters) for key, found in of_key.items() if found
    }


def has_named_latents(parameters: Any) -> bool:
    """Tell whether parameters name the poolings or the tokens: then the config's values don't count."""
    return parameters.pooling is not None or parameters.tokens is not None


def choose_request(config: ExperimentConfig, parameters: Any) -> LatentsRequest:
    """Return which latents parameters ask for, else a config."""
    of_config = config.latents_request
    if not has_named_latents(parameters):
        return of_config
    request = LatentsRequest.of(parameters.pooling or (), parameters.tokens or ())
    # The grid alone says how poolings are to be made, and not which.
    poolings = request.poolings if request.all_keys else of_config.poolings
    return replace(request, poolings=poolings, with_grid=request.with_grid or of_config.with_grid)


def request_of(run: Run, parameters: Any) -> LatentsRequest:
    """Return which latents of a run parameters ask for, else its config; with the grid if stored ones are."""
    request, manifest = choose_request(run.config, parameters), run.manifest
    patches = {record.layer for record in manifest.layers if record.form == "tokens"}
    stored = {**manifest.latents, **manifest.re_extractable}
    has_stored = any(
        patches & {*record.layers.get("train", ()), *record.layers.get("eval", ())}
        for key, record in stored.items()
        if not key.is_of_tokens
    )
    return replace(request, with_grid=request.with_grid or has_stored)
