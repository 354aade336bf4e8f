"""``module:factory``: a model that a function of the user's own code returns."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.utils.data import default_collate

from satstore.errors import ConfigError, UnknownNameError, reason_of
from satstore.models.sources.images import PrepareImage, scale_pixels
from satstore.models.sources.source import OPENERS, Source, SourceOptions
from satstore.models.sources.weights import building, explaining_downloads, load_tensors
from satstore.registry import suggest


def open_factory(text: str, options: SourceOptions) -> Source:
    """Call ``factory(**arguments)``, which returns a model, or a model and what prepares its inputs.

    A model alone gets pixels in 0..1. It needs ``--weights`` or ``--untrained``, while one that comes with
    its preparation may have loaded weights of its own. See :func:`.source.open_source`.
    """
    module_name, _, factory_name = text.partition(":")
    module = _import_module(module_name)
    factory: Any = getattr(module, factory_name, None)
    if not callable(factory):
        known = [name for name, value in vars(module).items() if callable(value) and name[:1] != "_"]
        raise UnknownNameError(
            f"{module_name} has no function {factory_name!r}{suggest(factory_name, known)}"
        )
    with explaining_downloads(text, options.arguments), building(options.seed, options.device):
        found = factory(**options.arguments)
    model, prepare = _split(text, found)
    if prepare is None and options.weights is None and not options.untrained:
        raise ConfigError(
            f"{text} returns a model alone; give its weights (--weights FILE), or say that they are random "
            "(--untrained), or return (model, prepare)"
        )
    if options.weights is not None:
        load_tensors(model, options.weights, text)
    return Source(
        text=text,
        model=model.eval(),
        prepare=prepare or PrepareImage(text, scale_pixels),
        collate=default_collate,
        kind="any" if prepare else "image",
        version=f"{module_name} {getattr(module, '__version__', '')}".strip(),
        weights=options.describe_weights(f"as {text} returns them"),
        arguments=options.arguments,
        recipe=f"prepare of {text}" if prepare else "RGB pixels in 0..1, at the image's own size",
    )


def _import_module(name: str) -> ModuleType:
    """Import a module that the user named, from Python's path or last from the working folder."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] and error.name != name:
            raise ConfigError(f"{name} can't be imported: {reason_of(error)}") from error
        raise UnknownNameError(
            f"no module {name!r} to import, and no library of models of that name{suggest(name, OPENERS)}"
        ) from error
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(f"{name} can't be imported: {reason_of(error, with_type=True)}") from error


def _split(text: str, found: Any) -> tuple[nn.Module, Callable[[Any], Any] | None]:
    model, prepare = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module) or not (prepare is None or callable(prepare)):
        parts = (
            [type(part).__name__ for part in found] if isinstance(found, tuple) else [type(found).__name__]
        )
        raise ConfigError(
            f"{text} returns {', '.join(parts)}; expected a torch.nn.Module, or (model, prepare), where "
            "prepare makes an input of an image or a text"
        )
    return model, prepare
