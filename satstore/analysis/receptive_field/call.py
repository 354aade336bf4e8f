"""A call of one of torch's operators, as rules take it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from satstore.analysis.receptive_field.lines import Field


@dataclass(frozen=True)
class Call:
    """A call of one of torch's operators.

    Attributes
    ----------
    name
        Of the operator, without its namespace and overload.
    arguments
        By name, defaults included.
    outputs
        The tensors that it put out.
    field_of
        Returns the field of a tensor, or None if it doesn't depend on the image.
    """

    name: str
    arguments: Mapping[str, Any]
    outputs: Sequence[Tensor]
    field_of: Callable[[Tensor], Field | None]

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def output(self) -> Tensor:
        """The first tensor that was put out."""
        return self.outputs[0]

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors among the arguments, those in lists included."""
        for value in self.arguments.values():
            yield from (
                v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Tensor)
            )

    def seen(self) -> list[tuple[Tensor, Field]]:
        """Return the tensors that depend on the image, and their fields."""
        return [(t, f) for t in self.tensors() if (f := self.field_of(t)) is not None]

    def map(self) -> tuple[Tensor, Field]:
        """Return the tensor that is the operator's first argument, and its field."""
        return next((t, f) for t, f in self.seen())

    def only_map(self) -> bool:
        """Whether nothing but the first tensor depends on the image."""
        first = next(self.tensors())
        return all(t is first for t, _ in self.seen())


def merge_fields(fields: Sequence[Field], ndim: int) -> Field:
    """Return what elements see through all of several tensors that are broadcast."""
    found = fields[0]
    if len(fields) == 1 and found.widest[0].first.ndim != ndim:
        return found.merge(found, ndim)
    for field in fields[1:]:
        found = found.merge(field, ndim)
    return found
