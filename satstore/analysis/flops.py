"""The computing cost of a model: parameters and floating-point operations, by layer.

torch's own counter counts matrix products, convolutions and attention, in the forward and in the backward
pass, two operations per multiply-accumulate. Biases, norms, activations and pooling are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from satstore.analysis.modules import in_eval_mode


@dataclass(frozen=True)
class Cost:
    """The cost of a module for one image, without its submodules; ``layer`` is empty for the model itself."""

    layer: str
    n_parameters: int
    flops: int


@dataclass(frozen=True)
class Costs:
    """The cost of a model for one image.

    Attributes
    ----------
    modules
        The modules with parameters or operations, in order of definition; they add up to the model's.
    """

    modules: tuple[Cost, ...]
    flops: int
    backward_flops: int


def count_costs(model: nn.Module, image: Tensor) -> Costs:
    """Count a model's parameters, and its operations for an image (1, 3, r, r), on any device."""
    # torch's count of a grouped convolution's backward pass is too large, by the number of groups.
    exact: dict[Any, Any] = {torch.ops.aten.convolution_backward: _count_convolution_backward}
    forward = FlopCounterMode(display=False)
    backward = FlopCounterMode(display=False, custom_mapping=exact)
    try:
        with in_eval_mode(model), torch.enable_grad():
            with forward:
                logits = model(image)
            with backward:
                logits.sum().backward()
    finally:
        model.zero_grad(set_to_none=True)
    within = _by_module(forward, model)
    modules = []
    for name, module in model.named_modules():
        children = [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]
        flops = within.get(name, 0) - sum(within.get(child, 0) for child in children)
        n_parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if n_parameters or flops:
            modules.append(Cost(name, n_parameters, flops))
    return Costs(tuple(modules), forward.get_total_flops(), backward.get_total_flops())


def _by_module(counter: FlopCounterMode, model: nn.Module) -> dict[str, int]:
    """Return the operations counted within each module, submodules included, by its PyTorch name."""
    root = f"{type(model).__name__}."
    found = {
        name.removeprefix(root): sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    return {**found, "": counter.get_total_flops()}


def _count_convolution_backward(  # torch's counter calls it with all arguments of the operator
    grad_out_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    out_shape: Any,
) -> int:
    """Count the operations of both gradients: each takes those of the forward pass."""
    once: int = conv_flop_count(list(x_shape), list(w_shape), list(grad_out_shape), transposed=transposed)
    return once * sum(map(bool, output_mask[:2]))
