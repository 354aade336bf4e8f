"""Read and serialize the checkpoints of runs."""

import io
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from satstore.errors import CorruptError
from satstore.runs.manifest import checkpoint_name
from satstore.runs.run import Run


def serialize_checkpoint(state: Mapping[str, Any]) -> bytes:
    """Return the content of a checkpoint's file."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def read_checkpoint(run: Run, epoch: int | None = None) -> dict[str, Any]:
    """Read a run's checkpoint, checked against the manifest's digest; of an earlier epoch, ``model`` alone.

    Raises as :func:`read_state` does.
    """
    return read_state(run, checkpoint_name(epoch), torch.device("cpu"))  # random states stay there


def read_state(run: Run, name: str, device: torch.device) -> dict[str, Any]:
    """Read tensors that a run committed to a file, checked against the manifest's digest, onto a device.

    CorruptError if it isn't what was committed, or holds more than tensors, numbers, strings, lists, dicts.
    """
    content = run.read_file(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says what is wrong with the file
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to trust the file
        raise CorruptError(
            f"{run.path / name} holds more than tensors, numbers, strings, lists and dicts: satstore did not "
            "write it, and does not load it; restore it from a copy, or train under another run id"
        ) from error
    except Exception as error:  # torch raises zipfile's and its own errors here
        raise CorruptError(f"{run.path / name} can't be loaded: {error}") from error
    return state
