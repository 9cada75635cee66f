"""The result of fitting a head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...model_zoo.heads.expansion import Expansion


@dataclass(frozen=True)
class Weights:
    """Weights of a fitted head, arranged as in `Head`."""

    weight: np.ndarray
    """(K, P), with P = F for invariant features"""
    bias: np.ndarray
    """(K, Z), one bias for each element"""
    penalty: float
    expansion: Expansion | None = None
    """Random functions of equivariant features; None for invariant features."""
    spread_weight: np.ndarray | None = None
    """(F,); None if no spread is learned"""
    spread_bias: np.ndarray | None = None
    """(Z,); None if no spread is learned"""
