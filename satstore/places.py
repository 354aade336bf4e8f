"""Places outside of run folders that this user named for latents, with ``--latents-dir``.

A manifest says where a run's latents lie, and may be somebody else's: what it says is read, but nothing is
written or removed there that the user did not name. What they named is kept among their own files, a small
one for each run folder: in ``$XDG_STATE_HOME/satstore``, else in ``~/.local/state/satstore``.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from satstore.files import write_file
from satstore.untrusted import read_content


def remember_place(run_folder: Path, place: str) -> None:
    """Remember that the user named a place for a run's latents; if that can't be kept, they name it again."""
    with suppress(OSError, RuntimeError):  # of who has no home
        content = {"run": str(run_folder.absolute()), "latents": place}
        write_file(_note_of(run_folder), json.dumps(content, indent=1).encode())


def is_named(run_folder: Path, place: str) -> bool:
    """Tell whether the user named a place for a run's latents; a run folder that was moved is another."""
    try:
        content = json.loads(read_content(_note_of(run_folder)))
        return bool(content["latents"] == place)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError):
        return False


def _note_of(run_folder: Path) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(os.fsencode(run_folder.resolve())).hexdigest()[:32]
    return state / "satstore" / "latents" / f"{name}.json"
