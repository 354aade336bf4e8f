"""The run manifest: what an experiment is, what was done and what it must hold."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    GetPydanticSchema,
    PlainSerializer,
    ValidationError,
)
from pydantic_core import from_json

from satstore.config.keys import LatentsKey, ProbeKey
from satstore.config.validation import describe_invalid
from satstore.errors import CorruptError, NotFoundError
from satstore.storage.files import FORMAT_VERSION, Digest
from satstore.storage.location import is_url
from satstore.storage.safe_files import read_content
from satstore.storage.safe_names import is_key
from satstore.system.text import printable_content

StageStatus = Literal["done", "running", "failed", "cancelled", "missing"]
"""``cancelled``: a user ended it, by Ctrl-C, a signal or ``satstore cancel``."""

CHECKPOINT = "checkpoint.pt"
"""The name of the file that holds a run's weights and all else that training goes on from."""


def checkpoint_name(epoch: int | None) -> str:
    """Return the name of the file that holds the weights after an epoch, None for the last."""
    return CHECKPOINT if epoch is None else f"checkpoint-epoch{epoch}.pt"


LATENTS = "latents.zarr"
"""The name of the store of latents, wherever it lies."""

STAGE_KEYS = ("train", "extract", "saturation", "probe", "receptive_field", "project", "flops")
"""The stages that a manifest knows, in the order in which they are run."""


Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things, or of bytes: more than a float64 can count, nothing has."""

Share = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
"""A fraction; whoever brings an accuracy of another kind, such as percent, has room."""

MAX_EPOCHS = 10**6
"""More than any training has: what is drawn, and kept, by epoch has room."""


def _as_text(key: object) -> object:
    return str(key) if isinstance(key, LatentsKey | ProbeKey) else key


def _stored_as_text(kind: type[LatentsKey | ProbeKey], pattern: str) -> GetPydanticSchema:
    """Return the annotation of keys that JSON has as text of a pattern; text that is no key's is refused."""

    def parse(text: str) -> LatentsKey | ProbeKey:
        key = kind.parse(text)
        if str(key) != text:
            raise ValueError(f"expected {str(key)!r}")
        return key

    checks = BeforeValidator(_as_text), Field(pattern=pattern), AfterValidator(parse), PlainSerializer(str)
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(Annotated[str, *checks]))


StoredLatentsKey = Annotated[
    LatentsKey, _stored_as_text(LatentsKey, r"^(epochs/(0|[1-9][0-9]{0,5})/)?[A-Za-z0-9_]{1,80}$")
]
"""Its text is a path in a store."""

StoredProbeKey = Annotated[ProbeKey, _stored_as_text(ProbeKey, r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}$")]
"""Its text is part of a file's name."""


def _check_file_name(name: str) -> str:
    """Refuse names that lead out of the run folder, and that no file can have."""
    if not is_key(name):
        raise ValueError("expected the name of a file in the run folder")
    return name


FileName = Annotated[str, AfterValidator(_check_file_name)]
"""The name of a file of the run folder."""


class _Record(BaseModel):
    # A newer version of the same format may add fields; what is read here is written back with them.
    model_config = ConfigDict(extra="allow")


class FileRecord(_Record):
    """A committed file of the run folder: its size in bytes and SHA-256."""

    size_bytes: Count
    sha256: str

    @classmethod
    def of(cls, digest: Digest) -> Self:
        """Return the record of a file of that digest."""
        return cls(size_bytes=digest.size_bytes, sha256=digest.sha256)

    @property
    def digest(self) -> Digest:
        """What the file must hold."""
        return Digest(self.size_bytes, self.sha256)


class LayerRecord(_Record):
    """A recorded layer: its PyTorch name, place in forward order, kind, features and output shape."""

    layer: str
    index: Count
    kind: str
    n_features: Count
    output_shape: list[Count]

    @property
    def has_positions(self) -> bool:
        """Whether the layer is a Conv with two axes of positions or more: what pixelwise latents are of."""
        return self.kind not in ("Linear", "LSTM") and len(self.output_shape) > 2


SHORTCUT = re.compile(r"(^|\.)(downsample|shortcut|skip)")


def drawn_layers(records: Sequence[LayerRecord]) -> list[str]:
    """Return the layers that figures show: those of the main path, and the Linears before the last."""
    linears = [record.layer for record in records if record.kind == "Linear"]
    return [r.layer for r in records if not SHORTCUT.search(r.layer) and r.layer not in linears[-1:]]


RECORDED = "Recorded"
"""The dataset of runs that ``satstore.record`` made: their model and data are their user's."""


class DatasetRecord(_Record):
    """The data that an experiment was trained on; the fingerprint tells other data of the same name apart.

    ``labels_sha256`` has, by split, a digest of labels and sample ids, which stored latents must agree with;
    manifests of before it are without. ``skipped`` names the corrupt images that were left out, by split.
    The fingerprint is empty where the data of the training are not known.
    """

    name: str
    n_train: Count
    n_eval: Count
    classes: list[str]
    fingerprint: str
    labels_sha256: dict[str, str] = Field(default_factory=dict)
    skipped: dict[str, list[str]] = Field(default_factory=dict)

    @property
    def has_fingerprint(self) -> bool:
        """Whether it is known which data of that name they were."""
        return bool(self.fingerprint)


class LatentsRecord(_Record):
    """The latents of one key; the digests say of which checkpoint and what was written.

    ``layers`` holds each split's layers and the digest of their files. Earlier versions recorded none, and
    stored all layers of both splits. The checkpoint's digest is empty where the weights are not known.
    """

    checkpoint_sha256: str
    mantissa_bits: Count = 10
    layers: dict[str, dict[str, str]] = Field(default_factory=dict)
    digest: str
    size_bytes: Count
    n_train: Count
    n_eval: Count

    @property
    def has_checkpoint(self) -> bool:
        """Whether the checkpoint is known whose weights computed them."""
        return bool(self.checkpoint_sha256)


NO_PROBE = "imported"
"""In place of the digest of a layer's latents: its accuracy is known, its probe is not stored."""


class ProbesRecord(_Record):
    """One table of probes: what all of them are fitted with, and each fitted layer's latents by digest."""

    C: FiniteFloat
    tol: FiniteFloat
    max_iter: Count
    layers: dict[str, str] = Field(default_factory=dict)

    @property
    def layers_without_probe(self) -> set[str]:
        """Layers whose accuracies are in the table, and whose probe is not stored."""
        return {layer for layer, digest in self.layers.items() if digest == NO_PROBE}

    @property
    def settings(self) -> tuple[float, float, int]:
        """What the table's probes are fitted with."""
        return self.C, self.tol, self.max_iter


class StageRecord(_Record):
    """How a stage's last start went."""

    status: StageStatus
    started: FiniteFloat
    ended: FiniteFloat | None = None
    error: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class Summary(_Record):
    """What lists show of an experiment, so that they need no other file; accuracies are fractions."""

    epochs_done: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] = 0
    test_accuracy: Share | None = None
    intrinsic_dimension: dict[str, Count | None] = Field(default_factory=dict)
    saturation: dict[str, Share | None] = Field(default_factory=dict)
    probe_accuracy: dict[StoredProbeKey, dict[str, Share | None]] = Field(default_factory=dict)
    border_layer: str | None = None
    strict_border_layer: str | None = None


def _check_layers(records: list[LayerRecord]) -> list[LayerRecord]:
    """Refuse layers of one name: tables and stores know them by it."""
    names = [record.layer for record in records]
    if len(set(names)) < len(names):
        raise ValueError("expected layers of different names")
    return records


def _check_latents_path(place: str) -> str:
    """Refuse places that no version wrote: what lies at a run's own is removed with its latents."""
    is_elsewhere = is_url(place) or Path(place).is_absolute()
    names = unquote(place).partition("://")[2].lstrip("/") if is_url(place) else place[1:]
    is_plain = len(place) < 1000 and place.isprintable() and is_key(names)
    if place != LATENTS and not (is_elsewhere and is_plain and place.endswith(f"/{LATENTS}")):
        raise ValueError(f"expected {LATENTS}, or an absolute path or URL that ends in /{LATENTS}")
    return place


class Manifest(_Record):
    """The content of ``manifest.json``.

    ``re_extractable`` has the records of latents that were removed to free the disk: what their probes were
    fitted on, and what an extraction brings back.
    """

    format_version: int = FORMAT_VERSION
    run_id: str
    experiment: str
    created: FiniteFloat
    config: dict[str, Any]
    config_sha256: str
    environment: dict[str, Any] = Field(default_factory=dict)
    dataset: DatasetRecord | None = None
    layers: Annotated[list[LayerRecord], AfterValidator(_check_layers)] = Field(default_factory=list)
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    files: dict[FileName, FileRecord] = Field(default_factory=dict)
    latents_path: Annotated[str, AfterValidator(_check_latents_path)] = LATENTS
    latents: dict[StoredLatentsKey, LatentsRecord] = Field(default_factory=dict)
    re_extractable: dict[StoredLatentsKey, LatentsRecord] = Field(default_factory=dict)
    probes: dict[StoredProbeKey, ProbesRecord] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    summary: Summary = Field(default_factory=Summary)

    @property
    def last_probes(self) -> list[ProbeKey]:
        """The tables of probes on the last epoch's latents, as they were fitted."""
        return [key for key in self.probes if key.latents.epoch is None]

    @property
    def size_bytes(self) -> int:
        """What is committed takes on disk, in bytes, less the small store of spectra and probes."""
        latents_bytes = sum(record.size_bytes for record in self.latents.values())
        return latents_bytes + sum(record.size_bytes for record in self.files.values())


SEAL = b'{\n "sha256": "'
"""How a manifest begins that has a digest of all that follows; those of before it are without."""


def describe_manifest(manifest: Manifest) -> bytes:
    """Return the content of ``manifest.json``: sealed, so that a bit that flips is no other number."""
    rest = manifest.model_dump_json(indent=1).encode().removeprefix(b"{")
    return SEAL + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest


def check_seal(content: bytes) -> None:
    """Check that a manifest is what was written.

    Raises
    ------
    ValueError
        If it is sealed, and isn't.
    """
    if content.startswith(SEAL):
        found, rest = content[len(SEAL) :][:64], content[len(SEAL) + 64 :].removeprefix(b'",')
        if hashlib.sha256(rest).hexdigest().encode() != found:
            raise ValueError(
                "its content is not what was written; restore it from a backup, or, if it was edited by hand "
                'and is to be trusted, take its line "sha256" out'
            )


def read_manifest(path: Path) -> Manifest:
    """Read and check a run folder's manifest.

    Raises
    ------
    NotFoundError
        If there is none.
    CorruptError
        If it is no manifest, or of a format version that is not known here.
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
        if cleaned != content:  # names of control characters are refused, texts are cleaned
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
