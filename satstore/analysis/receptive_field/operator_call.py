"""One call of one of torch's operators, with the fields of its inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from satstore.analysis.receptive_field.fields import TensorField


@dataclass(frozen=True)
class OperatorCall:
    """One call of one of torch's operators.

    Attributes
    ----------
    field_of
        Returns the field of a tensor, or None if it doesn't depend on the image.
    outputs
        The tensors that it returned; none before it ran.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    field_of: Callable[[Tensor], TensorField | None]
    outputs: Sequence[Tensor] = ()

    @cached_property
    def name(self) -> str:
        """The operator's name, without its namespace and overload."""
        return str(self.operator._schema.name.split("::")[-1])

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        return {
            a.name: self.args[i] if i < len(self.args) else self.kwargs.get(a.name, a.default_value)
            for i, a in enumerate(self.operator._schema.arguments)
        }

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def output(self) -> Tensor:
        """The first tensor that was returned."""
        return self.outputs[0]

    def run(self, change: Callable[[Any], Any]) -> list[Tensor]:
        """Run the operator on changed arguments, and return the tensors that it gives."""
        args, kwargs = tree_map(change, (self.args, dict(self.kwargs)))
        return [
            value for value in tree_flatten(self.operator(*args, **kwargs))[0] if isinstance(value, Tensor)
        ]

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors among the arguments, those in lists included."""
        for value in self.arguments.values():
            yield from (
                v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Tensor)
            )

    def image_inputs(self) -> list[tuple[Tensor, TensorField]]:
        """Return the tensors that depend on the image, with their fields."""
        return [(t, f) for t in self.tensors() if (f := self.field_of(t)) is not None]

    def first_input(self) -> tuple[Tensor, TensorField]:
        """Return the first tensor that depends on the image, and its field."""
        return self.image_inputs()[0]

    def reads_first_alone(self) -> bool:
        """Tell whether no tensor but the first depends on the image."""
        first = next(self.tensors())
        return all(t is first for t, _ in self.image_inputs())


def merge_fields(fields: Sequence[TensorField], ndim: int) -> TensorField:
    """Return the field of an element-wise operator on several tensors, which are broadcast."""
    found = fields[0]
    if len(fields) == 1 and found.widest[0].first.ndim != ndim:
        return found.merge(found, ndim)
    for field in fields[1:]:
        found = found.merge(field, ndim)
    return found
