"""Molecules in an electric field: energy, forces, moments and polar tensors fit together."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.optimize import BFGS
from scipy.spatial.transform import Rotation

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo.heads.description import HeadError
from evenfield.model_zoo.heads.record import HEADS, heads_file
from evenfield.model_zoo.hub.load import LoadedModel

from labelled_molecules import ROTATING, molecular_model, molecules, planted_head, rotating_head


# V/A; no direction is special
FIELD = np.array([0.03, -0.05, 0.08])
STEP = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = molecular_model(tmp_path_factory.mktemp("field") / "model", **ROTATING)
    bare = model_zoo.load(path)
    heads = {kind: rotating_head(kind, bare.potential) for kind in ("dipole", "polarizability")}
    return with_heads(bare, heads)


def with_heads(model: LoadedModel, heads: dict) -> LoadedModel:
    attachments = {HEADS: heads_file(model.potential, heads)}
    return LoadedModel(model.potential, model.record, "mine", attachments=attachments)


@pytest.fixture
def atoms() -> Atoms:
    return molecules(copies=1)[4]


def energy(model: LoadedModel, atoms: Atoms, field: np.ndarray | None) -> float:
    return model.calculator(field=field, warn_outside=False).get_potential_energy(atoms.copy())


def test_energy_is_that_of_moments_in_the_field(model, atoms) -> None:
    dipole = model.predict(atoms, "dipole")
    tensor = model.predict(atoms, "polarizability")
    added = energy(model, atoms, FIELD) - energy(model, atoms, None)
    expected = -dipole @ FIELD - 0.5 * FIELD @ tensor @ FIELD
    assert added == pytest.approx(expected, abs=1e-12)
    assert abs(FIELD @ tensor @ FIELD) > 1e-4
    assert energy(model, atoms, np.zeros(3)) == pytest.approx(energy(model, atoms, None), abs=1e-12)


def test_forces_are_central_differences(model, atoms) -> None:
    atoms.calc = model.calculator(field=FIELD, warn_outside=False)
    forces = atoms.get_forces()
    # one for all: making it reads the heads from their file
    calculator = model.calculator(field=FIELD, warn_outside=False)
    # the carbon, the oxygen and a hydrogen atom
    for atom in range(3):
        for axis in range(3):
            found = []
            for steps in (1, -1, 2, -2):
                moved = atoms.copy()
                moved.positions[atom, axis] += steps * STEP
                found.append(calculator.get_potential_energy(moved))
            # of fourth order: the core repulsion is steep
            expected = -(8 * (found[0] - found[1]) - (found[2] - found[3])) / (12 * STEP)
            assert forces[atom, axis] == pytest.approx(expected, abs=1e-6)
    without = model.calculator(warn_outside=False).get_forces(atoms)
    assert np.abs(forces - without).max() > 1e-3
    # a neutral molecule is turned by a uniform field, and not pushed
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10)


def test_moments_are_central_differences_by_the_field(model, atoms) -> None:
    atoms.calc = model.calculator(field=FIELD, warn_outside=False)
    dipole = atoms.get_dipole_moment()
    tensor = atoms.calc.results["polarizability"]
    for axis, unit in enumerate(np.eye(3)):
        sides = [energy(model, atoms, FIELD + sign * 1e-2 * unit) for sign in (1, -1)]
        assert dipole[axis] == pytest.approx(-(sides[0] - sides[1]) / 2e-2, abs=1e-6)
        middle = energy(model, atoms, FIELD)
        curvature = -(sides[0] - 2 * middle + sides[1]) / 1e-4
        assert tensor[axis, axis] == pytest.approx(curvature, abs=1e-6)
    np.testing.assert_allclose(tensor, tensor.T, atol=1e-13)


@pytest.mark.parametrize("kind", ["equivariant", "network"])
def test_polar_tensors_are_central_differences_and_add_up_to_zero(model, atoms, kind) -> None:
    if kind == "network":
        num_features = model.potential.backbone.num_features
        model = with_heads(model, {"dipole": planted_head("dipole", num_features)})
    found = model.polar_tensors(atoms)
    assert found.shape == (len(atoms), 3, 3)
    for atom in range(len(atoms)):
        for axis in range(3):
            sides = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * STEP
                sides.append(model.predict(moved, "dipole"))
            expected = (sides[0] - sides[1]) / (2 * STEP)
            np.testing.assert_allclose(found[atom, :, axis], expected, atol=1e-6)
    assert np.abs(found).max() > 0.01
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_molecule_and_field_turn_together(model, atoms, dtype, tolerance) -> None:
    matrix = -Rotation.random(random_state=3).as_matrix()
    other = atoms.copy()
    other.positions = atoms.positions @ matrix.T
    atoms.calc = model.calculator(field=FIELD, dtype=dtype, warn_outside=False)
    other.calc = model.calculator(field=matrix @ FIELD, dtype=dtype, warn_outside=False)
    assert other.get_potential_energy() == pytest.approx(
        atoms.get_potential_energy(), abs=tolerance
    )
    expected = atoms.get_forces() @ matrix.T
    np.testing.assert_allclose(other.get_forces(), expected, atol=10 * tolerance)


def test_without_a_polarizability_the_field_is_linear(model, atoms) -> None:
    linear = with_heads(model, {"dipole": model.heads["dipole"]})
    added = [energy(linear, atoms, factor * FIELD) for factor in (0, 1, 2)]
    assert added[2] - added[1] == pytest.approx(added[1] - added[0], abs=1e-12)
    calculator = linear.calculator(field=FIELD, warn_outside=False)
    calculator.get_potential_energy(atoms)
    assert "polarizability" not in calculator.results


def test_a_field_can_be_changed_and_switched_off(model, atoms) -> None:
    calculator = model.calculator(field=(0, 0, 0), heads=True, warn_outside=False)
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    assert calculator.set(field=FIELD) == {"field": FIELD.tolist()}
    assert abs(atoms.get_potential_energy() - before) > 1e-3
    # the dipole in the field comes before that of the head alone
    expected = model.predict(atoms, "dipole") + model.predict(atoms, "polarizability") @ FIELD
    np.testing.assert_allclose(atoms.get_dipole_moment(), expected, atol=1e-10)
    # a field gives no energy to an atom
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energies()
    calculator.set(field=None)
    assert atoms.get_potential_energy() == pytest.approx(before, abs=1e-12)
    assert atoms.get_potential_energies().sum() == pytest.approx(before, abs=1e-10)


def test_relaxation_in_a_field_lowers_its_energy(model, atoms) -> None:
    atoms.calc = model.calculator(field=FIELD, warn_outside=False)
    before = atoms.get_potential_energy()
    BFGS(atoms, logfile=None, maxstep=0.01).run(fmax=0.0, steps=3)
    assert atoms.get_potential_energy() < before


def test_structures_without_a_dipole_are_refused(model, atoms) -> None:
    charged = atoms.copy()
    charged.info["charge"] = 1
    for reason, structure in {
        "depends on the cell": bulk("C"),
        "depends on the origin": charged,
    }.items():
        structure.calc = model.calculator(field=FIELD, warn_outside=False)
        with pytest.raises(HeadError, match=f"in a field: .*{reason}: take a neutral molecule"):
            structure.get_potential_energy()
        with pytest.raises(HeadError, match=reason):
            model.polar_tensors(structure)
        assert structure.calc.results == {}


def test_a_changed_net_charge_is_noticed(model, atoms) -> None:
    atoms.calc = model.calculator(field=FIELD, warn_outside=False)
    atoms.get_potential_energy()
    atoms.info["charge"] = 1
    with pytest.raises(HeadError, match="depends on the origin"):
        atoms.get_potential_energy()


def test_heads_that_a_field_needs(model) -> None:
    alone = with_heads(model, {"polarizability": model.heads["polarizability"]})
    with pytest.raises(HeadError, match="a field acts on a dipole, and no head gives one: fit one"):
        alone.calculator(field=FIELD)
    with pytest.raises(HeadError, match="no head gives one"):
        model.calculator(field=FIELD, heads=["polarizability"])
    with pytest.raises(HeadError, match=r"made without a field.*make it with field=\(0, 0, 0\)"):
        model.calculator().set(field=FIELD)
    other = rotating_head("dipole", model.potential, name="moment")
    two = with_heads(model, {"dipole": model.heads["dipole"], "moment": other})
    with pytest.raises(HeadError, match=r"dipole and moment both give a dipole.*heads=\[\"dipole"):
        two.calculator(field=FIELD)
    assert two.calculator(field=FIELD, heads=["moment"]) is not None


@pytest.mark.parametrize("field", [(1, 2), 0.1, "x", (0, 0, np.nan), [[0, 0, 1]]])
def test_fields_that_are_none(model, field) -> None:
    with pytest.raises(EvenfieldError, match=r"field=.*give three numbers in V/A"):
        model.calculator(field=field)


def test_raman_tensors_are_differences_of_polarizabilities(model, atoms) -> None:
    found = model.raman_tensors(atoms)
    assert found.shape == (len(atoms), 3, 3, 3)
    np.testing.assert_allclose(found, np.swapaxes(found, 1, 2), atol=1e-12)
    # a molecule can be moved
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-10)
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * STEP
            ends.append(model.predict(moved, "polarizability"))
        expected = (ends[0] - ends[1]) / (2 * STEP)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found[atom, ..., axis], expected, atol=1e-6)


def test_raman_tensors_are_second_derivatives_of_forces_by_the_field(model, atoms) -> None:
    def forces(field: np.ndarray) -> np.ndarray:
        return model.calculator(field=field, warn_outside=False).get_forces(atoms)

    # exact differences: the forces are quadratic in the field
    first, second = 0.1 * np.eye(3)[:2]
    mixed = forces(first + second) - forces(first) - forces(second) + forces(np.zeros(3))
    np.testing.assert_allclose(model.raman_tensors(atoms)[:, 0, 1], mixed / 0.01, atol=1e-9)


def test_a_strained_molecule_has_the_dipole_that_polar_tensors_say(model, atoms) -> None:
    # d mu_a / d strain_bc = sum_i Z_i,ab r_ic, which is what piezoelectricity is in a molecule
    by_strain = np.einsum("iab,ic->abc", model.polar_tensors(atoms), atoms.positions)
    for row, column in ((0, 0), (0, 1), (2, 1)):
        ends = []
        for sign in (1, -1):
            strained = atoms.copy()
            strained.positions[:, row] += sign * STEP * atoms.positions[:, column]
            ends.append(model.predict(strained, "dipole"))
        np.testing.assert_allclose(
            by_strain[:, row, column], (ends[0] - ends[1]) / (2 * STEP), atol=1e-6
        )


def test_derivatives_of_another_kind_are_refused(model, atoms) -> None:
    with pytest.raises(HeadError, match="dipole predicts a dipole, and no polarizability"):
        model.raman_tensors(atoms, "dipole")
    with pytest.raises(HeadError, match="polarizability predicts a polarizability, and no dipole"):
        model.polar_tensors(atoms, "polarizability")
