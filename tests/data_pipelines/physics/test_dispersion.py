"""D3: the energies of its authors, and derivatives by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.units import Bohr, Hartree

from evenfield.data_pipelines.physics.config import FUNCTIONALS, PhysicsConfig
from evenfield.data_pipelines.physics.errors import PhysicsError

from physics_beside import difference_of_forces, difference_of_stress, physics_of_atoms


pytest.importorskip("torch_dftd")

PBE = PhysicsConfig.model_validate({"dispersion": {"functional": "pbe"}})


def distorted_salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.mark.parametrize("functional", ["pbe", "b3lyp"])
def test_a_molecule_has_the_energy_of_the_published_code(functional: str) -> None:
    config = PhysicsConfig.model_validate(
        {"dispersion": {"functional": functional, "cutoff": 50.0}}
    )
    benzene = molecule("C6H6")
    expected = published_energy(benzene, functional, cutoff=50.0)
    assert physics_of_atoms(config, benzene).energy == pytest.approx(expected, abs=1e-6)
    assert expected < -0.2


def test_a_crystal_has_the_energy_of_the_published_code() -> None:
    """Ours ends smoothly within the last Bohr, theirs at once."""
    atoms = distorted_salt()
    cutoff = 40.0
    config = PhysicsConfig.model_validate({"dispersion": {"functional": "pbe", "cutoff": cutoff}})
    found = physics_of_atoms(config, atoms).energy
    # our smooth end is worth some pairs in the last Bohr, so it is in the middle of theirs
    inside = published_energy(atoms, "pbe", cutoff - Bohr)
    outside = published_energy(atoms, "pbe", cutoff)
    assert outside < found < inside
    assert found == pytest.approx(0.5 * (inside + outside), abs=1e-6)


def published_energy(atoms: Atoms, functional: str, cutoff: float) -> float:
    """eV, by s-dftd3 of the group of the authors, without the term of three atoms."""
    interface = pytest.importorskip("dftd3.interface")
    s8, a1, a2 = FUNCTIONALS[functional]
    is_periodic = atoms.pbc.all()
    model = interface.DispersionModel(
        atoms.numbers,
        atoms.positions / Bohr,
        lattice=atoms.cell.array / Bohr if is_periodic else None,
        periodic=atoms.pbc if is_periodic else None,
    )
    model.set_realspace_cutoff(disp2=cutoff / Bohr, disp3=40.0, cn=40.0)
    damping = interface.RationalDampingParam(s6=1.0, s8=s8, a1=a1, a2=a2, s9=0.0)
    energy = model.get_dispersion(damping, grad=False)["energy"]
    return float(energy * Hartree)


def test_derivatives_are_those_of_the_energy() -> None:
    atoms = distorted_salt()
    assert difference_of_forces(PBE, atoms) < 1e-8
    # pairs end with two smooth derivatives, and the finite differences want five
    assert difference_of_stress(PBE, atoms) < 1e-7
    found = physics_of_atoms(PBE, atoms)
    assert found.charges is None
    assert found.atom_energies.sum() == pytest.approx(found.energy, abs=1e-10)


def test_pairs_end_smoothly() -> None:
    config = PhysicsConfig.model_validate({"dispersion": {"functional": "pbe", "cutoff": 6.0}})
    beyond = physics_of_atoms(config, Atoms("Ar2", [[0, 0, 0], [0, 0, 6.001]]))
    before = physics_of_atoms(config, Atoms("Ar2", [[0, 0, 0], [0, 0, 5.999]]))
    assert beyond.energy == 0.0
    assert abs(before.energy) < 1e-9
    assert np.abs(before.forces).max() < 1e-6


def test_an_atom_alone_has_none() -> None:
    found = physics_of_atoms(PBE, Atoms("Ar"))
    assert found.energy == 0.0
    assert not found.forces.any()


def test_elements_beyond_d3_are_refused() -> None:
    with pytest.raises(PhysicsError, match="has Am, for which D3 has no numbers"):
        physics_of_atoms(PBE, Atoms("Am2", [[0, 0, 0], [0, 0, 3]]))
