"""Passes over rows on a torch device, such as a GPU."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from satstore.analysis.floats import as_floats
from satstore.analysis.logistic.engine import Query, Sums, ThreadEngine, TileThreads, check_finite
from satstore.analysis.logistic.loss import Codes, LossQuery, LossSums
from satstore.analysis.moments import full_precision
from satstore.analysis.row_source import RowSource
from satstore.analysis.tiles import stored_tiles, tile_height

# The share of a device's free memory that rows may stay in.
KEPT_SHARE = 0.6


class TorchEngine(ThreadEngine):
    """Computes losses and gradients on a device; all else as its base does.

    Rows stay on the device, in the dtype that they are stored in, as far as its memory goes: those are read
    once. Products are float32 (never TF32) or float64, sums float64, in the order of rows.
    """

    def __init__(
        self, rows: RowSource, codes: Codes, n_logits: int, threads: TileThreads, *, device: torch.device
    ) -> None:
        super().__init__(rows, codes, n_logits, threads)
        self._device = device
        self._device_codes = torch.from_numpy(codes).to(device)
        self._height = tile_height(rows.shape[1], n_logits)
        self._kept: list[Tensor] = []
        self._room_bytes = KEPT_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0.0

    def sums(self, query: Query[Sums]) -> Sums:
        """Make one pass; see :meth:`Engine.sums`."""
        if not isinstance(query, LossQuery):
            return super().sums(query)
        weights, offset = (torch.from_numpy(a).to(self._device) for a in (query.weights, query.offset))
        shift = None if query.shift is None else torch.from_numpy(query.shift).to(self._device, weights.dtype)
        positions = None if query.positions is None else torch.from_numpy(query.positions).to(self._device)
        total = [torch.from_numpy(array).to(self._device) for array in query.zero()]
        with full_precision():
            for start, tile in self._tiles(weights.dtype):
                maps = (tile if shift is None else tile - shift).unflatten(1, (-1, weights.shape[2]))
                maps = maps if positions is None else maps[:, positions]
                codes = self._device_codes[start : start + len(tile)]
                for array, share in zip(total, _loss_and_gradient(maps, codes, weights, offset), strict=True):
                    array += share
        found = LossSums(*(array.cpu().numpy() for array in total))
        return check_finite(found, self._rows, self._threads)

    def _tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, tile) in order: those that are kept, then those that have to be read."""
        for index, kept in enumerate(self._kept):
            yield index * self._height, kept.to(dtype)
        first = len(self._kept) * self._height
        if first >= self._rows.shape[0]:
            return
        starts = range(first, self._rows.shape[0], self._height)
        for place, tile in stored_tiles(self._rows, starts, self._threads.reader):
            floats = tile if tile.dtype == np.float16 else as_floats(tile, None, None)
            values = torch.from_numpy(floats).to(self._device)
            if self._room_bytes >= values.nbytes and len(self._kept) * self._height == place.start:
                self._kept.append(values)
                self._room_bytes -= values.nbytes
            yield place.start, values.to(dtype)


def _loss_and_gradient(
    maps: Tensor, codes: Tensor, weights: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what LossQuery.share does, of maps (n, P, F): losses (P,), and gradients (P, K, F), (P, K)."""
    logits = torch.baddbmm(offset[:, :, None], weights, maps.permute(1, 2, 0))
    if logits.shape[1] == 1:
        targets = codes.to(torch.float64).expand(logits.shape[0], 1, -1)
        losses = functional.binary_cross_entropy_with_logits(logits.double(), targets, reduction="none")
        residuals = torch.sigmoid(logits) - targets.to(logits.dtype)
    else:
        columns = torch.arange(len(codes), device=codes.device)
        # In float64, as of a row that is almost certain the loss is log(1 + tiny).
        normalizer = torch.logsumexp(logits.double(), dim=1, keepdim=True)
        losses = normalizer[:, 0] - logits[:, codes, columns]
        residuals = torch.exp(logits - normalizer).to(logits.dtype)
        residuals[:, codes, columns] -= 1
    gradient = torch.bmm(residuals, maps.transpose(0, 1))
    return losses.flatten(1).sum(1), gradient, residuals.sum(2, dtype=torch.float64)
