"""Every field name, shape and unit of the pipeline, once; the canonical record; and the checks it must pass.

Shapes: N atoms, E edges, S structures.  Units: A, eV, eV/A, eV/A^3.  Cell rows are lattice vectors.
Stress is 3x3, symmetric and tensile-positive (ASE's sign).

==================  ============  ==========================================================================
field               shape         meaning
==================  ============  ==========================================================================
atomic_numbers      (N,)          Z, 1..118
positions           (N, 3)        A
cell                (3, 3)        A, rows are lattice vectors, zero when not periodic
pbc                 (3,)          periodic along each lattice vector
energy              ()            eV, total energy of the stated level of theory
forces              (N, 3)        eV/A
stress              (3, 3)        eV/A^3
level_of_theory     str           energies with the same tag share one zero
structure_id        str           unique within a data set
group               str           structures of one group stay on one side of a split
==================  ============  ==========================================================================

A missing label is None in a record, null in Parquet and NaN in a batch; it is never zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import complete_cell
from ase.stress import voigt_6_to_full_3x3_stress

from ..core.errors import EvenfieldError
from .neighbours import cell_heights, neighbour_list


SCHEMA_VERSION = 1
MAX_ATOMIC_NUMBER = 118
MIN_DISTANCE = 0.3  # A; no nuclei come closer in a structure that anybody meant
SEARCH_RADIUS = (
    2.0  # A; the neighbour search bins space by its cutoff, and at 0.3 A it is 50 times slower
)
MAX_LENGTH = 1e3  # A, of a coordinate or a cell vector; at 1e4 A float32 positions would be rounded to 0.001 A
MAX_ENERGY = 1e7  # eV per atom; an all-electron energy of Og is 1.5e6
MAX_FORCE = (
    1e4  # eV/A; two nuclei at MIN_DISTANCE repel each other with less in any converged calculation
)
MAX_STRESS = 1e4  # eV/A^3, 1.6e6 GPa
SPLITS = ("train", "valid", "test")
UNITS = {"positions": "A", "cell": "A", "energy": "eV", "forces": "eV/A", "stress": "eV/A^3"}


class BadRecordError(EvenfieldError):
    """A structure that must not enter the pipeline; the message names the record and the mend."""


@dataclass(frozen=True)
class Structure:
    """One canonical record; fields, shapes and units as in the table of this module."""

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    level_of_theory: str
    structure_id: str
    group: str
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    split: str | None = None

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def elements(self) -> np.ndarray:
        """Distinct atomic numbers, ascending."""
        return np.unique(self.atomic_numbers)

    def to_atoms(self) -> Atoms:
        """The structure as ase.Atoms, its labels in a SinglePointCalculator."""
        atoms = Atoms(
            numbers=self.atomic_numbers, positions=self.positions, cell=self.cell, pbc=self.pbc
        )
        labels = {"energy": self.energy, "forces": self.forces, "stress": self.stress}
        atoms.calc = SinglePointCalculator(
            atoms, **{k: v for k, v in labels.items() if v is not None}
        )
        atoms.info |= {"level_of_theory": self.level_of_theory, "structure_id": self.structure_id}
        return atoms


def full_stress(stress: np.ndarray) -> np.ndarray:
    """A stress given as Voigt (6,), flat (9,) or (3, 3), as a symmetric (3, 3)."""
    stress = np.asarray(stress, dtype=np.float64)
    full = voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress.reshape(3, 3)
    return 0.5 * (full + full.T)


def check_structure(structure: Structure) -> None:
    """Raise BadRecordError for a structure that no model should be trained on."""
    check_elements(structure.atomic_numbers)
    for name in ("positions", "cell", "energy", "forces", "stress"):
        value = getattr(structure, name)
        if value is not None and not np.isfinite(value).all():
            raise BadRecordError(f"has NaN or infinite {name}: remove the label or the record")
    if structure.forces is not None and structure.forces.shape != structure.positions.shape:
        raise BadRecordError(
            f"has forces of shape {structure.forces.shape} for {len(structure)} atoms: give 3 per atom"
        )
    _check_sizes(structure)
    _check_cell(structure)
    _check_distances(structure)


def check_elements(atomic_numbers: np.ndarray) -> None:
    """Raise BadRecordError for no atoms at all, a dummy atom or an element that is not known."""
    if len(atomic_numbers) == 0:
        raise BadRecordError("has no atoms: remove it from the file")
    bad = atomic_numbers[(atomic_numbers < 1) | (atomic_numbers > MAX_ATOMIC_NUMBER)]
    if len(bad):
        raise BadRecordError(
            f"has atomic number {bad[0]}, outside 1..{MAX_ATOMIC_NUMBER}: correct the element"
        )


def _check_sizes(structure: Structure) -> None:
    limits = {
        "positions": MAX_LENGTH,
        "cell": MAX_LENGTH,
        "forces": MAX_FORCE,
        "stress": MAX_STRESS,
    }
    for name, limit in (limits | {"energy": MAX_ENERGY * len(structure)}).items():
        value = getattr(structure, name)
        largest = 0.0 if value is None else np.abs(value).max()
        if largest > limit:
            raise BadRecordError(
                f"has {name} of {largest:.3g}, beyond {limit:g} {UNITS[name]}: check the unit or remove the record"
            )


def _check_cell(structure: Structure) -> None:
    """Periodic directions need a cell; along the others the vector may be zero, as slabs are often written."""
    if not structure.pbc.any():
        return
    given = structure.cell[structure.pbc]
    cell = (
        structure.cell
        if structure.pbc.all() or not given.any(axis=1).all()
        else complete_cell(structure.cell)
    )
    if abs(np.linalg.det(cell)) < 1e-6:
        raise BadRecordError(
            "is periodic but its cell has no volume: give a cell or set pbc to F F F"
        )
    height = cell_heights(cell)[structure.pbc].min()
    if height < MIN_DISTANCE:  # countless images within any cutoff
        raise BadRecordError(
            f"has a cell of only {height:.3g} A between opposite faces, so atoms closer than {MIN_DISTANCE} A to their "
            "images, or a cell too oblique to use: check the length unit, reduce the cell or remove the record"
        )


def _check_distances(structure: Structure) -> None:
    edge_index, shifts = neighbour_list(
        structure.positions, structure.cell, structure.pbc, SEARCH_RADIUS
    )
    if not edge_index.shape[1]:
        return
    j, i = edge_index
    lengths = np.linalg.norm(
        structure.positions[j] - structure.positions[i] + shifts @ structure.cell, axis=1
    )
    k = int(np.argmin(lengths))
    if lengths[k] < MIN_DISTANCE:
        raise BadRecordError(
            f"has atoms {i[k]} and {j[k]} at {lengths[k]:.3f} A, closer than {MIN_DISTANCE} A: "
            "check the length unit or remove the record"
        )
