"""Coupled states: energies, forces and couplings of one matrix fit together, at a crossing too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from pydantic import ValidationError

from evenfield import model_zoo
from evenfield.model_zoo.engines.calculator import EngineError
from evenfield.model_zoo.heads.description import HeadError
from evenfield.model_zoo.heads.record import HEADS, heads_file
from evenfield.model_zoo.heads.states import States
from evenfield.model_zoo.heads.symmetric import symmetric
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.model_zoo.package.folder import attach

from labelled_molecules import molecular_model, molecules, planted_head


STEP = 1e-5


def three_states(num_features: int, **facts: object):
    """A head of three states with random weights."""
    head = planted_head("states", num_features, unit="eV", num_states=3, **facts)
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(6, num_features))
    return dataclasses.replace(head, weight=weight, bias=rng.normal(size=(6, 4)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = molecular_model(tmp_path_factory.mktemp("states") / "model")
    potential = model_zoo.load(path).potential
    heads = {
        "states": three_states(potential.backbone.num_features),
        "charges": planted_head("charges", potential.backbone.num_features),
    }
    attach(path, {HEADS: heads_file(potential, heads)})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return model_zoo.load(folder)


@pytest.fixture
def atoms() -> Atoms:
    return molecules(copies=1)[4]


def moved(atoms: Atoms, atom: int, axis: int, step: float) -> Atoms:
    copy = atoms.copy()
    copy.positions[atom, axis] += step
    return copy


def test_energies_are_eigenvalues(model, atoms) -> None:
    states = model.states(atoms)
    np.testing.assert_allclose(states.energies, np.linalg.eigvalsh(states.matrix), atol=1e-12)
    np.testing.assert_allclose(model.predict(atoms, "states"), states.energies, atol=1e-12)
    np.testing.assert_allclose(states.matrix, states.matrix.T, atol=1e-14)
    rebuilt = states.vectors @ np.diag(states.energies) @ states.vectors.T
    np.testing.assert_allclose(rebuilt, states.matrix, atol=1e-12)


def test_forces_and_couplings_are_central_differences(model, atoms) -> None:
    states = model.states(atoms)
    derivative = states.derivative_couplings()
    np.testing.assert_allclose(derivative, -np.swapaxes(derivative, 0, 1), atol=1e-12)
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        after = model.states(moved(atoms, atom, axis, STEP))
        before = model.states(moved(atoms, atom, axis, -STEP))
        slope = (after.energies - before.energies) / (2 * STEP)
        np.testing.assert_allclose(states.forces[:, atom, axis], -slope, atol=1e-6)
        # <k| d/dr l> of the vectors of the states, whose signs are made the same
        ends = []
        for side in (after, before):
            sign = np.sign((side.vectors * states.vectors).sum(axis=0))
            ends.append(side.vectors * sign)
        found = states.vectors.T @ (ends[0] - ends[1]) / (2 * STEP)
        np.testing.assert_allclose(derivative[:, :, atom, axis], found, atol=1e-6)
    # nothing pushes a molecule that is alone
    np.testing.assert_allclose(states.forces.sum(axis=1), 0, atol=1e-10)


def test_couplings_stay_finite_where_states_meet(model, atoms) -> None:
    # all entries but those of one row vanish: two states have the same energy everywhere
    head = model.heads["states"]
    weight = np.zeros_like(head.weight)
    weight[0] = head.weight[0]
    same = dataclasses.replace(head, weight=weight, bias=np.zeros_like(head.bias))
    meeting = LoadedModel(
        model.potential,
        model.record,
        "meeting",
        attachments={HEADS: heads_file(model.potential, {"states": same})},
    )
    states = meeting.states(atoms)
    assert np.isfinite(states.couplings).all() and np.isfinite(states.forces).all()
    gap = np.diff(np.sort(states.energies)).min()
    assert gap < 1e-12
    assert not np.isfinite(states.derivative_couplings()).all()


def test_couplings_by_hand() -> None:
    coupling = np.array([[1.0, 0.3], [0.3, -2.0]]).reshape(2, 2, 1, 1)
    states = States(np.array([0.0, 0.6]), -np.ones((2, 1, 1)), coupling, np.eye(2), np.eye(2))
    np.testing.assert_allclose(states.derivative_couplings()[:, :, 0, 0], [[0, 0.5], [-0.5, 0]])


def test_symmetric_matrices_from_their_entries() -> None:
    found = symmetric(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert found.tolist() == [[1, 2, 3], [2, 4, 5], [3, 5, 6]]
    assert symmetric(torch.zeros(7, 10)).shape == (7, 4, 4)


def test_a_calculator_of_one_state(model, atoms) -> None:
    states = model.states(atoms)
    atoms.calc = model.state_calculator(state=2)
    assert atoms.get_potential_energy() == pytest.approx(states.energies[2])
    np.testing.assert_allclose(atoms.get_forces(), states.forces[2], atol=1e-12)
    np.testing.assert_allclose(atoms.calc.results["couplings"], states.couplings, atol=1e-12)
    atoms.calc.set(state=0)
    assert atoms.get_potential_energy() == pytest.approx(states.energies[0])
    with pytest.raises(EngineError, match="state=3: states has 3 states"):
        atoms.calc.set(state=3)
    with pytest.raises(EngineError, match="dtype: cannot be set"):
        atoms.calc.set(dtype="float32")
    with pytest.raises(EngineError, match=r"state=0\.5"):
        atoms.calc.set(state=0.5)
    with pytest.raises(EngineError, match="state=-1"):
        model.state_calculator(state=-1)


def test_other_heads_and_elements_are_refused(model) -> None:
    with pytest.raises(HeadError, match="charges predicts a charges, and no states"):
        model.states(Atoms("H"), "charges")
    with pytest.raises(HeadError, match="charges predicts a charges, and no states"):
        model.state_calculator(name="charges")
    with pytest.raises(HeadError, match="was fitted without He"):
        model.states(Atoms("He"))


@pytest.mark.parametrize("number", [0, 1, 9])
def test_numbers_of_states_that_cannot_be(number) -> None:
    with pytest.raises(ValidationError):
        planted_head("states", 4, unit="eV", num_states=number)
