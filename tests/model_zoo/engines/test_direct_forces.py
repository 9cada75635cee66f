"""Forces of a head in a calculator: fast, marked, and refused where energy must be conserved."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from evenfield import model_zoo
from evenfield.core.settings import load_settings
from evenfield.diagnostics.check import CheckedModel
from evenfield.diagnostics.checks import dynamics, timestep
from evenfield.diagnostics.sanity.config import SanityConfig
from evenfield.model_zoo.engines.calculator import EngineError
from evenfield.model_zoo.engines.direct_forces import (
    DirectForceCalculator,
    NotConservativeWarning,
)
from evenfield.model_zoo.heads.description import HeadError
from evenfield.model_zoo.heads.record import HEADS, heads_file
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.model_zoo.package.folder import attach

from labelled_molecules import ROTATING, molecular_model, molecules, rotating_head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = molecular_model(tmp_path_factory.mktemp("direct") / "model", **ROTATING)
    potential = model_zoo.load(path).potential
    heads = {
        "direct_forces": rotating_head("forces", potential, name="direct_forces"),
        "vector": rotating_head("vector", potential),
    }
    attach(path, {HEADS: heads_file(potential, heads)})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return model_zoo.load(folder)


@pytest.fixture
def atoms() -> Atoms:
    return molecules(copies=1)[4]


@pytest.fixture
def calculator(model: LoadedModel) -> DirectForceCalculator:
    with pytest.warns(NotConservativeWarning, match="not the derivatives of the energy"):
        return model.direct_force_calculator(warn_outside=False)


def test_energy_of_the_model_and_forces_of_the_head(model, atoms, calculator) -> None:
    atoms.calc = calculator
    forces = atoms.get_forces()
    np.testing.assert_allclose(forces, model.predict(atoms, "direct_forces"), atol=1e-10)

    derived = atoms.copy()
    derived.calc = model.calculator(warn_outside=False)
    assert atoms.get_potential_energy() == pytest.approx(derived.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(
        atoms.get_potential_energies(), derived.get_potential_energies(), atol=1e-9
    )
    assert np.abs(forces - derived.get_forces()).max() > 1e-3
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_heads_show_them_beside_the_derivatives(model, atoms) -> None:
    atoms.calc = model.calculator(heads=["direct_forces"], warn_outside=False)
    forces = atoms.get_forces()
    shown = atoms.calc.results["direct_forces"]
    np.testing.assert_allclose(shown, model.predict(atoms, "direct_forces"), atol=1e-10)
    assert np.abs(shown - forces).max() > 1e-3


def test_float32_follows_float64(model, atoms) -> None:
    with pytest.warns(NotConservativeWarning):
        single = model.direct_force_calculator(dtype="float32", warn_outside=False)
    expected = model.predict(atoms, "direct_forces")
    error = np.abs(single.get_forces(atoms) - expected).max()
    assert error < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("check", [timestep, dynamics])
def test_checks_of_energy_conservation_refuse_it(model, calculator, check) -> None:
    class Direct(CheckedModel):
        def calculator(self, dtype: str | None = None) -> DirectForceCalculator:
            return calculator

    result = check.check(Direct(model), load_settings(SanityConfig, None, ["suite=quick"]))
    assert result.passed is False
    assert "not derivatives of its energy" in result.lines[0]


def test_other_heads_and_settings_are_refused(model, calculator) -> None:
    with pytest.raises(HeadError, match="vector predicts a vector, and no forces"):
        model.direct_force_calculator("vector")
    with pytest.raises(HeadError, match="no such head"):
        model.direct_force_calculator("forces")
    with pytest.raises(EngineError, match="field: cannot be set"):
        calculator.set(field=(0, 0, 1))


def test_by_the_function_for_programs(folder, atoms) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConservativeWarning)
        calculator = model_zoo.load_calculator(folder, direct_forces="direct_forces")
    assert isinstance(calculator, DirectForceCalculator)
    assert calculator.get_forces(atoms).shape == (len(atoms), 3)
