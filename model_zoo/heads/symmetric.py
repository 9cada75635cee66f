"""Symmetric matrices from their independent entries."""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric(entries: Tensor) -> Tensor:
    """Symmetric matrices (..., K, K) from the M = K (K + 1) / 2 entries (..., M) of a triangle.

    The entries are those of the upper triangle, row by row.
    """
    # written in the subset of Python that TorchScript compiles
    size = int(round((2 * entries.shape[-1] + 0.25) ** 0.5 - 0.5))  # noqa: RUF046
    place = torch.zeros(size, size, dtype=torch.long, device=entries.device)
    upper = torch.triu_indices(size, size, device=entries.device)
    order = torch.arange(entries.shape[-1], device=entries.device)
    place[upper[0], upper[1]] = order
    place[upper[1], upper[0]] = order
    shape = list(entries.shape[:-1]) + [size, size]  # noqa: RUF005
    return entries.index_select(-1, place.reshape(-1)).reshape(shape)
