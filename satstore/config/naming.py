"""Names that tell experiments apart where several are shown together."""

from collections.abc import Callable, Sequence

from satstore.config.experiment import NOT_TRAINING, ExperimentConfig
from satstore.system.text import clean, counted

FIRST = ("epoch", "optimizer", "seed", "batch_size")
"""The keys that are named first, in this order."""

KEYS = (
    *FIRST,
    *(
        key
        for key in ExperimentConfig.model_fields
        if key not in {"model", "dataset", "resolution", *FIRST, *NOT_TRAINING}
    ),
)
"""The keys, besides those of the title, that an experiment's results depend on."""

LONGEST = 48
"""The most letters of a value, such as a regular expression, in a name."""


def name_experiments(
    configs: Sequence[ExperimentConfig],
    places: Sequence[str] | None = None,
    *,
    also: Sequence[str] = (),
    is_brief: bool = False,
) -> list[str]:
    """Name experiments by model, dataset and resolution, and by further keys that differ if these are equal.

    ``vgg16 on Cifar10 at 32 px, seed 1``. If all keys that results depend on are equal too, the run id is put
    first, ``RES: vgg16 on …``, or else the digest of the experiment's folder last. Names are equal only if
    run id and experiment are.

    Parameters
    ----------
    places
        Run id and experiment of each, ``RES/<experiment>``; by default all are of one run id.
    also
        Further keys to name: those of :data:`KEYS` always, others, such as ``delta``, where they differ.
    is_brief
        Whether to leave out the dataset and the resolution where all share them.
    """
    if places is None:
        places = [f"/{config.experiment}" for config in configs]
    names = [_title(config, configs if is_brief else ()) for config in configs]

    def describe(place: int, group: Sequence[int]) -> str:
        config, others = configs[place], [configs[i] for i in group]
        keys = (*KEYS, *(key for key in also if key not in KEYS))
        named = [key for key in keys if (key in also and key in KEYS) or _differs(key, others)]
        return ", ".join([names[place], *(describe_value(config, key) for key in named)])

    def prefix_run_id(place: int, group: Sequence[int]) -> str:
        run_ids = [places[i].partition("/")[0] for i in group]
        run_id = places[place].partition("/")[0]
        return f"{clean(run_id)}: {names[place]}" if len(set(run_ids)) > 1 else names[place]

    def add_digest(place: int, group: Sequence[int]) -> str:
        found = {places[i]: places[i].rpartition("-")[2] for i in group}
        if len(found) == 1:
            return names[place]
        is_told_apart = len(set(found.values())) == len(found)
        return f"{names[place]}, {clean(found[places[place]] if is_told_apart else places[place])}"

    names = _rename(names, describe)
    names = _rename(names, prefix_run_id)
    return _rename(names, add_digest)


def describe_value(config: ExperimentConfig, key: str) -> str:
    """Return a key's value as text: ``30 epochs``, ``adam``, ``seed 1``."""
    value = getattr(config, key)
    if key == "epoch":
        return counted(config.epoch, "epoch")
    if key == "optimizer":
        return clean(config.optimizer)
    word = key.replace("_", " ")
    if isinstance(value, bool):
        return word if value else f"no {word}"
    text = " ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else f"{value}"
    text = clean(text)
    return f"{word} {text if len(text) <= LONGEST else f'{text[:LONGEST]}…'}"


def _title(config: ExperimentConfig, sharing: Sequence[ExperimentConfig]) -> str:
    """Return model, dataset and resolution, without those that all of the given configs share."""
    is_shared = {key: bool(sharing) and not _differs(key, sharing) for key in ("dataset", "resolution")}
    name = config.model
    name += "" if is_shared["dataset"] else f" on {config.dataset}"
    name += "" if is_shared["resolution"] else config.size_text
    return clean(name)


def varied_keys(configs: Sequence[ExperimentConfig]) -> list[str]:
    """Return the keys, besides those of the title, in which experiments differ."""
    return [key for key in KEYS if _differs(key, configs)]


def _differs(key: str, configs: Sequence[ExperimentConfig]) -> bool:
    return any(getattr(config, key) != getattr(configs[0], key) for config in configs)


def _rename(names: Sequence[str], rename: Callable[[int, Sequence[int]], str]) -> list[str]:
    """Rename each name by a function of its index and of the indices with the same name."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name, []).append(place)
    return [rename(place, groups[name]) for place, name in enumerate(names)]
