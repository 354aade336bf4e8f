"""A run as the source of a model to record, and the record of any source in a manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2.functional as vision
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from satstore.config.experiment import RECORDED
from satstore.datasets.image_data import PixelSource
from satstore.datasets.image_folder import FileSource
from satstore.datasets.transforms import Transform
from satstore.errors import ConfigError
from satstore.models.sources.images import PrepareImage, in_one_line
from satstore.models.sources.source import Source, open_source
from satstore.models.sources.weights import digest_weights
from satstore.runs.logs_folder import open_run
from satstore.runs.manifest import SourceRecord
from satstore.runs.run import Run
from satstore.training.run_model import load_model
from satstore.training.session_data import load_data


def find_source(
    text: str,
    *,
    weights: Path | None = None,
    untrained: bool = False,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    logs_dir: Path | None = None,
) -> Source:
    """Open the source of a text: a run's where it has no colon, otherwise as :func:`open_source` does.

    ConfigError also if a run is to have other weights or arguments than its own.
    """
    if ":" in text:
        return open_source(text, weights=weights, untrained=untrained, seed=seed, arguments=arguments)
    run = open_run(text, logs_dir)
    if weights is not None or untrained or arguments:
        raise ConfigError(
            f"{text} is a run, with weights of its own: --weights, --untrained, --set are for others"
        )
    return open_run_source(run)


def open_run_source(run: Run) -> Source:
    """Open a trained run's model, whose inputs are prepared as its dataset's evaluation images are.

    ConfigError if satstore didn't build the model, or if the dataset does more than to prepare single images.
    """
    check_built_here(run)
    run.load_plugins()
    data = load_data(run.config, run.manifest.dataset)
    source = data.train_plain.source
    if not isinstance(source, PixelSource | FileSource):
        raise ConfigError(
            f"{run.name}: {run.config.dataset} does more than to prepare single images; record its model "
            "from Python (satstore.record)"
        )
    sizes = (source.resolution, source.scaled_to) if isinstance(source, FileSource) else None
    recipe = PrepareAsTrained(tuple(data.train_plain.transforms), sizes)
    return Source(
        text=run.name,
        model=load_model(run, len(data.classes), torch.device("cpu")).eval(),
        prepare=PrepareImage(run.name, recipe),
        collate=default_collate,
        kind="image",
        version=f"satstore {run.manifest.environment.get('satstore', '')}".strip(),
        weights=f"trained in {run.name}",
        arguments={},
        recipe=in_one_line(recipe),
    )


def check_built_here(run: Run) -> None:
    """Refuse a run that records a model which satstore did not build; ConfigError names its source."""
    if run.config.dataset == RECORDED:
        source = run.manifest.source
        recorded = f"{source.source}: name that" if source else "a model of another program"
        raise ConfigError(f"{run.name} records {recorded}, as satstore can't build it from the run")


@dataclass(frozen=True)
class PrepareAsTrained:
    """Prepares an RGB image as a dataset does in training, without augmentation.

    ``sizes`` are the pixels of the square that is cut out of the middle, and those that the shorter side is
    scaled to before; None where images are taken as they are.
    """

    transforms: Sequence[Transform]
    sizes: tuple[int, int] | None

    def __call__(self, image: Image.Image) -> Tensor:
        """Return float32 (3, r, r)."""
        if self.sizes is not None:
            resolution, scaled_to = self.sizes
            image = vision.center_crop(vision.resize(image, [scaled_to]), [resolution, resolution])
        batch: Tensor = vision.pil_to_tensor(image)[None]
        for transform in self.transforms:
            batch = transform(batch)
        return batch[0].contiguous()


def describe_source(source: Source, *, data: str, command: str) -> SourceRecord:
    """Return the manifest's record of a source that data are recorded with."""
    return SourceRecord(
        source=source.text,
        version=source.version,
        weights=source.weights,
        weights_sha256=digest_weights(source.model),
        arguments=dict(source.arguments),
        recipe=source.recipe,
        data=data,
        command=command,
    )
