"""What this user named for run folders: places of latents, with ``--latents-dir``, and plugins.

A manifest says where a run's latents lie and which plugins its config has, and may be somebody else's: what
it says is read, but nothing is written or removed in a place, and no plugin imported, that the user did not
name. What they named is kept among their own files, a small one for each run folder: in
``$XDG_STATE_HOME/satstore/runs``, else in ``~/.local/state/satstore/runs``.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from satstore.errors import ConfigError
from satstore.storage.files import write_file
from satstore.storage.safe_files import read_content

PLUGINS_VARIABLE = "SATSTORE_PLUGINS"
"""The environment variable with which the user names plugins of runs: their modules, between commas."""


def remember_place(run_folder: Path, place: str) -> None:
    """Remember that the user named a place for a run's latents; if that can't be kept, they name it again."""
    _remember(run_folder, latents=place)


def is_named(run_folder: Path, place: str) -> bool:
    """Tell whether the user named a place for a run's latents; a run folder that was moved is another."""
    return bool(_recall(run_folder).get("latents") == place)


def remember_plugins(run_folder: Path, plugins: Iterable[str]) -> None:
    """Remember that the user named plugins, by giving the config that a run is made with."""
    if plugins := sorted(plugins):
        _remember(run_folder, plugins=plugins)


def check_plugins(run_folder: Path, plugins: Iterable[str]) -> None:
    """Check that the user named the plugins of a run's manifest: here, by the environment, or by an import.

    Raises
    ------
    ConfigError
        If they did not name one.
    """
    known = _recall(run_folder).get("plugins")
    named = {*map(str, known)} if isinstance(known, list) else set()
    given = {name.strip() for name in os.environ.get(PLUGINS_VARIABLE, "").split(",")}
    plugins = list(plugins)
    for name in plugins:
        if name not in named | given and name not in sys.modules:
            raise ConfigError(
                f"{run_folder} names the plugin {name!r}, whose code would run, and was not made with it "
                f"here; if you know what is in it, name it too: {PLUGINS_VARIABLE}={name}"
            )
    if not named.issuperset(plugins):
        remember_plugins(run_folder, plugins)


def _remember(run_folder: Path, **named: Any) -> None:
    with suppress(OSError, RuntimeError):  # of who has no home
        content = {**_recall(run_folder), "run": str(run_folder.absolute()), **named}
        write_file(_note_of(run_folder), json.dumps(content, indent=1).encode())


def _recall(run_folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_content(_note_of(run_folder)))
    except (OSError, RuntimeError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _note_of(run_folder: Path) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(os.fsencode(run_folder.resolve())).hexdigest()[:32]
    return state / "satstore" / "runs" / f"{name}.json"
