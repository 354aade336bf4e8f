"""Checkpoints of phd-lab's: their weights, and a checkpoint of satstore's that holds them."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from satstore.compat.phd_lab.tree import LoggedExperiment
from satstore.errors import CorruptError, reason_of


def read_weights(logged: LoggedExperiment) -> dict[str, Any] | None:
    """Return a checkpoint's weights, without data-parallel models' prefix; None if there is none.

    Raises CorruptError if it is damaged, or holds more than tensors and numbers.
    """
    path = Path(f"{logged.stem}.pt")
    if not path.is_file():
        return None
    import numpy as np
    import torch

    # Some checkpoints have metrics that are NumPy numbers: allow these, and nothing else, beside tensors.
    floats = (type(np.dtype(np.float64)), type(np.dtype(np.float32)))
    numbers: list[Any] = [np._core.multiarray.scalar, np.dtype, *floats]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(numbers):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["model_state_dict"]
        return {f"{name}".removeprefix("module."): tensor for name, tensor in state.items()}
    except Exception as error:  # torch raises pickle's, zipfile's and its own errors here
        text = reason_of(error)[:200]
        raise CorruptError(
            f"{path} is no checkpoint of phd-lab, or holds more than tensors and numbers, and is not loaded "
            f"({type(error).__name__}: {text}); move it away to import the rest"
        ) from error


def pack_weights(state: Mapping[str, Any], epoch: int) -> bytes:
    """Return a checkpoint of satstore's that holds weights alone, without optimizer or random states."""
    import torch

    content = io.BytesIO()
    torch.save({"model": dict(state), "epoch": epoch}, content)
    return content.getvalue()
