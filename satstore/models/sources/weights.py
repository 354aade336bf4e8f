"""Weights of a model from files without pickles' code, their digest, and what to say if there are none."""

import hashlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from satstore.errors import (
    ConfigError,
    CorruptError,
    NotFoundError,
    SatstoreError,
    UnreachableError,
    reason_of,
)
from satstore.system.text import counted, list_first

NESTED = ("state_dict", "model_state_dict", "model")
"""The keys under which training programs save a model's weights beside other things."""

NETWORK_ERRORS = {
    "ConnectionError",
    "TimeoutError",
    "URLError",
    "gaierror",
    "TransportError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
}
"""Classes of errors without a network: Python's, httpx's and huggingface_hub's, which differ by version."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file: safetensors, or one of ``torch.save``, with weights alone.

    Names lose the prefix of data-parallel models. NotFoundError if there is no such file, CorruptError if it
    can't be read or holds more than tensors and numbers.
    """
    if not path.is_file():
        raise NotFoundError(
            f"no file {path.absolute()}; expected weights: safetensors, or a .pt of torch.save"
        )
    state = (
        _load_safetensors(path) if path.suffix == ".safetensors" else _find_state(_load_pickle(path), path)
    )
    prefix = "module." if state and all(str(name).startswith("module.") for name in state) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in state.items()}


def _load_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path} is no file of safetensors: {reason_of(error)[:200]}") from error


def _load_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says what is wrong with the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to trust the file
        raise CorruptError(
            f"{path} is no file of weights alone, and is not loaded; save model.state_dict(), as safetensors "
            "or by torch.save"
        ) from error
    except Exception as error:  # torch raises zipfile's and its own errors here
        raise CorruptError(f"{path} can't be loaded: {reason_of(error)[:200]}") from error


def _find_state(content: Any, path: Path) -> Mapping[str, Tensor]:
    """Return the weights in what a file holds."""
    state = content
    if isinstance(content, Mapping):
        nested = [key for key in NESTED if isinstance(content.get(key), Mapping)]
        state = content[nested[0]] if nested else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        names = [str(key) for key in state] if isinstance(state, Mapping) else [type(state).__name__]
        raise CorruptError(
            f"{path} holds {list_first(names, 4)}; expected tensors by name, or such under "
            f"{', '.join(NESTED)}: save model.state_dict()"
        )
    return state


def load_tensors(model: nn.Module, path: Path, name: str) -> None:
    """Load a file's weights into a model; ConfigError names the first tensor that one has and not the other.

    See also :func:`read_tensors`.
    """
    tensors = read_tensors(path)
    expected = model.state_dict()
    # Of names that share a tensor, as tied embeddings do, files may hold one.
    given = {expected[key].data_ptr() for key in expected.keys() & tensors.keys() if expected[key].numel()}
    problems = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    missing = [k for k in expected if k not in tensors and expected[k].data_ptr() not in given]
    problems += [f"it lacks {key}" for key in missing]
    problems += [f"it has {key}, which the model lacks" for key in tensors if key not in expected]
    if problems:
        of_all = f"{len(problems)} of {counted(len(expected.keys() | tensors.keys()), 'tensor')}"
        raise ConfigError(f"{path} is not of {name}: {problems[0]} ({of_all})")
    model.load_state_dict(tensors, strict=False)


def digest_weights(model: nn.Module) -> str:
    """Return the hex sha256 of the names, types, shapes and bytes of all of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_offline(error: BaseException) -> bool:
    """Tell whether the lack of a network caused an error."""
    return bool({kind.__name__ for part in _causes(error) for kind in type(part).__mro__} & NETWORK_ERRORS)


@contextmanager
def explaining_downloads(
    source: str,
    arguments: Mapping[str, Any],
    remedy: str = "give a file (--weights FILE), or ask for random ones (--untrained)",
) -> Iterator[None]:
    """Turn errors of a library that builds or downloads a model into one line that says what to do.

    UnreachableError without a network, ConfigError for an argument that the model doesn't take and otherwise.
    """
    try:
        yield
    except (SatstoreError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each library has errors of its own, and some raise others' as they are
        if is_offline(error):
            *_, first = _causes(error)
            raise UnreachableError(
                f"the weights of {source} can't be downloaded (no network: {reason_of(first)[:200]}); "
                f"{remedy}"
            ) from error
        reason = reason_of(error)
        if unknown := next((key for key in arguments if f"argument '{key}'" in reason), None):
            raise ConfigError(f"--set {unknown}={arguments[unknown]}: {source} takes no {unknown}") from error
        raise ConfigError(f"{source} can't be built: {reason_of(error, with_type=True)[:300]}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def building(seed: int, device: str) -> Iterator[None]:
    """Let a model be built on a device, its weights drawn by a seed; torch's own state is as before then."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        yield
