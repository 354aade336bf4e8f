"""Forward hooks that record the moments and the pooled latents of every layer.

A layer is recorded at its own output, before norm and activation. Hooks are removed when their context ends,
and what they record shares no memory with the model.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Generic, Self

import torch
from torch import Tensor, nn

from satstore.analysis.modules import name_module
from satstore.analysis.moments import Moments, NonFiniteError
from satstore.capture.layer_samples import ConvMethod, make_latent, to_samples
from satstore.capture.layers import Key, Layer, Layers, hooked
from satstore.capture.outputs import arrange, expect_tensor
from satstore.capture.tokens import BatchMask, TokenMask
from satstore.config.latent_keys import LatentsKey, LatentsRequest, has_latents
from satstore.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NonFinite:
    """`count` values of a layer's output were NaN or infinite, first in this batch (from 0) of the pass."""

    layer: str
    split: str
    batch: int
    count: int


class Recorder(Generic[Key]):
    """A context in which every call of a module is passed to `_record`, under no_grad, while `enabled`."""

    def __init__(self, modules: Mapping[Key, nn.Module]) -> None:
        self.enabled = True
        self._modules = dict(modules)
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        self._hooks.enter_context(hooked(self._modules, self._see))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _see(self, keys: list[Key], module: nn.Module, output: Any) -> None:
        if self.enabled:
            with torch.no_grad():
                for key in keys:
                    self._record(key, module, output)

    def _record(self, key: Key, module: nn.Module, output: Any) -> None:
        raise NotImplementedError


class LayerRecorder(Recorder[Layer]):
    """Records layers: of each call of a module, those of its layers that are of this call.

    Attributes
    ----------
    unmasked
        Layer to its number of tokens and that of the mask, where these differ: all its tokens count.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers)
        self._batch = -1
        self._mask: BatchMask | None = None
        self.unmasked: dict[str, tuple[int, int]] = {}
        self._n_calls: Counter[int] = Counter()

    def next_batch(self, mask: BatchMask | None = None) -> None:
        """Count a batch; call it before the batch's forward pass.

        Parameters
        ----------
        mask
            Which of the batch's tokens count; None: all. See `find_mask`.
        """
        self._batch += 1
        self._mask = mask
        self._n_calls.clear()

    def feed(self, layer: Layer, output: Tensor) -> None:
        """Record an output that was computed before, as if the layer's module had been called now."""
        if self.enabled:
            with torch.no_grad():
                self._record(layer, self._modules[layer], output)

    def _see(self, keys: list[Layer], module: nn.Module, output: Any) -> None:
        call = self._n_calls[id(module)]
        self._n_calls[id(module)] += 1
        layers = [layer for layer in keys if layer.call in (None, call)]
        if not layers and self.enabled:
            raise ConfigError(
                f"{name_module(keys[0].module, module)} was called {call + 1} times in {self._place}, "
                f'{call} times in the first: take calls "last"'
            )
        super()._see(layers, module, output)

    @property
    def _place(self) -> str:
        return f"batch {max(self._batch, 0)}"

    def _record(self, key: Layer, module: nn.Module, output: Any) -> None:
        title, layout = name_module(key.module, module), key.layout
        tensor = expect_tensor(output, key.part, title)
        if layout.n_folded > 1 and tensor.shape[layout.batch_axis or 0] % layout.n_folded:
            raise ConfigError(
                f"{title} returns {tuple(tensor.shape)} in {self._place}, where a sample has "
                f"{layout.n_folded} places in the first: exclude it (exclude_layers), or pad to one length"
            )
        tensor = arrange(tensor, layout)
        self._record_tensor(key, tensor, self._mask_for(key, tensor))

    def _mask_for(self, layer: Layer, tensor: Tensor) -> TokenMask | None:
        """Return the mask of a layer's tokens; None if all count, or it is not of these tokens."""
        if self._mask is None or layer.form not in ("tokens", "steps"):
            return None
        mask = self._mask.of(layer.name)
        if mask is None or mask.is_full:
            return None
        n_samples, n_tokens = mask.kept.shape
        if n_tokens != tensor.shape[1]:
            self.unmasked.setdefault(layer.name, (tensor.shape[1], n_tokens))
            return None
        if n_samples != len(tensor):
            raise ConfigError(
                f"layer {layer.name} gives {len(tensor)} samples in a batch whose mask is of {n_samples}; "
                "record the model within what shares batches between devices (model.module)"
            )
        return mask

    def _record_tensor(self, layer: Layer, tensor: Tensor, mask: TokenMask | None) -> None:
        """Record a layer's output, as `arrange` returns it, and its tokens that count."""
        raise NotImplementedError


class MomentRecorder(LayerRecorder):
    """Accumulates the moments of every layer over a pass; a module called several times counts each call.

    Parameters
    ----------
    method, downsampling, options
        As for `to_samples`.
    max_samples
        The most images of a pass that a layer's moments take, the first ones.

    Attributes
    ----------
    enabled
        Whether calls are recorded: False until `begin`, and to be set to False after the pass.
    non_finite
        The layers that gave NaN or infinities since `begin`; they are not recorded until the next.

    Examples
    --------
    >>> with MomentRecorder(layers) as recorder:  # doctest: +SKIP
    ...     recorder.begin("train")
    ...     for images, labels in batches:
    ...         recorder.next_batch()
    ...         model(images)
    ...     spectra = {name: m.covariance() for name, m in recorder.results().items()}
    """

    def __init__(
        self,
        layers: Layers,
        method: ConvMethod = "channelwise",
        downsampling: int | None = None,
        max_samples: int | None = None,
        log_interval: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(layers)
        self._max_samples, self._log_interval = max_samples, log_interval
        self._to_samples: Callable[..., Tensor] = partial(
            to_samples, method=method, downsampling=downsampling, **options
        )
        self.begin("")
        self.enabled = False

    def begin(self, split: str) -> None:
        """Reset the moments, and record a pass over this split from now on."""
        self.non_finite: list[NonFinite] = []
        # A second key is the device: replicas of a data-parallel model share the hooks.
        self._moments: dict[str, dict[torch.device, Moments]] = {}
        self._n_images: dict[str, int] = {}
        self._split, self._batch, self.enabled = split, -1, True

    def results(self) -> dict[str, Moments]:
        """Return the moments of the layers called since `begin`, in the order of calls, unless dropped."""
        poisoned = {event.layer for event in self.non_finite}
        return {name: _merge(parts) for name, parts in self._moments.items() if name not in poisoned}

    def state(self) -> dict[str, Any]:
        """Return all that was recorded since `begin`, on the CPU, for `restore` of a later process."""
        moments = {
            name: {str(device): found.state() for device, found in parts.items()}
            for name, parts in self._moments.items()
        }
        return {
            "moments": moments,
            "n_images": dict(self._n_images),
            "non_finite": list(map(astuple, self.non_finite)),
            "batch": self._batch,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another recorder of the same pass, to the last bit, after `begin`."""
        self._moments = {
            name: {
                torch.device(device): Moments.from_state(found, torch.device(device))
                for device, found in parts.items()
            }
            for name, parts in state["moments"].items()
        }
        self._n_images = dict(state["n_images"])
        self.non_finite = [NonFinite(*event) for event in state["non_finite"]]
        self._batch = state["batch"]

    def part(self) -> "tuple[dict[str, Moments], list[NonFinite]]":
        """Return the records since `begin`, on the CPU, for `absorb` of another process's recorder."""
        return {name: moments.cpu() for name, moments in self.results().items()}, self.non_finite

    def absorb(self, part: "tuple[dict[str, Moments], list[NonFinite]]") -> None:
        """Add the records of another recorder of the same pass."""
        moments, non_finite = part
        self.non_finite = self.non_finite + non_finite
        for name, found in moments.items():
            parts = self._moments.setdefault(name, {})
            if parts:
                next(iter(parts.values())).merge(found)
            else:
                parts[torch.device("cpu")] = found

    def _record_tensor(self, layer: Layer, tensor: Tensor, mask: TokenMask | None) -> None:
        name = layer.name
        if any(event.layer == name for event in self.non_finite) or max(self._batch, 0) % self._log_interval:
            return
        room = take_room(self._n_images, name, self._max_samples, len(tensor))
        if room == 0:
            return
        samples = self._to_samples(tensor, layer.layout, n_images=room, mask=mask)
        moments = self._moments.setdefault(name, {}).setdefault(samples.device, Moments())
        try:
            moments.update(samples)
        except NonFiniteError as error:
            event = NonFinite(name, self._split, max(self._batch, 0), error.count)
            self.non_finite.append(event)
            _log.debug("not recorded for the rest of the pass: %s, %s", event, error)


class LatentRecorder(LayerRecorder):
    """Collects the pooled latents of one batch, for all layers and poolings in one forward pass.

    Pooling happens in the hook, on the layer's device, so that no full map is kept unless asked for.
    If a module is called several times, the last call counts.

    Parameters
    ----------
    poolings
        As `LatentsKey` has them.
    with_grid
        Whether poolings of maps take an image's patches as maps.
    """

    def __init__(self, layers: Layers, poolings: Iterable[str], *, with_grid: bool = False) -> None:
        super().__init__(layers)
        self._with_grid = with_grid
        self._latents: dict[str, dict[str, Tensor]] = {pooling: {} for pooling in poolings}
        self._seen: dict[str, int] = {}

    @classmethod
    def for_request(cls, layers: Layers, request: LatentsRequest) -> Self:
        """Make a recorder of the latents that are asked for, as far as there are layers for them."""
        keys = request.keys(list(layers))
        return cls(layers, [key.pooling for key in keys], with_grid=request.with_grid)

    def pop(self) -> dict[str, dict[str, Tensor]]:
        """Return the latents since the last call, on the CPU, by pooling and layer.

        They are float32, or float64 if the layer's output is: whether float16 suffices depends on all
        samples. ConfigError if only some of the layers were called.
        """
        missing = [layer for layer in self._modules if layer.name not in self._seen]
        if missing and self._seen:
            call = "" if missing[0].call is None else f" {missing[0].call + 1} times"
            raise ConfigError(
                f"{name_module(missing[0].module, self._modules[missing[0]])} was not called{call} in "
                f"{self._place}, as it was in the first: exclude it (exclude_layers)"
            )
        self._check_lengths()
        self._seen = {}
        latents = {pooling: _on_cpu(part) for pooling, part in self._latents.items()}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # waits for the copies, which are asynchronous
        self._latents = {pooling: {} for pooling in self._latents}
        return latents

    def _check_lengths(self) -> None:
        """Raise ConfigError if a layer gave another number of samples than most."""
        usual = Counter(self._seen.values()).most_common(1)
        for name, length in self._seen.items():
            if length != usual[0][0]:
                raise ConfigError(
                    f"layer {name} has {length} samples in {self._place}, others have {usual[0][0]}: "
                    "exclude it (exclude_layers), or pad to one length"
                )

    def _record_tensor(self, layer: Layer, tensor: Tensor, mask: TokenMask | None) -> None:
        self._seen[layer.name] = len(tensor)
        for pooling, latents in self._latents.items():
            key = LatentsKey(pooling)
            if not has_latents(layer, key, with_grid=self._with_grid):
                continue
            try:
                latent = make_latent(tensor, layer, key, mask)
            except ConfigError as error:
                raise ConfigError(f"{key.flags}: layer {layer.name} in {self._place}: {error}") from error
            # An in-place activation may write over the layer's own output right after this hook.
            shared = latent.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            latents[layer.name] = latent.clone() if shared else latent


def take_room(seen: dict[Any, int], key: Any, most: int | None, n_images: int) -> int | None:
    """Count the images of a call; return how many of them moments still take; None for all."""
    if most is None:
        return None
    room = max(0, most - seen.get(key, 0))
    seen[key] = seen.get(key, 0) + n_images
    return room


def _on_cpu(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Start to copy latents to the host, in a dtype that NumPy has."""
    return {
        name: latent.to(torch.promote_types(latent.dtype, torch.float32))
        .contiguous()
        .to("cpu", non_blocking=True)
        for name, latent in latents.items()
    }


def _merge(parts: dict[torch.device, Moments]) -> Moments:
    if len(parts) == 1:
        return next(iter(parts.values()))
    merged = Moments()
    for moments in parts.values():
        merged.merge(moments)
    return merged
