"""``timm:NAME``: timm's models, with the data config of their weights."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.data import default_collate

from satstore.errors import ConfigError, UnknownNameError
from satstore.models.sources.images import PrepareImage, in_one_line
from satstore.models.sources.source import Source, SourceOptions, importing
from satstore.models.sources.weights import building, explaining_downloads, load_tensors
from satstore.registry import suggest

CHOSEN_ELSEWHERE = ("pretrained", "checkpoint_path")
COLOURS = {1: "L", 3: "RGB"}


def open_timm(text: str, options: SourceOptions) -> Source:
    """Open a model of timm; see :func:`.source.open_source`."""
    with importing(text, "timm"):
        import timm

    name, arguments = text.partition(":")[2], dict(options.arguments)
    _check_names(text, name, arguments)
    is_own = options.weights is None and not options.untrained
    with explaining_downloads(text, arguments), building(options.seed, options.device):
        model: nn.Module = timm.create_model(name, pretrained=is_own, **arguments)
    if is_own:
        _check_head(model, arguments)
    if options.weights is not None:
        load_tensors(model, options.weights, name)
    config = _data_config(text, model, arguments)
    recipe = timm.data.create_transform(**config)
    known: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return Source(
        text=text,
        model=model.eval(),
        prepare=PrepareImage(text, recipe, COLOURS[config["input_size"][0]]),
        collate=default_collate,
        kind="image",
        version=f"timm {timm.__version__}",
        weights=options.describe_weights(f"{known['architecture']}.{known['tag']}".rstrip(".")),
        arguments=options.arguments,
        recipe=in_one_line(recipe),
    )


def _check_names(text: str, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a name that timm lacks, unless it names a hub or a folder, and arguments that choose weights."""
    import timm

    architecture, _, tag = name.partition(".")
    if ":" not in name and not timm.is_model(architecture):
        raise UnknownNameError(
            f"timm has no model {architecture!r}{suggest(architecture, timm.list_models())}"
        )
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if ":" not in name and tag and tag not in known:
        raise UnknownNameError(f"timm has no weights {tag!r} of {architecture}{suggest(tag, known)}")
    if refused := next((key for key in CHOSEN_ELSEWHERE if key in arguments), None):
        raise ConfigError(f"--set {refused}: weights of {text} are chosen by --weights and --untrained")


def _check_head(model: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse another number of classes than that of the weights: timm draws such a head at random."""
    own = model.pretrained_cfg.get("num_classes")
    if getattr(model, "num_classes", 0) not in (0, own):
        raise ConfigError(
            f"--set num_classes={arguments.get('num_classes')}: the weights have {own} classes, and a head "
            "of others would be random; num_classes=0 leaves the head out"
        )


def _data_config(text: str, model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data config of a model, for the size and channels that its arguments name."""
    from timm.data import resolve_model_data_config

    n_channels = arguments.get("in_chans", 3)
    if n_channels not in COLOURS:
        raise ConfigError(
            f"--set in_chans={n_channels}: images have 1 or 3 channels; record others from Python "
            "(satstore.record)"
        )
    size = arguments.get("img_size")
    sizes = (size, size) if isinstance(size, int) else size
    given = {} if sizes is None else {"input_size": (n_channels, *sizes)}
    config: dict[str, Any] = resolve_model_data_config(model, args=given)
    config["input_size"] = (n_channels, *config["input_size"][1:])
    if n_channels == 1:  # a grey image is normalised by the mean of the colours' figures
        config |= {key: (sum(config[key]) / len(config[key]),) for key in ("mean", "std")}
    return config
