"""The oracle that is a shell command: labels of the right structure, or the reason why not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield.data_pipelines.demo.oracles import OracleError, RejectedStructure
from evenfield.data_pipelines.enrich.label_oracles import check_oracle, label, new_calculator


PROGRAM = """
import sys
import ase.io
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
atoms = ase.io.read(sys.argv[1])
{before}
atoms.calc = EMT()
results = dict(energy=atoms.get_potential_energy(), forces=atoms.get_forces())
{after}
atoms.calc = SinglePointCalculator(atoms, **results)
ase.io.write(sys.argv[2], atoms)
"""


@pytest.fixture
def atoms() -> Atoms:
    made = bulk("Cu", cubic=True)
    made.symbols[0] = "Au"
    made.rattle(0.1, seed=0)
    return made


def labelled(atoms: Atoms, folder: Path, before: str = "", after: str = "") -> Atoms:
    program = folder / "a program.py"
    program.write_text(PROGRAM.format(before=before, after=after))
    command = f"'{sys.executable}' '{program}' {{input}} {{output}}"
    settings = {"command": command}
    check_oracle("command", settings)
    return label(atoms, new_calculator("command", settings), 50.0)


def test_labels_are_those_of_the_program(atoms: Atoms, tmp_path: Path) -> None:
    found = labelled(atoms, tmp_path)
    atoms.calc = EMT()
    # extxyz keeps eight decimals
    assert found.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert np.allclose(found.get_forces(), atoms.get_forces(), rtol=0, atol=1e-6)
    assert np.array_equal(found.positions, atoms.positions)
    # a program may wrap atoms into the cell
    wrapped = labelled(atoms, tmp_path, before="atoms.positions[1] += atoms.cell[0]")
    assert np.allclose(wrapped.get_forces(), found.get_forces(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("atoms = atoms[::-1]", "", "the output has the atoms in another order"),
        ("atoms = atoms[[0, 2, 1, 3]]", "", "another order, or moved: atom 2 is"),
        ("atoms = atoms[:3]", "", "the output has 3 atoms instead of 4"),
        (
            "atoms.set_cell(1.2 * atoms.cell)",
            "",
            "the output has another cell: a vector differs by",
        ),
        ("atoms.pbc = False", "", "the output is periodic along [False, False, False]"),
        ("atoms.positions[1, 0] += 0.01", "", "or moved: atom 1 is 0.01 A from where it was"),
        ("", "del results['forces']", "the output has no forces"),
        ("", "raise SystemExit('SCF not converged')", "exit code 1: SCF not converged"),
        ("", "raise SystemExit(0)", "the command wrote no output file"),
    ],
)
def test_what_is_wrong_is_named(
    before: str, after: str, reason: str, atoms: Atoms, tmp_path: Path
) -> None:
    with pytest.raises(RejectedStructure) as told:
        labelled(atoms, tmp_path, before, after)
    assert told.value.reason == "calculation_failed"
    assert reason in told.value.detail


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "takes one setting"),
        ({"command": False}, "command=False is no command"),
        ({"command": "run {input}"}, "does not name {output}"),
        ({"command": "run {input} {output}", "more": 1}, "takes one setting"),
    ],
)
def test_commands_that_cannot_be_used(settings: dict[str, object], message: str) -> None:
    with pytest.raises(OracleError, match=message):
        check_oracle("command", settings)
