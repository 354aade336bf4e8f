"""Permissions of a run folder: which plugins may be imported, and where its latents may be written.

A manifest names the place of a run's latents and the plugins of its config, and may come from somebody else.
Without the user's permission nothing is written or removed at that place, and no plugin is imported. Users
give it by naming the place (``--latents-dir``) or the plugins themselves. It is kept in a small file per run
folder in ``$XDG_STATE_HOME/satstore/runs``, else in ``~/.local/state/satstore/runs``.
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
"""The environment variable in which the user names plugins of runs: their modules, separated by commas."""


def remember_place(run_folder: Path, place: str) -> None:
    """Store that the user named a place for a run's latents; if it can't be stored, they name it again."""
    _remember(run_folder, latents=place)


def is_place_named(run_folder: Path, place: str) -> bool:
    """Return whether the user named a place for a run's latents; it counts for this path of the folder."""
    return bool(_recall(run_folder).get("latents") == place)


def remember_plugins(run_folder: Path, plugins: Iterable[str]) -> None:
    """Store that the user named plugins, by giving the config that a run is made with."""
    if plugins := sorted(plugins):
        _remember(run_folder, plugins=plugins)


def check_plugins(run_folder: Path, plugins: Iterable[str]) -> None:
    """Check that the user named the plugins of a manifest: in a config, the environment, or by an import.

    Raises ConfigError if they did not name one of them.
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
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
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
