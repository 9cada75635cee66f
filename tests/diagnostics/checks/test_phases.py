"""Ranking of crystal structures, and what a perfect crystal must look like to the network."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.tersoff import Tersoff, TersoffParameters

from evenfield import model_zoo
from evenfield.data_pipelines.neighbours import neighbour_list
from evenfield.diagnostics.check import CheckError
from evenfield.diagnostics.checks.phases import PROTOTYPES, Phase, rank_prototypes


# J. Tersoff, Phys. Rev. B 37, 6991 (1988), T3
SILICON = TersoffParameters(
    m=3.0, gamma=1.0, lambda3=1.3258, c=4.8381, d=2.0417, h=0.0, n=22.956, beta=0.33675,
    lambda2=1.3258, B=95.373, R=3.0, D=0.2, lambda1=3.2394, A=3264.7,
)  # fmt: skip


def lowest_three(ranking: list[Phase]) -> set[str]:
    """Without their order: they lie within few meV/atom of each other."""
    return {phase.name for phase in ranking[:3]}


def test_tersoff_silicon_is_diamond() -> None:
    calculator = Tersoff({("Si", "Si", "Si"): SILICON})
    lowest, *others = rank_prototypes(calculator, "Si")
    assert (lowest.name, lowest.at_edge) == ("diamond", False)

    # the lattice constant and the cohesive energy of the paper
    lattice_constant = 5.432
    assert lowest.volume == pytest.approx(lattice_constant**3 / 8, rel=0.01)
    assert lowest.energy == pytest.approx(-4.63, abs=0.02)
    assert len(others) == len(PROTOTYPES) - 1


def test_emt_copper_is_closely_packed() -> None:
    ranking = rank_prototypes(EMT(), "Cu")
    assert lowest_three(ranking) == {"fcc", "hcp", "bcc"}
    assert ranking[-1].name == "diamond"

    (fcc,) = [phase for phase in ranking if phase.name == "fcc"]
    # the lattice constant of ASE's EMT
    assert fcc.volume == pytest.approx(3.59**3 / 4, rel=0.02)


def test_our_own_model_has_close_packing_and_bcc_below_the_rest() -> None:
    calculator = model_zoo.load("evenfield-s").calculator(level_of_theory="EMT", dtype="float64")
    ranking = rank_prototypes(calculator, "Cu")
    assert lowest_three(ranking) == {"fcc", "hcp", "bcc"}
    assert ranking[-1].name == "diamond"


def test_unknown_element_is_refused() -> None:
    with pytest.raises(CheckError, match="'Xx' is not an element"):
        rank_prototypes(EMT(), "Xx")


def test_shells_of_fcc() -> None:
    """12, 6, 24, 12, 24, 8 neighbours at a sqrt(n / 2)."""
    a = 4.0
    cell = bulk("Al", "fcc", a=a, cubic=True)
    index, shifts = neighbour_list(cell.positions, cell.cell.array, cell.pbc, 1.8 * a)
    sender, receiver = index
    vectors = cell.positions[sender] - cell.positions[receiver] + shifts @ cell.cell.array

    # rounded, so that one shell is one radius
    distances = np.linalg.norm(vectors, axis=1).round(8)
    radii, counts = np.unique(distances, return_counts=True)
    shells = np.arange(1, 7)
    np.testing.assert_allclose(radii, a * np.sqrt(shells / 2), atol=1e-7)
    assert (counts / len(cell)).tolist() == [12, 6, 24, 12, 24, 8]


@pytest.mark.parametrize("name", ["fcc", "bcc", "diamond"])
def test_atoms_of_a_perfect_crystal_have_the_same_features(name: str) -> None:
    """In the primitive cell, the cubic one and a supercell."""
    calculator = model_zoo.load("evenfield-s").calculator(level_of_theory="EMT", dtype="float64")
    cubic = bulk("Cu", name, a=4.2, cubic=True)
    cells = [bulk("Cu", name, a=4.2), cubic, cubic * (2, 1, 3)]
    features = [calculator.get_features(cell) for cell in cells]
    assert features[2].shape[0] == 6 * len(cubic)

    first_atom = features[0][:1]
    for own in features:
        expected = np.broadcast_to(first_atom, own.shape)
        np.testing.assert_allclose(own, expected, atol=1e-10)

    # the features do see a change of the crystal
    strained = cubic.copy()
    strained.set_cell(cubic.cell * [1.0, 1.0, 1.1], scale_atoms=True)
    change = calculator.get_features(strained)[:1] - first_atom
    assert np.abs(change).max() > 1e-3
