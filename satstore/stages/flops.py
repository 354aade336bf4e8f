"""The stage ``flops``: what a model costs, per image and for the whole training, by layer too."""

import json
from typing import TYPE_CHECKING, Any

from satstore.config.experiment import ExperimentConfig
from satstore.errors import ConfigError, SatstoreError, reason_of
from satstore.runs.run import Run
from satstore.stages.parameters import Overwrite, StageParameters
from satstore.stages.stage import Plan, Stage

if TYPE_CHECKING:
    from satstore.analysis.flops import Costs

FILE = "computational_info.json"


class FlopsParameters(StageParameters):
    """Parameters of ``flops``."""

    overwrite: Overwrite = False


def plan_flops(run: Run, parameters: FlopsParameters) -> Plan[None]:
    """Say whether the file is missing, or was written of other epochs than were trained."""
    costs = None if parameters.overwrite else run.costs()
    if costs is None:
        return Plan(parameters, [FILE], None)
    done = run.manifest.summary.epochs_done
    is_over = done > 0 and run.is_trained
    return Plan(parameters, [FILE] if is_over and costs["n_epochs"] != done else [], None)


def write_flops(run: Run, _: Plan[None]) -> None:
    """Write what the model costs; the training's length is that of the run, or, before it, the config's."""
    dataset, summary = run.manifest.dataset, run.manifest.summary
    if dataset is not None:
        n_train, n_eval, n_classes = dataset.n_train, dataset.n_eval, len(dataset.classes)
    else:
        from satstore.training.session_data import load_data

        data = load_data(run.config)
        n_train, n_eval, n_classes = len(data.train), len(data.eval), len(data.classes)
    n_epochs = summary.epochs_done if run.is_trained else run.config.epoch
    costs = count_model_costs(run.config, n_classes)
    content = {
        "model": run.config.model,
        "resolution": run.config.resolution,
        "n_classes": n_classes,
        **summarize_costs(costs, n_train=n_train, n_eval=n_eval, n_epochs=n_epochs),
    }
    run.commit({FILE: (json.dumps(content, indent=1) + "\n").encode()})


def count_model_costs(config: ExperimentConfig, n_classes: int) -> "Costs":
    """Count a config's model's parameters and operations for one image; ConfigError if that can't be done."""
    import torch

    from satstore.analysis.flops import count_costs
    from satstore.models.plan import build_blank, on_meta_or_cpu

    def measure(device: str) -> "Costs":
        model = build_blank(config, n_classes, device)
        return count_costs(model, torch.zeros(1, 3, config.resolution, config.resolution, device=device))

    try:
        return on_meta_or_cpu(measure)
    except SatstoreError:
        raise
    except Exception as error:  # what a third party's model raises
        reason = reason_of(error)
        raise ConfigError(
            f"the operations of {config.model} at {config.resolution} px can't be counted: "
            f"{type(error).__name__}: {reason[:200]}"
        ) from error


def summarize_costs(costs: "Costs", *, n_train: int, n_eval: int, n_epochs: int) -> dict[str, Any]:
    """Return what ``computational_info.json`` says of a model's costs and of its training.

    ``macs`` and ``flops`` are one image's forward pass, a multiply-accumulate being two operations;
    ``backward_flops`` is what training an image adds. ``training_flops`` has forward and backward passes of
    all training images and forward passes of all evaluation images, in all epochs. Biases, norms, activations
    and pooling are not counted.
    """
    n_images = n_epochs * (n_train + n_eval)
    training_flops = n_images * costs.flops + n_epochs * n_train * costs.backward_flops
    return {
        "n_train": n_train,
        "n_eval": n_eval,
        "n_epochs": n_epochs,
        "n_parameters": sum(cost.n_parameters for cost in costs.modules),
        "macs": costs.flops // 2,
        "flops": costs.flops,
        "backward_flops": costs.backward_flops,
        "training_macs": training_flops // 2,
        "training_flops": training_flops,
        "layers": [
            {
                "layer": cost.layer,
                "n_parameters": cost.n_parameters,
                "macs": cost.flops // 2,
                "flops": cost.flops,
                # Forward passes only: which backward operations are a layer's, the counter doesn't say.
                "training_forward_flops": n_images * cost.flops,
            }
            for cost in costs.modules
        ],
    }


STAGE = Stage(
    name="flops",
    description="Count parameters and operations, per image and for the whole training, by layer too.",
    plan=plan_flops,
    run=write_flops,
    parameters=FlopsParameters,
    needs_model=True,
)
