"""What a potential predicts for a batch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Predicted labels of a batch, differentiable; N atoms, S structures."""

    labels: dict[str, Tensor]
    """By name of `core.labels`, shaped as in a `Batch`; energy in float64"""
    atom_energies: Tensor | None = None
    """(N,) float64, eV: what each atom adds to the energy"""

    hidden: Tensor | None = None
    """(N, d), detached: outputs of the readout's hidden layer, which show whether it is alive"""

    charges: Tensor | None = None
    """(N,) float64, e, detached; None for a potential without charges"""

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
        """(S, 3, 3) in eV/A^3; NaN where a structure is not periodic in three directions."""
        return self.labels["stress"]

    def with_labels(self, **labels: Tensor) -> Prediction:
        """The prediction with these labels instead of its own."""
        return dataclasses.replace(self, labels=self.labels | labels)
