"""Follows a model's forward pass, operator by operator, and keeps each tensor's receptive field.

The pass runs on the ``meta`` device, which computes no values. Small tensors that don't depend on the image
(indices, masks) keep their values beside it: they decide which elements are read.
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

from satstore.analysis.receptive_field.fields import AxisField, TensorField
from satstore.analysis.receptive_field.input_intervals import InputIntervals
from satstore.analysis.receptive_field.known_values import KnownValues
from satstore.analysis.receptive_field.measurement import UnmeasurableError
from satstore.analysis.receptive_field.operator_call import OperatorCall
from satstore.analysis.receptive_field.operator_measurement import OperatorMeasurer
from satstore.analysis.receptive_field.rules import FIRST_INPUT_RULES, RULES, merge
from satstore.analysis.receptive_field.view_rules import (
    RESHAPES,
    constant_field,
    drop_dimensions,
    move_field,
    overwrite,
)
from satstore.errors import reason_of

VALUE_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""torch's tags of operators whose result, or its shape, depends on values."""


@dataclass(frozen=True)
class Unknown:
    """The field of a tensor behind an operator that can't be followed, with the reason."""

    reason: str


class ShapeError(Exception):
    """An operator that can't take inputs of these shapes."""


class ValueNeededError(Exception):
    """A model whose code asks for a value that depends on the image, or isn't known."""


class ListIndices(TorchFunctionMode):
    """Turns lists that index tensors into tensors: torch would do so where no dispatch mode sees it."""

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
    """Runs operators on the meta device, and finds the fields of their outputs.

    Attributes
    ----------
    is_paused
        Whether operators run without fields: within a module whose field is set as a whole.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_paused = False
        self._fields: Any = WeakTensorKeyDictionary()
        self.known_values = KnownValues()
        self._aliases: dict[int, Any] = {}
        self._measurer = OperatorMeasurer(self.known_values)

    def start(self, image: Tensor) -> None:
        """Start a pass: each element of the image (1, channel, height, width) sees itself."""
        height, width = (AxisField.along(InputIntervals(), d, image.shape[d], image.ndim) for d in (2, 3))
        self.note(image, TensorField((height, width), (height, width)))

    def note(self, tensor: Tensor, field: TensorField | Unknown | None) -> None:
        """Keep the field of a tensor; None if it doesn't depend on the image."""
        if field is None or (
            isinstance(field, TensorField) and all(axis_field.is_empty for axis_field in field.widest)
        ):
            self._fields.pop(tensor, None)
        else:
            self._fields[tensor] = field
        storage = tensor.untyped_storage()._cdata
        self._aliases.setdefault(storage, WeakTensorKeyDictionary())[tensor] = None

    def field_of(self, tensor: Tensor) -> TensorField | Unknown | None:
        """Return the field of a tensor; None if it doesn't depend on the image."""
        found: TensorField | Unknown | None = self._fields.get(tensor)
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        call = OperatorCall(func, args, kwargs, self._known)
        needs_values = bool(VALUE_TAGS & set(func.tags))
        if needs_values and all(self.known_values.get(tensor) is not None for tensor in call.tensors()):
            return func(*tree_map(self.known_values.get, args), **kwargs)
        indices = call["indices"]
        if isinstance(indices, list | tuple) and (chosen := self._chosen(indices)) is not None:
            with self:
                return func(args[0], chosen, *args[2:], **kwargs)
        if not self.is_paused and self._rule(call) is None and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        args, kwargs = tree_map(self.known_values.to_meta, args), tree_map(self.known_values.to_meta, kwargs)
        try:
            output = func(*args, **kwargs)
        except Exception as error:  # what torch raises for shapes that an operator doesn't take
            raise (ValueNeededError if needs_values else ShapeError)(reason_of(error)) from error
        if not self.is_paused:
            outputs = [value for value in tree_flatten(output)[0] if isinstance(value, Tensor)]
            self._follow(OperatorCall(func, args, kwargs, self._known, outputs))
        return output

    def _chosen(self, indices: Any) -> list[Any] | None:
        """Replace masks whose values are known by indices; return None if there are none, or unknown ones."""
        masks = [index for index in indices if isinstance(index, Tensor) and index.dtype == torch.bool]
        if not masks or any(self.known_values.get(mask) is None for mask in masks):
            return None
        found: list[Any] = []
        for index in indices:
            is_mask = any(index is mask for mask in masks)
            found += [*self.known_values.get(index).nonzero(as_tuple=True)] if is_mask else [index]
        return found

    def _known(self, tensor: Tensor) -> TensorField | None:
        found = self.field_of(tensor)
        return found if isinstance(found, TensorField) else None

    @staticmethod
    def _rule(call: OperatorCall) -> Any:
        rule = RULES.get(call.name)
        return None if rule in FIRST_INPUT_RULES and not call.reads_first_alone() else rule

    def _follow(self, call: OperatorCall) -> None:
        """Note the fields of an operator's outputs, and of tensors that it wrote into."""
        inputs = [self.field_of(tensor) for tensor in call.tensors()]
        unknown = next((found for found in inputs if isinstance(found, Unknown)), None)
        found: Sequence[TensorField | Unknown | None] = [None] * len(call.outputs)
        if unknown is not None:
            found = [unknown] * len(call.outputs)
        elif any(inputs):
            found = self._find(call)
        else:
            self.known_values.compute(call)
        for output, field in zip(call.outputs, found, strict=True):
            written = call.operator._schema.is_mutable and any(output is tensor for tensor in call.tensors())
            if written and (field is not None or self.field_of(output) is not None):
                self._write_through(output, field)
            self.note(output, field)

    def _find(self, call: OperatorCall) -> Sequence[TensorField | Unknown | None]:
        """Find fields by a rule, by torch's tags, or by measuring."""
        rule = self._rule(call) or (merge if torch.Tag.pointwise in call.operator.tags else None)
        if rule is not None:
            field = rule(call)
            return [field and drop_dimensions(field, output) for output in call.outputs]
        inputs = list({id(tensor): tensor for tensor, _ in call.image_inputs()}.values())  # each once
        fields: list[TensorField] = [self._fields[tensor] for tensor in inputs]
        try:
            if len(inputs) == 1 and (call.operator.is_view or call.name in RESHAPES):
                return move_field(call, inputs[0], fields[0])
            if not any(axis.axes for field in fields for axis in (*field.widest, *field.narrowest)):
                return [constant_field(fields, output.ndim) for output in call.outputs]
            return self._measurer.measure(call, inputs)
        except UnmeasurableError as error:
            return [Unknown(f"{call.operator._schema.name}: {error}")] * len(call.outputs)

    def _write_through(self, written: Tensor, field: TensorField | Unknown | None) -> None:
        """Note the fields of the other tensors that share the memory that was written."""
        old = self.field_of(written)
        if isinstance(old, TensorField) and isinstance(field, TensorField) and _same(old, field):
            return
        for other in list(self._aliases.get(written.untyped_storage()._cdata, ())):
            self.known_values.forget(other)
            if other is written:
                continue
            known = self.field_of(other)
            if isinstance(field, Unknown) or isinstance(known, Unknown):
                self.note(other, field if isinstance(field, Unknown) else known)
            elif (known or field) is not None:
                self.note(other, overwrite(other, known, written, field))


def _same(one: TensorField, two: TensorField) -> bool:
    pairs = zip((*one.widest, *one.narrowest), (*two.widest, *two.narrowest), strict=True)
    return all(a.equals(b) for a, b in pairs)
