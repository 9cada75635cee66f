"""Small structures that reveal common faults of potentials."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ..data_pipelines.batch import Batch
from ..data_pipelines.structure import Structure


def crystal() -> Atoms:
    """A rattled, sheared NaCl cell, smaller than most cutoffs: atoms see their own images."""
    atoms: Atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    shear = np.array([[0, 0.2, 0], [0, 0, -0.1], [0.1, 0, 0]])
    atoms.set_cell(atoms.cell.array + shear, scale_atoms=True)
    atoms.rattle(0.15, seed=1)
    return atoms


def ethanol() -> Atoms:
    """A rattled ethanol molecule, without a cell."""
    atoms: Atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=2)
    return atoms


def batch_of(systems: list[Atoms], cutoff: float, dtype: torch.dtype) -> Batch:
    """One batch of unlabelled structures, for the first head of a model; `cutoff` in A."""
    structures = [Structure.from_atoms(atoms, "default", "conformance") for atoms in systems]
    return Batch.from_structures(structures, cutoff, dtype=dtype)
