"""The stage ``extract``: one pass per epoch that writes every layer's latents, at every pooling asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from satstore.config.latent_keys import SPLITS
from satstore.errors import ConfigError
from satstore.runs.manifest import LATENTS, Manifest
from satstore.runs.permissions import remember_place
from satstore.runs.run import Run
from satstore.stages import parameters as shared
from satstore.stages.extract.plan import (
    PoolingPlan,
    describe_missing,
    plan_latents,
    record_of,
)
from satstore.stages.selection import request_of
from satstore.stages.stage import Plan, Stage
from satstore.storage.location import Folder, join, locate
from satstore.storage.safe_names import as_key
from satstore.system.memory import resident_bytes
from satstore.system.signals import sigint_deferred

if TYPE_CHECKING:
    from satstore.datasets.image_data import ImageData


class ExtractParameters(shared.StageParameters):
    """Parameters of ``extract``."""

    device: shared.Device = None
    pooling: shared.Poolings = None
    tokens: shared.Tokens = None
    epoch: shared.Epochs = None
    latents_dir: shared.LatentsDir = None
    layers: shared.Layers = None
    exclude: shared.Exclude = None
    splits: shared.Splits = SPLITS
    mantissa_bits: Annotated[
        int | None,
        Field(
            ge=1, le=10, description="bits of float16's mantissa to keep; by default those stored, else 10"
        ),
    ] = None
    memory_limit: shared.MemoryLimit = shared.DEFAULT_MEMORY_LIMIT
    check: Annotated[
        bool, Field(description="read all that is stored and compare it with what was committed")
    ] = True
    force: shared.Force = False
    overwrite: shared.Overwrite = False


def plan_extraction(run: Run, parameters: ExtractParameters) -> Plan[list[PoolingPlan]]:
    """Find the latents that are missing, damaged, or of another checkpoint than the run's."""
    check_place(run, parameters.latents_dir)
    if not run.layers:  # known once it is trained
        groups = [key.group for key in request_of(run, parameters).all_keys]
        return Plan(parameters, groups, [])
    plans = plan_latents(run, parameters)
    return Plan(parameters, describe_missing(plans), [plan for plan in plans if plan.missing])


def run_extraction(run: Run, plan: Plan[list[PoolingPlan]]) -> None:
    """Write the latents that are missing, mend those that are damaged, and commit them epoch by epoch."""
    parameters: ExtractParameters = plan.parameters
    with sigint_deferred():
        from satstore.stages.extract.write import commit, write_split
        from satstore.training import devices, provenance, run_model, session_data

    place(run, parameters.latents_dir)
    device = devices.choose_device(parameters.device or run.config.device)
    data = session_data.load_data(run.config, run.manifest.dataset)
    provenance.check_data(run, data)
    if run.manifest.dataset is None or not run.manifest.dataset.has_fingerprint:
        provenance.assume_data(run, data, device)
    if not parameters.force:
        check_resources(run, plan.work, data, parameters)
    for epoch in dict.fromkeys(todo.key.epoch for todo in plan.work):
        of_epoch = [todo for todo in plan.work if todo.key.epoch == epoch]
        model = run_model.load_model(run, len(data.classes), device, epoch)
        forget(run, of_epoch, overwrite=parameters.overwrite)
        for bits in dict.fromkeys(todo.mantissa_bits for todo in of_epoch):  # a pass over the data for each
            group = [todo for todo in of_epoch if todo.mantissa_bits == bits]
            for split, images in (("train", data.train_plain), ("eval", data.eval)):
                wanted = {todo.key: todo.missing[split] for todo in group if split in todo.missing}
                if wanted:
                    write_split(run, model, images, split, wanted, bits, parameters.memory_limit)
        commit(run, of_epoch, data)


def check_resources(
    run: Run, plans: Sequence[PoolingPlan], data: "ImageData", parameters: ExtractParameters
) -> None:
    """Raise DiskSpaceError or MemoryLimitError where disk or memory can't suffice."""
    from satstore.models.plan import plan_model
    from satstore.planning.estimate import TYPICAL_RATIO, extraction_memory, latent_bytes
    from satstore.storage.zarr.layout import encode_layer
    from satstore.system.limits import check_disk, check_memory
    from satstore.training import session_data

    old_layers = [record.layer for record in run.manifest.layers if not record.form]
    plan = plan_model(run.config, len(data.classes), request_of(run, parameters), old_layers)
    n_samples = {"train": len(data.train), "eval": len(data.eval)}
    sizes = {(key, layer): shape for key, layers in plan.shapes.items() for layer, shape in layers.items()}
    missing = [(todo.key, *place) for todo in plans for place in todo.missing_places()]
    needed_bytes = sum(
        latent_bytes(sizes[key.at(None), layer], n_samples[split], TYPICAL_RATIO)
        for key, split, layer in missing
    )
    what, location = f"the latents of {run.name}", run.latents_location
    if isinstance(location, Folder):
        # What a killed extraction left counts: it is gone on with, or replaced.
        written = sum(
            sum(location.sizes(as_key(f"{key}/{split}/{encode_layer(layer)}")).values())
            for key, split, layer in missing
        )
        check_disk(location.path, needed_bytes - written, what)
    n_most = max(n_samples.values())
    n_loaders = session_data.choose_workers(run.config, data.in_memory, parameters.memory_limit)
    limit, held_bytes = parameters.memory_limit, resident_bytes()
    needed = extraction_memory(plan, run.config, n_most, limit, held_bytes, n_loaders)
    check_memory(needed, None, what)  # the limit bounds the shards, and refuses those that it can't hold


def check_place(run: Run, latents_dir: str | None) -> str:
    """Return where a run's latents lie, or are to lie, and remember what the user names.

    ConfigError if latents are stored elsewhere.
    """
    known = run.manifest.latents_path
    if latents_dir is None:
        return known
    place = join(latents_dir, run.run_id, run.experiment, LATENTS)
    if place != known and run.commits.read(LATENTS).files:
        raise ConfigError(
            f"{run.name} has its latents at {run.latents_path}, not at {place}; to have them there, remove "
            f"these first: satstore clean {run.name} --latents"
        )
    if place != LATENTS:
        remember_place(run.path, place)
    return place


def place(run: Run, latents_dir: str | None) -> None:
    """Note where a run's latents are to lie, once something answers there.

    ConfigError if latents are stored elsewhere, or the manifest alone names the place.
    """
    found = check_place(run, latents_dir)
    if latents_dir is None:
        run.writable_latents()
    if found != run.manifest.latents_path:
        locate(found).sizes()
        run.commit(change=lambda manifest: setattr(manifest, "latents_path", found))


def forget(run: Run, plans: Sequence[PoolingPlan], *, overwrite: bool) -> None:
    """Remove latents that are to be written again, first from the manifest, then from the store."""
    from satstore.storage.zarr import discard
    from satstore.storage.zarr.layout import encode_layer

    def change(manifest: Manifest) -> None:
        for plan in plans:
            record = manifest.latents.get(plan.key)
            if record is None:
                continue
            if plan.is_anew:
                del manifest.latents[plan.key]
                continue
            record.layers = {
                split: {
                    layer: record.layers.get(split, {}).get(layer, "")
                    for layer in record_of(run, record, split)
                    if layer not in plan.missing.get(split, ())
                }
                for split in SPLITS
            }

    run.commit(change=change)
    for plan in plans:
        gone: list[str] = [damage.key for damage in plan.damage]
        if plan.is_anew:
            gone = [str(plan.key)]
        elif overwrite:
            gone += [f"{plan.key}/{split}/{encode_layer(layer)}" for split, layer in plan.missing_places()]
        discard(run.writable_latents(), run.commits, gone)


STAGE = Stage(
    name="extract",
    description="Store the latents of every layer, at one pooling or several, in one pass over the data "
    "for each epoch.",
    plan=plan_extraction,
    run=run_extraction,
    parameters=ExtractParameters,
    needs=("train",),
    needs_model=True,
)
