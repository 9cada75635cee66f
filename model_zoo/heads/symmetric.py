"""Symmetric matrices from their independent entries."""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric(entries: Tensor) -> Tensor:
    """Entries (..., M), row by row of the upper triangle -> matrices (..., K, K).

    M is K (K + 1) / 2.
    """
    # int, because round of TorchScript gives no whole number
    size = int(round((2 * entries.shape[-1] + 0.25) ** 0.5 - 0.5))  # noqa: RUF046
    place = torch.zeros(size, size, dtype=torch.long, device=entries.device)
    row, column = torch.triu_indices(size, size, device=entries.device)
    order = torch.arange(entries.shape[-1], device=entries.device)
    place[row, column] = order
    place[column, row] = order
    return entries[..., place]
