"""Keys of latents: what the latents of one epoch at one pooling are called, in the store and the manifest.

Those of the last epoch have the pooling's own name, ``pool4``; those of an earlier one lie under the epochs:
``epochs/5/pool4``, of the weights after epoch 5, counted from 0.
"""

EPOCHS = "epochs"
"""The group of the store that holds the latents of earlier epochs."""


def latents_key(pooling: str, epoch: int | None = None) -> str:
    """Return the key of the latents of an epoch, None for the last, at a pooling (``pool4``)."""
    return pooling if epoch is None else f"{EPOCHS}/{epoch}/{pooling}"


def split_latents_key(key: str) -> tuple[str, int | None]:
    """Return the pooling (``pool4``) and the epoch, None for the last, of a key."""
    above, _, pooling = key.rpartition("/")
    epoch = above.removeprefix(f"{EPOCHS}/")
    return (pooling, int(epoch)) if epoch.isdecimal() else (key, None)


def describe_latents_key(key: str) -> str:
    """Return a key for people, who count epochs from 1: ``pool4``, ``pool4 of epoch 6``."""
    pooling, epoch = split_latents_key(key)
    return pooling if epoch is None else f"{pooling} of epoch {epoch + 1}"


def key_above(path: str) -> str:
    """Return the key of the latents that a path of the store is part of."""
    parts = path.split("/")
    return "/".join(parts[: 3 if parts[0] == EPOCHS else 1])


def groups_of(key: str) -> list[str]:
    """Return the groups that lead to latents, the outermost first: ``epochs``, ``epochs/5``, …, the key."""
    parts = key.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
