"""A driver for i-PI (extra `engines`), which loads this file by its path:

    <ffdirect name='evenfield'>
      <pes> custom </pes>
      <pes_path> PATH </pes_path>
      <parameters> {template: start.extxyz, model: evenfield-s, level_of_theory: EMT} </parameters>
      <batch_size> 32 </batch_size>
    </ffdirect>

PATH is `evenfield.model_zoo.engines.i_pi_driver.__file__`. With `batch_size` equal to the number of
beads, all of them are computed in one call, which takes a fraction of the time for small systems.
i-PI's own driver for ASE cannot be used, because it stops at results that ASE does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.units import Bohr, Hartree

# by full names: i-PI loads this file outside of its package, where relative imports fail
from evenfield.core.torch_modes import own_modes
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.sources.ase_files import read_one
from evenfield.data_pipelines.structure import Structure
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
        self._move(cell, positions)
        energy = self.atoms.get_potential_energy()
        forces = self.atoms.get_forces()
        try:
            virial = -self.atoms.get_stress(voigt=False) * self.atoms.get_volume()
        except PropertyNotImplementedError:
            # without three periodic directions there is none, but i-PI asks for it all the same
            virial = np.zeros((3, 3))
        return energy / Hartree, forces * Bohr / Hartree, virial / Hartree, ""

    def compute_structures(
        self, cells: list[np.ndarray], positions: list[np.ndarray]
    ) -> list[tuple[float, np.ndarray, np.ndarray, str]]:
        """The same for several, such as the beads of a path integral."""
        calculator = self.atoms.calc
        # the calculator looks at elements and domain, and adds the physics beside a network
        results = [self.compute_structure(cells[0], positions[0])]
        if len(cells) > 1 and calculator.potential.config.physics is None:
            return results + self._in_one_call(cells[1:], positions[1:])
        rest = zip(cells[1:], positions[1:], strict=True)
        return results + [self.compute_structure(cell, own) for cell, own in rest]

    @own_modes()
    def _in_one_call(
        self, cells: list[np.ndarray], positions: list[np.ndarray]
    ) -> list[tuple[float, np.ndarray, np.ndarray, str]]:
        level = self.atoms.calc.level_of_theory
        potential = self.atoms.calc.potential
        config = potential.config
        parameter = next(potential.parameters())
        structures = []
        for cell, own in zip(cells, positions, strict=True):
            self._move(cell, own)
            # a copy, because a structure shares its positions with the atoms it was made of
            structures.append(Structure.from_atoms(self.atoms.copy(), level, "bead"))
        batch = Batch.from_structures(
            structures, config.cutoff, config.levels_of_theory, parameter.dtype
        ).to(parameter.device)
        with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
            prediction = potential(batch)
        energies = prediction.energy.double().cpu().numpy()
        forces = prediction.forces.double().cpu().numpy().reshape(len(cells), -1, 3)
        if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
            # one after the other, where the calculator names what is wrong
            pairs = zip(cells, positions, strict=True)
            return [self.compute_structure(cell, own) for cell, own in pairs]

        virials = np.zeros((len(cells), 3, 3))
        if self.atoms.pbc.all():
            volumes = np.array([abs(np.linalg.det(cell)) for cell in cells]) * Bohr**3
            stress = prediction.stress.double().cpu().numpy()
            virials = -stress * volumes[:, None, None]
        return [
            (float(energy) / Hartree, force * Bohr / Hartree, virial / Hartree, "")
            for energy, force, virial in zip(energies, forces, virials, strict=True)
        ]

    def _move(self, cell: np.ndarray, positions: np.ndarray) -> None:
        # i-PI has cell vectors in columns, ASE in rows
        self.atoms.set_cell(cell.T * Bohr)
        self.atoms.positions[:] = positions.reshape(-1, 3) * Bohr

    def __call__(self, cell: Any, positions: Any) -> Any:
        """Results of one structure, or a list of them for lists of cells and positions."""
        if isinstance(cell, list):
            return self.compute_structures(cell, positions)
        return self.compute_structure(cell, positions)
