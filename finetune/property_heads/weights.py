"""What the fit of a head finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...model_zoo.heads.expansion import Expansion


@dataclass(frozen=True)
class Weights:
    """What a fit found, in the order of a `Head`."""

    weight: np.ndarray
    """(K, P), F where the features are invariant"""
    bias: np.ndarray
    """(K, Z)"""
    penalty: float
    expansion: Expansion | None = None
    """Of equivariant features."""
    spread_weight: np.ndarray | None = None
    """(F,), where the size of errors is learned"""
    spread_bias: np.ndarray | None = None
    """(Z,)"""
