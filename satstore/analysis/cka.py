"""Linear CKA: the similarity of two layers' representations of the same samples, up to a rotation.

"Similarity of Neural Network Representations Revisited" (Kornblith et al., 2019): with centred X and Y of the
same rows, CKA = ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) in the Frobenius norm: 0 for nothing in common, 1 for the same up to
a rotation and a scale.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satstore.analysis.row_source import RowSource
from satstore.errors import ConfigError, MemoryLimitError

Float64 = NDArray[np.float64]
MakeRows = Callable[[], RowSource]
"""Opens a layer's rows for another pass."""

BLOCK_BYTES = 2**25


@dataclass
class _Product:
    """The product of two centred matrices, summed over blocks of shifted rows to avoid cancellation."""

    product: Float64
    sums: tuple[Float64, Float64]
    n_rows: int = 0

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        self.product += x.T @ y
        self.sums[0][:] += x.sum(axis=0, dtype=np.float64)
        self.sums[1][:] += y.sum(axis=0, dtype=np.float64)
        self.n_rows += len(x)

    def norm(self) -> float:
        centred = self.product - np.outer(self.sums[0], self.sums[1]) / self.n_rows
        return float(np.linalg.norm(centred))


def linear_cka(
    first: Mapping[str, MakeRows],
    second: Mapping[str, MakeRows],
    memory_bytes: int = 2**31,
    advance: Callable[[str, str], None] = lambda *_: None,
) -> Float64:
    """Compare every layer of one network with every layer of another, out of core.

    Parameters
    ----------
    first, second
        Layer to a function that opens its rows (sample, feature); the same samples in the same order.
    memory_bytes
        The most memory that products take; those of several layers are summed in one pass where they fit.
    advance
        Called with the names of each pair that is done.

    Returns
    -------
    ndarray
        (layer of the first, layer of the second), in [0, 1]; NaN where a layer is constant or not finite.

    Raises
    ------
    MemoryLimitError
        If the product of one pair does not fit.
    """
    shapes = {id(make): make().shape for layers in (first, second) for make in layers.values()}
    if len({n_rows for n_rows, _ in shapes.values()}) > 1:
        raise ConfigError("CKA compares layers on the same samples; they have different numbers of them")
    widest = 8 * math.prod(max(shapes[id(make)][1] for make in layers.values()) for layers in (first, second))
    if widest > memory_bytes:
        raise MemoryLimitError(
            f"CKA of the widest layers takes {widest / 2**20:,.0f} MiB, the limit is "
            f"{memory_bytes / 2**20:,.0f}; take a smaller pooling, or raise --memory-limit"
        )
    own = [[_norms(make, [make])[0] for make in layers.values()] for layers in (first, second)]
    found = np.full((len(first), len(second)), np.nan)
    names, makers = list(second), list(second.values())
    for row, (name, make) in enumerate(first.items()):
        for group in _groups(
            [shapes[id(make)][1] * shapes[id(other)][1] * 8 for other in makers], memory_bytes
        ):
            norms = _norms(make, [makers[column] for column in group])
            for column, norm in zip(group, norms, strict=True):
                scale = own[0][row] * own[1][column]
                if scale > 0 and math.isfinite(scale):
                    found[row, column] = min(1.0, norm**2 / scale)
                advance(name, names[column])
    return found


def _groups(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield indices in order, in groups whose sizes add up to at most `most`, one index at least."""
    group: list[int] = []
    for place, size in enumerate(sizes):
        if group and sum(sizes[i] for i in group) + size > most:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _norms(make: MakeRows, others: Sequence[MakeRows]) -> list[float]:
    """Compute the norms of a layer's centred products with other layers, in one pass over all."""
    rows, beside = make(), [other() for other in others]
    n_rows, width = rows.shape
    height = max(1, BLOCK_BYTES // (4 * max(width, *(other.shape[1] for other in beside))))
    products = [
        _Product(np.zeros((width, other.shape[1])), (np.zeros(width), np.zeros(other.shape[1])))
        for other in beside
    ]
    shifts: list[NDArray[np.float32]] = []
    for start in range(0, n_rows, height):
        stop = min(start + height, n_rows)
        blocks = [np.array(source.read(start, stop), np.float32) for source in (rows, *beside)]
        if not shifts:
            shifts = [block.mean(axis=0) for block in blocks]
        x, *ys = (block - shift for block, shift in zip(blocks, shifts, strict=True))
        for product, y in zip(products, ys, strict=True):
            product.add(x, y)
    return [product.norm() for product in products]
