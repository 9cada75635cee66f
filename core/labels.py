"""The registry of labels: quantities that a structure can have and that a model can predict.

The schema, Arrow columns, batches, loss, noise, metrics, evaluation and cards iterate over
`LABELS`. To add an output, add an entry here and a readout that predicts it (docs/extending.md).

==========  =========  =====  ==========  ==================================================
label       unit       rank   belongs to  meaning
==========  =========  =====  ==========  ==================================================
energy      eV         0      structure   total energy of the stated level of theory
forces      eV/A       1      atom        minus the derivative of the energy by positions
stress      eV/A^3     2      structure   derivative by strain over volume, tensile-positive
==========  =========  =====  ==========  ==================================================

A missing label is absent from a `Structure`, null in Parquet and NaN in a batch. It is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from .units import ENERGY, FORCES, STRESS, STRESS_TIMES_VOLUME


Value = TypeVar("Value")


@dataclass(frozen=True)
class Label:
    """One quantity, and how it transforms and is stored, compared and weighted."""

    name: str
    meaning: str
    unit: str
    per: Literal["structure", "atom"]
    rank: int
    """0 scalar, 1 vector, 2 tensor: the label has `rank` trailing dimensions of length 3."""
    parity: Literal[1, -1]
    """Sign that the label gets under inversion of space."""
    extensive: bool
    """The label grows with the number of atoms, so errors are per atom."""
    periodic_only: bool
    """The label has a meaning only if all three directions are periodic."""
    symmetric: bool
    """The label is a tensor of rank 2 that equals its transpose."""
    unit_factors: Mapping[str, float]
    """Units that a source may state -> factor to convert to `unit`."""
    largest: float
    """Larger magnitudes (per atom if extensive) are refused, because their unit must be wrong."""
    storage: Literal["float32", "float64"]
    """Type of the Parquet column."""
    exact: bool
    """The label stays float64 in batches, whatever the precision of the model."""
    default_weight: float
    """Default weight of the label's term in the loss, per unit of its error."""
    huber_width: float
    """Error at which the Huber loss changes from quadratic to linear, in `error_unit`."""
    least_noise: float
    """Lower bound of a learned noise, in `error_unit`."""
    error_key: str
    """Key of the mean absolute error in evaluation.json and metrics.jsonl."""
    title: str
    """Name of the label in tables and pictures."""
    display_unit: str
    display_scale: float
    """Errors are multiplied by this factor and shown in `display_unit`."""
    same_relative: float = 1e-3
    same_absolute: float = 1e-3
    """Tolerances, relative and in `error_unit`, within which two columns count as the same label.
    They allow for rounding, but not for another unit or level of theory."""
    times_volume: Mapping[str, float] = field(default_factory=dict)
    """Units of the label times the cell volume -> factor to convert to `unit` times A^3."""

    @property
    def error_unit(self) -> str:
        """Unit in which errors are computed."""
        return f"{self.unit}/atom" if self.extensive else self.unit

    @property
    def known_units(self) -> tuple[str, ...]:
        """All units that a source may state, the pipeline's own first."""
        return (*self.unit_factors, *self.times_volume)

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of a single value: (), (3,) or (3, 3)."""
        return (3,) * self.rank

    def sizes(self, num_atoms: int) -> tuple[int, ...]:
        """Allowed counts of numbers in a source; a symmetric tensor may have six (Voigt form)."""
        full = math.prod(self.shape(num_atoms))
        return (6, full) if self.symmetric else (full,)

    def shape(self, num_atoms: int) -> tuple[int, ...]:
        """Shape of the label for a structure with `num_atoms` atoms."""
        leading = (num_atoms,) if self.per == "atom" else ()
        return leading + self.tensor_shape


LABELS: dict[str, Label] = {
    label.name: label
    for label in (
        Label(
            name="energy",
            meaning="total energy of the stated level of theory",
            unit="eV",
            per="structure",
            rank=0,
            parity=1,
            extensive=True,
            periodic_only=False,
            symmetric=False,
            unit_factors=ENERGY,
            largest=1e7,  # an all-electron energy of Og is 1.5e6 eV
            storage="float64",  # float32 would round a total energy of 1e4 eV to 1 meV
            exact=True,
            default_weight=1.0,
            huber_width=0.02,
            least_noise=1e-4,
            error_key="energy_mae_per_atom",
            title="energy",
            display_unit="meV/atom",
            display_scale=1000.0,
            same_relative=1e-6,
            same_absolute=1e-3,
        ),
        Label(
            name="forces",
            meaning="minus the derivative of the energy by positions",
            unit="eV/A",
            per="atom",
            rank=1,
            parity=-1,
            extensive=False,
            periodic_only=False,
            symmetric=False,
            unit_factors=FORCES,
            # in a converged calculation, two nuclei at 0.3 A repel each other with less
            largest=1e4,
            storage="float32",
            exact=False,
            default_weight=5.0,
            huber_width=0.02,
            least_noise=1e-3,
            error_key="force_mae",
            title="force",
            display_unit="eV/A",
            display_scale=1.0,
            same_relative=1e-3,
            same_absolute=1e-2,
        ),
        Label(
            name="stress",
            meaning="derivative by strain over volume, tensile-positive",
            unit="eV/A^3",
            per="structure",
            rank=2,
            parity=1,
            extensive=False,
            periodic_only=True,
            symmetric=True,
            unit_factors=STRESS,
            times_volume=STRESS_TIMES_VOLUME,
            largest=1e4,  # 1.6e6 GPa
            storage="float64",
            exact=False,
            default_weight=1.0,
            huber_width=0.005,
            least_noise=1e-5,
            error_key="stress_mae",
            title="stress",
            display_unit="eV/A^3",
            display_scale=1.0,
            same_relative=1e-3,
            same_absolute=1e-4,
        ),
    )
}


def present(labels: Mapping[str, Value | None]) -> dict[str, Value]:
    """The labels that are not None, in the registry's order."""
    unknown = sorted(set(labels) - set(LABELS))
    assert not unknown, f"not in the registry of labels: {unknown}"
    found = {}
    for name in LABELS:
        value = labels.get(name)
        if value is not None:
            found[name] = value
    return found


def unit_factor(name: str, unit: str) -> float:
    """Factor that converts a label from `unit` (a key of `unit_factors`) to the pipeline's unit."""
    return LABELS[name].unit_factors[unit]
