"""How far a potential looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from evenfield import model_zoo
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.diagnostics.check import CheckError
from evenfield.diagnostics.checks.reach import measure_reach
from evenfield.model_zoo import Potential, PotentialConfig


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True) * 5
    atoms.rattle(0.05, seed=0)
    return atoms


def test_lennard_jones_looks_as_far_as_its_cutoff() -> None:
    """Each atom has half of a pair's energy: the response is half the slope of that energy."""
    atoms = Atoms("Ar4", [[0, 0, 0], [1.2, 0, 0], [0, 2.0, 0], [0, 0, 3.1]])
    found = measure_reach(LennardJones(sigma=1.0, epsilon=1.0, rc=3.0), atoms)

    # the derivative of 4 (r^-12 - r^-6)
    slope = 24 * (2 / found.distance**13 - 1 / found.distance**7)
    wanted = np.where(found.distance < 3.0, np.abs(slope) / 2, 0)
    np.testing.assert_allclose(found.response, wanted, rtol=1e-4, atol=1e-9)
    assert found.largest == 2.0


def test_emt_sees_less_far_than_ten_a() -> None:
    found = measure_reach(EMT(), copper())
    assert found.effective < found.largest < 7.0


def test_our_own_model_sees_two_cutoffs_far_and_no_further() -> None:
    calculator = model_zoo.load("evenfield-s").calculator(level_of_theory="EMT", dtype="float64")
    found = measure_reach(calculator, copper())
    assert 5.0 < found.largest < 10.0

    # two layers with a cutoff of 5 A
    (first_end, first), (second_end, second), *rest = found.shells(5.0)
    assert (first_end, second_end) == (5.0, 10.0)
    assert first > 0.9 > 0.1 > second > 0

    # exactly zero: beyond, there is no path from atom to atom
    assert sum(share for _, share in rest) == 0.0
    assert first + second == pytest.approx(1)


def test_calculator_without_energies_of_atoms_is_refused() -> None:
    class Silent(EMT):
        implemented_properties = ["energy", "forces"]  # noqa: RUF012 - ASE's protocol

    with pytest.raises(CheckError, match="Silent gives no energies of single atoms"):
        measure_reach(Silent(), copper())


def test_atom_that_no_other_atom_feels_is_refused() -> None:
    with pytest.raises(CheckError, match="no other atom's energy feels atom 0"):
        measure_reach(EMT(), Atoms("Cu2", [[0, 0, 0], [0, 0, 30]]))


def _chain(dihedral: float) -> Structure:
    """Four atoms whose bonds of 1.5 A and right angles leave only the dihedral angle free."""
    end = np.array([1.5 * np.cos(dihedral), 1.5 * np.sin(dihedral), 1.5])
    positions = np.array([[1.5, 0, 0], [0, 0, 0], [0, 0, 1.5], end])
    carbon = np.full(4, 6)
    no_cell = np.zeros((3, 3))
    open_boundary = np.zeros(3, bool)
    return Structure(carbon, positions, no_cell, open_boundary, "default", "chain", "")


@pytest.mark.parametrize(
    ("layers", "l_hidden", "seen"), [(1, 1, False), (2, 0, False), (2, 1, True)]
)
def test_a_dihedral_angle_takes_two_layers_and_vectors_between_them(
    layers: int, l_hidden: int, seen: bool
) -> None:
    """Only bonded atoms are neighbours, so one layer sees the same at every dihedral angle."""
    torch.manual_seed(0)
    config = PotentialConfig(
        channels=8, num_layers=layers, l_hidden=l_hidden, cutoff=2.0, repulsion=False
    )
    potential = Potential(config).double().eval()

    energies = []
    for angle in (1.2, 2.0):
        batch = Batch.join([Batch.from_structure(_chain(angle), 2.0)])
        with torch.no_grad():
            energies.append(float(potential(batch).energy))

    difference = abs(energies[0] - energies[1])
    assert (difference > 1e-6) == seen
    # what is not seen differs by rounding alone, so nothing lies between the two bounds
    assert seen or difference < 1e-12
