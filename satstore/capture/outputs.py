"""How a module's output is arranged: which axis has the samples, which the features, and what the rest is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence

from satstore.errors import ConfigError
from satstore.system.text import list_first

Form = Literal["vector", "map", "tokens", "steps"]
"""What a sample's output is: features alone, or features at positions, at tokens, or at steps in time."""


@dataclass(frozen=True)
class OutputLayout:
    """The arrangement of an output tensor.

    Attributes
    ----------
    batch_axis
        The axis of the samples; None for the output of one sample, which has no such axis.
    feature_axis
        1 or -1, counted with the samples in front.
    n_folded
        Places of each sample along the axis of the samples, such as the windows of an image.
    """

    form: Form
    batch_axis: int | None = 0
    feature_axis: int = -1
    n_folded: int = 1

    @property
    def has_channels(self) -> bool:
        """Whether it is of maps whose features come before the positions, as those of convolutions do."""
        return self.form == "map" and self.feature_axis == 1

    @property
    def of_samples(self) -> Self:
        """The layout of a batch of samples that have ``Layer.output_shape``."""
        return replace(self, batch_axis=0, n_folded=1)

    def sample_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of one sample's output, from that of a batch: (feature, …) or (…, feature)."""
        sizes = [size for axis, size in enumerate(shape) if axis != self.batch_axis]
        if self.n_folded == 1:
            return tuple(sizes)
        if self.feature_axis == 1:
            return sizes[0], self.n_folded, *sizes[1:]
        if self.form == "tokens":
            return self.n_folded * prod(sizes[:-1]), sizes[-1]
        return self.n_folded, *sizes

    def count_features(self, sample_shape: Sequence[int]) -> int:
        """Return the number of features of a sample's output."""
        return sample_shape[0 if self.feature_axis == 1 else -1]


def typed_layout(module: nn.Module, n_axes: int) -> OutputLayout:
    """Return the layout of a Conv, Linear or LSTM layer's output by the layer's class alone.

    A Linear's output of three axes and more counts as a map whose features come last.
    """
    if isinstance(module, nn.LSTM):
        return OutputLayout("steps", None if n_axes < 3 else int(not module.batch_first))
    if isinstance(module, _ConvNd):
        return OutputLayout("map", 0 if n_axes == 2 + len(module.kernel_size) else None, 1)
    return OutputLayout("map" if n_axes > 2 else "vector", 0 if n_axes > 1 else None)


def find_tensor(output: Any, part: str | None = None) -> Tensor | None:
    """Find the floating-point tensor in an output; None if there is none, or a packed sequence before it.

    Parameters
    ----------
    part
        A mapping's key, an object's field, or a place in a tuple or list, counted from 0. By default, the
        first floating-point tensor is taken, wherever it is.
    """
    found = _find_first(output if part is None else dict(_parts_of(output)).get(part))
    return None if isinstance(found, PackedSequence) else found


def expect_tensor(output: Any, part: str | None, title: str) -> Tensor:
    """Find the tensor in an output as `find_tensor` does; ConfigError, with the title, if there is none."""
    found = find_tensor(output, part)
    if found is not None:
        return found
    parts = dict(_parts_of(output))
    if part is not None and part not in parts:
        known = f"its parts are {', '.join(parts)}" if parts else "it has no parts"
        raise ConfigError(f"{title} returns {describe_output(output)}, which has no part {part!r}; {known}")
    raise ConfigError(f"{title} returns {why_no_tensor(output, part)}, which can't be recorded: exclude it")


def why_no_tensor(output: Any, part: str | None) -> str:
    """Say what an output holds in place of a floating-point tensor."""
    found = _find_first(output if part is None else dict(_parts_of(output)).get(part))
    is_packed = isinstance(found, PackedSequence)
    return "a packed sequence" if is_packed else "no floating-point tensor"


def describe_output(output: Any) -> str:
    """Describe an output for a message: its type, and the types of its parts."""
    kinds = [type(value).__name__ for _, value in _parts_of(output)]
    return f"a {type(output).__name__}" + (f" of {len(kinds)} ({list_first(kinds, 4)})" if kinds else "")


def _find_first(value: Any) -> Tensor | PackedSequence | None:
    """Find the first floating-point tensor or packed sequence in a value and its parts."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, PackedSequence):
        return value
    found = (_find_first(part) for _, part in _parts_of(value))
    return next((one for one in found if one is not None), None)


def _parts_of(output: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the parts of a mapping, a tuple, a list or an object with fields."""
    if isinstance(output, Tensor | PackedSequence):
        return
    if isinstance(output, Mapping):
        yield from ((str(key), value) for key, value in output.items())
    elif isinstance(output, tuple | list):
        yield from zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True)
    elif hasattr(output, "__dict__"):  # a dataclass, too; objects within it are not looked into
        kinds = (Tensor, PackedSequence, Mapping, tuple, list)
        yield from ((name, value) for name, value in vars(output).items() if isinstance(value, kinds))


def arrange(output: Tensor, layout: OutputLayout) -> Tensor:
    """Detach an output and put its samples first; a view wherever possible.

    Returns
    -------
    Tensor
        Vectors: (batch, feature). Maps: (batch, feature, …). Tokens and steps: (batch, token, feature).
    """
    tensor = output.detach()
    if layout.batch_axis is None:
        tensor = tensor.unsqueeze(0)
    elif layout.batch_axis:
        tensor = tensor.movedim(layout.batch_axis, 0)
    if layout.n_folded > 1:
        tensor = tensor.unflatten(0, (-1, layout.n_folded))  # type: ignore[no-untyped-call]
        if layout.feature_axis == 1:
            tensor = tensor.movedim(2, 1)
        elif layout.form == "tokens":
            tensor = tensor.flatten(1, -2)
    if layout.form == "map" and layout.feature_axis == -1:
        tensor = tensor.movedim(-1, 1)
    return tensor
