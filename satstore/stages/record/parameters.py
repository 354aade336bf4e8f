"""The parameters of ``satstore record``, without what is slow to import."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import AfterValidator, Field

from satstore.config.experiment import Calls
from satstore.errors import ConfigError
from satstore.registry import DATASETS, suggest
from satstore.stages import parameters as shared


def _check_data(name: str) -> str:
    folder = Path(name).expanduser()
    if name not in DATASETS and not folder.is_dir():
        near = suggest(name, DATASETS)
        raise ConfigError(f"no folder {folder.absolute()}, and no dataset {name!r}{near}")
    return name


class RecordParameters(shared.StageParameters):
    """Parameters of ``record``, beside the source of the model."""

    data: Annotated[
        str,
        AfterValidator(_check_data),
        Field(
            description="a name of `satstore list datasets`, or a folder of images or of texts (.txt), in "
            "class folders or without labels, split into train/ and val/ (or test/) or not"
        ),
    ]
    run_id: Annotated[str, Field(description="the name of the run's folder")]
    split: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="share of a folder without val/ or test/ that is drawn for evaluation; by default "
            "all of it is for both",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, description="of --split and of --untrained")] = 0
    data_dir: Annotated[
        Path | None, Field(description="the folder that holds datasets; by default TORCH_DATADIR, else tmp")
    ] = None
    weights: Annotated[
        Path | None,
        Field(description="a file of weights, .safetensors or .pt; by default the library's own download"),
    ] = None
    untrained: Annotated[
        bool, Parameter(negative=""), Field(description="take random weights, drawn by --seed")
    ] = False
    arguments: Annotated[
        tuple[str, ...],
        Parameter(name="--set", negative=""),
        Field(description="argument of the model, key=value, such as num_classes=0; repeatable"),
    ] = ()
    modules: Annotated[
        tuple[str, ...] | None,
        Parameter(negative=""),
        Field(
            description="regular expression of modules of any class to record, in place of Conv, Linear and "
            "LSTM layers; PATTERN:PART takes a part of their output; repeatable; see: satstore list modules "
            "SOURCE"
        ),
    ] = None
    calls: Annotated[
        Calls, Field(description="of a module that is called several times: the last output, or all")
    ] = "last"
    layers: shared.Layers = None
    exclude: shared.Exclude = None
    pooling: shared.Poolings = None
    tokens: shared.Tokens = None
    max_samples: shared.MaxSamples = None
    batch_size: Annotated[int, Field(ge=1, description="samples of a batch")] = 32
    workers: Annotated[
        int | None, Field(ge=0, description="loader processes; by default by the cores, for texts none")
    ] = None
    device: Annotated[
        shared.Device, Field(description="cpu or cuda:N; by default the first GPU, else the CPU")
    ] = None
    latents_dir: shared.LatentsDir = None
    memory_limit: shared.MemoryLimit = shared.DEFAULT_MEMORY_LIMIT
    force: shared.Force = False
    resume: Annotated[
        bool,
        Parameter(negative=""),
        Field(description="keep what was recorded if it is stopped, and go on there when it is given again"),
    ] = False
    overwrite: shared.Overwrite = False
