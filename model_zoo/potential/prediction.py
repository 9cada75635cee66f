"""What a potential predicts for a batch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Predicted labels of a batch, differentiable.

    Shapes: N atoms, S structures, d features of the readout.
    """

    labels: dict[str, Tensor]
    """Keyed by the names in `core.labels`, shaped as in a `Batch`; the energy is float64"""
    atom_energies: Tensor | None = None
    """(N,) in eV, float64: the contribution of each atom to the energy"""

    hidden: Tensor | None = None
    """(N, d), detached: outputs of the readout's hidden layer, used to detect a dead readout"""

    charges: Tensor | None = None
    """(N,) in e, float64, detached; None for a potential without charges"""

    @property
    def energy(self) -> Tensor:
        """(S,) float64 in eV."""
        return self.labels["energy"]

    @property
    def forces(self) -> Tensor:
        """(N, 3) in eV/A."""
        return self.labels["forces"]

    @property
    def stress(self) -> Tensor:
        """(S, 3, 3) in eV/A^3; NaN for a structure that is not periodic in three directions."""
        return self.labels["stress"]

    def with_labels(self, **labels: Tensor) -> Prediction:
        """A copy in which the given labels replace the predicted ones."""
        return dataclasses.replace(self, labels=self.labels | labels)
