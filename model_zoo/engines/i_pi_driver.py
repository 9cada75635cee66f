"""A driver for i-PI (extra `engines`), which loads this file by its path:

    <ffdirect name='evenfield'>
      <pes> custom </pes>
      <pes_path> PATH </pes_path>
      <parameters> {template: start.extxyz, model: evenfield-s, level_of_theory: EMT} </parameters>
      <batch_size> 32 </batch_size>
    </ffdirect>

PATH is `evenfield.model_zoo.engines.i_pi_driver.__file__`. With `batch_size` equal to the number of
beads, all beads are computed in one call; for small systems, this takes a fraction of the time.
i-PI's own driver for ASE cannot be used, because it stops at results that ASE does not know.

With `heads: all`, or names such as `heads: dipole gap`, each step includes the predictions of heads
for other properties, and i-PI writes them by name:

    <trajectory filename='gap' stride='10' extra_type='gap'> extras </trajectory>

Units are the units of the head, except for `dipole` and its spread: i-PI itself reads the dipole,
in e*Bohr. Per-atom tensors are written as rows of nine numbers, because i-PI writes at most two
dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.units import Bohr, Hartree

# absolute imports: i-PI loads this file outside its package, where relative imports fail
from evenfield.core.torch_modes import own_modes
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.sources.ase_files import read_one
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.engines.errors import EngineError
from evenfield.model_zoo.heads.features import BatchFeatures
from evenfield.model_zoo.heads.head import net_charge, without_dipole
from evenfield.model_zoo.heads.results import OF_MOLECULES, ResultHeads
from evenfield.model_zoo.hub.load import load


__DRIVER_NAME__ = "evenfield"
__DRIVER_CLASS__ = "EvenfieldDriver"

# parameters that i-PI adds to those of its input file
I_PIS_OWN = {"verbosity", "verbose"}

# names of extras that have a special meaning for i-PI
MEANINGS = {
    "BEC",
    "baseline_extras",
    "committee_force",
    "committee_pot",
    "committee_virial",
    "dipole_derivative",
    "friction",
    "raw",
}


class EvenfieldDriver:
    """The driver that i-PI calls.

    i-PI passes cells (3, 3) with vectors in columns and positions (N, 3), both in Bohr.
    """

    def __init__(
        self,
        template: str,
        model: str,
        *,
        level_of_theory: str | None = None,
        device: str = "cpu",
        dtype: str = "float64",
        folder_hub: str | None = None,
        heads: str | None = None,
        **others: Any,
    ) -> None:
        """Read the atoms from the file `template`, and load a model by reference.

        The atoms must be in the same order as in i-PI. `heads` is `all`, or names of heads for
        other properties, separated by blanks.

        Raises EngineError for an unknown parameter and for a head whose name has another meaning in
        i-PI, and HeadError if the model has no heads or lacks one of those named.
        """
        # a misspelt parameter would silently leave its default in place
        unknown = sorted(set(others) - I_PIS_OWN)
        if unknown:
            raise EngineError(
                f"{', '.join(unknown)}: no such parameter",
                remedy="the parameters are template, model, level_of_theory, device, dtype, "
                "folder_hub and heads",
            )
        self.atoms = read_one(Path(template))
        loaded = load(model, folder_hub)
        names = False if heads is None else heads == "all" or heads.split()
        chosen = loaded.chosen_heads(names)
        self.heads = None if chosen is None else ResultHeads(chosen)
        taken = set() if self.heads is None else MEANINGS & set(self.heads.names)
        if taken:
            raise EngineError(
                f"{', '.join(sorted(taken))}: i-PI has another meaning for such a name",
                remedy="name the other heads, or fit this one again with another name=",
            )
        self.atoms.calc = loaded.calculator(
            device=device, level_of_theory=level_of_theory, dtype=dtype, heads=names
        )

    def compute_structure(
        self, cell: np.ndarray, positions: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, str]:
        """Compute one structure.

        Returns the energy in Hartree, forces (N, 3) in Hartree/Bohr, virial (3, 3) in Hartree, and
        the predictions of the heads as JSON.
        """
        self._move(cell, positions)
        energy = self.atoms.get_potential_energy()
        forces = self.atoms.get_forces()
        try:
            virial = -self.atoms.get_stress(voigt=False) * self.atoms.get_volume()
        except PropertyNotImplementedError:
            # i-PI needs a virial even without three periodic directions
            virial = np.zeros((3, 3))
        extras = self._extras(self.atoms.calc.results)
        return energy / Hartree, forces * Bohr / Hartree, virial / Hartree, extras

    def compute_structures(
        self, cells: list[np.ndarray], positions: list[np.ndarray]
    ) -> list[tuple[float, np.ndarray, np.ndarray, str]]:
        """Compute several structures, such as the beads of a path integral."""
        calculator = self.atoms.calc
        # the first one runs through the calculator, which checks the elements and the domain; with
        # additional physics all of them do, because only the calculator adds the physics
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
            # a copy, because a structure shares its positions with the atoms it was made from
            structures.append(Structure.from_atoms(self.atoms.copy(), level, "bead"))
        batch = Batch.from_structures(
            structures, config.cutoff, config.levels_of_theory, parameter.dtype
        ).to(parameter.device)
        with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
            prediction = potential(batch)
        energies = prediction.energy.double().cpu().numpy()
        forces = prediction.forces.double().cpu().numpy().reshape(len(cells), -1, 3)
        if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
            # one by one, so that the calculator reports what is wrong
            pairs = zip(cells, positions, strict=True)
            return [self.compute_structure(cell, own) for cell, own in pairs]

        extras = self._extras_of_batch(batch)
        virials = np.zeros((len(cells), 3, 3))
        if self.atoms.pbc.all():
            volumes = np.array([abs(np.linalg.det(cell)) for cell in cells]) * Bohr**3
            stress = prediction.stress.double().cpu().numpy()
            virials = -stress * volumes[:, None, None]
        return [
            (float(energy) / Hartree, force * Bohr / Hartree, virial / Hartree, own)
            for energy, force, virial, own in zip(energies, forces, virials, extras, strict=True)
        ]

    def _extras_of_batch(self, batch: Batch) -> list[str]:
        """The predictions of the heads for each structure in a batch, as JSON."""
        num_structures = len(batch.cell)
        if self.heads is None:
            return [""] * num_structures
        features = BatchFeatures(self.atoms.calc.potential, batch)
        charge = net_charge(self.atoms)
        with torch.no_grad():
            answers = self.heads.answers(
                features,
                batch.atomic_numbers,
                batch.positions,
                batch.structure_index,
                torch.full_like(batch.cell[:, 0, 0], charge),
            )
        if without_dipole(self.atoms) is not None:
            for name in OF_MOLECULES:
                answers.pop(name, None)
        found: list[dict[str, np.ndarray]] = [{} for _ in range(num_structures)]
        for name, answer in answers.items():
            # beads have the same atoms
            parts = answer.cpu().numpy().reshape(num_structures, -1, *answer.shape[1:])
            for own, part in zip(found, parts, strict=True):
                own[name] = part if self.heads.is_of_atoms(name) else part[0]
        return [self._extras(own) for own in found]

    def _extras(self, results: Mapping[str, Any]) -> str:
        """The results of the heads as JSON for i-PI; an empty string without heads."""
        if self.heads is None:
            return ""
        written = {}
        for name in self.heads.names:
            if name not in results:
                # for example the dipole of a periodic or charged structure
                continue
            value = np.asarray(results[name], dtype=float)
            if name in OF_MOLECULES:
                value = value / Bohr
            if value.ndim > 2:
                value = value.reshape(len(value), -1)
            written[name] = value.tolist()
        return json.dumps(written)

    def _move(self, cell: np.ndarray, positions: np.ndarray) -> None:
        # i-PI has cell vectors in columns, ASE in rows
        self.atoms.set_cell(cell.T * Bohr)
        self.atoms.positions[:] = positions.reshape(-1, 3) * Bohr

    def __call__(self, cell: Any, positions: Any) -> Any:
        """Results for one structure, or a list of results for lists of cells and positions."""
        if isinstance(cell, list):
            return self.compute_structures(cell, positions)
        return self.compute_structure(cell, positions)
