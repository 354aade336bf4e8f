"""The table of every layer's receptive field, from a forward pass on the ``meta`` device: no values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from satstore.analysis.compiled_models import uncompiled
from satstore.analysis.graph import copy_to_meta
from satstore.analysis.modules import LAYER_TYPES, name_module
from satstore.analysis.receptive_field.fields import TensorField
from satstore.analysis.receptive_field.forward_pass import FieldMode, ListIndices, Unknown, ValueNeededError
from satstore.analysis.receptive_field.window_rules import attend_in_windows
from satstore.errors import ConfigError, reason_of

if TYPE_CHECKING:
    import pandas as pd


def receptive_field(model: nn.Module, resolution: int, n_channels: int = 3) -> "pd.DataFrame":
    """Tabulate the receptive field of every Conv, ConvTranspose, Linear and LSTM layer of a model.

    A layer's field is what one of its outputs depends on: along one axis, the number of input pixels from the
    first to the last, the largest of all its outputs, borders not cut off: padding of any
    kind, circular padding too, counts as if the image went on. Modes are those of eval: batch
    norm with running statistics looks at each position alone. What reads the statistics of a map (GroupNorm,
    InstanceNorm, LayerNorm over positions, squeeze and excitation) has a path through all of it: that path
    widens ``receptive_field_max`` to its own size, and leaves ``receptive_field_min``, the size that the
    literature gives, as it is. Channels are taken together: a slice of the channels of a concatenation
    counts as all of it.

    Convolutions, pooling, interpolation, padding, products, norms, and all that only moves elements are
    followed exactly, whatever function or module calls for them; other operators are run on random values,
    to see which outputs differ once an input does. Where positions are no longer evenly spaced (after
    ``roll``, in tiles of tokens), fields are taken element by element, within the map. Layers of subclasses
    of torch's count like those. Hooks are left out.

    Parameters
    ----------
    model
        Any module whose forward doesn't ask for values of its tensors, called with (1, n_channels,
        resolution, resolution); not changed.
    resolution
        Height and width of the input, in pixels.
    n_channels
        The channels of the input.

    Returns
    -------
    pandas.DataFrame
        A row per layer, in forward order. ``receptive_field_min`` and ``receptive_field_max``: of the path
        that sees least, and of all paths together; where the axes differ, of the smaller and of the larger.
        ``jump``: input pixels from one output to the next. ``start``: the middle of what the first output
        sees, in pixels, the first pixel being from 0 to 1. ``map_size``: outputs along an axis. ``border``
        marks the first convolution whose input has a largest field above the resolution, ``strict_border``
        the first whose input has a smallest field above it. jump, start and map_size are vertical; jump
        and start are missing where positions aren't evenly spaced.

    Raises
    ------
    ConfigError
        If the model can't be traced or followed, or can't take the resolution; the message names the module.
        A layer behind an operator that no field is known of (its result depends on the image's values, or it
        can't be run on a CPU) is refused by name, with the operator's.

    Notes
    -----
    r₀ = 1, j₀ = 1; r = r₋ + (k_eff − 1)·j₋; j = j₋·s; k_eff = k + (k − 1)(dilation − 1): Araujo, Norris and
    Sim, "Computing receptive fields of convolutional neural networks", Distill, 2019.
    """
    import pandas as pd

    if resolution < 1:
        raise ConfigError(f"resolution {resolution} can't be used; give the pixels of a side, at least 1")
    rows = _LayerPass(model).run(torch.empty(1, n_channels, resolution, resolution, device="meta"))
    for column, key in (("border", "_input_max"), ("strict_border", "_input_min")):
        first = next((r for r in rows if r["_is_conv"] and r[key] > resolution), None)
        for row in rows:
            row[column] = row is first
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = (
    "layer",
    "kind",
    "receptive_field_min",
    "receptive_field_max",
    "jump",
    "start",
    "map_size",
    "border",
    "strict_border",
)


class _LayerPass:
    """Runs a model on the meta device and tabulates each layer that it calls."""

    def __init__(self, model: nn.Module) -> None:
        model = uncompiled(model)
        self._model = copy_to_meta(model)
        self._rows: dict[str, dict[str, Any]] = {}
        self._inside: list[tuple[str, nn.Module]] = [("", self._model)]
        self._mode = FieldMode()
        for real, blank in zip(model.buffers(), self._model.buffers(), strict=True):
            self._mode.known_values.note(blank, real.detach())

    def run(self, image: Tensor) -> list[dict[str, Any]]:
        """Return a row per layer, in forward order."""
        with self._hooks(), torch.inference_mode():
            self._mode.start(image)
            try:
                with ListIndices(), self._mode:
                    self._model(image)
            except ConfigError:
                raise
            except ValueNeededError as error:
                raise ConfigError(
                    f"{self._module_name()} can't be traced: its code asks for values; its forward must not "
                    f"branch on its tensors' values"
                ) from error
            except Exception as error:  # what a layer raises on a map that is too small for it
                reason = reason_of(error)[:200]
                raise ConfigError(f"{self._module_name()} can't be followed: {reason}") from error
        return list(self._rows.values())

    def _module_name(self) -> str:
        """Name the innermost module that the pass is in."""
        return name_module(*self._inside[-1])

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        for name, module in self._model.named_modules():
            if name:
                handles += [
                    module.register_forward_pre_hook(lambda m, _, name=name: self._enter(name, m)),
                    module.register_forward_hook(
                        lambda m, args, kwargs, output: self._leave(m, (*args, *kwargs.values()), output),
                        with_kwargs=True,
                    ),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module) -> None:
        self._inside.append((name, module))
        if _is_swin_attention(module):
            self._mode.is_paused = True

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        image = next((value for value in inputs if isinstance(value, Tensor)), None)
        if image is not None:
            if _is_swin_attention(module):
                self._mode.is_paused = False
                self._note_swin(module, image, output)
            elif isinstance(module, LAYER_TYPES) and not self._mode.is_paused:
                self._tabulate(module, image, output)
        self._inside.pop()

    def _note_swin(self, module: Any, image: Tensor, output: Tensor) -> None:
        field = self._mode.field_of(image)
        if isinstance(field, TensorField):
            field = attend_in_windows(field, image, module.window_size, module.shift_size)
        self._mode.note(output, field)

    def _tabulate(self, module: nn.Module, image: Tensor, output: Any) -> None:
        name = self._inside[-1][0]
        while not isinstance(output, Tensor):
            output = output[0]
        before, field = self._mode.field_of(image), self._mode.field_of(output)
        for found in (before, field):
            if isinstance(found, Unknown):
                raise ConfigError(f"{self._module_name()}: no receptive field is known behind {found.reason}")
        if name in self._rows or not isinstance(before, TensorField) or not isinstance(field, TensorField):
            return
        vertical = field.widest[0]
        # Where all positions see the same, the narrowest path still has the distance between them.
        jump = next(
            (j for axis in (vertical, field.narrowest[0]) if (j := axis.jump) > 0 or j < 0), vertical.jump
        )
        self._rows[name] = {
            "layer": name,
            "kind": type(module).__name__,
            "receptive_field_min": field.size[0],
            "receptive_field_max": field.size[1],
            "jump": int(jump) if jump.is_integer() else jump,
            "start": vertical.start,
            "map_size": _height(field, output),
            "_is_conv": isinstance(module, _ConvNd) and not before.is_pooled,
            "_input_max": before.size[1],
            "_input_min": before.size[0],
        }


def _height(field: TensorField, output: Tensor) -> int:
    """Count a tensor's positions along the image's height."""
    vertical = field.widest[0]
    if len(vertical.axes) == 1 and not field.is_flat:
        return int(output.shape[vertical.axes[0]])
    if not vertical.axes:
        return int(output.shape[field.axes[0]]) if field.axes else 1
    return len({*zip(vertical.first.ravel().tolist(), vertical.last.ravel().tolist(), strict=True)})


def _is_swin_attention(module: nn.Module) -> bool:
    """Tell whether a module is torchvision's attention in shifted windows, whose mask can't be followed."""
    return any(
        kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__.startswith("ShiftedWindow")
        for kind in type(module).__mro__
    )
