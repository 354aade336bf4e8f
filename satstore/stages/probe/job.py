"""What is to be fitted of a layer, and what comes of it."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

from satstore.analysis.logistic.problem import LogisticProblem
from satstore.config.latent_keys import SPLITS, ProbeKey
from satstore.stages.probe.latents import ProbeLatents
from satstore.storage.zarr import LatentArray


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """A layer whose probe, or one per position, is to be fitted for the table of a key.

    ``digest`` is that of the layer's latents; C, tol and max_iter are as of :class:`satstore.LogisticProbe`.
    """

    key: ProbeKey
    layer: str
    latents: ProbeLatents
    digest: str
    C: float
    tol: float
    max_iter: int

    def __str__(self) -> str:
        return f"the probe of layer {self.layer} at {self.latents.key}"

    def open(self, split: str) -> LatentArray:
        """Open the layer's latents of a split."""
        return self.latents.splits[split][self.layer]

    @property
    def axes(self) -> tuple[int, ...]:
        """The height and width of a map whose positions have a probe each; () for one probe."""
        return self.open("train").shape[1:-1] if self.key.latents.pooling == "pixelwise" else ()

    def problem(self) -> LogisticProblem:
        """Return the regressions that are to be solved, one per position."""
        train = self.open("train")
        return LogisticProblem(
            n_rows=train.shape[0],
            n_features=train.n_features,
            n_classes=len(self.latents.classes),
            C=self.C,
            tol=self.tol,
            max_iter=self.max_iter,
            n_positions=prod(self.axes),
            value_bytes=max(self.open(split).array.dtype.itemsize for split in SPLITS),
        )


@dataclass(frozen=True)
class ProbeResult:
    """The rows of a layer in the table, one or one per position, and the arrays that go to the store.

    Latents that allow no probe have one row, whose ``error`` says why.
    """

    rows: tuple[dict[str, Any], ...]
    arrays: dict[str, Any] = field(default_factory=dict)
