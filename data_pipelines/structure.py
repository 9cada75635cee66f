"""The canonical record: one labelled structure, and the checks that it must pass.

Shapes: N atoms. Units: A, eV, eV/A, eV/A^3. Cell rows are lattice vectors.
Stress is 3x3, symmetric and tensile-positive (ASE's sign).

==================  ============  ==================================================
field               shape         meaning
==================  ============  ==================================================
atomic_numbers      (N,)          Z, 1..118
positions           (N, 3)        A
cell                (3, 3)        A, rows are lattice vectors, zero when not periodic
pbc                 (3,)          periodic along each lattice vector
labels              dict          energy, forces, stress: see core/labels.py
level_of_theory     str           energies at the same level share one zero
structure_id        str           unique within a data set
group               str           structures of one group stay in one split
split               str or None   train, valid or test, if the source states it
==================  ============  ==================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import complete_cell
from ase.stress import voigt_6_to_full_3x3_stress

from ..core.errors import EvenfieldError
from ..core.labels import LABELS, present
from .neighbours import GeometryError, cell_heights, neighbour_list


SCHEMA_VERSION = 1
MAX_ATOMIC_NUMBER = 118
MIN_DISTANCE = 0.3  # A; nuclei closer than this are an error in the data
MIN_VOLUME = 1e-6  # A^3
# A; the neighbour search divides space into bins as wide as its cutoff: at MIN_DISTANCE it would
# be 50 times slower
SEARCH_RADIUS = 2.0
# A, any component of a position or cell vector; at 1e4 A, float32 rounds positions to 0.001 A
MAX_LENGTH = 1e3
# A stress counts as asymmetric if it exceeds both limits: this fraction of its largest component,
# and this difference in eV/A^3. The absolute limit is needed because codes print a few digits, and
# the stress of a relaxed crystal is hardly larger than their rounding.
ASYMMETRY_SHARE = 0.05
ASYMMETRY = 1e-4
SPLITS = ("train", "valid", "test")


class BadRecordError(EvenfieldError):
    """A structure that must not enter the pipeline; names the record, the fault and the remedy."""


@dataclass(frozen=True)
class Structure:
    """One canonical record; the table in the module docstring gives shapes and units."""

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    level_of_theory: str
    structure_id: str
    group: str
    labels: dict[str, Any] = field(default_factory=dict)
    """Name from `core.labels` -> a float or an array. An unknown label is absent."""
    split: str | None = None

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    @property
    def elements(self) -> np.ndarray:
        """Distinct atomic numbers, ascending."""
        return np.unique(self.atomic_numbers)

    @property
    def energy(self) -> float | None:
        """Total energy in eV; None if unknown."""
        return self.labels.get("energy")

    @property
    def forces(self) -> np.ndarray | None:
        """Forces, (N, 3) in eV/A; None if unknown."""
        return self.labels.get("forces")

    @property
    def stress(self) -> np.ndarray | None:
        """Stress, (3, 3) in eV/A^3, tensile-positive; None if unknown."""
        return self.labels.get("stress")

    def with_labels(self, **labels: Any) -> Structure:
        """A copy in which the given labels replace the present ones; None removes a label."""
        return replace(self, labels=present(self.labels | labels))

    @classmethod
    def from_atoms(
        cls,
        atoms: Atoms,
        level_of_theory: str,
        structure_id: str,
        group: str = "",
        split: str | None = None,
        **labels: Any,
    ) -> Structure:
        """Build a record from ase.Atoms and the given labels; a label that is None is left out.

        This does not read the calculator or `atoms.info`. Use `sources.read.structure_from_atoms`
        to read labels from them.

        >>> from ase.build import molecule
        >>> water = Structure.from_atoms(molecule("H2O"), "PBE", "water-1", energy=-14.2)
        >>> len(water), water.elements.tolist(), water.energy, water.forces
        (3, [1, 8], -14.2, None)
        """
        return cls(
            atomic_numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            level_of_theory=level_of_theory,
            structure_id=structure_id,
            group=group,
            labels=present(labels),
            split=split,
        )

    def to_atoms(self) -> Atoms:
        """Convert to ase.Atoms, with the labels in a SinglePointCalculator."""
        atoms = Atoms(
            numbers=self.atomic_numbers, positions=self.positions, cell=self.cell, pbc=self.pbc
        )
        atoms.calc = SinglePointCalculator(atoms, **self.labels)
        atoms.info |= {"level_of_theory": self.level_of_theory, "structure_id": self.structure_id}
        return atoms


def check_symmetric(tensor: np.ndarray, name: str) -> None:
    """Raise BadRecordError for a stress or virial (9,) or (3, 3) that is not symmetric.

    Programs round their output and symmetrise with a finite tolerance. A larger asymmetry means
    that the components are in another order or are not a stress at all. Averaging them, or taking
    one triangle, would hide that.
    """
    full = np.asarray(tensor, dtype=np.float64).reshape(3, 3)
    difference = np.abs(full - full.T).max()
    if difference > max(ASYMMETRY_SHARE * np.abs(full).max(), ASYMMETRY):
        raise BadRecordError(
            f"has {name} that is not symmetric: numbers differ by {difference:g} from their mirror "
            "images",
            remedy="give a symmetric tensor, or six numbers in the order xx yy zz yz xz xy",
        )


def full_stress(stress: np.ndarray) -> np.ndarray:
    """Expand a stress in Voigt (6,), flat (9,) or (3, 3) form to a symmetric (3, 3)."""
    stress = np.asarray(stress, dtype=np.float64)
    full = voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress.reshape(3, 3)
    return 0.5 * (full + full.T)


# --- checks


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of atoms within a radius, periodic images included."""

    edge_index: np.ndarray
    """(2, E) int64: sender and receiver, sorted by receiver."""

    lengths: np.ndarray
    """(E,) distances in A"""


def pairs_within(structure: Structure, radius: float) -> Pairs:
    """All pairs of atoms within `radius` (A).

    Raises GeometryError if the structure cannot be searched for neighbours.
    """
    positions = structure.positions
    edge_index, shifts = neighbour_list(positions, structure.cell, structure.pbc, radius)
    sender, receiver = edge_index
    vectors = positions[sender] - positions[receiver] + shifts @ structure.cell
    return Pairs(edge_index, np.linalg.norm(vectors, axis=1))


def check_structure(structure: Structure, radius: float = SEARCH_RADIUS) -> Pairs:
    """Raise BadRecordError for a structure that no model should be trained on.

    Returns the pairs within `radius` (A). The check has to find them anyway.
    """
    check_elements(structure.atomic_numbers)
    _check_shapes(structure)
    for name, value in _arrays(structure).items():
        if not np.isfinite(value).all():
            raise BadRecordError(
                f"has NaN or infinite {name}", remedy="remove the label or the record"
            )
    check_labels(structure)
    # distances come last: they need a valid cell and are the most expensive check
    _check_sizes(structure)
    _check_cell(structure)
    return _check_distances(structure, radius)


def _check_shapes(structure: Structure) -> None:
    """Raise BadRecordError if positions, cell or pbc have the wrong shape."""
    num_atoms = len(structure.atomic_numbers)
    if structure.positions.shape != (num_atoms, 3):
        raise BadRecordError(
            f"has positions of shape {structure.positions.shape} for {num_atoms} atoms",
            remedy=f"give shape ({num_atoms}, 3)",
        )
    if structure.cell.shape != (3, 3) or structure.pbc.shape != (3,):
        raise BadRecordError(
            f"has a cell of shape {structure.cell.shape} and pbc of shape {structure.pbc.shape}",
            remedy="give three lattice vectors and three flags",
        )


def check_labels(structure: Structure) -> None:
    """Raise BadRecordError for a label of the wrong shape, or a stress that is not symmetric."""
    for name, value in structure.labels.items():
        expected = LABELS[name].shape(len(structure))
        if np.shape(value) != expected:
            raise BadRecordError(
                f"has {name} of shape {np.shape(value)} for {len(structure)} atoms",
                remedy=f"give shape {expected}",
            )
        if LABELS[name].symmetric:
            check_symmetric(value, f"a {name}")


def check_elements(atomic_numbers: np.ndarray) -> None:
    """Raise BadRecordError for an empty structure, a dummy atom or an unknown element."""
    if atomic_numbers.ndim == 1 and len(atomic_numbers) == 0:
        raise BadRecordError("has no atoms", remedy="remove it from the file")
    if atomic_numbers.ndim != 1 or atomic_numbers.dtype.kind not in "iuf":
        raise BadRecordError(
            f"has atomic numbers of shape {atomic_numbers.shape} and type {atomic_numbers.dtype}",
            remedy="give one number for each atom",
        )
    bad = atomic_numbers[(atomic_numbers < 1) | (atomic_numbers > MAX_ATOMIC_NUMBER)]
    if len(bad):
        raise BadRecordError(
            f"has atomic number {bad[0]}, outside 1..{MAX_ATOMIC_NUMBER}",
            remedy="correct the element",
        )


def _arrays(structure: Structure) -> dict[str, Any]:
    """All real-valued quantities of a structure, by name."""
    return {"positions": structure.positions, "cell": structure.cell} | structure.labels


def _check_sizes(structure: Structure) -> None:
    """Raise BadRecordError for an unphysically large value: its unit must be wrong."""
    for name, value in _arrays(structure).items():
        if name in LABELS:
            label = LABELS[name]
            unit = label.unit
            limit = label.largest * (len(structure) if label.extensive else 1)
        else:
            unit = "A"
            limit = MAX_LENGTH
        largest = np.abs(value).max()
        if largest > limit:
            raise BadRecordError(
                f"has {name} of {largest:.3g}, beyond {limit:g} {unit}",
                remedy="check the unit or remove the record",
            )


def _check_cell(structure: Structure) -> None:
    """Raise BadRecordError if a periodic direction has no usable cell vector.

    The vectors of other directions may be zero, as in slabs.
    """
    if not structure.pbc.any():
        return
    cell = structure.cell
    # a slab may have no third vector; any vector out of its plane gives the same cell heights
    periodic_vectors = cell[structure.pbc]
    if not structure.pbc.all() and periodic_vectors.any(axis=1).all():
        cell = complete_cell(cell)
    if abs(np.linalg.det(cell)) < MIN_VOLUME:
        raise BadRecordError(
            "is periodic but its cell has no volume", remedy="give a cell or set pbc to F F F"
        )

    # a very flat cell has too many images within any cutoff
    height = cell_heights(cell)[structure.pbc].min()
    if height < MIN_DISTANCE:
        raise BadRecordError(
            f"has a cell of only {height:.3g} A between opposite faces, so that atoms are closer "
            f"than {MIN_DISTANCE} A to their images or the cell is too oblique to use",
            remedy="check the length unit, reduce the cell or remove the record",
        )


def _check_distances(structure: Structure, radius: float) -> Pairs:
    try:
        pairs = pairs_within(structure, radius)
    except GeometryError as error:
        # a conversion can skip a BadRecordError, but not a GeometryError
        raise BadRecordError(
            f"cannot be searched for neighbours: {error.message}", remedy="remove the record"
        ) from None
    lengths = pairs.lengths
    if not len(lengths):
        return pairs
    sender, receiver = pairs.edge_index
    closest = int(np.argmin(lengths))
    if lengths[closest] < MIN_DISTANCE:
        raise BadRecordError(
            f"has atoms {receiver[closest]} and {sender[closest]} at {lengths[closest]:.3f} A, "
            f"closer than {MIN_DISTANCE} A",
            remedy="check the length unit or remove the record",
        )
    return pairs
