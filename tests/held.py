"""An experiment that tells what it begins, and can be held there until a test lets it go on.

A command in a process of its own imports this module as a plugin, and waits where ``HELD_AT`` says: in the
midst of a batch, of a layer that is fitted, or of a shard that is written. A test that was told so can press
Ctrl-C, or kill, knowing what was under way and, at the end, whether anything more was begun.
"""

import atexit
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from command_line import HANGS_S, WORKS_S

from satstore.cli import interrupts
from satstore.registry import DATASETS, MODELS
from satstore.system import signals
from satstore.system.memory import peak_bytes

CONFIG: dict[str, Any] = {
    "plugins": ["held"],
    "model": "HeldNet",
    "dataset": "HeldImages",
    "resolution": 8,
    "epoch": 2,
    "batch_size": 8,
    "optimizer": "adam",
    "device": "cpu",
    "pooling": ["2"],
}
"""Five batches of training and three of evaluation in each epoch; the layers are 0, 2, 4, 6, 8 and 12."""

PEAKS = "peaks"
"""In the place of what it is held at: it is not, and tells the peaks of its memory."""

# What the command's process does


def _open(name: str) -> int | None:
    folder = os.environ.get("HELD")
    return None if folder is None else os.open(Path(folder) / name, os.O_RDWR)


_told, _go = _open("told"), _open("go")
_begun: set[str] = set()
_turn = threading.Lock()


def tell(what: str) -> None:
    """Tell the test of something, where there is one that listens."""
    if _told is not None:
        os.write(_told, f"{what}\n".encode())


def begin(what: str) -> None:
    """Tell that something begins; where it is what the test waits for, wait until told to stop, and to go on.

    What is begun in pieces, such as a layer's files, begins with the first of them. While one thread is held,
    no other begins anything.
    """
    with _turn:
        if what in _begun:
            return
        _begun.add(what)
        if what != os.environ.get("HELD_AT"):
            tell(what)
            return
        try:
            tell(what)
            signals.stop_requested.wait()
        finally:  # a second Ctrl-C comes while it ends
            tell("told to stop")
            assert _go is not None
            os.read(_go, 1)


def _see_files(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], str):
        return
    found = re.search(r"/(train|eval)/([^/]+)/latent/c/(\d+)/.*?(\.partial)?$", arguments[0])
    if found is not None:
        split, layer, number, is_written = found.groups()
        begin(f"shard {split}/{layer}/{number}" if is_written else f"layer {layer}")


def _see_peaks(event: str = "", arguments: tuple[Any, ...] = ("/clear_refs",)) -> None:
    """Tell the peak of memory before it is forgotten, and at the end."""
    if event in ("open", "") and str(arguments[0]).endswith("/clear_refs"):
        tell(f"peak {peak_bytes()}")


if _told is not None:
    interrupts.PATIENCE_S = HANGS_S  # on a busy machine, two keys may be pressed seconds apart
    if os.environ["HELD_AT"] == PEAKS:
        sys.addaudithook(_see_peaks)
        atexit.register(_see_peaks)
    else:
        sys.addaudithook(_see_files)


def tell_batches(model: Any) -> Any:
    """Let a model tell of every batch."""
    batches = itertools.count(1)

    def see(_: object, inputs: tuple[Any, ...]) -> None:
        [images] = inputs
        if len(images) > 1 and images.device.type != "meta":
            begin(f"batch {next(batches)}")

    model.register_forward_pre_hook(see)
    return model


def held_net(num_classes: int) -> Any:
    """Five convs, dropout and a linear layer, which tell of every batch."""
    from torch import nn

    convs = [part for n in (3, 4, 4, 4, 4) for part in (nn.Conv2d(n, 4, 3, padding=1), nn.AvgPool2d(1))]
    head = [nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 8 * 8, num_classes)]
    return tell_batches(nn.Sequential(*convs, *head))


def held_vgg(num_classes: int) -> Any:
    """A net with batch normalisation, too, which tells of every batch."""
    return tell_batches(MODELS["vgg6_S"](num_classes=num_classes))


def held_images(output_size: int, batch_size: int, **options: object) -> Any:
    """Return loaders of the tiny experiment's images."""
    from tiny import tiny_images

    return tiny_images(output_size, batch_size, **options)


if "HeldNet" not in MODELS:
    MODELS.register("HeldNet", description="held")(held_net)
    MODELS.register("HeldVgg", description="held")(held_vgg)
    DATASETS.register("HeldImages", description="held")(held_images)

# What the test does


def environment_of(folder: Path, at: str) -> dict[str, str]:
    """Return the environment of a process that is to be held, and tells and asks by files of a folder."""
    modules = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "HELD": str(folder), "HELD_AT": at, "PYTHONPATH": os.pathsep.join(modules)}


class Held:
    """A command in a process of its own, the leader of its group, that is held where it begins something."""

    def __init__(self, folder: Path, at: str, *words: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("told", "go"):
            os.mkfifo(folder / name)
        self._told = os.open(folder / "told", os.O_RDONLY | os.O_NONBLOCK)
        self._go = os.open(folder / "go", os.O_RDWR)
        self._rest = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "satstore", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment_of(folder, at),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self._told)
        os.close(self._go)

    def wait_for(self, what: str) -> list[str]:
        """Wait until the command tells of something; return what it told before."""
        while f"{what}\n" not in self._rest:
            ready, _, _ = select.select([self._told], [], [], WORKS_S)
            piece = os.read(self._told, 2**16).decode() if ready else ""
            assert piece, f"{what!r} was never begun, but {self._rest.split()}: {self._said()}"
            self._rest += piece
        before, _, self._rest = self._rest.partition(f"{what}\n")
        return before.splitlines()

    def _said(self) -> str:
        with suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        return self.process.communicate()[0]

    def send(self, number: int) -> None:
        """Send a signal as a terminal does: to all processes of the command."""
        os.killpg(self.process.pid, number)

    def go_on(self) -> None:
        """Let the command go on."""
        os.write(self._go, b"\n")

    def end(self, limit_s: float = HANGS_S) -> tuple[str, list[str]]:
        """Wait for the end of the command and of all that it started; return what it printed, and what it
        told of since it was last waited for.
        """
        said, _ = self.process.communicate(timeout=limit_s)
        while piece := os.read(self._told, 2**16).decode():
            self._rest += piece
        return said, self._rest.splitlines()
