"""What of a run a stage's parameters ask for: layers, poolings, epochs."""

import re
from collections.abc import Iterable
from typing import Any

from satstore.config.latent_keys import LatentsKey
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


def poolings_of(run: Run, parameters: Any) -> tuple[str, ...]:
    """Return the poolings that parameters ask for, else the config's."""
    return tuple(parameters.pooling or run.config.pooling)


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


def latents_of(run: Run, parameters: Any) -> list[LatentsKey]:
    """Return the keys of the latents that parameters ask for: of each epoch, the last first, each pooling."""
    poolings = poolings_of(run, parameters)
    return [LatentsKey(pooling, epoch) for epoch in epochs_of(run, parameters) for pooling in poolings]
