"""Read what a caller's loader yields: a model's inputs, in any nesting of tensors, their labels and mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from satstore.errors import ConfigError, reason_of
from satstore.system.text import list_first

Adapt = Callable[[Any], Any]
"""Maps a batch to inputs, (inputs, labels) or (inputs, labels, mask)."""

LABELS = "labels"
"""The key of a mapping's labels, as transformers' data collators name them."""

REMEDY = "take an adapt, or a collate_fn of the loader, that returns (inputs, labels)"


@dataclass(frozen=True)
class InputBatch:
    """One batch of a loader.

    Attributes
    ----------
    inputs
        What the model is called with: a tensor; a tuple, by position; or a dict, by keyword.
    labels
        As they came; None where there are none.
    mask
        Which tokens count, (batch, token), as `adapt` gave it; None if it gave none.
    n_samples
        The length of the first tensor of the inputs.
    """

    inputs: Any
    labels: Any
    mask: Any
    n_samples: int


def read_batch(batch: Any, adapt: Adapt | None, place: str) -> InputBatch:
    """Tell a batch's inputs from its labels.

    A tensor is inputs. So is a mapping, such as a BatchEncoding, without its ``labels``, which are the
    labels. Of a tuple or list, the first part, a tensor or a mapping, is the inputs, the second the labels.

    Parameters
    ----------
    adapt
        Is given the batch, and returns inputs, (inputs, labels) or (inputs, labels, mask), where labels and
        mask may be None, and inputs may be a tuple too, of what the model takes by position.
    place
        Names the batch in errors, such as ``"batch 3 of loader"``.

    Raises
    ------
    ConfigError
        If it is nothing of this, or has no tensor with samples on axis 0 among its inputs.
    """
    inputs, labels, mask = _split_batch(batch, place) if adapt is None else _adapt_batch(batch, adapt, place)
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
    elif isinstance(inputs, list):
        inputs = tuple(inputs)
    tensors = [tensor for _, tensor in tensors_of(inputs)]
    if not tensors:
        found = describe_given(batch if adapt is None else inputs)
        raise ConfigError(f"{place} is {found}: no tensor among its inputs; make tensors of it (adapt=)")
    if tensors[0].ndim < 1 or not len(tensors[0]):
        raise ConfigError(
            f"{place} has {describe_given(tensors[0])} for inputs; expected a tensor of samples (batch, …): "
            f"{REMEDY}"
        )
    return InputBatch(inputs, labels, mask, len(tensors[0]))


def _split_batch(batch: Any, place: str) -> tuple[Any, Any, None]:
    if isinstance(batch, Tensor | Mapping):
        return *_split_labels(batch), None
    if isinstance(batch, str | bytes) or not isinstance(batch, Sequence) or not len(batch):
        raise ConfigError(f"{place} is {describe_given(batch)}; expected (inputs, labels): {REMEDY}")
    if not isinstance(batch[0], Tensor | Mapping):
        raise ConfigError(
            f"{place} has {describe_given(batch[0])} for inputs; expected a tensor of samples (batch, …), or "
            f"a mapping of such: {REMEDY}"
        )
    return (batch[0], batch[1], None) if len(batch) > 1 else (*_split_labels(batch[0]), None)


def _split_labels(inputs: Any) -> tuple[Any, Any]:
    """Take the labels out of inputs without labels of their own."""
    if not isinstance(inputs, Mapping):
        return inputs, None
    return {name: value for name, value in inputs.items() if name != LABELS}, inputs.get(LABELS)


def _adapt_batch(batch: Any, adapt: Adapt, place: str) -> tuple[Any, Any, Any]:
    try:
        found = adapt(batch)
    except Exception as error:
        raise ConfigError(
            f"adapt fails for {place}, {describe_given(batch)} ({reason_of(error, with_type=True)})"
        ) from error
    if isinstance(found, Tensor | Mapping):
        return *_split_labels(found), None
    if isinstance(found, tuple | list) and len(found) in (2, 3):
        inputs, labels, mask = (*found, None)[:3]
        if isinstance(inputs, Tensor | Mapping | tuple | list):
            return inputs, labels, mask
    raise ConfigError(
        f"adapt returns {describe_given(found)} for {place}; expected inputs, (inputs, labels) or "
        "(inputs, labels, mask), where inputs are a tensor, a tuple of them or a mapping"
    )


def tensors_of(inputs: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors among inputs in their order, each with its name; that of a plain tensor is empty."""
    return [
        (".".join(map(_name_part, path)), leaf)
        for path, leaf in pytree.tree_leaves_with_path(inputs)
        if isinstance(leaf, Tensor)
    ]


def _name_part(key: Any) -> str:
    """Return a mapping's key, a place in a tuple, or a field's name."""
    return next(str(getattr(key, kind)) for kind in ("key", "idx", "name") if hasattr(key, kind))


def take_samples(inputs: Any, rows: Tensor) -> Any:
    """Return the inputs of some samples of a batch; tensors of another length are for all, and stay whole."""
    n_samples = len(tensors_of(inputs)[0][1])

    def take(tensor: Tensor) -> Tensor:
        return tensor[rows] if tensor.ndim and len(tensor) == n_samples else tensor

    return pytree.tree_map_only(Tensor, take, inputs)


def call_model(model: nn.Module, inputs: Any, device: torch.device) -> Any:
    """Call a model with inputs, moved to its device: a tuple by position, a dict by keyword."""
    moved = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), inputs)
    if isinstance(moved, dict):
        return model(**moved)
    return model(*moved) if isinstance(moved, tuple) else model(moved)


def describe_inputs(inputs: Any) -> str:
    """Describe inputs for a message: shape and dtype of a tensor, or of each by its name."""
    if isinstance(inputs, Tensor):
        return f"{describe_given(inputs)} of {inputs.dtype}"
    found = [f"{name} {tuple(tensor.shape)} of {tensor.dtype}" for name, tensor in tensors_of(inputs)]
    return f"a {type(inputs).__name__} of {list_first(found, 4)}"


def describe_given(value: Any) -> str:
    """Describe a value for a message: its type, and its shape, keys or parts."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {list_first(list(map(repr, value)), 4)}"
    if isinstance(value, tuple | list):
        parts = list_first([type(part).__name__ for part in value], 4)
        return f"a {type(value).__name__} of {len(value)} ({parts})"
    return f"{type(value).__name__}"
