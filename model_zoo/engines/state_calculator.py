"""An ASE calculator for one electronic state, based on a head for coupled states."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ..heads.features import batch_of
from ..heads.head import Head
from ..heads.states import states_of
from ..package.record import ModelRecord
from ..potential.potential import Potential
from .errors import EngineError


class StateCalculator(Calculator):
    """An ASE calculator with energy and forces of one electronic state.

    `results` also contains the energies of all K states in eV as `states` (K,), and the coupling
    vectors h of `heads/states.py` in eV/A as `couplings` (K, K, N, 3). The energy comes from the
    head alone; the energy predictions of the levels of theory are not used.
    """

    name = "evenfield_states"
    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012

    def __init__(self, potential: Potential, record: ModelRecord, head: Head, state: int = 0):
        """Prepare the calculator. `state` is counted from 0, the lowest state.

        Raises HeadError for a head of another kind, and EngineError for a state that does not
        exist.
        """
        head.require_kind("states")
        super().__init__()
        self.potential = potential
        self.head = head
        self.set(state=state)
        # ASE writes the parameters into trajectories and databases
        self.parameters["model"] = record.name

    def set(self, **changes: Any) -> dict[str, Any]:
        """Change the state; returns what changed.

        Raises EngineError for any other key, and for a state that does not exist.
        """
        # ASE's constructor calls this without arguments
        if not changes:
            return {}
        others = sorted(set(changes) - {"state"})
        if others:
            raise EngineError(f"{', '.join(others)}: cannot be set", remedy="set state")
        state = changes["state"]
        num_states = self.head.description.num_states
        if state not in range(num_states):
            raise EngineError(
                f"state={state}: {self.head.description.name} has {num_states} states",
                remedy=f"choose 0 to {num_states - 1}",
            )
        changed: dict[str, Any] = super().set(state=int(state))
        if changed:
            self.reset()
        return changed

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`.

        Raises HeadError for an element that the head was fitted without, and EngineError if a
        result is not finite.
        """
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        batch = batch_of(self.potential, [self.atoms])
        found = states_of(self.potential, batch, self.atoms, self.head)
        if not np.isfinite(found.couplings).all():
            raise EngineError("an energy or a force of this structure is not finite")
        state = self.parameters["state"]
        energy = float(found.energies[state])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": found.forces[state],
            "states": found.energies,
            "couplings": found.couplings,
        }
