"""The ASE calculator: energy, forces, stress and per-atom energies of one level of theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from ..data_pipelines.graphs import collate, structure_graph
from ..data_pipelines.schema import Structure
from .package import ModelRecord
from .potential import Potential


class EvenfieldCalculator(Calculator):
    """Drives ase.md, ase.optimize and whatever else takes an ASE calculator.

    An element that the chosen level of theory never saw in training is refused: its energy would be a guess.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 - ASE's protocol

    def __init__(
        self,
        potential: Potential,
        record: ModelRecord,
        *,
        device: str = "cpu",
        level_of_theory: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.potential = potential.to(device=device, dtype=dtype).eval()
        levels = potential.config.levels_of_theory
        self.level_of_theory = level_of_theory or levels[0]
        if self.level_of_theory not in levels:
            raise ValueError(f"level_of_theory='{level_of_theory}': the model has {', '.join(levels)}")
        self.elements = {chemical_symbols.index(s) for s in record.elements.get(self.level_of_theory, [])}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`; stress only for three periodic directions, as ASE expects."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        unseen = sorted(set(self.atoms.numbers.tolist()) - self.elements)
        if unseen:
            names = ", ".join(chemical_symbols[z] for z in unseen)
            raise ValueError(
                f"{names}: not among the {len(self.elements)} elements that the model was trained on at "
                f"{self.level_of_theory}; fine-tune it on structures with {names} first"
            )
        with torch.no_grad():
            out = self.potential(self._batch(self.atoms))
        values: dict[str, Any] = {name: tensor.detach().cpu().double().numpy() for name, tensor in out.items()}
        energy = float(values["energy"][0])
        self.results = {"energy": energy, "free_energy": energy}
        self.results |= {"energies": values["energies"], "forces": values["forces"]}
        if np.isfinite(values["stress"]).all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(values["stress"][0])
        elif "stress" in (properties or []):
            raise PropertyNotImplementedError("stress needs a cell that is periodic in three directions")

    def _batch(self, atoms: Atoms) -> Any:
        parameter = next(self.potential.parameters())
        structure = Structure(
            atomic_numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            level_of_theory=self.level_of_theory,
            structure_id="calculator",
            group="",
        )
        levels = self.potential.config.levels_of_theory
        graph = structure_graph(structure, self.potential.config.cutoff, levels, parameter.dtype)
        return collate([graph]).to(parameter.device)
