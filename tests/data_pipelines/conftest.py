"""Frames with labels known by calculation, for sources of every kind."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


@pytest.fixture(scope="session")
def alloys() -> list[Atoms]:
    """24 frames of two CuAu crystals, each a walk of small steps and strains, labelled by EMT."""
    rng = np.random.default_rng(1)
    frames = []
    for last in ("Cu", "Pt"):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols = ["Cu", "Au", "Au", last]
        atoms.set_cell(atoms.cell * 1.06, scale_atoms=True)
        for _ in range(12):
            atoms.set_cell(atoms.cell.array @ (np.eye(3) * rng.normal(1, 0.02)), scale_atoms=True)
            atoms.positions += rng.normal(0, 0.03, (4, 3))
            labelled = atoms.copy()
            labelled.calc = EMT()
            labels = (labelled.get_potential_energy(), labelled.get_forces(), labelled.get_stress())
            labelled.calc = SinglePointCalculator(
                labelled, **dict(zip(("energy", "forces", "stress"), labels, strict=True))
            )
            frames.append(labelled)
    return frames
