"""A driver for i-PI (extra `engines`), which loads this file by its path:

    <ffdirect name='evenfield'>
      <pes> custom </pes>
      <pes_path> PATH </pes_path>
      <parameters> {template: start.extxyz, model: evenfield-s, level_of_theory: EMT} </parameters>
    </ffdirect>

PATH is `evenfield.model_zoo.engines.i_pi_driver.__file__`. i-PI's own ASE driver stops at results that ASE does not know.
"""

from __future__ import annotations

from typing import Any, cast

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.units import Bohr, Hartree

from ..hub.load import load  # by its full name, since i-PI loads this file outside of its package


__DRIVER_NAME__ = "evenfield"
__DRIVER_CLASS__ = "EvenfieldDriver"


class EvenfieldDriver:
    """What i-PI calls with a cell (3, 3), vectors in columns, and positions (N, 3), both in Bohr."""

    def __init__(
        self,
        template: str,
        model: str,
        *,
        level_of_theory: str | None = None,
        device: str = "cpu",
        dtype: str = "float64",
        folder_hub: str | None = None,
        **_: Any,
    ) -> None:
        """`template`: a file with the atoms in i-PI's order; `model`: a reference as `model_zoo.load` takes it."""
        self.atoms = cast(Atoms, ase.io.read(template))
        loaded = load(model, folder_hub)
        self.atoms.calc = loaded.calculator(
            device=device, level_of_theory=level_of_theory, dtype=dtype
        )

    def compute_structure(
        self, cell: np.ndarray, positions: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, str]:
        """Energy (Hartree), forces (N, 3) (Hartree/Bohr), virial (3, 3) (Hartree), and no extras."""
        self.atoms.set_cell(cell.T * Bohr)
        self.atoms.positions[:] = positions.reshape(-1, 3) * Bohr
        energy, forces = self.atoms.get_potential_energy(), self.atoms.get_forces()
        try:
            virial = -self.atoms.get_stress(voigt=False) * self.atoms.get_volume()
        except PropertyNotImplementedError:  # not periodic: i-PI asks for a virial all the same
            virial = np.zeros((3, 3))
        return energy / Hartree, forces * Bohr / Hartree, virial / Hartree, ""

    def __call__(self, cell: Any, positions: Any) -> Any:
        """One structure, or lists of them."""
        if isinstance(cell, list):
            return [self.compute_structure(c, p) for c, p in zip(cell, positions, strict=True)]
        return self.compute_structure(cell, positions)
