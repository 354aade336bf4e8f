"""Raw images or texts, prepared by a model's own recipe."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from satstore.datasets.raw_data import RawSplit
from satstore.errors import ConfigError, SatstoreError, reason_of

Prepare = Callable[[Any], Any]
"""Maps an RGB image or a text to a model's input, without an axis for the batch."""

Collate = Callable[[list[Any]], Any]
"""Maps a list of prepared samples to the inputs of a batch."""


class PreparedData(Dataset[Any]):
    """A split's samples, prepared one by one and put together to batches.

    A batch is (inputs, labels int64 (batch,)), or inputs alone where the split has no labels. Pass it to
    :func:`satstore.datasets.loaders.make_loader`.
    """

    def __init__(self, split: RawSplit, prepare: Prepare, collate: Collate = default_collate) -> None:
        self.split = split
        self._prepare, self._collate = prepare, collate

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the batch of some samples.

        CorruptError if one can't be decoded; ConfigError if the recipe fails, or what it prepares does not
        fit into one batch.
        """
        prepared = [self._prepare_one(index) for index in indices]
        try:
            inputs = self._collate(prepared)
        except (RuntimeError, TypeError, ValueError) as error:
            first, last = (self.split.samples.name_of(indices[place]) for place in (0, -1))
            raise ConfigError(
                f"what is prepared of {first} to {last} does not make a batch ({reason_of(error)}); prepare "
                "all samples to one size"
            ) from error
        labels = self.split.labels
        return inputs if labels is None else (inputs, torch.from_numpy(labels[list(indices)]))

    def _prepare_one(self, index: int) -> Any:
        samples = self.split.samples
        raw = samples.read(index)
        try:
            return self._prepare(raw)
        except (SatstoreError, MemoryError):
            raise
        except Exception as error:  # a recipe is another library's, or the user's own
            reason = reason_of(error, with_type=True)
            raise ConfigError(
                f"{samples.name_of(index)} can't be prepared for the model: {reason}"
            ) from error
