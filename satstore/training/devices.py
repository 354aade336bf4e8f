"""The device that training and extraction run on."""

import torch

from satstore.errors import DeviceError


def choose_device(name: str | None) -> torch.device:
    """Return the device of a name; by default the first GPU, or the CPU where there is none.

    DeviceError if no device has that name, or it is not there.
    """
    n_gpus = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda:0" if n_gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"no device named {name!r}; expected cpu or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        found = f"the GPUs here are cuda:0 to cuda:{n_gpus - 1}" if n_gpus else "no GPU is here"
        raise DeviceError(f"device {name!r} is not there: {found}; use --device cpu, or a GPU that is")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; expected cpu or cuda:N")
    return device


def warm_up(device: torch.device) -> None:
    """Multiply small matrices on a GPU, which loads its runtime and libraries."""
    square = torch.ones(64, 64, device=device)
    torch.cuda.synchronize(device)
    (square @ square).sum().item()
