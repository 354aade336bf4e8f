"""The parameters of an import of features, without what is slow to import."""

from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import AfterValidator, Field

from satstore.errors import ConfigError
from satstore.stages import parameters as shared


def _check_place(place: str | None) -> str | None:
    if place is not None and not place.isprintable():
        raise ConfigError(f"the path {place!r} has control characters")
    return place


Place = Annotated[str, AfterValidator(_check_place)]


class FeatureParameters(shared.StageParameters):
    """Parameters of an import of features, beside their files and the run id."""

    labels: Annotated[
        Place | None,
        Field(description="of features: a file of labels, one of each sample, such as y.npy or t.csv:label"),
    ] = None
    eval_features: Annotated[
        tuple[Place, ...],
        Parameter(negative="", consume_multiple=True),
        Field(description="the same layers of other samples, which probes are tested on"),
    ] = ()
    eval_labels: Annotated[Place | None, Field(description="the labels of --eval-features")] = None
    split: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="share of the samples that is drawn for evaluation; by default, without "
            "--eval-features, all are for both",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, description="of --split")] = 0
    pooling: shared.Poolings = None
    tokens: shared.Tokens = None
    max_samples: shared.MaxSamples = None
    latents_dir: shared.LatentsDir = None
    memory_limit: shared.MemoryLimit = shared.DEFAULT_MEMORY_LIMIT
    force: shared.Force = False
    overwrite: shared.Overwrite = False

    @property
    def of_files(self) -> dict[str, Any]:
        """Those that say what is stored, without those that say how."""
        return self.model_dump(
            mode="json", exclude={"latents_dir", "memory_limit", "force", "overwrite"}, exclude_defaults=True
        )
