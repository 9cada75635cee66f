"""`evenfield check barrier`: a path with a known barrier, and the error against an oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc100, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.errors import EvenfieldError
from evenfield.diagnostics.check import CheckError
from evenfield.diagnostics.checks import barrier

from broken_calculators import Faulty


def hop(metal: str, adsorbate: str, layers: int) -> tuple[Atoms, Atoms]:
    """An atom in one hollow of a (100) surface, and in the next."""
    slab = fcc100(metal, size=(2, 2, layers))
    add_adsorbate(slab, adsorbate, 1.7, "hollow")
    slab.center(axis=2, vacuum=4.0)
    slab.info.clear()
    slab.set_constraint(FixAtoms([atom.index for atom in slab if atom.tag > 1]))
    end = slab.copy()
    end[-1].x += slab.get_cell()[0, 0] / 2
    return slab, end


def test_gold_on_aluminium_has_the_barrier_of_ases_tutorial() -> None:
    """0.374 eV with EMT."""
    path, force = barrier.band(EMT(), *hop("Al", "Au", 3), images=3, fmax=0.05)
    energies = [atoms.get_potential_energy() for atoms in path]
    assert max(energies) - energies[0] == pytest.approx(0.374, abs=0.003)
    assert energies[-1] == pytest.approx(energies[0], abs=1e-3)
    assert force <= 0.05 and len(path) == 5


def test_a_calculator_that_fails_is_named() -> None:
    class Broken(Faulty):
        def spoil(self) -> None:
            raise RuntimeError("no convergence")

    with pytest.raises(CheckError, match=r"the path cannot be computed \(no convergence\)"):
        barrier.band(Broken(), *hop("Al", "Au", 2), images=1, fmax=0.05)


def test_the_command_shows_the_error_of_a_rate(tmp_path: Path) -> None:
    words = []
    for name, atoms in zip(("start", "end"), hop("Cu", "Cu", 2), strict=True):
        path = tmp_path / f"{name}.xyz"
        atoms.write(path, format="extxyz")
        words.append(str(path))
    options = ["--level-of-theory", "EMT", "--images", "1", "--fmax", "0.3"]
    oracle = ["--oracle", "ase.calculators.emt:EMT"]
    result = CliRunner().invoke(app, ["check", "barrier", "evenfield-s", *words, *options, *oracle])
    assert result.exit_code == 0, result.output
    height = float(result.stdout.split()[1])
    assert np.isfinite(height) and height > 0.05
    assert "the oracle has" in result.stdout
    assert "at 300 K" in result.stdout

    other = tmp_path / "other.xyz"
    molecule("H2O").write(other)
    result = CliRunner().invoke(app, ["check", "barrier", "evenfield-s", words[0], str(other)])
    assert isinstance(result.exception, EvenfieldError)
    assert "the same atoms in the same order" in str(result.exception)
