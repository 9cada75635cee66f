"""Charges: known sums, derivatives by finite differences, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from evenfield.core.units import COULOMB
from evenfield.data_pipelines.physics.config import PhysicsConfig
from evenfield.data_pipelines.physics.errors import PhysicsError

from physics_beside import difference_of_forces, difference_of_stress, physics_of_atoms


pytest.importorskip("torchpme")

POINT = 0.1  # A; Gaussian charges that look like points to their neighbours
NA_CL = {"electronegativity": {"Na": 2.8, "Cl": 8.3}, "hardness": {"Na": 4.6, "Cl": 9.8}}


def coulomb(**settings: Any) -> PhysicsConfig:
    return PhysicsConfig.model_validate({"coulomb": settings})


def distorted_salt() -> Atoms:
    """Rock salt without any symmetry left."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.1, seed=1)
    strain = 0.05 * np.random.default_rng(0).normal(size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


@pytest.mark.parametrize(
    ("kind", "symbols", "a", "nearest", "madelung"),
    [
        ("rocksalt", ("Na", "Cl"), 5.64, 0.5, 1.7475645946),
        ("cesiumchloride", ("Cs", "Cl"), 4.12, 3**0.5 / 2, 1.7626747731),
        ("zincblende", ("Zn", "S"), 5.41, 3**0.5 / 4, 1.6380550534),
    ],
)
def test_madelung_constants(
    kind: str, symbols: tuple[str, str], a: float, nearest: float, madelung: float
) -> None:
    """E = -M k / r for each pair of ions (Sakamoto, J. Chem. Phys. 28, 164 (1958))."""
    atoms = bulk("".join(symbols), kind, a=a)
    charges = {symbols[0]: 1.0, symbols[1]: -1.0}
    energy = physics_of_atoms(coulomb(charges=charges, width=POINT), atoms).energy
    assert -energy * nearest * a / COULOMB == pytest.approx(madelung, abs=1e-6)


@pytest.mark.parametrize("settings", [{"charges": {"Na": 1, "Cl": -1}}, NA_CL])
def test_derivatives_of_a_crystal_are_those_of_its_energy(settings: dict[str, Any]) -> None:
    config = coulomb(**settings)
    atoms = distorted_salt()
    assert difference_of_forces(config, atoms) < 1e-8
    assert difference_of_stress(config, atoms) < 1e-8
    found = physics_of_atoms(config, atoms)
    assert np.abs(found.forces).max() > 1e-3
    assert found.atom_energies.sum() == pytest.approx(found.energy, abs=1e-10)


def test_charges_of_a_molecule_equilibrate() -> None:
    config = coulomb(electronegativity={"H": 4.5, "O": 8.7}, hardness={"H": 6.0, "O": 6.0})
    water = molecule("H2O")
    water.rattle(0.05, seed=2)
    assert difference_of_forces(config, water) < 1e-8
    found = physics_of_atoms(config, water)
    assert found.charges is not None and found.stress is None
    assert found.charges.sum() == pytest.approx(0.0, abs=1e-10)
    assert found.charges[0] < -0.1 < found.charges[1]


def test_equilibrated_charges_have_the_least_energy() -> None:
    """In a crystal: the energy of the same charges, moved a little, is higher."""
    found = physics_of_atoms(coulomb(**NA_CL), distorted_salt())
    charges = found.charges
    assert charges is not None
    assert charges.sum() == pytest.approx(0.0, abs=1e-10)
    # dE/dq is the same for all charges at the minimum: each unit cell of a larger cell has them too
    twice = physics_of_atoms(coulomb(**NA_CL), distorted_salt().repeat((2, 1, 1)))
    assert twice.energy == pytest.approx(2 * found.energy, abs=1e-8)
    assert twice.charges is not None
    np.testing.assert_allclose(twice.charges, np.tile(charges, 2), atol=1e-8)


def test_net_charge_of_a_molecule() -> None:
    settings = {"electronegativity": {"H": 4.5, "O": 8.7}, "hardness": {"H": 6.0, "O": 6.0}}
    hydroxide = molecule("OH")
    hydroxide.set_initial_magnetic_moments(None)
    found = physics_of_atoms(coulomb(**settings, net_charge=-1), hydroxide)
    assert found.charges is not None
    assert found.charges.sum() == pytest.approx(-1.0, abs=1e-10)


def test_finite_and_smooth_down_to_no_distance() -> None:
    """Every step of the energy is that of the forces, through r = 0 and where the series ends."""
    config = coulomb(charges={"Na": 1, "Cl": -1}, width=0.5)
    distances = np.linspace(-0.6, 0.6, 241)
    energies = []
    forces = []
    for distance in distances:
        pair = Atoms("NaCl", [[0, 0, 0], [0, 0, distance]])
        found = physics_of_atoms(config, pair)
        energies.append(found.energy)
        forces.append(found.forces[1, 2])
    assert np.isfinite(energies).all() and np.isfinite(forces).all()
    step = distances[1] - distances[0]
    work = -0.5 * (np.array(forces[1:]) + np.array(forces[:-1])) * step
    np.testing.assert_allclose(np.diff(energies), work, atol=1e-4)
    # k / (width sqrt(pi)), in the middle
    assert energies[120] == pytest.approx(-COULOMB / (0.5 * np.pi**0.5), abs=1e-9)
    assert abs(forces[120]) < 1e-9


def test_the_division_of_the_sum_does_not_matter() -> None:
    atoms = distorted_salt()
    charges = {"Na": 1, "Cl": -1}
    energies = [
        physics_of_atoms(coulomb(charges=charges, cutoff=cutoff), atoms).energy
        for cutoff in (6.0, 8.0, 11.0)
    ]
    assert np.ptp(energies) < 1e-8


def test_a_mesh_gives_the_same() -> None:
    atoms = distorted_salt()
    charges = {"Na": 1, "Cl": -1}
    exact = physics_of_atoms(coulomb(charges=charges), atoms)
    mesh = physics_of_atoms(coulomb(charges=charges, mesh_spacing=0.3), atoms)
    assert mesh.energy == pytest.approx(exact.energy, abs=1e-6)
    np.testing.assert_allclose(mesh.forces, exact.forces, atol=1e-5)


def test_a_crystal_with_net_charge_is_refused() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    with pytest.raises(PhysicsError, match=r"net charge of \+0.5 e, whose energy is infinite"):
        physics_of_atoms(coulomb(charges={"Na": 1.5, "Cl": -1}), atoms)
    with pytest.raises(PhysicsError, match="net charge of -1 e"):
        physics_of_atoms(coulomb(**NA_CL, net_charge=-1), atoms)


def test_a_slab_is_refused() -> None:
    slab = fcc111("Na", (1, 1, 2), a=5.0, vacuum=5.0)
    with pytest.raises(PhysicsError, match=r"periodic in some directions only.*: set pbc"):
        physics_of_atoms(coulomb(charges={"Na": 0.0, "Cl": 0.0}), slab)


def test_an_element_without_a_charge_is_refused() -> None:
    with pytest.raises(PhysicsError, match=r"has O, for which coulomb\.charges has no number"):
        physics_of_atoms(coulomb(charges={"H": 0.4}), molecule("H2O"))
