"""The logs folder: creating, finding and listing experiments."""

import json
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

from satstore.config.experiment import ExperimentConfig
from satstore.errors import ConfigError, CorruptError, NotFoundError, UnknownNameError
from satstore.registry import suggest
from satstore.runs.events import Listener
from satstore.runs.lock import WriteLock
from satstore.runs.manifest import FileRecord, Manifest
from satstore.runs.manifest_file import describe_manifest
from satstore.runs.permissions import remember_plugins
from satstore.runs.run import Run
from satstore.storage.files import Digest, make_folder, write_file
from satstore.storage.safe_files import check_folders

RUN_ID = re.compile(r"\w[\w.+=@-]{0,99}")
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check_run_id(run_id: str) -> str:
    """Return a run id if it can name a folder, on Windows too.

    Raises ConfigError if it is empty, too long, a name that Windows reserves, or has ``..`` or characters
    other than letters, digits and _.+=@-
    """
    is_plain = RUN_ID.fullmatch(run_id) and ".." not in run_id and len(run_id.encode()) <= 255
    if not is_plain or run_id.endswith(".") or RESERVED.fullmatch(run_id):
        raise ConfigError(
            f"run id {run_id[:120]!r} can't be used, it names a folder: use letters, digits and _ . + = @ -, "
            "at most 100, the first a letter or digit, no '..', no dot at the end, none that Windows reserves"
        )
    return run_id


def find_logs_dir(logs_dir: str | Path | None = None, config: ExperimentConfig | None = None) -> Path:
    """Return the logs folder: the one given, else SATSTORE_LOGS_DIR, else the config's or ``./logs``."""
    default = config.logs_dir if config else "./logs"
    return Path(logs_dir or os.environ.get("SATSTORE_LOGS_DIR") or default).expanduser()


def make_run(logs_dir: Path, run_id: str, config: ExperimentConfig, listener: Listener | None = None) -> Run:
    """Open the experiment of a config under a run id; create its folder if it doesn't exist.

    Raises ConfigError if the run id is invalid, CorruptError if its folder is a link or holds an experiment
    of another config, and LockedError if another process is creating it.
    """
    path = logs_dir / check_run_id(run_id) / config.experiment
    if not (path / "manifest.json").exists():
        content = config.model_dump(mode="json")
        manifest = Manifest(
            run_id=run_id,
            experiment=config.experiment,
            created=time.time(),
            config=content,
            config_sha256=config.digest,
            environment={
                "satstore": version("satstore"),
                "python": platform.python_version(),
                "platform": sys.platform,
            },
        )
        described = (json.dumps(content, indent=2) + "\n").encode()
        manifest.files["config.json"] = FileRecord.of(Digest.of(described))
        check_folders(logs_dir, path / "manifest.json")
        make_folder(path)
        with WriteLock(path).hold(f"{run_id}/{config.experiment}"):
            write_file(path / "config.json", described)
            write_file(path / "manifest.json", describe_manifest(manifest))
    remember_plugins(path, config.plugins)
    run = Run(path, listener, config)
    if run.manifest.config_sha256 != config.digest:
        raise CorruptError(f"{path} holds an experiment of another config; choose another run id")
    return run


def list_runs(logs_dir: str | Path | None = None, unreadable: list[CorruptError] | None = None) -> list[Run]:
    """Return every experiment in a logs folder, by run id and name; folders without a manifest are skipped.

    A manifest that can't be read raises a CorruptError; if `unreadable` is given, it is skipped, and its
    error is appended there.
    """
    return _open_runs(sorted(find_logs_dir(logs_dir).glob("*/*/manifest.json")), None, unreadable)


def _open_runs(
    manifests: list[Path], listener: Listener | None, unreadable: list[CorruptError] | None
) -> list[Run]:
    runs = []
    for path in manifests:
        try:
            runs.append(Run(path.parent, listener))
        except CorruptError as error:
            if unreadable is None:
                raise
            unreadable.append(error)
    return runs


def find_runs(
    name: str,
    logs_dir: str | Path | None = None,
    listener: Listener | None = None,
    unreadable: list[CorruptError] | None = None,
) -> list[Run]:
    """Return the experiments of a run id (``RES``), or one experiment (``RES/<experiment>``).

    Raises NotFoundError, which names the logs folder, if there is none; see also :func:`list_runs`.
    """
    root = find_logs_dir(logs_dir)
    run_id, _, experiment = name.strip("/").partition("/")
    check_run_id(run_id)
    found = sorted((root / run_id).glob("*/manifest.json"))
    if experiment:
        found = [path for path in found if path.parent.name == experiment]
    if not found:
        known = sorted({p.parent.parent.name for p in root.glob("*/*/manifest.json")})
        if experiment and run_id in known:
            known = [f"{run_id}/{p.parent.name}" for p in (root / run_id).glob("*/manifest.json")]
        raise NotFoundError(f"no run {name!r} in {root.absolute()}{suggest(name, known)}")
    return _open_runs(found, listener, unreadable)


def open_run(name: str, logs_dir: str | Path | None = None) -> Run:
    """Open one experiment, by ``RES/<experiment>``, or by ``RES`` if it is the only one.

    Raises NotFoundError if there is none, UnknownNameError, which names them, if there are several.
    """
    runs = find_runs(name, logs_dir)
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs)
        raise UnknownNameError(f"{name!r} has {len(runs)} experiments; name one: {names}")
    return runs[0]
