"""The ASE calculator: energy, forces, stress, per-atom energies and features of one level of theory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from ...data_pipelines.batch import Batch
from ...data_pipelines.structure import Structure
from ..package.folder import DTYPES, ModelRecord
from ..potential.potential import Potential
from .verlet_list import SkinList


class EvenfieldCalculator(Calculator):
    """Drives ase.md, ase.optimize and whatever else takes an ASE calculator.

    An element that the chosen level of theory never saw in training is refused: its energy would be a guess.  What
    ASE writes of the calculator into trajectories and databases names the model with its revision.
    """

    name = "evenfield"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 - ASE's protocol

    def __init__(
        self,
        potential: Potential,
        record: ModelRecord,
        *,
        device: str = "cpu",
        level_of_theory: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
        compiled: bool = False,
        reference: str | None = None,
    ) -> None:
        """`dtype`: float32 or float64, that of the weights when None. `skin` in A, see skin_list.py.

        `compiled`: torch.compile at the first call, for long dynamics; see compiled.py.
        """
        super().__init__()
        self.potential = moved(potential, device, dtype)
        if compiled:
            self.potential = copy.deepcopy(self.potential)
            self.potential.use_compiler()
        self.level_of_theory = checked_level(potential, level_of_theory)
        self.elements = {
            chemical_symbols.index(s) for s in record.elements.get(self.level_of_theory, [])
        }
        self.neighbours = SkinList(potential.config.cutoff, skin)
        self._batch: Any = None
        self._numbers = np.empty(0, int)
        kind = str(next(self.potential.parameters()).dtype).removeprefix("torch.")
        self.parameters.update(
            model=reference or record.name, level_of_theory=self.level_of_theory, dtype=kind
        )

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`; stress only for three periodic directions, as ASE expects."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        with torch.no_grad():
            prediction = self.potential(self._batch_of(self.atoms))
        energy = float(prediction.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": _numpy(prediction.atom_energies),
            "forces": _numpy(prediction.forces),
        }
        stress = _numpy(prediction.stress)
        if np.isfinite(stress).all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress[0])
        elif "stress" in (properties or []):
            raise PropertyNotImplementedError(
                "stress needs a cell that is periodic in three directions"
            )

    def get_features(self, atoms: Atoms | None = None) -> np.ndarray:
        """What every head's energy is linear in, (N, readout_size), of `atoms` or of those last calculated."""
        atoms = atoms if atoms is not None else self.atoms
        if atoms is None:
            raise ValueError("get_features(atoms): there are no atoms yet")
        batch = self._batch_of(atoms)
        with torch.no_grad():
            vectors, tiles = self.potential.edge_vectors(batch)
            features = self.potential.features(batch.atomic_numbers, vectors, tiles)
        return features.cpu().double().numpy()

    def _batch_of(self, atoms: Atoms) -> Any:
        """The batch of one structure; of the same atoms as before only what has moved is made anew."""
        positions, cell, pbc = atoms.positions, atoms.cell.array, atoms.pbc
        if self._batch is None or not np.array_equal(atoms.numbers, self._numbers):
            check_elements(atoms.numbers, self.elements, self.level_of_theory)
            self._batch, self._numbers = self._new_batch(atoms), atoms.numbers.copy()
        edge_index, cell_shifts = self.neighbours.edges(positions, cell, pbc)
        device = self._batch.atomic_numbers.device
        self._batch.positions = torch.tensor(positions, device=device)
        self._batch.cell = torch.tensor(cell, device=device).unsqueeze(0)
        self._batch.pbc = torch.tensor(pbc, device=device).unsqueeze(0)
        self._batch.edge_index = torch.as_tensor(edge_index, device=device)
        self._batch.cell_shifts = torch.as_tensor(cell_shifts, device=device)
        return self._batch

    def _new_batch(self, atoms: Atoms) -> Any:
        structure = Structure.from_atoms(atoms, self.level_of_theory, "calculator")
        config = self.potential.config
        parameter = next(self.potential.parameters())
        batch = Batch.from_structure(
            structure, config.cutoff, config.levels_of_theory, parameter.dtype
        )
        return batch.to(parameter.device)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def moved(potential: Potential, device: str | torch.device, dtype: str | None) -> Potential:
    """The potential itself when it is there already, else a copy; one model can drive calculators of both dtypes."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose float32 or float64")
    parameter = next(potential.parameters())
    wanted = DTYPES[dtype] if dtype else parameter.dtype
    if torch.device(device) == parameter.device and wanted == parameter.dtype:
        return potential.eval()
    return copy.deepcopy(potential).to(device=device, dtype=wanted).eval()


def checked_level(potential: Potential, level_of_theory: str | None) -> str:
    """The named level of theory, or the model's first; ValueError for one that it does not have."""
    levels = potential.config.levels_of_theory
    if level_of_theory not in (None, *levels):
        raise ValueError(f"level_of_theory='{level_of_theory}': the model has {', '.join(levels)}")
    return level_of_theory or levels[0]


def check_elements(numbers: np.ndarray, known: set[int], level_of_theory: str) -> None:
    """ValueError that names the elements which the level of theory never saw."""
    unseen = sorted(set(numbers.tolist()) - known)
    if unseen:
        names = ", ".join(chemical_symbols[z] for z in unseen)
        raise ValueError(
            f"{names}: not among the {len(known)} elements that the model was trained on at "
            f"{level_of_theory}; fine-tune it on structures with {names} first"
        )
