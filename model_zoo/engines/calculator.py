"""The ASE calculator of a model, for one level of theory.

It gives energy, forces, stress, per-atom energies, and the features that the energy is linear in.
The functions at the end are shared with the other engines.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from ...data_pipelines.batch import Batch
from ...data_pipelines.structure import Structure
from ..compile.compiled import compile_for_inference
from ..package.folder import DTYPES
from ..package.levels import level_to_use
from ..package.record import ModelRecord
from ..potential.potential import Potential
from .errors import EngineError, UnseenElementError
from .verlet_list import VerletList


class EvenfieldCalculator(Calculator):
    """Use a model wherever ASE takes a calculator: dynamics, relaxation, phonons.

    Elements that the level of theory never saw in training are refused, because their energies
    would be guesses. What ASE writes about the calculator into trajectories and databases names
    the model with its revision.
    """

    name = "evenfield"
    # ASE reads a list here
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

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
        """Prepare a model for one level of theory; by default the model's own default.

        `dtype` is float32 or float64; by default it is that of the weights. `skin` is the margin of
        the Verlet list in A. `compiled` compiles the network at the first call, which pays for long
        dynamics. `reference` pins the model in what ASE writes.

        Raises LevelError for an unknown level of theory and where a model of several has no
        default, EngineError for an unknown dtype or skin.
        """
        super().__init__()
        self.potential = moved(potential, device, dtype)
        if compiled:
            # a copy: the model may drive other calculators, which did not ask for it
            self.potential = copy.deepcopy(self.potential)
            compile_for_inference(self.potential)

        levels = potential.config.levels_of_theory
        self.level_of_theory = level_to_use(record, levels, level_of_theory)
        self.elements = trained_elements(record, self.level_of_theory)
        self.verlet_list = VerletList(potential.config.cutoff, skin)

        # the batch of the last structure, and the atomic numbers that it was made for
        self._batch: Batch | None = None
        self._numbers = np.empty(0, int)

        # ASE writes these into trajectories and databases
        self.parameters.update(
            model=reference or record.name,
            level_of_theory=self.level_of_theory,
            dtype=str(next(self.potential.parameters()).dtype).removeprefix("torch."),
        )

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`; as ASE expects, a stress only if all three directions are periodic.

        Raises UnseenElementError, and PropertyNotImplementedError when a stress is asked for that
        does not exist.
        """
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        with torch.no_grad():
            prediction = self.potential(self._batch_of(self.atoms))

        energy = float(prediction.energy[0])
        self.results = {
            "energy": energy,
            # ASE's optimisers ask for it; without an electronic temperature it is the energy
            "free_energy": energy,
            "energies": _numpy(prediction.atom_energies),
            "forces": _numpy(prediction.forces),
        }

        # NaN where it has no meaning
        stress = _numpy(prediction.stress)
        if np.isfinite(stress).all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress[0])
        elif "stress" in (properties or []):
            raise PropertyNotImplementedError(
                "stress needs a cell that is periodic in three directions"
            )

    def get_features(self, atoms: Atoms | None = None) -> np.ndarray:
        """The features that the energy of every head is linear in, (N, readout_size).

        They are those of `atoms`, or of the structure that was calculated last.
        """
        atoms = atoms if atoms is not None else self.atoms
        if atoms is None:
            raise EngineError("get_features() needs a structure", remedy="call get_features(atoms)")
        batch = self._batch_of(atoms)
        with torch.no_grad():
            vectors, tiles = self.potential.edge_vectors(batch)
            features = self.potential.features(batch.atomic_numbers, vectors, tiles)
        return _numpy(features)

    def _batch_of(self, atoms: Atoms) -> Batch:
        """The batch of one structure.

        In dynamics the same atoms come again and again, so only what moves is replaced.
        """
        if self._batch is None or not np.array_equal(atoms.numbers, self._numbers):
            # checked here and not at every step: the elements are the same
            check_elements(atoms.numbers, self.elements, self.level_of_theory)
            self._batch = self._new_batch(atoms)
            self._numbers = atoms.numbers.copy()

        batch = self._batch
        cell = atoms.cell.array
        edge_index, cell_shifts = self.verlet_list.edges(atoms.positions, cell, atoms.pbc)
        device = batch.atomic_numbers.device
        batch.positions = torch.tensor(atoms.positions, device=device)
        batch.cell = torch.tensor(cell, device=device).unsqueeze(0)
        batch.pbc = torch.tensor(atoms.pbc, device=device).unsqueeze(0)
        batch.edge_index = torch.as_tensor(edge_index, device=device)
        batch.cell_shifts = torch.as_tensor(cell_shifts, device=device)
        return batch

    def _new_batch(self, atoms: Atoms) -> Batch:
        structure = Structure.from_atoms(atoms, self.level_of_theory, "calculator")
        config = self.potential.config
        parameter = next(self.potential.parameters())
        batch = Batch.from_structure(
            structure, config.cutoff, config.levels_of_theory, parameter.dtype
        )
        return batch.to(parameter.device)


def _numpy(tensor: Tensor) -> np.ndarray:
    # ASE works in float64, whatever the precision of the model
    return tensor.detach().cpu().double().numpy()


# --- shared with the other engines


def moved(potential: Potential, device: str | torch.device, dtype: str | None) -> Potential:
    """The potential on a device and in a dtype; itself when it is there already, else a copy.

    A copy, so that one model can drive engines of both dtypes. Raises EngineError for any dtype
    except float32, float64 and None, which keeps the present one.
    """
    parameter = next(potential.parameters())
    wanted = parameter.dtype if dtype is None else checked_dtype(dtype)
    if torch.device(device) == parameter.device and wanted == parameter.dtype:
        return potential.eval()
    return copy.deepcopy(potential).to(device=device, dtype=wanted).eval()


def checked_dtype(name: str) -> torch.dtype:
    """float32 or float64 by name; EngineError for any other."""
    if name not in DTYPES:
        raise EngineError(f"dtype={name!r}", remedy="choose float32 or float64")
    return DTYPES[name]


def trained_elements(record: ModelRecord, level_of_theory: str) -> set[int]:
    """Atomic numbers of the elements that a level of theory saw in training."""
    symbols = record.elements.get(level_of_theory, [])
    return {chemical_symbols.index(symbol) for symbol in symbols}


def check_elements(numbers: np.ndarray, known: set[int], level_of_theory: str) -> None:
    """Raise UnseenElementError when atomic numbers are not among those that are known."""
    unseen = sorted(set(numbers.tolist()) - known)
    if unseen:
        names = ", ".join(chemical_symbols[number] for number in unseen)
        raise UnseenElementError(
            f"{names}: not among the {len(known)} elements that the model was trained on "
            f"at {level_of_theory}",
            remedy=f"fine-tune it on structures with {names} first",
        )
