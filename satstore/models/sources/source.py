"""A model from outside satstore, with what makes its inputs of raw images or texts."""

import ast
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from satstore.errors import ConfigError

Kind = Literal["image", "text", "any"]
"""The raw samples that a source takes; ``any`` where that is known to a user's own code alone."""

OPENERS = {
    "torchvision": "satstore.models.sources.torchvision_source:open_torchvision",
    "timm": "satstore.models.sources.timm_source:open_timm",
    "hf": "satstore.models.sources.hf_source:open_hf",
}
"""What stands before a source's colon -> the function that opens it; anything else is a module to import."""

EXTRAS = {"timm": "timm", "transformers": "hf"}
"""Package -> satstore's extra that installs it."""

OPEN_FACTORY = "satstore.models.sources.factory_source:open_factory"


@dataclass(frozen=True)
class SourceOptions:
    """What a source is opened with.

    Attributes
    ----------
    weights
        A file of weights: safetensors, or one of torch.save. None for the library's own download.
    untrained
        Whether the weights are to be random, drawn by `seed`.
    arguments
        Keyword arguments of the model.
    device
        Where an untrained model is built: ``cpu``, or ``meta``, which computes no values.
    """

    weights: Path | None = None
    untrained: bool = False
    seed: int = 0
    device: str = "cpu"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def describe_weights(self, own: str) -> str:
        """Say in plain text where the weights come from; `own` are the source's own."""
        if self.untrained:
            return f"random, seed {self.seed}"
        return own if self.weights is None else self.weights.name


@dataclass(frozen=True)
class Source:
    """A model with its own recipe for inputs.

    Attributes
    ----------
    text
        The source as it was typed: ``timm:vit_small_patch16_224``.
    prepare
        Makes an input of the model of a PIL image or of a text; can be pickled.
    collate
        Makes a batch's inputs, a tensor or a mapping of tensors, of a list of such inputs; can be pickled.
    version
        The package that built the model: ``timm 1.0.31``.
    weights
        Where the weights come from, in plain text.
    arguments
        The keyword arguments that were given.
    recipe
        What `prepare` does, in plain text.
    """

    text: str
    model: nn.Module
    prepare: Callable[[Any], Any]
    collate: Callable[[list[Any]], Any]
    kind: Kind
    version: str
    weights: str
    arguments: Mapping[str, Any]
    recipe: str


def open_source(
    text: str,
    *,
    weights: Path | None = None,
    untrained: bool = False,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Source:
    """Open the model that a text names: ``torchvision:NAME``, ``timm:NAME``, ``hf:PATH``, ``module:factory``.

    ConfigError if it can't be built so, UnreachableError if its weights can't be downloaded, CorruptError if
    the file of weights can't be read.
    """
    library, colon, name = text.partition(":")
    if not colon or not name or not library:
        raise ConfigError(
            f"{text!r} is no source; expected torchvision:NAME, timm:NAME, hf:PATH_OR_NAME, module:factory, "
            "or a run"
        )
    if weights is not None and untrained:
        raise ConfigError("--weights and --untrained exclude each other")
    module, _, function = OPENERS.get(library, OPEN_FACTORY).partition(":")
    opener: Callable[[str, SourceOptions], Source] = getattr(importlib.import_module(module), function)
    return opener(text, SourceOptions(weights, untrained, seed, device, dict(arguments or {})))


@contextmanager
def importing(text: str, package: str) -> Iterator[None]:
    """Turn the lack of a package into a ConfigError that names the extra of its name."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{text} needs the package {error.name or package}: pip install 'satstore[{EXTRAS[package]}]'"
        ) from error


def parse_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` texts: values in JSON or Python's spelling, otherwise texts.

    ConfigError if one has no key, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier() or key in found:
            problem = "a key that was given before" if key in found else "no key and value"
            raise ConfigError(f"--set {text}: {problem}; expected key=value, such as num_classes=0")
        found[key] = _parse_value(value)
    return found


def _parse_value(text: str) -> Any:
    """Return a value that a manifest can hold; the text itself if it is none."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return value
    return text
