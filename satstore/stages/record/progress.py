"""What a recording that was cut off goes on from: a committed file, written now and then."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from satstore.capture.layers import Layer
from satstore.config.latent_keys import LatentsKey
from satstore.errors import ConfigError, CorruptError
from satstore.runs.manifest import RECORDING
from satstore.runs.run import Run
from satstore.storage.files import refusals
from satstore.storage.zarr.layer_arrays import KeptRows
from satstore.storage.zarr.value_problems import ValueProblem
from satstore.training.checkpoint import read_checkpoint, read_state, serialize_checkpoint
from satstore.training.provenance import describe_machine

RECORDED_STAGES = ("train", "extract")
"""The keys of the stages that a recording does."""

PAUSE_S, MOST_SHARE = 60.0, 0.05
"""It is written at most every so many seconds, and for at most this share of the time."""


@dataclass(frozen=True)
class PassProgress:
    """How far the recording of a split came.

    Attributes
    ----------
    marks
        The digest of all inputs and labels up to each batch that is done; see :class:`.batches.Batches`.
    metrics
        The state of loss and metrics.
    moments
        The state of the recorder of moments.
    rows
        The latents that are committed; None of a split whose latents and spectra all are.
    problems, unmasked
        What is to be warned of: values that can't be probed, and layers that no mask fits.
    """

    marks: list[int]
    metrics: Mapping[str, Any]
    moments: Mapping[str, Any]
    rows: KeptRows | None
    problems: Sequence[ValueProblem] = ()
    unmasked: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, Any]:
        """Its fields as plain values and tensors, which are not copied."""
        rows = None if self.rows is None else asdict(self.rows)
        return {**vars(self), "rows": rows, "problems": list(map(asdict, self.problems))}

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> Self:
        """Return the progress of a :attr:`state`."""
        rows = None if state["rows"] is None else KeptRows(**state["rows"])
        problems = [ValueProblem(**{**one, "key": LatentsKey(**one["key"])}) for one in state["problems"]]
        return cls(**{**state, "rows": rows, "problems": problems})

    @property
    def is_whole(self) -> bool:
        """Whether the split's latents and spectra are committed."""
        return self.rows is None


class ProgressFile:
    """The progress of a run's recording, by split, as of its last commit.

    Without `is_kept`, there is none, and nothing is written.
    """

    def __init__(self, run: Run, device: torch.device, *, is_kept: bool) -> None:
        self.splits: dict[str, PassProgress] = {}
        self.is_kept = is_kept
        self._run, self._device = run, device
        self._ended, self._took_s = time.monotonic(), 0.0

    def load(self) -> None:
        """Read what an earlier process committed; CorruptError if it isn't what one commits."""
        if not self.is_kept or not self._run.has_file(RECORDING):
            return
        try:
            for split, found in read_state(self._run, RECORDING, self._device).items():
                self.splits[split] = PassProgress.read(found)
        except (AttributeError, LookupError, TypeError) as error:
            raise CorruptError(
                f"{self._run.path / RECORDING} is not the progress of a recording; record with overwrite=True"
            ) from error

    def has_whole(self, split: str) -> bool:
        """Return whether all of a split is committed."""
        return split in self.splits and self.splits[split].is_whole

    @property
    def is_due(self) -> bool:
        """Whether it is time to save progress again."""
        pause_s = max(PAUSE_S, self._took_s / MOST_SHARE)
        return self.is_kept and time.monotonic() - self._ended >= pause_s

    def save(self, split: str, progress: PassProgress) -> None:
        """Commit the progress of a split."""
        if not self.is_kept:
            return
        started = time.monotonic()
        self.splits[split] = progress
        content = serialize_checkpoint({name: found.state for name, found in self.splits.items()})
        self._run.commit({RECORDING: content})
        self._ended = time.monotonic()
        self._took_s = self._ended - started


def settle_recording(run: Run) -> bool:
    """Return whether a recording is finished; mark its stages as done if it was killed just then."""
    is_finished = bool(run.manifest.latents) and RECORDING not in run.manifest.files
    if is_finished and any(run.was_cut_off(stage) for stage in RECORDED_STAGES):
        with run.lock():
            remove_progress(run)
            for stage in RECORDED_STAGES:
                run.settle(stage)
    return is_finished


def remove_progress(run: Run) -> None:
    """Remove the file of a run's progress, which the manifest lists no more."""
    with refusals(run.path / RECORDING, 0, "removed"):
        run.path_of(RECORDING).unlink(missing_ok=True)


def check_model(run: Run, model: nn.Module, layers: Iterable[Layer], device: torch.device) -> None:
    """Check that a recording goes on with the model that it was begun with; warn if the machine changed.

    ConfigError if its weights or its recorded layers are others.
    """
    known, found = read_checkpoint(run)["model"], model.state_dict()
    is_same = known.keys() == found.keys() and all(_is_same(known[name], found[name]) for name in known)
    if not is_same:
        raise ConfigError("resume: the model's weights are not those recorded so far")
    if [layer.name for layer in layers] != run.layers:
        raise ConfigError("resume: the model's layers are not those recorded so far")
    for key, value in describe_machine(device).items():
        before = run.manifest.environment.get(key)
        if key != "host" and before != value:
            run.warn("extract", f"gone on with {key} {value}, begun with {before}: bits may differ")


def _is_same(known: Any, found: Any) -> bool:
    """Compare two values of a model's state: tensors by their bytes, as NaN equals nothing."""
    if not isinstance(known, Tensor) or not isinstance(found, Tensor):
        return bool(known == found)
    if (known.dtype, known.shape) != (found.dtype, found.shape):
        return False
    flat = (value.detach().cpu().contiguous().reshape(-1) for value in (known, found))
    return torch.equal(*(values.view(torch.uint8) for values in flat))
