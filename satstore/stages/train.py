"""The stage ``train``: train a model, record the spectra of every epoch, and store the last one's latents."""

import json
from typing import Annotated, Any

from pydantic import Field

from satstore.errors import ConfigError
from satstore.runs.manifest import CHECKPOINT, Manifest, Summary
from satstore.runs.run import Run
from satstore.stages import flops
from satstore.stages import parameters as shared
from satstore.stages.extract import stage as extract_stage
from satstore.stages.selection import check_kept, list_epochs
from satstore.stages.stage import Plan, Stage
from satstore.storage.files import refusals
from satstore.storage.location import Folder
from satstore.system.signals import sigint_deferred


class TrainParameters(shared.StageParameters):
    """Parameters of ``train``."""

    device: shared.Device = None
    latents: Annotated[
        bool | None,
        Field(
            description="write the latents at the end, as extract does; default: if the config's stages do"
        ),
    ] = None
    pooling: shared.Poolings = None
    tokens: shared.Tokens = None
    latents_dir: shared.LatentsDir = None
    memory_limit: shared.MemoryLimit = shared.DEFAULT_MEMORY_LIMIT
    force: shared.Force = False
    overwrite: shared.Overwrite = False


def plan_training(run: Run, parameters: TrainParameters) -> Plan[Plan[Any] | None]:
    """Find what is missing: epochs, costs, latents; where latents alone are, their plan is the work."""
    if parameters.overwrite or not run.is_trained:
        done = 0 if parameters.overwrite else run.manifest.summary.epochs_done
        check_kept(run, (epoch for epoch in run.config.latent_epochs if epoch < done))
        return Plan(parameters, [f"epochs {done + 1} to {run.config.epoch}"], None)
    if run.has_file(CHECKPOINT):  # a run that was trained elsewhere may be without
        run.check_file(CHECKPOINT)
    if run.was_cut_off(STAGE.key) and (
        run.was_cut_off(flops.STAGE.key) or flops.plan_flops(run, flops.FlopsParameters()).missing
    ):
        return Plan(parameters, ["what it cost"], None)
    if not writes_latents(run, parameters):
        return Plan(parameters, [], None)
    latents = plan_latents_of_training(run, parameters)
    if not latents.missing and run.was_cut_off(STAGE.key) and run.was_cut_off(extract_stage.STAGE.key):
        # Killed before the manifest said so.
        return Plan(parameters, ["that the latents are whole"], latents)
    return Plan(parameters, latents.missing, latents)


def plan_latents_of_training(run: Run, parameters: TrainParameters) -> Plan[Any]:
    """Find the latents that are missing at the end of training."""
    return extract_stage.plan_extraction(run, extract_stage.STAGE.adapt(parameters, check=False))


def writes_latents(run: Run, parameters: TrainParameters) -> bool:
    """Tell whether the parameters, or else the config's stages, ask for latents."""
    return extract_stage.STAGE.name in run.config.stages if parameters.latents is None else parameters.latents


def run_training(run: Run, plan: Plan[Plan[Any] | None]) -> None:
    """Train to the last epoch, then write the latents."""
    with sigint_deferred():
        from satstore.training import devices, distributed, loop

    parameters: TrainParameters = plan.parameters
    device = devices.choose_device(parameters.device or run.config.device)
    if parameters.overwrite:
        remove_results(run)
    if parameters.latents_dir is not None or writes_latents(run, parameters):
        extract_stage.place(run, parameters.latents_dir)
    if not run.is_trained:
        record_latent_epochs(run)
        n_processes = distributed.count_processes(run.config, device)
        if n_processes > 1:
            distributed.train_in_processes(run, device, n_processes, force=parameters.force)
        else:
            loop.train(run, device, force=parameters.force)
    write_costs(run)
    warn_of_missed_epochs(run)
    if not writes_latents(run, parameters):
        return
    latents = plan.work or plan_latents_of_training(run, parameters)
    if latents.missing:
        with run.stage(extract_stage.STAGE.key, shared.record_parameters(latents.parameters)):
            extract_stage.run_extraction(run, latents)
    run.settle(extract_stage.STAGE.key)


def write_costs(run: Run) -> None:
    """Write the training's costs; warn if they can't be counted for this model."""
    try:
        costs = flops.plan_flops(run, flops.FlopsParameters())
        if costs.missing:
            with run.stage(flops.STAGE.key, shared.record_parameters(costs.parameters)):
                flops.write_flops(run, costs)
        run.settle(flops.STAGE.key)
    except ConfigError as error:
        run.warn("train", str(error))


def record_latent_epochs(run: Run) -> None:
    """Record the config's ``latent_epochs`` in the manifest: a later config may have changed them."""
    content = run.manifest.config | {"latent_epochs": list(run.config.latent_epochs)}
    if content["latent_epochs"] != run.manifest.config.get("latent_epochs", []):
        files = {"config.json": (json.dumps(content, indent=2) + "\n").encode()}
        run.commit(files, lambda manifest: setattr(manifest, "config", content))


def warn_of_missed_epochs(run: Run) -> None:
    """Warn of ``latent_epochs`` that training did not reach."""
    missed = [epoch for epoch in run.config.latent_epochs if epoch > run.last_epoch]
    if missed:
        run.warn(
            "train",
            f"no latents of epoch {list_epochs(missed)}: training stopped early, after epoch "
            f"{run.last_epoch + 1}",
        )


def remove_results(run: Run) -> None:
    """Remove all files and records of a run except its config."""

    def change(manifest: Manifest) -> None:
        manifest.files = {name: f for name, f in manifest.files.items() if name == "config.json"}
        manifest.summary, manifest.latents, manifest.probes = Summary(), {}, {}
        manifest.re_extractable, manifest.targets = {}, {}
        manifest.stages = {"train": manifest.stages["train"]}
        manifest.warnings = []

    paths = [run.path_of(name) for name in run.manifest.files if name != "config.json"]
    stores = (Folder(run.analysis_path), run.writable_latents())
    run.commit(change=change)
    for path in paths:
        with refusals(path, 0, "removed"):
            path.unlink(missing_ok=True)
    for store in stores:
        run.commits.remove(store.name)
        store.remove()


STAGE = Stage(
    name="train",
    description="Train the models of a config, record their layers' spectra, and store their latents.",
    plan=plan_training,
    run=run_training,
    parameters=TrainParameters,
    table="metrics",
    needs_model=True,
)
