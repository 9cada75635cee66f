"""Thermal velocities of atoms, for every dynamics that evenfield starts."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units


def set_thermal_momenta(atoms: Atoms, temperature: float, seed: int) -> None:
    """Draw the momenta of all atoms from the Maxwell-Boltzmann distribution at `temperature` in K.

    Each component is normal with variance m k T. ASE has two functions for this, of which each is
    missing or deprecated in one of the versions that we allow.
    """
    random = np.random.default_rng(seed).standard_normal((len(atoms), 3))
    widths = np.sqrt(atoms.get_masses() * (units.kB * temperature))
    atoms.set_momenta(random * widths[:, None])
