"""The commands that repair or complete a run, as messages quote them."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.runs.manifest import RECORDING, Manifest, target_of

MAKERS: Mapping[str, str] = {
    "saturation.csv": "saturation",
    "receptive_field.csv": "receptive-field",
    "projection.csv": "project",
    "computational_info.json": "flops",
}
"""The stages that write the files of a run folder, without tables of probes and training's files."""


class NamedRun(Protocol):
    """The attributes of a run that the commands depend on."""

    manifest: Manifest

    @property
    def run_id(self) -> str:
        """The run id."""

    @property
    def name(self) -> str:
        """``RES/<experiment>``, as commands take it."""

    @property
    def last_epoch(self) -> int:
        """The last epoch that was trained, counted from 0; -1 before the first."""

    @property
    def is_recorded(self) -> bool:
        """Whether ``satstore.record`` wrote it."""


def damage_remedy(run: NamedRun, name: str) -> str:
    """Return what to do about a damaged file of the run folder.

    For a file that only training writes, that is to verify first: training again discards all other results.
    """
    if target_of(name):
        return f"restore it from a copy, or give the labels again: {repair_command(run, name)}"
    if name.startswith("probe-") or name in MAKERS:
        return f"restore it, or make it again with: {repair_command(run, name)}"
    return f"restore it from a copy; satstore verify {run.name} says what is damaged, and what to do"


def repair_command(run: NamedRun, name: str) -> str:
    """Return the command that writes a file of the run folder again."""
    if target_of(name):
        return labels_command(run, target_of(name))
    if name.startswith("probe-"):
        command = probe_command(run, ProbeKey.parse(name.removeprefix("probe-").removesuffix(".csv")))
    else:
        command = f"satstore {MAKERS.get(name, 'train')} --run {run.name}"
    return f"{command} --overwrite"


def probe_command(run: NamedRun, key: ProbeKey) -> str:
    """Return the command that fits the probes of a table, or what is missing of them."""
    known = run.manifest.probes.get(key)
    of_name = key.prefix if key.prefix in run.manifest.targets else ""
    target = of_name if known is None else known.target
    flags = f" {key.latents.flags}{_epoch_flags(run, key.latents.epoch)}"
    flags += f" --target {target}" if target else ""
    flags += f" --prefix {key.prefix}" if key.prefix != target else ""
    return f"satstore probe --run {run.name}{flags}"


def labels_command(run: NamedRun, target: str) -> str:
    """Return the command that adds a target's labels again, from files that the user has."""
    return f"satstore probe --run {run.name} --target {target} --labels FILE --eval-labels FILE"


def describe_recorded(run: NamedRun) -> str:
    """Return the model and the data that a run was recorded of."""
    source = run.manifest.source
    return f"{source.source} on {source.data}" if source else "a model and data that are in your own program"


def record_call(run: NamedRun, *keys: LatentsKey) -> str:
    """Return the command that writes a recorded run again, or the call in the user's own program.

    Latents of `keys` are recorded then too, besides those that there are. A recording that isn't finished is
    gone on with, if it can be.
    """
    words, option = _command_words(run), "resume" if RECORDING in run.manifest.files else "overwrite"
    if not words:
        return f"satstore.record(…, {run.run_id!r}, {option}=True)"
    words[words.index("--run-id") + 1] = run.run_id  # a run may have got another one since
    known = run.manifest.latents
    if missing := [key for key in keys if known and key not in known]:
        words = _without_values(words, "--pooling", "--tokens")
        words += [word for key in (*known, *missing) for word in key.flags.split()]
    return shlex.join([*words, f"--{option}"])


def _without_values(words: Sequence[str], *flags: str) -> list[str]:
    """Return a command's words without some flags and the values behind them."""
    before = ["", *words]
    return [
        word for word, last in zip(words, before, strict=False) if word not in flags and last not in flags
    ]


def _command_words(run: NamedRun) -> list[str]:
    """Return the words of the command that recorded a run; none if it is not known.

    A manifest may come from somebody else: what is no call of ``satstore record`` or ``satstore import``
    alone, word by word, is not for a user to run.
    """
    command = run.manifest.source.command if run.manifest.source else ""
    with suppress(ValueError):  # quotes that don't end
        words = shlex.split(command)
        is_plain = shlex.join(words) == command and "--run-id" in words[:-1]
        if is_plain and words[0] == "satstore" and words[1] in ("record", "import"):
            return words
    return []


def extract_command(run: NamedRun, *keys: LatentsKey, overwrite: bool = False) -> str:
    """Return the command that writes what is missing of some latents; several are separated by ``;``.

    With `overwrite`, it writes again what is there.
    """
    if run.is_recorded:
        return record_call(run, *keys)
    poolings: dict[int | None, str] = {}
    for key in keys:
        poolings[key.epoch] = f"{poolings.get(key.epoch, '')} {key.flags}"
    epochs: dict[str, list[int | None]] = {}
    for epoch, flags in poolings.items():
        epochs.setdefault(flags, []).append(epoch)
    command = f"satstore extract --run {run.name}"
    last = " --overwrite" if overwrite else ""
    commands = "; ".join(f"{command}{f}{_epoch_flags(run, *e)}" for f, e in epochs.items()) or command
    return commands + last


def _epoch_flags(run: NamedRun, *epochs: int | None) -> str:
    """Return the flags that name epochs, None meaning the last; none where that is the default."""
    is_last = all(epoch is None for epoch in epochs)
    if run.last_epoch < 0 or (is_last and not run.manifest.config.get("latent_epochs")):
        return ""
    return "".join(f" --epoch {(run.last_epoch if epoch is None else epoch) + 1}" for epoch in epochs)
