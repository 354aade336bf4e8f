"""The stage ``probe``: a logistic regression on every layer's latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from satstore.config.experiment import DeviceName
from satstore.config.latent_keys import ProbeKey, check_prefix
from satstore.errors import ConfigError, SatstoreError
from satstore.runs.manifest import ProbesRecord
from satstore.runs.run import Run
from satstore.stages import parameters as shared
from satstore.stages.selection import latents_of
from satstore.stages.stage import Plan, Stage

if TYPE_CHECKING:
    from satstore.runs.targets import NewTarget
    from satstore.stages.probe.backends import Backend
    from satstore.stages.probe.job import ProbeJob

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""Files that a machine with a GPU has, under Linux and under Linux on Windows."""


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
    target: Annotated[
        Annotated[str, AfterValidator(check_prefix)] | None,
        Field(
            description="labels to fit to, by the name that they were added under; by default the data's own"
        ),
    ] = None
    labels: Annotated[
        Path | None,
        Field(
            description="add a target first: a file of a label per train sample, .npy .npz .csv .txt .pt "
            ".parquet; of several columns one, as in a.csv:animal"
        ),
    ] = None
    eval_labels: Annotated[Path | None, Field(description="those of the eval samples, beside --labels")] = (
        None
    )
    prefix: Annotated[
        Annotated[str, AfterValidator(check_prefix)] | None,
        Field(
            description="keep the results under this name, beside those fitted with other settings; by "
            "default the target's"
        ),
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


@dataclass(frozen=True)
class ProbeWork:
    """What is to be fitted, by table, to which target, and labels that are to be added first."""

    target: str
    new_target: "NewTarget | None"
    layers: dict[ProbeKey, list[str]]


def settings_of(parameters: ProbeParameters, target: str) -> ProbesRecord:
    """Return the record of a table with no layer fitted yet."""
    return ProbesRecord(C=parameters.C, tol=parameters.tol, max_iter=parameters.max_iter, target=target)


def read_new_target(run: Run, parameters: ProbeParameters) -> "NewTarget | None":
    """Read the labels that parameters name, if any; ConfigError if they are not those of the samples."""
    if parameters.labels is None and parameters.eval_labels is None:
        return None
    if parameters.labels is None:
        raise ConfigError("--eval-labels go beside those of the train samples: give --labels FILE too")
    from satstore.runs.targets import make_target
    from satstore.storage.label_files import name_labels, read_label_file

    train = read_label_file(parameters.labels)
    evaluated = None if parameters.eval_labels is None else read_label_file(parameters.eval_labels)
    return make_target(run, parameters.target or name_labels(parameters.labels), train, evaluated)


def pending_layers(
    run: Run, key: ProbeKey, wanted: list[str], parameters: ProbeParameters, target: str
) -> list[str]:
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
    if kept and known.settings != settings_of(parameters, target).settings:
        labels = "" if known.target == target else f"to {known.target or 'the labels of the data'} "
        raise ConfigError(
            f"the probes of {run.name} at {key} were fitted {labels}with C {known.C}, tol {known.tol}, "
            f"max_iter {known.max_iter}; to replace them, take --overwrite for all their layers; to keep "
            "them beside others, --prefix NAME"
        )
    if kept:
        run.check_file(key.file)
    return [layer for layer in wanted if layer not in kept]


def plan_probes(run: Run, parameters: ProbeParameters) -> Plan[ProbeWork]:
    """Find the layers of each table that are not fitted, and labels that are not added."""
    from satstore.runs.targets import choose_target

    new = read_new_target(run, parameters)
    target = choose_target(run, parameters.target) if new is None else new.name
    outdated = [] if new is None else new.outdated_probes(run.manifest)
    layers: dict[ProbeKey, list[str]] = {}
    for latents, wanted in latents_of(run, parameters).items():
        key = ProbeKey(latents, parameters.prefix or target)
        is_kept = key not in outdated
        layers[key] = pending_layers(run, key, wanted, parameters, target) if is_kept else wanted
    if new is not None and new.is_committed(run):
        new = None
    missing = [] if new is None else [f"labels {target}"]
    missing += [f"{layer} at {key}" for key, pending in layers.items() for layer in pending]
    return Plan(parameters, missing, ProbeWork(target, new, layers))


def fit_probes(run: Run, plan: Plan[ProbeWork]) -> None:
    """Commit new labels, then fit and commit the missing layers one by one.

    Raises the first error after all other layers were fitted.
    """
    from satstore.stages.probe.job import ProbeResult
    from satstore.stages.probe.table import commit_layer

    device = choose_gpu(plan.parameters)
    if plan.work.new_target is not None:
        run.write_target(plan.work.new_target)
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


def make_jobs(run: Run, plan: Plan[ProbeWork]) -> "tuple[list[ProbeJob], list[SatstoreError]]":
    """Open the latents of each table and discard its old probes; return its layers that are to be fitted.

    Also the errors of tables whose latents can't be read.
    """
    from satstore.stages.probe.job import ProbeJob
    from satstore.stages.probe.latents import check_labels, open_probe_latents, warn_of_missing_classes
    from satstore.stages.probe.table import discard_old_probes, latents_digest

    parameters: ProbeParameters = plan.parameters
    settings = settings_of(parameters, plan.work.target)
    jobs: list[ProbeJob] = []
    errors: list[SatstoreError] = []
    for key, layers in plan.work.layers.items():
        if not layers:
            continue
        try:
            latents = open_probe_latents(run, key.latents, plan.work.target)
            check_labels(latents)
        except SatstoreError as error:
            errors.append(error)
            continue
        warn_of_missing_classes(run, latents)
        discard_old_probes(run, key, layers, settings)
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
