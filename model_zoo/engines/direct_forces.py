"""An ASE calculator with direct forces: fast, but not energy-conserving.

Forces as energy derivatives need a backward pass through the network. A head of the kind `forces`
reads forces from features of the forward pass instead. Such forces are approximate and not
conservative: their work along a closed path is not zero, so a simulation without a thermostat heats
up or cools down. Use them for a first relaxation or a search, then finish with energy derivatives.
Bigi, Langer and Ceriotti, arXiv 2412.11569, show what goes wrong otherwise.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ...core.torch_modes import own_modes
from ..heads.features import edge_features, in_place_of
from ..heads.head import Head
from ..package.record import ModelRecord
from ..potential.potential import Potential
from .calculator import EvenfieldCalculator, refuse_physics, refuse_results


class NotConservativeWarning(UserWarning):
    """Forces that are not derivatives of an energy are in use."""


class DirectForceCalculator(EvenfieldCalculator):
    """An ASE calculator with the energy of a model and the forces of one of its heads.

    It gives neither stress nor uncertainties. `conserves_energy` is False, so checks of energy
    conservation refuse this calculator.
    """

    name = "evenfield_direct_forces"
    implemented_properties = ["energy", "free_energy", "energies", "forces"]  # noqa: RUF012
    settable = ("level_of_theory", "dtype", "device", "skin")
    conserves_energy = False

    def __init__(
        self, potential: Potential, record: ModelRecord, head: Head, **settings: Any
    ) -> None:
        """Prepare the calculator. It warns with NotConservativeWarning.

        `settings` are keyword arguments of EvenfieldCalculator, except heads, field and
        uncertainties. Raises HeadError if the head does not predict forces, and EngineError for a
        model with additional physics.
        """
        head.require_kind("forces")
        refuse_physics(potential, "direct forces")
        self._force_head = head
        super().__init__(potential, record, **settings)
        self.parameters["direct_forces"] = head.description.name
        warnings.warn(
            f"{head.description.name}: forces of a head are not the derivatives of the energy; use "
            "them with a thermostat or for a first relaxation only",
            NotConservativeWarning,
            stacklevel=3,
        )

    @own_modes()
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results` with the energy of the model and the forces of the head.

        Raises UnseenElementError for an element without training data, GeometryError if no
        neighbours can be searched for, HeadError for an element that the head was fitted without,
        and EngineError if a result is not finite.
        """
        # not EvenfieldCalculator.calculate, which would differentiate the energy
        Calculator.calculate(self, atoms, properties, system_changes)
        assert self.atoms is not None
        places = torch.as_tensor(self._force_head.places(self.atoms.numbers))
        batch = self._batch_of(self.atoms)
        with torch.no_grad(), torch.autocast(batch.positions.device.type, enabled=False):
            vectors, tiles = self.potential.edge_vectors(batch)
            carried = edge_features(
                self.potential, batch.atomic_numbers, vectors, tiles, "equivariant"
            )
            of_forces = carried
            if self._force_head.own is not None:
                own = in_place_of(self.potential, self._force_head.own)
                of_forces = edge_features(own, batch.atomic_numbers, vectors, tiles, "equivariant")
            energies = self.potential.energies_without_forces(
                batch, carried.invariants, vectors, tiles
            )
            forces = self._force_head.answers(
                of_forces,
                places.to(energies.device),
                batch.positions,
                batch.structure_index,
                batch.positions.new_zeros(1),
            )

        energy = float(energies.sum())
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": energies.cpu().numpy(),
            "forces": forces.cpu().numpy(),
        }
        if not all(np.isfinite(value).all() for value in self.results.values()):
            self.results = {}
            refuse_results(batch)
