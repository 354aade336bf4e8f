"""``satstore doctor``: check that this installation works."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from satstore.cli.console import print_json, print_line
from satstore.cli.options import Json, LogsDir
from satstore.errors import reason_of
from satstore.runs.logs_folder import find_logs_dir
from satstore.system.cores import count_cores
from satstore.system.limits import free_disk, nearest_folder
from satstore.system.memory import available_memory
from satstore.system.text import counted, describe_size

State = Literal["ok", "note", "bad"]

MARKS: dict[State, str] = {"ok": "✓", "note": "·", "bad": "✗"}
LITTLE_DISK, LITTLE_MEMORY = 5 * 2**30, 3 * 2**30


@dataclass(frozen=True)
class Check:
    """The result of a check: the part checked, its state, and what was found and what to do."""

    what: str
    state: State
    found: str


def check_installation(*, as_json: Json = False, logs_dir: LogsDir = None) -> None:
    """Check each part of the installation, and print the results; exit with code 1 if any is bad."""
    checks = [
        *check_python(),
        *check_packages(),
        *check_torch(),
        *check_memory_size(),
        *check_terminal(),
        *check_data_folder(),
        *check_logs(find_logs_dir(logs_dir)),
    ]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        width = max(len(check.what) for check in checks)
        for check in checks:
            print_line(f"{MARKS[check.state]} {check.what:{width}}  {check.found}")
    if any(check.state == "bad" for check in checks):
        raise SystemExit(1)


def check_python() -> Iterator[Check]:
    """Check the versions of Python and of the system."""
    found = f"{platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    yield Check("Python", "ok" if sys.version_info >= (3, 11) else "bad", found)
    if sys.platform == "win32":
        yield Check("system", "bad", "Windows is not supported; use WSL")


def check_packages() -> Iterator[Check]:
    """Check the versions of the packages that satstore needs."""
    from packaging.requirements import Requirement

    yield Check("satstore", "ok", version("satstore"))
    wrong, n_found = [], 0
    for text in requires("satstore") or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        n_found += 1
        if not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} {found}, expected {need.specifier}")
    if wrong:
        yield Check("packages", "bad", "; ".join(wrong) + "; install satstore again")
    else:
        yield Check("packages", "ok", f"{n_found}, all of the versions that it asks for")
    for extra, package in (
        ("cloud", "obstore"),
        ("hdf5", "h5py"),
        ("hf", "transformers"),
        ("parquet", "pyarrow"),
        ("serve", "textual-serve"),
        ("timm", "timm"),
    ):
        try:
            yield Check(f"satstore[{extra}]", "ok", f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Check(f"satstore[{extra}]", "note", f"not installed; pip install {package}")


def check_torch() -> Iterator[Check]:
    """Check that torch and torchvision load, and list the GPUs."""
    try:
        import torch
        import torchvision

        # This fails if torchvision's binary doesn't match torch's.
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # whatever a broken installation raises
        text = reason_of(error, with_type=True)
        yield Check("torch", "bad", f"{text}; install torch and torchvision again, of the same release")
        return
    versions = f"{torch.__version__} with torchvision {torchvision.__version__}"
    yield Check("torch", "ok", f"{versions}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Check("GPU", "note", "none that torch can use; all stages run on the CPU")
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        yield Check(f"GPU cuda:{number}", "ok", f"{gpu.name}, {describe_size(gpu.total_memory)}")


def check_memory_size() -> Iterator[Check]:
    """Check the free memory and the number of cores."""
    memory, n_cores = available_memory(), count_cores()
    state: State = "ok" if memory >= LITTLE_MEMORY else "note"
    less = "" if state == "ok" else "; take a smaller --memory-limit than 2 GiB"
    yield Check("memory", state, f"{describe_size(memory)} free, {counted(n_cores, 'core')}{less}")


def check_terminal() -> Iterator[Check]:
    """Check that the terminal can show the terminal app."""
    encoding = (sys.stdout.encoding or "").lower()
    columns, lines = shutil.get_terminal_size()
    if not sys.stdout.isatty():
        yield Check("terminal", "note", "none; satstore tui needs one, satstore status doesn't")
    elif "utf" not in encoding:
        yield Check("terminal", "note", f"encoding {encoding}: the app needs UTF-8; export LANG=C.UTF-8")
    elif columns < 80 or lines < 24:
        yield Check("terminal", "note", f"{columns} × {lines}: the app needs 80 × 24")
    else:
        yield Check("terminal", "ok", f"{columns} × {lines}, {encoding}, TERM={os.environ.get('TERM', '?')}")


def check_data_folder() -> Iterator[Check]:
    """Check the folder of datasets."""
    from satstore.config.experiment import ExperimentConfig

    folder = ExperimentConfig().data_dir.absolute()
    if not folder.is_dir():
        yield Check("data folder", "note", f"{folder} is not there; downloads make it, Digits needs none")
        return
    held: list[str] = []
    empty: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            (held if any(p.is_file() for p in path.rglob("*")) else empty).append(path.name)
    yield Check("data folder", "ok", f"{folder}: {', '.join(held) or 'empty'}")
    for name in empty:
        yield Check("data folder", "note", f"{folder / name} has no files; remove it, or fill it again")
    yield from _check_downloads(folder)


def _check_downloads(folder: Path) -> Iterator[Check]:
    """Check that downloaded datasets have all their files."""
    from satstore.datasets.cifar import CIFAR10, CIFAR100
    from satstore.datasets.mnist import FILES

    for files in (CIFAR10.files, CIFAR100.files, *FILES.values()):
        missing = files.missing(folder / files.folder)
        if missing and files.locate(folder) is None and (folder / files.folder).is_dir():
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield Check(
                files.name,
                "note",
                f"{folder / files.folder} lacks {missing[0]}{more}; get what is missing with "
                f"satstore dataset check {files.name} --download",
            )


def check_logs(folder: Path) -> Iterator[Check]:
    """Check that runs can be written and locked in a logs folder, and how much disk is free."""
    problem = _try_writing(nearest_folder(folder))
    if problem:
        yield Check("logs folder", "bad", f"{folder.absolute()}: {problem}; choose another with --logs-dir")
        return
    free = free_disk(folder)
    state: State = "ok" if free >= LITTLE_DISK else "note"
    n_runs = len(list(folder.glob("*/*/manifest.json")))
    found = f"{folder.absolute()}: {counted(n_runs, 'run')}, {describe_size(free)} free"
    yield Check("logs folder", state, found)


def _try_writing(place: Path) -> str:
    """Return why a folder can't hold runs; an empty text if it can."""
    from filelock import FileLock

    from satstore.storage.files import write_file

    try:
        with tempfile.TemporaryDirectory(prefix=".satstore-", dir=place) as name:
            write_file(Path(name) / "file", b"content")
            with FileLock(Path(name) / "lock", timeout=0):
                pass
    except (OSError, NotImplementedError) as error:
        return reason_of(error)
    return ""
