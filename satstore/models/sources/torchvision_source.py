"""``torchvision:NAME``: torchvision's models, with the transforms of their weights."""

from typing import Any

import torchvision
from torch.utils.data import default_collate
from torchvision.models import get_model, get_model_weights, list_models

from satstore.errors import ConfigError, UnknownNameError
from satstore.models.sources.images import PrepareImage, in_one_line
from satstore.models.sources.source import Source, SourceOptions
from satstore.models.sources.weights import building, explaining_downloads, load_tensors
from satstore.models.torchvision import OPTIONS
from satstore.registry import suggest

OF_IMAGES = ("ImageClassification", "SemanticSegmentation")
"""The recipes that prepare one image; others are of videos, of pairs, or leave images of different sizes."""


def open_torchvision(text: str, options: SourceOptions) -> Source:
    """Open a model of torchvision; see :func:`.source.open_source`.

    The argument ``weights`` names the weights whose recipe is taken, and which are downloaded by default.
    """
    name = text.partition(":")[2]
    if name not in list_models():
        raise UnknownNameError(f"torchvision has no model {name!r}{suggest(name, list_models())}")
    arguments = dict(options.arguments)
    weights, recipe = _find_weights(text, name, arguments)
    is_own = options.weights is None and not options.untrained
    defaults = {} if is_own else OPTIONS.get(name, {})
    with explaining_downloads(text, arguments), building(options.seed, options.device):
        model = get_model(name, weights=weights if is_own else None, **{**defaults, **arguments})
    if options.weights is not None:
        load_tensors(model, options.weights, name)
    return Source(
        text=text,
        model=model.eval(),
        prepare=PrepareImage(text, recipe),
        collate=default_collate,
        kind="image",
        version=f"torchvision {torchvision.__version__}",
        weights=options.describe_weights(str(weights)),
        arguments=options.arguments,
        recipe=in_one_line(recipe),
    )


def _find_weights(text: str, name: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Return torchvision's weights of a model, and their recipe for the size that the arguments name."""
    known = get_model_weights(name)
    chosen = str(arguments.pop("weights", "DEFAULT"))
    if chosen not in known.__members__:
        raise UnknownNameError(
            f"--set weights={chosen}: no weights of {name}{suggest(chosen, known.__members__)}"
        )
    weights = known[chosen]
    size = arguments.get("image_size")
    recipe = weights.transforms(**({} if size is None else {"crop_size": size, "resize_size": size}))
    if type(recipe).__name__ not in OF_IMAGES:
        raise ConfigError(
            f"{text} takes more than one image ({type(recipe).__name__}): record it from Python "
            "(satstore.record)"
        )
    return weights, recipe
