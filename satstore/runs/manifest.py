"""The run manifest: an experiment's config, data, layers, results in brief, stages and committed files."""

import re
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
)

from satstore.config.latent_keys import LatentsKey, ProbeKey, check_prefix
from satstore.storage.files import FORMAT_VERSION, Digest
from satstore.storage.location import is_url
from satstore.storage.safe_names import is_key

StageStatus = Literal["done", "running", "failed", "cancelled", "missing"]
"""``cancelled``: a user ended it, by Ctrl-C, a signal or ``satstore cancel``."""

CHECKPOINT = "checkpoint.pt"
"""The name of the file that holds a run's weights and all other state that training resumes from."""


def checkpoint_name(epoch: int | None) -> str:
    """Return the name of the file that holds the weights after an epoch, None for the last."""
    return CHECKPOINT if epoch is None else f"checkpoint-epoch{epoch}.pt"


RECORDING = "recording.pt"
"""The name of the file that an unfinished ``satstore.record`` goes on from; its last commit removes it."""

LATENTS = "latents.zarr"
"""The name of the store of latents, wherever it lies."""

STAGE_KEYS = ("train", "extract", "saturation", "probe", "receptive_field", "project", "flops")
"""The keys of satstore's stages in a manifest, in the order in which they run."""


Count = Annotated[int, Field(ge=0, le=2**53)]
"""A count, or a size in bytes, that a float64 represents exactly."""

Share = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
"""A fraction; the limits admit accuracies on other scales, such as percent."""

MAX_EPOCHS = 10**6
"""A limit above any training's epochs, so that arrays and axes by epoch stay of a bounded size."""


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
    """Refuse names that lead out of the run folder, or that no file can have."""
    if not is_key(name):
        raise ValueError("expected the name of a file in the run folder")
    return name


FileName = Annotated[str, AfterValidator(_check_file_name)]
"""The name of a file of the run folder."""


TargetName = Annotated[str, AfterValidator(check_prefix)]
"""The name of a target, which tables of probes on it begin with."""


class _Record(BaseModel):
    # Newer versions of the same format may add fields: keep them when the manifest is written back.
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
        """The digest that the file must have."""
        return Digest(self.size_bytes, self.sha256)


class LayerRecord(_Record):
    """A recorded layer: its PyTorch name, place in forward order, kind, features and output shape.

    ``form`` is how its output is arranged: vector, map, tokens or steps, and ``block`` the
    name of the block that it is part of, or is; earlier versions left both empty.
    ``n_prefix`` tokens come before the patches ``grid`` (y, x), which is empty where tokens are no patches.
    """

    layer: str
    index: Count
    kind: str
    n_features: Count
    output_shape: list[Count]
    form: str = ""
    block: str = ""
    n_prefix: Count = 0
    grid: list[Count] = Field(default_factory=list, max_length=3)

    @property
    def n_axes(self) -> int:
        """The axes of positions of a map; 0 if it is none."""
        is_map = self.form == "map" or (not self.form and self.kind not in ("Linear", "LSTM"))
        return max(0, len(self.output_shape) - 1) if is_map else 0


SHORTCUT = re.compile(r"(^|\.)(downsample|shortcut|skip)")


class DatasetRecord(_Record):
    """The data that an experiment was trained on.

    ``fingerprint`` differs between data of the same name; it is empty where the training's data are unknown.
    ``labels_sha256`` has a digest of labels and sample ids by split, which stored latents must agree with;
    old manifests lack it. ``skipped`` names the corrupt images that were left out, by split. Without labels,
    every stored one is NO_LABEL, and there are no classes.
    """

    name: str
    n_train: Count
    n_eval: Count
    classes: list[str]
    fingerprint: str
    labels_sha256: dict[str, str] = Field(default_factory=dict)
    skipped: dict[str, list[str]] = Field(default_factory=dict)
    has_labels: bool = True

    @property
    def has_fingerprint(self) -> bool:
        """Whether the data of the training are known."""
        return bool(self.fingerprint)


class TargetRecord(_Record):
    """Labels that were added to a run: what probes are told apart by besides the data's own classes.

    The class index of each sample is in the file that :func:`target_file` names.
    """

    classes: list[str]
    n_train: Count
    n_eval: Count


def target_file(name: str) -> str:
    """Return the name of the file of a target's labels."""
    return f"target-{name}.npz"


def target_of(file: str) -> str:
    """Return the target whose labels a file of that name holds; empty if it is another file."""
    found = re.fullmatch(r"target-(.+)\.npz", file, re.DOTALL)
    return found[1] if found else ""


class LatentsRecord(_Record):
    """The latents of one key.

    ``checkpoint_sha256`` is the digest of the checkpoint that computed them, empty where that is not known;
    ``digest`` that of all files. ``layers`` holds each split's layers and the digests of their files; earlier
    versions left it empty, and stored all layers of both splits.
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
        """Whether it is known which checkpoint computed them."""
        return bool(self.checkpoint_sha256)


NO_PROBE = "imported"
"""Stands for the digest of a layer's latents where its accuracy is in the table and no probe is stored."""


class ProbesRecord(_Record):
    """One table of probes: the settings of all fits, and each layer with the digest of its latents.

    ``target`` names the labels that they were fitted to; it is empty for the data's own.
    """

    C: FiniteFloat
    tol: FiniteFloat
    max_iter: Count
    target: str = ""
    layers: dict[str, str] = Field(default_factory=dict)

    @property
    def layers_without_probe(self) -> set[str]:
        """The layers with accuracies in the table and no stored probe."""
        return {layer for layer, digest in self.layers.items() if digest == NO_PROBE}

    @property
    def settings(self) -> tuple[float, float, int, str]:
        """C, tol, max_iter and target of the fits."""
        return self.C, self.tol, self.max_iter, self.target


class SourceRecord(_Record):
    """Where the model of a recorded run came from; shown, and never executed.

    ``version`` is the package that built it, ``weights_sha256`` the digest of all its tensors, ``recipe``
    what made its inputs, in plain text, ``data`` where these came from, ``command`` the whole command line.
    """

    source: str
    version: str = ""
    weights: str = ""
    weights_sha256: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    recipe: str = ""
    data: str = ""
    command: str = ""


class StageRecord(_Record):
    """A stage's last run: its parameters, times and outcome."""

    status: StageStatus
    started: FiniteFloat
    ended: FiniteFloat | None = None
    error: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class Summary(_Record):
    """The results that lists show, so that they read no other file; accuracies are fractions."""

    epochs_done: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] = 0
    test_accuracy: Share | None = None
    intrinsic_dimension: dict[str, Count | None] = Field(default_factory=dict)
    saturation: dict[str, Share | None] = Field(default_factory=dict)
    probe_accuracy: dict[StoredProbeKey, dict[str, Share | None]] = Field(default_factory=dict)
    border_layer: str | None = None
    strict_border_layer: str | None = None


def _check_layers(records: list[LayerRecord]) -> list[LayerRecord]:
    """Refuse two layers of one name: tables and stores identify layers by name."""
    names = [record.layer for record in records]
    if len(set(names)) < len(names):
        raise ValueError("expected layers of different names")
    return records


def _check_latents_path(place: str) -> str:
    """Refuse places that no version wrote, as removing latents removes everything at their place."""
    is_elsewhere = is_url(place) or Path(place).is_absolute()
    names = unquote(place).partition("://")[2].lstrip("/") if is_url(place) else place[1:]
    is_plain = len(place) < 1000 and place.isprintable() and is_key(names)
    if place != LATENTS and not (is_elsewhere and is_plain and place.endswith(f"/{LATENTS}")):
        raise ValueError(f"expected {LATENTS}, or an absolute path or URL that ends in /{LATENTS}")
    return place


class Manifest(_Record):
    """The content of ``manifest.json``.

    ``re_extractable`` has the records of latents that were removed to free the disk. Probes may be fitted on
    them, and an extraction writes them again.
    """

    format_version: int = FORMAT_VERSION
    run_id: str
    experiment: str
    created: FiniteFloat
    config: dict[str, Any]
    config_sha256: str
    environment: dict[str, Any] = Field(default_factory=dict)
    dataset: DatasetRecord | None = None
    source: SourceRecord | None = None
    layers: Annotated[list[LayerRecord], AfterValidator(_check_layers)] = Field(default_factory=list)
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    files: dict[FileName, FileRecord] = Field(default_factory=dict)
    latents_path: Annotated[str, AfterValidator(_check_latents_path)] = LATENTS
    latents: dict[StoredLatentsKey, LatentsRecord] = Field(default_factory=dict)
    re_extractable: dict[StoredLatentsKey, LatentsRecord] = Field(default_factory=dict)
    probes: dict[StoredProbeKey, ProbesRecord] = Field(default_factory=dict)
    targets: dict[TargetName, TargetRecord] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    summary: Summary = Field(default_factory=Summary)

    @property
    def last_probes(self) -> list[ProbeKey]:
        """The tables of probes on the last epoch's latents, as they were fitted."""
        return [key for key in self.probes if key.latents.epoch is None]

    @property
    def size_bytes(self) -> int:
        """Bytes of the committed files and latents, without the small store of spectra and probes."""
        latents_bytes = sum(record.size_bytes for record in self.latents.values())
        return latents_bytes + sum(record.size_bytes for record in self.files.values())

    @property
    def fitted_targets(self) -> list[str]:
        """The targets with tables of probes that figures show; the data's own labels, ``""``, come first."""
        fitted = [record.target for key, record in self.probes.items() if key.prefix == record.target]
        return sorted(dict.fromkeys(fitted), key=bool)

    @property
    def shown_target(self) -> str:
        """The target whose probes figures show by default."""
        return next(iter(self.fitted_targets), "")

    def shown_probes(self, target: str | None = None) -> list[ProbeKey]:
        """Return the tables of probes that figures show of a target, of all epochs.

        Those with a prefix of their own are left out: they were fitted under other conditions.
        """
        target = self.shown_target if target is None else target
        return [key for key, record in self.probes.items() if key.prefix == record.target == target]

    def drop_probes(self, key: ProbeKey) -> None:
        """Forget a table of probes, and what was warned of its layers."""
        self.probes.pop(key, None)
        self.files.pop(key.file, None)
        self.summary.probe_accuracy.pop(key, None)
        self.drop_warnings(*(f"probe: layer {record.layer} at {key} " for record in self.layers))
        if not self.probes:
            self.stages.pop("probe", None)

    def drop_warnings(self, *beginnings: str) -> None:
        """Forget the warnings that begin in some ways."""
        self.warnings = [line for line in self.warnings if not line.startswith(beginnings)]

    def release_latents(self) -> None:
        """Mark all latents as removed, so that an extraction writes them again."""
        self.re_extractable |= self.latents
        self.latents = {}
        self.stages.pop("extract", None)


def drawn_layers(manifest: Manifest) -> list[str]:
    """Return the layers that figures show: without shortcuts, and without a classifier's last Linear layer.

    That is one with a feature for each class; of old manifests, whose layers have no form, the last.
    """
    linears = [record for record in manifest.layers if record.kind == "Linear"]
    n_classes = len(manifest.dataset.classes) if manifest.dataset else 0
    heads = [record.layer for record in linears[-1:] if not record.form or record.n_features == n_classes]
    names = [record.layer for record in manifest.layers]
    return [name for name in names if not SHORTCUT.search(name) and name not in heads]
