"""Read and write ``manifest.json``, whose content has a digest of itself."""

import hashlib
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from satstore.config.validation import describe_invalid
from satstore.errors import CorruptError, NotFoundError
from satstore.runs.manifest import Manifest
from satstore.storage.files import FORMAT_VERSION
from satstore.storage.safe_files import read_content
from satstore.system.text import printable_content

SEAL = b'{\n "sha256": "'
"""How a manifest with a digest of the rest of its content starts; old manifests lack the digest."""


def describe_manifest(manifest: Manifest) -> bytes:
    """Return the content of ``manifest.json``, with a digest that reveals flipped bits."""
    rest = manifest.model_dump_json(indent=1).encode().removeprefix(b"{")
    return SEAL + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest


def check_seal(content: bytes) -> None:
    """Check a manifest's content against its digest, if it has one; raise ValueError if they differ."""
    if content.startswith(SEAL):
        found, rest = content[len(SEAL) :][:64], content[len(SEAL) + 64 :].removeprefix(b'",')
        if hashlib.sha256(rest).hexdigest().encode() != found:
            raise ValueError(
                "its content is not what was written; restore it from a backup, or, if it was edited by hand "
                'and is to be trusted, take its line "sha256" out'
            )


def read_manifest(path: Path) -> Manifest:
    """Read and check a run folder's manifest.

    Raises NotFoundError if there is none, CorruptError if it is no manifest or of an unknown format version.
    """
    file = path / "manifest.json"
    try:
        raw = read_content(file)
        content = from_json(raw)
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise CorruptError(f"{file} has format version {version}; this satstore reads {FORMAT_VERSION}")
        check_seal(raw)
        content.pop("sha256", None)
        cleaned = printable_content(content)
        if cleaned != content:  # control characters: refused in names, removed from other texts
            Manifest.model_validate(content)
        return Manifest.model_validate(cleaned)
    except FileNotFoundError:
        raise NotFoundError(f"no run at {path}: it has no manifest.json") from None
    except OSError as error:
        if isinstance(error, CorruptError):
            raise
        raise CorruptError(f"{file} can't be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise CorruptError(f"{file} is not a manifest: {describe_invalid(error)}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{file} is not a manifest: {error}") from error
