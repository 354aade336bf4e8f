"""Datasets that torchvision downloads, and what is said where it can't."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from satstore.errors import NotFoundError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def open_or_download(
    name: str, read: Callable[[bool], T], *, data_dir: str | os.PathLike[str], layout: str, page: str
) -> T:
    """Read a dataset through torchvision, which downloads it if it isn't there.

    Parameters
    ----------
    read
        Called with False, then, if that finds nothing, with True, which allows the download.
    layout
        The files that are expected below ``data_dir``, for the message.
    page
        Where people get them, for the message.

    Raises
    ------
    NotFoundError
        If it is neither there nor downloadable.
    """
    folder = Path(data_dir).absolute()
    try:
        return read(False)
    except RuntimeError:  # all that torchvision says of a missing or damaged file
        logger.info("%s is not in %s; downloading it (%s)", name, folder, page)
    try:
        return read(True)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise NotFoundError(
            f"{name} is not in {folder} and can't be downloaded ({reason}); "
            f"expected {layout} there: get them from {page}, or name "
            "the folder that holds them with the config key cache_dir or with TORCH_DATADIR"
        ) from error
