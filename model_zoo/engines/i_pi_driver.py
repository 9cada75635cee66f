"""A driver for i-PI (extra `engines`), which loads this file by its path:

    <ffdirect name='evenfield'>
      <pes> custom </pes>
      <pes_path> PATH </pes_path>
      <parameters> {template: start.extxyz, model: evenfield-s, level_of_theory: EMT} </parameters>
    </ffdirect>

PATH is `evenfield.model_zoo.engines.i_pi_driver.__file__`. i-PI's own driver for ASE cannot be
used, because it stops at results that ASE does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.units import Bohr, Hartree

# by full names: i-PI loads this file outside of its package, where relative imports fail
from evenfield.data_pipelines.sources.ase_files import read_one
from evenfield.model_zoo.engines.errors import EngineError
from evenfield.model_zoo.hub.load import load


__DRIVER_NAME__ = "evenfield"
__DRIVER_CLASS__ = "EvenfieldDriver"

# what i-PI adds to the parameters of its input file
I_PIS_OWN = {"verbosity", "verbose"}


class EvenfieldDriver:
    """What i-PI calls with cells (3, 3), vectors in columns, and positions (N, 3), both in Bohr."""

    def __init__(
        self,
        template: str,
        model: str,
        *,
        level_of_theory: str | None = None,
        device: str = "cpu",
        dtype: str = "float64",
        folder_hub: str | None = None,
        **others: Any,
    ) -> None:
        """Read the atoms, in i-PI's order, from the file `template`, and load a model by reference.

        Raises EngineError for a parameter that is neither ours nor i-PI's.
        """
        # a misspelt parameter would leave its default in place
        unknown = sorted(set(others) - I_PIS_OWN)
        if unknown:
            raise EngineError(
                f"{', '.join(unknown)}: no such parameter",
                remedy="the parameters are template, model, level_of_theory, device, dtype and "
                "folder_hub",
            )
        self.atoms = read_one(Path(template))
        self.atoms.calc = load(model, folder_hub).calculator(
            device=device, level_of_theory=level_of_theory, dtype=dtype
        )

    def compute_structure(
        self, cell: np.ndarray, positions: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, str]:
        """Energy (Hartree), forces (N, 3) (Hartree/Bohr), virial (3, 3) (Hartree), no extras."""
        # i-PI has cell vectors in columns, ASE in rows
        self.atoms.set_cell(cell.T * Bohr)
        self.atoms.positions[:] = positions.reshape(-1, 3) * Bohr
        energy = self.atoms.get_potential_energy()
        forces = self.atoms.get_forces()
        try:
            virial = -self.atoms.get_stress(voigt=False) * self.atoms.get_volume()
        except PropertyNotImplementedError:
            # without three periodic directions there is none, but i-PI asks for it all the same
            virial = np.zeros((3, 3))
        return energy / Hartree, forces * Bohr / Hartree, virial / Hartree, ""

    def __call__(self, cell: Any, positions: Any) -> Any:
        """Results of one structure, or a list of them for lists of cells and positions."""
        if isinstance(cell, list):
            pairs = zip(cell, positions, strict=True)
            return [self.compute_structure(own_cell, own) for own_cell, own in pairs]
        return self.compute_structure(cell, positions)
