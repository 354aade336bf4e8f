"""Follows a model's forward pass, operator by operator, and keeps what each tensor sees of the image.

The pass runs on the ``meta`` device, which computes no values. Small tensors that don't depend on the image
(indices, masks) keep their values beside it, for what they pick depends on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from satstore.analysis.receptive_field.call import Call
from satstore.analysis.receptive_field.lines import Field, Line
from satstore.analysis.receptive_field.measure import UnmeasurableError, measure
from satstore.analysis.receptive_field.moves import (
    constant_field,
    find_moved_axes,
    move_field,
    of_shape,
    overwrite,
)
from satstore.analysis.receptive_field.places import Places, compress, reshape
from satstore.analysis.receptive_field.reach import Reach
from satstore.analysis.receptive_field.rules import ONLY_MAP, RULES, is_elementwise, merge
from satstore.errors import reason_of

MOST_VALUES = 1_000_000
"""A tensor that doesn't depend on the image keeps its values up to this size."""

VALUE_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""torch's tags of operators that give a number, or a shape, that depends on values."""

VIEWS_OF_ANY_LAYOUT = ("view", "_unsafe_view", "reshape")


@dataclass(frozen=True)
class Unknown:
    """Stands for the field of what came through an operator that can't be followed, and says why."""

    reason: str


class ShapeError(Exception):
    """An operator that can't take what it is given."""


class ValueNeededError(Exception):
    """A model's code that asks for a value that depends on the image, or isn't there."""


class ListIndices(TorchFunctionMode):
    """Makes tensors of lists that tensors are indexed with: torch itself would move them out of sight."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            image, key, *rest = args
            keys = tuple(
                torch.as_tensor(k, device="cpu") if isinstance(k, list | np.ndarray) else k
                for k in (key if isinstance(key, tuple) else (key,))
            )
            args = (image, keys if isinstance(key, tuple) else keys[0], *rest)
        return func(*args, **(kwargs or {}))


class FieldMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operators on the meta device, and finds the field of what they put out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_paused = False
        self._fields: Any = WeakTensorKeyDictionary()
        self._values: Any = WeakTensorKeyDictionary()
        self._aliases: dict[int, Any] = {}
        self._measured: dict[Any, list[Any]] = {}

    def start(self, image: Tensor) -> None:
        """Let each element of an image (1, channel, height, width) see itself."""
        lines = [Line.along(Reach(), axis, image.shape[axis], image.ndim) for axis in (2, 3)]
        self.note(image, Field((lines[0], lines[1]), (lines[0], lines[1])))

    def note(self, tensor: Tensor, field: Field | Unknown | None) -> None:
        """Keep the field of a tensor; None if it doesn't depend on the image."""
        if field is None or (isinstance(field, Field) and all(line.is_empty for line in field.widest)):
            self._fields.pop(tensor, None)
        else:
            self._fields[tensor] = field
        storage = tensor.untyped_storage()._cdata
        self._aliases.setdefault(storage, WeakTensorKeyDictionary())[tensor] = None

    def note_values(self, tensor: Tensor, values: Tensor) -> None:
        """Keep the values of a tensor on the meta device that doesn't depend on the image."""
        if values.device.type != "meta" and values.numel() <= MOST_VALUES:
            self._values[tensor] = values

    def field_of(self, tensor: Tensor) -> Field | Unknown | None:
        """Return the field of a tensor; None if it doesn't depend on the image."""
        found: Field | Unknown | None = self._fields.get(tensor)
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        call = self._bind(func, args, kwargs)
        needs_values = bool(VALUE_TAGS & set(func.tags))
        if needs_values and all(self._value(tensor) is not None for tensor in call.tensors()):
            return func(*tree_map(self._value, args), **kwargs)
        indices = call["indices"]
        if isinstance(indices, list | tuple) and (chosen := self._chosen(indices)) is not None:
            with self:
                return func(args[0], chosen, *args[2:], **kwargs)
        if not self.is_paused and self._rule(call) is None and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        args, kwargs = tree_map(self._to_meta, args), tree_map(self._to_meta, kwargs)
        try:
            output = func(*args, **kwargs)
        except Exception as error:
            raise (ValueNeededError if needs_values else ShapeError)(reason_of(error)) from error
        if not self.is_paused:
            outputs = [value for value in tree_flatten(output)[0] if isinstance(value, Tensor)]
            self._follow(func, self._bind(func, args, kwargs, outputs), args, kwargs)
        return output

    def _chosen(self, indices: Any) -> list[Any] | None:
        """Return numbers in place of masks whose values are known; None if there is no mask among indices."""
        masks = [index for index in indices if isinstance(index, Tensor) and index.dtype == torch.bool]
        if not masks or any(self._value(mask) is None for mask in masks):
            return None
        found: list[Any] = []
        for index in indices:
            is_mask = any(index is mask for mask in masks)
            found += [*self._value(index).nonzero(as_tuple=True)] if is_mask else [index]
        return found

    def _bind(self, func: Any, args: Any, kwargs: Any, outputs: Sequence[Tensor] = ()) -> Call:
        bound = {
            a.name: args[i] if i < len(args) else kwargs.get(a.name, a.default_value)
            for i, a in enumerate(func._schema.arguments)
        }
        return Call(func._schema.name.split("::")[-1], bound, outputs, self._known)

    def _known(self, tensor: Tensor) -> Field | None:
        found = self.field_of(tensor)
        return found if isinstance(found, Field) else None

    @staticmethod
    def _rule(call: Call) -> Any:
        rule = RULES.get(call.name)
        return None if rule in ONLY_MAP and not call.only_map() else rule

    def _follow(self, func: Any, call: Call, args: Any, kwargs: Any) -> None:
        """Note the fields of an operator's outputs, and what it wrote into."""
        inputs = [self.field_of(tensor) for tensor in call.tensors()]
        unknown = next((found for found in inputs if isinstance(found, Unknown)), None)
        found: Sequence[Field | Unknown | None] = [None] * len(call.outputs)
        if unknown is not None:
            found = [unknown] * len(call.outputs)
        elif any(inputs):
            found = self._find(func, call, args, kwargs)
        else:
            self._compute(func, args, kwargs, call.outputs)
        for output, field in zip(call.outputs, found, strict=True):
            written = func._schema.is_mutable and any(output is tensor for tensor in call.tensors())
            if written and (field is not None or self.field_of(output) is not None):
                self._write_through(output, field)
            self.note(output, field)

    def _find(self, func: Any, call: Call, args: Any, kwargs: Any) -> Sequence[Field | Unknown | None]:
        """Find fields by a rule, by torch's tags, or by measuring."""
        rule = self._rule(call) or (merge if is_elementwise(func) else None)
        if rule is not None:
            field = rule(call) if call.seen() or rule.__name__ == "replaced" else None
            return [field and of_shape(field, output) for output in call.outputs]
        seen = _unique([tensor for tensor, _ in call.seen()])
        fields = [self._fields[tensor] for tensor in seen]
        try:
            if len(seen) == 1 and (func.is_view or call.name in VIEWS_OF_ANY_LAYOUT):
                return self._move(func, call, seen[0], args, kwargs)
            if not any(line.axes for field in fields for line in (*field.widest, *field.narrowest)):
                return [constant_field(fields, output.ndim) for output in call.outputs]
            return self._measure(func, call, seen, args, kwargs)
        except UnmeasurableError as error:
            return [Unknown(f"{func._schema.name}: {error}")] * len(call.outputs)

    def _move(
        self, func: Any, call: Call, tensor: Tensor, args: Any, kwargs: Any
    ) -> Sequence[Field | Unknown | None]:
        """Move the places that elements read as the operator moves elements."""
        field = self._fields[tensor]

        def move(places: Places) -> list[Places]:
            if call.name in VIEWS_OF_ANY_LAYOUT:
                return [reshape(places, tensor.shape, call.output.shape)]
            if call.name in ("_conj", "_neg_view"):
                return [places]
            if call.name == "view_as_real":
                return [places[..., None]]
            if call.name == "view_as_complex":
                if (places != places[..., :1]).any():
                    raise UnmeasurableError("real and imaginary parts read other places")
                return [places[..., 0]]
            given = torch.from_numpy(places.copy()).expand(tensor.shape)
            if call.name == "as_strided":
                given = given.contiguous()
                if not tensor.is_contiguous():
                    raise UnmeasurableError("it reads memory by strides that are not the tensor's")
            new_args, new_kwargs = tree_map(lambda v: given if v is tensor else v, (args, kwargs))
            found = func(*new_args, **new_kwargs)
            return [compress(f.numpy()) for f in (found if isinstance(found, list | tuple) else [found])]

        return move_field(field, move, find_moved_axes(func, tensor, field.axes, call.outputs, args, kwargs))

    def _measure(
        self, func: Any, call: Call, seen: Sequence[Tensor], args: Any, kwargs: Any
    ) -> Sequence[Field | Unknown | None]:
        """Measure the operator on real values."""
        if not all(tensor.is_floating_point() or tensor.is_complex() for tensor in seen):
            raise UnmeasurableError("what it reads depends on the image's values")
        fields = [self._fields[tensor] for tensor in seen]
        constants = {id(t): self._constant(t) for t in call.tensors() if all(t is not s for s in seen)}

        def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            given = {id(tensor): value for tensor, value in zip(seen, inputs, strict=True)}

            def real(value: Any) -> Any:
                if isinstance(value, Tensor):
                    found = given[id(value)] if id(value) in given else constants[id(value)]
                    return (
                        found * (1 + 0.5j) if value.is_complex() and not found.is_complex() else found.clone()
                    )
                return torch.device("cpu") if isinstance(value, torch.device) else value

            torch.manual_seed(0)
            try:
                output = func(*tree_map(real, args), **tree_map(real, kwargs))
            except Exception as error:
                raise UnmeasurableError(reason_of(error)) from error
            return [value for value in tree_flatten(output)[0] if isinstance(value, Tensor)]

        shapes = [tuple(tensor.shape) for tensor in seen]
        found: list[list[tuple[Line, ...]]] = []
        with torch.random.fork_rng(devices=[]):
            for kind in ("widest", "narrowest"):
                lines = [list(getattr(field, kind)) for field in fields]
                found.append(
                    [self._measured_lines([own[i] for own in lines], shapes, run, call) for i in (0, 1)]
                )
        wide, narrow = found
        axes = fields[0].axes
        pooled = all(field.is_pooled for field in fields)
        return [
            Field(
                (wide[0][o], wide[1][o]),
                (narrow[0][o], narrow[1][o]),
                axes if output.ndim == seen[0].ndim else None,
                pooled,
            )
            for o, output in enumerate(call.outputs)
        ]

    def _measured_lines(
        self, lines: Sequence[Line], shapes: Sequence[tuple[int, ...]], run: Any, call: Call
    ) -> tuple[Line, ...]:
        if any(line.reach != lines[0].reach or line.n_places != lines[0].n_places for line in lines):
            lines = [line.resolved() for line in lines]
        options = {k: v for k, v in call.arguments.items() if not isinstance(v, Tensor | list)}
        key: tuple[Any, ...] = (
            call.name, repr(options), tuple(shapes), tuple(output.shape for output in call.outputs),
            tuple((line.first.shape, line.first.tobytes(), line.last.tobytes()) for line in lines),
        )  # fmt: skip
        if any(isinstance(v, Tensor) and not any(v.shape == s for s in shapes) for v in call.tensors()):
            key = (*key, object())  # other tensors, of other values each time
        if key not in self._measured:
            self._measured[key] = measure(run, shapes, [(line.first, line.last) for line in lines])
        return tuple(lines[0].placed(*ends) for ends in self._measured[key])

    def _constant(self, tensor: Tensor) -> Tensor:
        """Return values for a tensor that doesn't depend on the image."""
        found: Tensor | None = self._values.get(tensor)
        if found is None and tensor.device.type != "meta":
            found = tensor
        if found is None and not (tensor.is_floating_point() or tensor.is_complex()):
            raise UnmeasurableError("the values of a tensor are needed that has none: of an index, or a mask")
        if found is None:  # a parameter: any values do
            random = torch.Generator().manual_seed(1)
            found = torch.rand(tensor.shape, generator=random, dtype=torch.float64) + 0.1
        return found.double() if found.is_floating_point() else found

    def _compute(self, func: Any, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> None:
        """Keep the values of what doesn't depend on the image, where those of its inputs are known."""
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if any(t not in self._values and t.device.type == "meta" for t in tensors):
            return
        if not outputs or sum(output.numel() for output in outputs) > MOST_VALUES:
            return

        def real(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self._values.get(value, value)
            return torch.device("cpu") if isinstance(value, torch.device) else value

        found = func(*tree_map(real, args), **tree_map(real, kwargs))
        reals = [value for value in tree_flatten(found)[0] if isinstance(value, Tensor)]
        for output, value in zip(outputs, reals, strict=True):
            if output.device.type == "meta":
                self._values[output] = value

    def _to_meta(self, value: Any) -> Any:
        """Return a tensor on the meta device in place of one that a model's code made on the CPU."""
        if not isinstance(value, Tensor) or value.device.type == "meta":
            return value
        found = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        self._values[found] = value
        return found

    def _value(self, value: Any) -> Any:
        """Return a tensor's values in its place, None if they aren't known."""
        if not isinstance(value, Tensor) or value.device.type != "meta":
            return value
        return self._values.get(value)

    def _write_through(self, written: Tensor, field: Field | Unknown | None) -> None:
        """Note what was written into a tensor with the others that share its memory."""
        old = self.field_of(written)
        if isinstance(old, Field) and isinstance(field, Field) and _same(old, field):
            return
        for other in list(self._aliases.get(written.untyped_storage()._cdata, ())):
            self._values.pop(other, None)
            if other is written:
                continue
            known = self.field_of(other)
            if isinstance(field, Unknown) or isinstance(known, Unknown):
                self.note(other, field if isinstance(field, Unknown) else known)
            elif (known or field) is not None:
                self.note(other, overwrite(other, known, written, field))


def _unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _same(one: Field, two: Field) -> bool:
    return all(
        a is b or (a.reach == b.reach and np.array_equal(a.first, b.first) and np.array_equal(a.last, b.last))
        for a, b in zip((*one.widest, *one.narrowest), (*two.widest, *two.narrowest), strict=True)
    )
