"""``hf:PATH_OR_NAME``: models of transformers, with their tokenizer or image processor; no code of others."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from satstore.errors import ConfigError, NotFoundError, UnknownNameError
from satstore.models.sources.images import PrepareImage, in_one_line
from satstore.models.sources.source import Kind, Source, SourceOptions, importing
from satstore.models.sources.weights import building, explaining_downloads, is_offline, read_tensors
from satstore.registry import suggest
from satstore.system.text import list_first

KINDS: Mapping[str, Kind] = {"input_ids": "text", "pixel_values": "image"}
"""The name of a model's main input -> what it is made of."""

GIVE_FOLDER = "give a folder that holds model, config and tokenizer or image processor (hf:PATH)"

MAX_LENGTH = 10**6
"""The limit above which a tokenizer's length stands for none."""


def open_hf(text: str, options: SourceOptions) -> Source:
    """Open a model of transformers, from a folder or the hub; see :func:`.source.open_source`.

    Of the arguments, ``model_class`` names a class of transformers in place of AutoModel's choice,
    ``revision`` a version on the hub, ``max_length`` the most tokens of a text; others change the model's
    config.
    """
    with importing(text, "transformers"):
        import transformers

    name, arguments = _find_name(text), dict(options.arguments)
    of_hub = {"trust_remote_code": False, "revision": arguments.pop("revision", None) or "main"}
    class_name, max_length = arguments.pop("model_class", None), arguments.pop("max_length", None)
    with explaining_downloads(text, arguments, GIVE_FOLDER), _quiet():
        config = transformers.AutoConfig.from_pretrained(name, **of_hub)
        _change_config(text, config, arguments)
        kind = _find_class(text, config, class_name)
        takes = _find_kind(text, kind)
        if takes == "text":
            tokenizer = _load_part(text, name, transformers.AutoTokenizer, of_hub)
            recipe: dict[str, Any] = _text_recipe(text, tokenizer, config, max_length)
        else:
            processor = _load_part(text, name, transformers.AutoImageProcessor, of_hub)
            recipe = _image_recipe(text, processor, config)
        model, weights = _load_model(text, name, kind, config, options, str(of_hub["revision"]))
    return Source(
        text=text,
        model=model.eval(),
        kind=takes,
        version=f"transformers {transformers.__version__}",
        weights=weights,
        arguments=options.arguments,
        **recipe,
    )


def _find_name(text: str) -> str:
    """Return a folder, or the name of a model on the hub; NotFoundError for a path of no folder."""
    name = text.partition(":")[2]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise NotFoundError(
            f"no folder {folder.absolute()}; expected one with config.json, or a model's name"
        )
    return name


def _change_config(text: str, config: Any, arguments: Mapping[str, Any]) -> None:
    for key, value in arguments.items():
        if key.startswith("_") or not hasattr(config, key) or callable(getattr(config, key)):
            raise ConfigError(f"--set {key}={value}: the config of {text} has no {key}")
        setattr(config, key, value)


def _find_class(text: str, config: Any, class_name: str | None) -> Any:
    """Return the class of transformers that a name or AutoModel chooses."""
    import transformers

    if class_name is None:
        with torch.device("meta"):
            return type(transformers.AutoModel.from_config(config, trust_remote_code=False))
    found = getattr(transformers, class_name, None) if class_name in dir(transformers) else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        known = [name for name in dir(transformers) if "Model" in name or "For" in name]
        raise UnknownNameError(
            f"--set model_class={class_name}: transformers has no such model{suggest(class_name, known)}"
        )
    return found


def _load_part(text: str, name: str, part: Any, of_hub: Mapping[str, Any]) -> Any:
    """Load a tokenizer or an image processor; ConfigError if there is none."""
    try:
        return part.from_pretrained(name, **of_hub)
    except (OSError, ValueError) as error:
        if is_offline(error):
            raise
        what = part.__name__.removeprefix("Auto")
        raise ConfigError(
            f"{text} has no {what} that transformers can load, to prepare its inputs with; save one there "
            f"({what}.save_pretrained)"
        ) from error


def _find_kind(text: str, kind: Any) -> Kind:
    """Return what a class of models takes; ConfigError if it is neither texts nor images."""
    if kind.main_input_name not in KINDS:
        raise ConfigError(
            f"{text} takes {kind.main_input_name}, made of neither texts nor images: record it from Python "
            "(satstore.record)"
        )
    return KINDS[kind.main_input_name]


def _load_model(
    text: str, name: str, kind: Any, config: Any, options: SourceOptions, revision: str
) -> tuple[nn.Module, str]:
    """Return a model and where its weights come from; ConfigError if some would be random, unasked.

    Only a pooler after the last block is left out instead: many are saved without one.
    """
    if options.untrained:
        with building(options.seed, options.device):
            return kind(config), options.describe_weights("")
    if options.weights is not None:
        place: dict[str, Any] = {"pretrained_model_name_or_path": None}
        place["state_dict"] = read_tensors(options.weights)
    else:
        place = {"pretrained_model_name_or_path": name, "revision": revision}
    commit = getattr(config, "_commit_hash", None)
    where = options.describe_weights(f"{name} at {commit}" if commit else name)
    model, report = kind.from_pretrained(**place, config=config, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    has_pooler = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    if missing and has_pooler and all(key.startswith("pooler.") for key in missing):
        model = kind.from_pretrained(**place, config=config, add_pooling_layer=False)
        where, missing = f"{where}; they have no pooler, which is left out", []
    if missing:
        saved_from = [known for known in config.architectures or [] if known != kind.__name__][:1]
        remedy = f"; they were saved from {saved_from[0]} (--set model_class=)" if saved_from else ""
        raise ConfigError(
            f"the weights of {text} lack {list_first(missing, 2)}, {len(missing)} of "
            f"{len(model.state_dict())} tensors of {kind.__name__}, which would be random{remedy}"
        )
    return model.float(), where


def _image_recipe(text: str, processor: Any, config: Any) -> dict[str, Any]:
    mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"
    return {
        "prepare": PrepareImage(text, ProcessedImage(processor), mode),
        "collate": default_collate,
        "recipe": in_one_line(processor),
    }


def _text_recipe(text: str, tokenizer: Any, config: Any, max_length: Any) -> dict[str, Any]:
    if max_length is not None and not (isinstance(max_length, int) and max_length > 0):
        raise ConfigError(f"--set max_length={max_length}: expected a number of tokens, at least 1")
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None), max_length)
    given = [limit for limit in limits if limit is not None and limit < MAX_LENGTH]
    longest = min(given) if given else None
    if tokenizer.pad_token is None:  # its value does not matter: the mask leaves it out
        tokenizer.pad_token = tokenizer.eos_token
    at_most = "whole texts" if longest is None else f"at most {longest} tokens"
    return {
        "prepare": PrepareText(text, tokenizer, longest),
        "collate": PadTexts(tokenizer),
        "recipe": f"{type(tokenizer).__name__}: {at_most}, padded to the longest of a batch",
    }


@dataclass(frozen=True)
class ProcessedImage:
    """Processes one image, into a mapping of tensors without the axis of samples."""

    processor: Any

    def __call__(self, image: Any) -> dict[str, Any]:
        """Return the inputs of one sample by name."""
        return {name: values[0] for name, values in self.processor(images=image, return_tensors="pt").items()}


@dataclass(frozen=True)
class PrepareText:
    """Tokenizes a text; longer ones are cut."""

    source: str
    tokenizer: Any
    max_length: int | None

    def __call__(self, text: Any) -> dict[str, Any]:
        """Return the inputs of one sample by name, as lists of one length."""
        if not isinstance(text, str):
            raise ConfigError(f"{self.source} takes texts, and was given a {type(text).__name__}")
        cut = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        return dict(self.tokenizer(text, **cut))


@dataclass(frozen=True)
class PadTexts:
    """Pads tokenized texts to the longest of them."""

    tokenizer: Any

    def __call__(self, inputs: list[Any]) -> dict[str, Any]:
        """Return tensors (B, T) by name, the attention mask among them."""
        with _quiet():
            return dict(self.tokenizer.pad(inputs, padding=True, return_tensors="pt"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers print errors alone: the report of weights that it prints is checked here."""
    from transformers.utils import logging

    before, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bar:
            logging.enable_progress_bar()
