"""Split samples at random into those for training and those for evaluation."""

import numpy as np
from numpy.typing import NDArray

from satstore.errors import ConfigError


def split_at_random(n_samples: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices for training, and those for evaluation, ascending.

    The evaluation samples are the first ones of NumPy's permutation of that seed: the share, rounded to whole
    samples, but one at least, and not all of them. The draw does not look at classes.

    Raises
    ------
    ConfigError
        If the share is not between 0 and 1, or there are fewer than two samples.
    """
    if not 0 < share < 1:
        raise ConfigError(f"--split is {share:g}; expected the share for evaluation, above 0 and below 1")
    if n_samples < 2:
        raise ConfigError(f"--split needs two samples or more, found {n_samples}")
    order = np.random.default_rng(seed).permutation(n_samples)
    n_eval = min(n_samples - 1, max(1, round(share * n_samples)))
    return np.sort(order[n_eval:]), np.sort(order[:n_eval])
