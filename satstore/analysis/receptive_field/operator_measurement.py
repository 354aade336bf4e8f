"""Measures the receptive fields of one operator call, for operators without a rule."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from satstore.analysis.receptive_field.fields import AxisField, TensorField
from satstore.analysis.receptive_field.known_values import KnownValues
from satstore.analysis.receptive_field.measurement import UnmeasurableError, measure_reads
from satstore.analysis.receptive_field.operator_call import OperatorCall
from satstore.errors import reason_of

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Runs an operator on real values for its inputs that depend on the image."""


class OperatorMeasurer:
    """Measures operator calls on real values; equal calls are measured once."""

    def __init__(self, values: KnownValues) -> None:
        self._values = values
        self._measured: dict[Any, list[Any]] = {}

    def measure(self, call: OperatorCall, inputs: Sequence[Tensor]) -> list[TensorField]:
        """Measure the fields of an operator's outputs, from those inputs that depend on the image, each once.

        Raises
        ------
        UnmeasurableError
            If what the operator reads depends on values, or it can't be run.
        """
        if not all(tensor.is_floating_point() or tensor.is_complex() for tensor in inputs):
            raise UnmeasurableError("what it reads depends on the image's values")
        fields = [field for tensor in inputs if (field := call.field_of(tensor)) is not None]
        shapes = [tuple(tensor.shape) for tensor in inputs]
        run = self._make_run(call, inputs)
        with torch.random.fork_rng(devices=[]):
            widest, narrowest = (
                [self._measure_axis([getattr(f, kind)[i] for f in fields], shapes, run, call) for i in (0, 1)]
                for kind in ("widest", "narrowest")
            )
        return [
            TensorField(
                widest=(widest[0][o], widest[1][o]),
                narrowest=(narrowest[0][o], narrowest[1][o]),
                axes=fields[0].axes if output.ndim == inputs[0].ndim else None,
                is_pooled=all(field.is_pooled for field in fields),
            )
            for o, output in enumerate(call.outputs)
        ]

    def _make_run(self, call: OperatorCall, inputs: Sequence[Tensor]) -> Run:
        """Return a function that runs the operator on values for its inputs."""
        others = [tensor for tensor in call.tensors() if all(tensor is not given for given in inputs)]
        constants = {id(tensor): self._values.make_constant(tensor) for tensor in others}

        def run(values: Sequence[Tensor]) -> Sequence[Tensor]:
            known = constants | {id(tensor): value for tensor, value in zip(inputs, values, strict=True)}

            def on_cpu(value: Any) -> Any:
                if isinstance(value, Tensor):
                    found = known[id(value)]
                    is_made_complex = value.is_complex() and not found.is_complex()
                    return found * (1 + 0.5j) if is_made_complex else found.clone()
                return torch.device("cpu") if isinstance(value, torch.device) else value

            torch.manual_seed(0)
            try:
                return call.run(on_cpu)
            except Exception as error:  # what an operator raises on drawn values
                raise UnmeasurableError(reason_of(error)) from error

        return run

    def _measure_axis(
        self, fields: Sequence[AxisField], shapes: Sequence[tuple[int, ...]], run: Run, call: OperatorCall
    ) -> list[AxisField]:
        """Return each output's field along one axis of the image."""
        first = fields[0]
        if any(
            (field.intervals, field.n_positions) != (first.intervals, first.n_positions) for field in fields
        ):
            fields = [field.resolved() for field in fields]
        options = {k: v for k, v in call.arguments.items() if not isinstance(v, Tensor | list)}
        key: tuple[Any, ...] = (
            call.name, repr(options), tuple(shapes), tuple(output.shape for output in call.outputs),
            tuple((field.first.shape, field.first.tobytes(), field.last.tobytes()) for field in fields),
        )  # fmt: skip
        if any(isinstance(v, Tensor) and not any(v.shape == s for s in shapes) for v in call.tensors()):
            key = (*key, object())  # other tensors, of other values each time
        if key not in self._measured:
            self._measured[key] = measure_reads(run, shapes, [(field.first, field.last) for field in fields])
        return [fields[0].placed(*ends) for ends in self._measured[key]]
