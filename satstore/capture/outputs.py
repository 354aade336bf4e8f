"""How a module's output is arranged: which axis has the samples, which the features, and what the rest is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, NamedTuple, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence

from satstore.errors import ConfigError
from satstore.system.text import list_first

FEATURES_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)
FEATURES_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Classes that tell which axis of their output the features lie along; LayerNorm by its own forward alone."""

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


class FoundLayout(NamedTuple):
    """The layout of an output as its shapes tell, and what is in doubt about it; empty if nothing is."""

    layout: OutputLayout
    doubt: str = ""


def find_layout(
    model: nn.Module, name: str, shapes: tuple[Sequence[int], Sequence[int]], known_axis: int | None = None
) -> FoundLayout | str:
    """Find how the output of a model's module of that name is arranged.

    Parameters
    ----------
    shapes
        Those of its output for two and for three samples.
    known_axis
        The axis of the features in the output of the last module before it whose class tells the axis and
        whose output has the same shape; None if there is none.

    Returns
    -------
    FoundLayout or str
        The text says why it can't be told.

    Notes
    -----
    The samples lie along the one axis whose size follows their number. Features lie where the module's class
    says, or else along the one of the second and the last axis that is as wide as the module's parameters, or
    those of the nearest module around it that has such. Where both or none are, or the sides of a square map
    are, the known axis decides, then the sides of a map, then the number of axes: features are last of three
    axes, and second of more.
    """
    # 1. The axis of the samples.
    two, three = shapes
    if len(two) != len(three):
        return "its number of axes follows the number of samples"
    follows = [axis for axis, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if not follows:
        return "no axis follows the number of samples"
    batch_axis, n_folded = follows[0], two[follows[0]] // 2
    if len(follows) > 1 or (two[batch_axis], three[batch_axis]) != (2 * n_folded, 3 * n_folded):
        return "more than one axis follows the number of samples, or none in proportion"
    sizes = [size for axis, size in enumerate(two) if axis != batch_axis]
    if not sizes:
        return "it has no axis of features"
    # 2. The axis of the features.
    feature_axis, doubt = _find_feature_axis(model, name, sizes, known_axis)
    # 3. What the other axes are.
    form: Form = "map"
    if len(sizes) == 1:
        form = "vector" if n_folded == 1 else "tokens"
    elif len(sizes) == 2 and feature_axis == -1:
        is_of_steps = isinstance(model.get_submodule(name), nn.RNNBase) and n_folded == 1
        form = "steps" if is_of_steps else "tokens"
    return FoundLayout(OutputLayout(form, batch_axis, feature_axis, n_folded), doubt)


def _find_feature_axis(
    model: nn.Module, name: str, sizes: Sequence[int], known_axis: int | None
) -> tuple[int, str]:
    """Return the axis of the features, 1 or -1, and what is in doubt, given the sizes of a sample's axes."""
    if len(sizes) == 1:
        return -1, ""
    typed = typed_feature_axis(model.get_submodule(name), sizes[-1])
    if typed is not None:
        return typed, ""
    # 1. By width.
    fitting: list[int] = []
    while not fitting:
        widths = _widths(model.get_submodule(name))
        fitting = [axis for axis, size in ((1, sizes[0]), (-1, sizes[-1])) if size in widths]
        if not name:
            break
        name = name.rpartition(".")[0]
    # 2. By the sides of a map, which are often equal.
    beside_sides = _axis_beside_sides(sizes)
    if len(fitting) == 1 and beside_sides in (None, fitting[0]):
        return fitting[0], ""
    if known_axis is not None:
        return known_axis, ""
    if beside_sides is not None and len(fitting) != 1:
        return beside_sides, ""
    # 3. By the number of axes.
    axis = beside_sides or (-1 if len(sizes) == 2 else 1)
    taken, other = ("first", "last") if axis == 1 else ("last", "first")
    shape = " × ".join(map(str, sizes))
    return axis, f"features taken along the {taken} axis of {shape}, may be along the {other}"


def _axis_beside_sides(sizes: Sequence[int]) -> int | None:
    """Return the axis, 1 or -1, that is beside the equal sides of a map; None if there are none."""
    for axis, feature, sides in ((1, sizes[0], sizes[1:]), (-1, sizes[-1], sizes[:-1])):
        if len(sides) > 1 and set(sides) == {sides[0]} and feature != sides[0]:
            return axis
    return None


def typed_feature_axis(module: nn.Module, last_size: int) -> int | None:
    """Return the axis of the features, 1 or -1, that a module's class tells; None if it tells none.

    ``last_size`` is the size of the last axis of the module's output.
    """
    if isinstance(module, FEATURES_FIRST):
        return 1
    if isinstance(module, FEATURES_LAST):
        return -1
    # Those for maps with channels first are subclasses of LayerNorm with another forward.
    is_last = any(type(module).forward is norm.forward for norm in LAYER_NORMS)
    return -1 if is_last and list(module.normalized_shape) == [last_size] else None  # type: ignore[arg-type]


def _widths(module: nn.Module) -> set[int]:
    """Return what a module's parameters say of its features: both sizes of matrices, the first of others."""
    shapes = [parameter.shape for parameter in module.parameters()]
    return {size for shape in shapes for size in (shape if len(shape) == 2 else shape[:1])}


def find_tensor(output: Any, part: str | None = None) -> Tensor | None:
    """Find the floating-point tensor in an output; None if there is none, or a packed sequence before it.

    Parameters
    ----------
    part
        A mapping's key, an object's field, or a place in a tuple or list, counted from 0. By default, the
        first floating-point tensor is taken, wherever it is.
    """
    found = _find_first(output if part is None else _take_part(output, part))
    return None if isinstance(found, PackedSequence) else found


def expect_tensor(output: Any, part: str | None, title: str) -> Tensor:
    """Find the tensor in an output as `find_tensor` does; ConfigError, with the title, if there is none."""
    found = find_tensor(output, part)
    if found is not None:
        return found
    if part is not None and _take_part(output, part) is None:
        parts = [name for name, _ in _parts_of(output)]
        known = f"its parts are {', '.join(parts)}" if parts else "it has no parts"
        raise ConfigError(f"{title} returns {describe_output(output)}, which has no part {part!r}; {known}")
    raise ConfigError(f"{title} returns {why_no_tensor(output, part)}, which can't be recorded: exclude it")


def why_no_tensor(output: Any, part: str | None) -> str:
    """Say what an output holds in place of a floating-point tensor."""
    found = _find_first(output if part is None else _take_part(output, part))
    return "a packed sequence" if isinstance(found, PackedSequence) else "no floating-point tensor"


def describe_output(output: Any) -> str:
    """Describe an output for a message: its type, and the types of its parts."""
    kinds = [type(value).__name__ for _, value in _parts_of(output)]
    return f"a {type(output).__name__}" + (f" of {len(kinds)} ({list_first(kinds, 4)})" if kinds else "")


def _find_first(value: Any) -> Tensor | PackedSequence | None:
    """Find the first floating-point tensor or packed sequence in a value and its parts."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() and not value.is_nested else None
    if isinstance(value, PackedSequence):
        return value
    found = (_find_first(part) for _, part in _parts_of(value))
    return next((one for one in found if one is not None), None)


def _take_part(output: Any, part: str) -> Any:
    """Return a part of an output by its name, or by its number; None if there is no such."""
    parts = dict(_parts_of(output))
    numbered = dict(zip(map(str, range(len(parts))), parts.values(), strict=True))
    return parts.get(part, numbered.get(part))


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
