"""What can be recorded of a source: its modules, and the outputs of one sample."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from satstore.capture.layers import describe_layers, find_block, select_layers
from satstore.errors import ConfigError, SatstoreError, UnreachableError, reason_of
from satstore.models.plan import build_blank
from satstore.models.sources.source import Source, open_source
from satstore.reports.module_tree import ModuleEntry
from satstore.runs.logs_folder import open_run
from satstore.runs.run import Run
from satstore.stages.record.inputs import call_model
from satstore.stages.record.run_source import check_built_here
from satstore.system.text import counted

EXAMPLES = {"image": Image.new("RGB", (256, 256)), "text": "What does each layer of this network know?"}
"""Raw samples that stand for any; texts of other lengths have as many tokens as they have."""

MASK = "attention_mask"
"""Of one text's tokens, which all count: models need its values, which the meta device does not have."""


@dataclass(frozen=True)
class SourceModules:
    """The modules of a source, in the order of its tree, and the sample that their outputs are of."""

    entries: tuple[ModuleEntry, ...]
    sample: str


def list_modules(
    text: str, arguments: Mapping[str, Any] | None = None, logs_dir: Path | None = None
) -> SourceModules:
    """Build a source without weights, and pass samples through it; on the meta device, if it can be.

    ConfigError as :func:`.source.open_source` has it, and if the source's own preparation fails.
    """
    if ":" not in text:
        run = open_run(text, logs_dir)
        if arguments:
            raise ConfigError(f"{text} is a run: --set is for other sources")
        check_built_here(run)
        run.load_plugins()
        return _on_meta_or_cpu(lambda device: _measure_run(run, device))
    return _on_meta_or_cpu(lambda device: _measure_source(text, arguments, device))


def _on_meta_or_cpu(measure: Callable[[str], SourceModules]) -> SourceModules:
    try:
        return measure("meta")
    except UnreachableError:
        raise
    except Exception:  # what needs values fails on the meta device in many ways
        return measure("cpu")


def _measure_run(run: Run, device: str) -> SourceModules:
    if run.manifest.dataset is None:
        raise ConfigError(f"{run.name} is not trained yet, and has no classes; train it first")
    model, resolution = (
        build_blank(run.config, len(run.manifest.dataset.classes), device),
        run.config.resolution,
    )

    def forward(n_samples: int) -> object:
        return model(torch.zeros(n_samples, 3, resolution, resolution, device=device))

    return SourceModules(_measure(model, forward), f"an image, prepared as 3 × {resolution} × {resolution}")


def _measure_source(text: str, arguments: Mapping[str, Any] | None, device: str) -> SourceModules:
    source = open_source(text, untrained=True, arguments=arguments, device=device)
    prepared, sample = _prepare_example(source)

    def forward(n_samples: int) -> object:
        inputs = source.collate([prepared] * n_samples)
        if isinstance(inputs, dict) and device == "meta":
            inputs = {name: value for name, value in inputs.items() if name != MASK}
        with _explaining_forward(text, sample):
            return call_model(source.model, inputs, torch.device(device))

    return SourceModules(_measure(source.model, forward), sample)


@contextmanager
def _explaining_forward(text: str, sample: str) -> Iterator[None]:
    """Turn what a model raises in its forward pass into a ConfigError; satstore's own errors pass."""
    try:
        yield
    except (SatstoreError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"the forward pass of {text} with {sample} fails ({reason_of(error, with_type=True)[:200]}); "
            "its inputs are to be made otherwise: take module:factory that returns (model, prepare)"
        ) from error


def _prepare_example(source: Source) -> tuple[Any, str]:
    """Return what a source prepares of a blank image, or of a text, and a description of it."""
    problem: Exception | None = None
    for kind in EXAMPLES if source.kind == "any" else (source.kind,):
        try:
            prepared = source.prepare(EXAMPLES[kind])
        except SatstoreError:
            raise
        except Exception as error:  # a user's own code may raise anything for what it does not take
            problem = error
            continue
        return prepared, f"{'an image' if kind == 'image' else 'a text'}, prepared as {_describe(prepared)}"
    assert problem is not None
    raise ConfigError(
        f"{source.text} prepares neither an image nor a text: {reason_of(problem, with_type=True)[:200]}"
    ) from problem


def _describe(prepared: Any) -> str:
    """Return the shape of an input, or of the first of several by name, or the number of its tokens."""
    value = next(iter(prepared.values())) if isinstance(prepared, dict) else prepared
    if isinstance(value, Tensor):
        return " × ".join(map(str, value.shape))
    return counted(len(value), "token") if isinstance(value, list) else type(value).__name__


def _measure(model: nn.Module, forward: Callable[[int], object]) -> tuple[ModuleEntry, ...]:
    """Return the entry of each module of a model, in the order of its tree."""
    found = describe_layers(model, forward, select_layers(model, modules=(".*",)), calls="all")
    calls: dict[str, list[Any]] = {}
    for layer in found.layers:
        calls.setdefault(layer.module, []).append(layer)

    def describe(name: str, module: nn.Module) -> ModuleEntry:
        last = calls[name][-1] if name in calls else None
        return ModuleEntry(
            name=name,
            kind=type(module).__name__,
            form=last.layout.form if last else "",
            shape=last.output_shape if last else (),
            n_calls=len(calls.get(name, ())),
            block=find_block(model, name),
            n_parameters=sum(parameter.numel() for parameter in module.parameters()),
            left_out=found.left_out.get(name, ""),
            doubt=found.doubts.get(last.name, "") if last else "",
        )

    return tuple(describe(name, module) for name, module in model.named_modules())
