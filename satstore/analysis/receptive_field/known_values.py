"""The values of small tensors that don't depend on the image, such as indices and masks."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from satstore.analysis.receptive_field.measurement import UnmeasurableError
from satstore.analysis.receptive_field.operator_call import OperatorCall

MAX_VALUES = 1_000_000
"""The most values of a tensor that are kept."""


class KnownValues:
    """Keeps the values of tensors on the ``meta`` device, which has none of its own."""

    def __init__(self) -> None:
        self._values: Any = WeakTensorKeyDictionary()

    def note(self, tensor: Tensor, values: Tensor) -> None:
        """Keep the values of a tensor, unless they are too many."""
        if values.device.type != "meta" and values.numel() <= MAX_VALUES:
            self._values[tensor] = values

    def forget(self, tensor: Tensor) -> None:
        """Forget the values of a tensor."""
        self._values.pop(tensor, None)

    def get(self, value: Any) -> Any:
        """Return a tensor's values, None if they aren't known; what is no tensor is returned as it is."""
        if not isinstance(value, Tensor) or value.device.type != "meta":
            return value
        return self._values.get(value)

    def to_meta(self, value: Any) -> Any:
        """Return a tensor on the meta device for one on the CPU; what is no tensor is returned as it is."""
        if not isinstance(value, Tensor) or value.device.type == "meta":
            return value
        found = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        self._values[found] = value
        return found

    def make_constant(self, tensor: Tensor) -> Tensor:
        """Return values for a tensor that doesn't depend on the image; random ones for a parameter.

        Raises
        ------
        UnmeasurableError
            If it is an index or a mask whose values aren't known.
        """
        found: Tensor | None = self.get(tensor)
        if found is None and not (tensor.is_floating_point() or tensor.is_complex()):
            raise UnmeasurableError("the values of a tensor are needed that has none: of an index, or a mask")
        if found is None:
            random = torch.Generator().manual_seed(1)
            found = torch.rand(tensor.shape, generator=random, dtype=torch.float64) + 0.1
        return found.double() if found.is_floating_point() else found

    def compute(self, call: OperatorCall) -> None:
        """Compute and keep the values of an operator's outputs, where those of its inputs are known."""
        tensors = [v for v in tree_flatten((call.args, call.kwargs))[0] if isinstance(v, Tensor)]
        if any(self.get(tensor) is None for tensor in tensors):
            return
        if not call.outputs or sum(output.numel() for output in call.outputs) > MAX_VALUES:
            return

        def on_cpu(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, torch.device) else self.get(value)

        for output, value in zip(call.outputs, call.run(on_cpu), strict=True):
            if output.device.type == "meta":
                self._values[output] = value
