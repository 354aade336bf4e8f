"""What a command knows of a recording beside its model and loaders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from satstore.runs.manifest import SourceRecord
from satstore.runs.run import Run


@dataclass(frozen=True)
class Origin:
    """Where a recorded model and its data came from.

    Attributes
    ----------
    name
        The model's name in lists and in the run's folder; by default that of its class.
    source
        The manifest's record of it.
    sample_ids
        Split to int64 (n,), the index of each sample in its dataset, in the loader's order; by default its
        place in that order.
    begin
        Called with the run before its first pass.
    """

    name: str | None = None
    source: SourceRecord | None = None
    sample_ids: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    begin: Callable[[Run], None] = lambda _: None

    @property
    def keys(self) -> dict[str, str]:
        """The keys of the run's config that it names."""
        return {} if self.name is None else {"model": self.name}
