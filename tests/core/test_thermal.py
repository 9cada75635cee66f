"""Thermal momenta have the temperature that was asked for."""

from __future__ import annotations

import pytest
from ase.build import bulk

from evenfield.core.thermal import set_thermal_momenta


def test_thermal_momenta_have_the_temperature() -> None:
    atoms = bulk("CuAu", "rocksalt", 5.5, cubic=True) * (5, 5, 5)
    set_thermal_momenta(atoms, 300.0, seed=0)
    for symbol in ("Cu", "Au"):
        # equipartition: light and heavy atoms have the same temperature
        chosen = atoms[[atom.symbol == symbol for atom in atoms]]
        assert chosen.get_temperature() == pytest.approx(300.0, rel=0.05)
