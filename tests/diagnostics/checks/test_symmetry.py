"""The audit of any calculator: EMT and our own model pass, and every kind of mistake is found."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from evenfield import model_zoo
from evenfield.diagnostics.check import CheckError
from evenfield.diagnostics.checks.symmetry import audit


METALS = ["Cu", "Au", "Al", "Pt"]


class Mistaken(Calculator):
    """EMT with a mistake."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 - ASE's protocol

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)

        # mistakes in what the calculator sees
        copy = self.atoms.copy()
        if self.mistake == "images forgotten":
            copy.pbc = False
        copy.calc = EMT()
        energy = copy.get_potential_energy()
        forces = copy.get_forces()
        stress = np.ones(6)
        if copy.pbc.all():
            stress = copy.get_stress()

        # mistakes in what it answers
        if self.mistake == "wrong sign":
            forces = -forces
        elif self.mistake == "stress is pressure":
            stress = -stress
        elif self.mistake == "absolute position":
            energy += 1e-3 * np.sin(copy.positions[:, 2]).sum()
        elif self.mistake == "order of atoms":
            energy += 1e-3 * float(copy.numbers @ np.arange(len(copy)))
        elif self.mistake == "net force":
            forces = forces + np.array([0.01, 0.0, 0.0])
        elif self.mistake == "not a number" and len(copy) > 8:
            forces = np.full_like(forces, np.nan)
        self.results = {"energy": energy, "forces": forces, "stress": stress}


def failures(calculator: Calculator) -> set[str]:
    return {finding.name for finding in audit(calculator, METALS) if not finding.passed}


def test_a_calculator_of_ase_passes() -> None:
    assert failures(EMT()) == set()


@pytest.mark.parametrize(("level", "symbols"), [("EMT", METALS), ("GFN1-xTB", ["Si", "O", "H"])])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_our_own_model_passes(level: str, symbols: list[str], dtype: str) -> None:
    calculator = model_zoo.load("evenfield-s").calculator(level_of_theory=level, dtype=dtype)
    single = dtype == "float32"
    findings = audit(calculator, symbols, single=single)

    # two of them are finite differences, which need float64
    assert len(findings) == (12 if single else 14)
    assert [finding for finding in findings if not finding.passed] == []


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("wrong sign", "forces are -dE/dr"),
        ("stress is pressure", "stress is dE/dstrain / V"),
        ("absolute position", "translation"),
        ("order of atoms", "renumbering"),
        ("net force", "net force on a cluster"),
        ("images forgotten", "a lattice vector"),
        ("images forgotten", "2 x 2 x 2 supercell"),
        ("not a number", "2 x 2 x 2 supercell"),
    ],
)
def test_a_mistake_is_found(mistake: str, found: str) -> None:
    assert found in failures(Mistaken(mistake))


def test_calculator_that_returns_zeros_breaks_no_symmetry() -> None:
    """Zero everywhere: the errors are zero too, not 0 / 0."""

    class Zeros(Calculator):
        implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 - ASE's protocol

        def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
            super().calculate(atoms, properties, system_changes)
            self.results = {
                "energy": 0.0,
                "forces": np.zeros((len(self.atoms), 3)),
                "stress": np.zeros(6),
            }

    assert failures(Zeros()) == set()


def test_empty_list_of_elements_is_refused() -> None:
    with pytest.raises(CheckError, match="at least one element"):
        audit(EMT(), [])
