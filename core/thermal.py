"""Thermal momenta of atoms, for all molecular dynamics that evenfield starts."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units


def set_thermal_momenta(atoms: Atoms, temperature: float, seed: int) -> None:
    """Draw the momenta of all atoms from the Maxwell-Boltzmann distribution at `temperature` (K).

    Each component is normally distributed with variance m k T. ASE has two functions for this, but
    each of them is missing or deprecated in one of the ASE versions that we support.
    """
    random = np.random.default_rng(seed).standard_normal((len(atoms), 3))
    widths = np.sqrt(atoms.get_masses() * (units.kB * temperature))
    atoms.set_momenta(random * widths[:, None])
