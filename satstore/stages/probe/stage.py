"""The stage ``probe``: a logistic regression on every layer's latents."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from satstore.config.experiment import DeviceName
from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.errors import ConfigError, SatstoreError
from satstore.runs.manifest import ProbesRecord
from satstore.runs.run import Run
from satstore.stages import parameters as shared
from satstore.stages.selection import latents_of
from satstore.stages.stage import Plan, Stage

if TYPE_CHECKING:
    from satstore.stages.probe.backends import Backend
    from satstore.stages.probe.job import ProbeJob

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""Files that a machine with a GPU has, under Linux and under Linux on Windows."""


def _check_prefix(prefix: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}", prefix):
        raise ValueError("expected at most 40 letters, digits, _ . + and -, the first a letter or a digit")
    if re.fullmatch(r"pool[0-9]+|full|pixelwise", prefix) or LatentsKey(prefix).is_of_tokens:
        raise ValueError("expected a name that no pooling has")
    key = ProbeKey(LatentsKey("full"), prefix)
    if ProbeKey.parse(str(key)) != key:
        raise ValueError("expected a name that does not end as tables of an earlier epoch begin")
    return prefix


class ProbeParameters(shared.StageParameters):
    """Parameters of ``probe``."""

    device: Annotated[
        DeviceName | None,
        Field(
            description="cpu or cuda:N, also for earlier stages that have to run; by default a GPU if any. "
            "With run it is for training alone where processes fit the probes (-mp, --scheduler)"
        ),
    ] = None
    pooling: shared.Poolings = None
    tokens: shared.Tokens = None
    epoch: shared.Epochs = None
    layers: shared.Layers = None
    exclude: shared.Exclude = None
    workers: Annotated[
        int,
        Parameter(name=["--workers", "-mp"]),
        Field(ge=1, description="processes that share out the rows of a layer, and the cores"),
    ] = 1
    scheduler: Annotated[
        str | None, Field(description="address of a Dask cluster's scheduler, such as tcp://host:8786")
    ] = None
    memory_limit: shared.MemoryLimit = shared.DEFAULT_MEMORY_LIMIT
    C: Annotated[
        float, Parameter(name="-C"), Field(gt=0, description="inverse of the regularisation's strength")
    ] = 1.0
    tol: Annotated[float, Field(gt=0, description="largest gradient entry of the mean loss at the end")] = (
        1e-4
    )
    max_iter: Annotated[int, Field(ge=1, description="iterations at most")] = 1000
    prefix: Annotated[
        Annotated[str, AfterValidator(_check_prefix)] | None,
        Field(description="keep the results under this name, beside those fitted with other settings"),
    ] = None
    force: shared.Force = False
    overwrite: shared.Overwrite = False

    @field_validator("workers", "scheduler")
    @classmethod
    def _check_place(cls, value: int | str | None, info: ValidationInfo) -> int | str | None:
        device = info.data.get("device")
        if device not in (None, "cpu") and value not in (None, 1):
            raise ValueError(
                f"processes can't share a GPU: leave out --device {device}, or -mp and --scheduler"
            )
        return value


def settings_of(parameters: ProbeParameters) -> ProbesRecord:
    """Return the record of a table with no layer fitted yet."""
    return ProbesRecord(C=parameters.C, tol=parameters.tol, max_iter=parameters.max_iter)


def pending_layers(run: Run, key: ProbeKey, wanted: list[str], parameters: ProbeParameters) -> list[str]:
    """Return those of some layers that a table lacks, or whose probes were fitted on latents that are gone.

    Raises
    ------
    ConfigError, CorruptError
        If layers were fitted with other settings, and are not all to be overwritten; if the table is lost.
    """
    from satstore.stages.probe.table import latents_digest

    known = run.manifest.probes.get(key)
    if known is None or not run.has_file(key.file):
        return wanted
    current = [
        layer
        for layer, digest in known.layers.items()
        if layer in known.layers_without_probe or digest == latents_digest(run, key, layer)
    ]
    kept = [layer for layer in current if not (parameters.overwrite and layer in wanted)]
    if kept and known.settings != settings_of(parameters).settings:
        C, tol, max_iter = known.settings
        raise ConfigError(
            f"the probes of {run.name} at {key} were fitted with C {C}, tol {tol}, max_iter {max_iter}; to "
            "replace them, take --overwrite for all their layers; to keep them beside others, --prefix NAME"
        )
    if kept:
        run.check_file(key.file)
    return [layer for layer in wanted if layer not in kept]


def plan_probes(run: Run, parameters: ProbeParameters) -> Plan[dict[ProbeKey, list[str]]]:
    """Find the layers of each table that are not fitted."""
    todo = {}
    for latents, layers in latents_of(run, parameters).items():
        key = ProbeKey(latents, parameters.prefix or "")
        todo[key] = pending_layers(run, key, layers, parameters)
    missing = [f"{layer} at {key}" for key, layers in todo.items() for layer in layers]
    return Plan(parameters, missing, todo)


def fit_probes(run: Run, plan: Plan[dict[ProbeKey, list[str]]]) -> None:
    """Fit and commit the missing layers one by one; raise the first error after all others were fitted."""
    from satstore.stages.probe.job import ProbeResult
    from satstore.stages.probe.table import commit_layer

    device = choose_gpu(plan.parameters)
    jobs, errors = make_jobs(run, plan)
    # SciPy takes seconds to load, so latents that can't be read are reported first.
    from satstore.stages.probe.fit import fit_layers

    backend = make_backend(plan.parameters, device)
    for n_done, (job, result) in enumerate(fit_layers(jobs, backend), start=1):
        if isinstance(result, ProbeResult):
            commit_layer(run, job.key, job.layer, result)
        else:
            errors.append(result)
        run.emit("probe", "progress", f"{job.layer} at {job.key}", done=n_done, total=len(jobs))
    if errors:  # after all other layers were fitted; these are pending until what is wrong is mended
        raise errors[0]


def make_jobs(
    run: Run, plan: Plan[dict[ProbeKey, list[str]]]
) -> "tuple[list[ProbeJob], list[SatstoreError]]":
    """Open the latents of each table and discard its old probes; return its layers that are to be fitted.

    Also the errors of tables whose latents can't be read.
    """
    from satstore.stages.probe.job import ProbeJob
    from satstore.stages.probe.latents import check_labels, open_probe_latents, warn_of_missing_classes
    from satstore.stages.probe.table import discard_old_probes, latents_digest

    parameters: ProbeParameters = plan.parameters
    jobs: list[ProbeJob] = []
    errors: list[SatstoreError] = []
    for key, layers in plan.work.items():
        if not layers:
            continue
        try:
            latents = open_probe_latents(run, key.latents)
            check_labels(latents)
        except SatstoreError as error:
            errors.append(error)
            continue
        warn_of_missing_classes(run, latents)
        discard_old_probes(run, key, layers, settings_of(parameters))
        jobs += [
            ProbeJob(
                key=key,
                layer=layer,
                latents=latents,
                digest=latents_digest(run, key, layer) or "",
                C=parameters.C,
                tol=parameters.tol,
                max_iter=parameters.max_iter,
            )
            for layer in layers
        ]
    return jobs, errors


def make_backend(parameters: ProbeParameters, device: str | None) -> "Backend":
    """Return where probes are to be fitted: on a GPU, on a cluster, or on threads of this process."""
    from satstore.stages.probe.backends import ThreadBackend, TorchBackend
    from satstore.stages.probe.memory import MemoryBudget
    from satstore.system.limits import beside_gpu

    if device is not None:
        return TorchBackend(MemoryBudget(beside_gpu(parameters.memory_limit), parameters.force), device)
    memory = MemoryBudget(parameters.memory_limit, parameters.force)
    if parameters.workers == 1 and parameters.scheduler is None:
        return ThreadBackend(memory)
    from satstore.stages.probe.dask_backend import DaskBackend

    return DaskBackend(memory, n_workers=parameters.workers, scheduler=parameters.scheduler)


def choose_gpu(parameters: ProbeParameters) -> str | None:
    """Return the GPU that passes are to be made on, None for the CPU; DeviceError if it isn't there."""
    is_shared = parameters.workers > 1 or parameters.scheduler is not None
    asked = parameters.device
    # Without a driver there is no GPU: that spares the seconds that torch takes to load.
    if asked == "cpu" or (asked is None and (is_shared or not any(Path(p).exists() for p in GPU_DRIVERS))):
        return None
    from satstore.training import devices

    device = devices.choose_device(asked)
    if device.type == "cpu":
        return None
    devices.warm_up(device)
    return str(device)


STAGE = Stage(
    name="probe",
    description="Fit a linear probe on every layer's latents.",
    plan=plan_probes,
    run=fit_probes,
    parameters=ProbeParameters,
    needs=("train", "extract"),
    table="probe-{pooling}",
)
