"""A model for torch-sim (extra `engines`): many structures at once, on one device.

from evenfield.model_zoo.torch_sim_model import EvenfieldTorchSimModel
torch_sim.integrate(system=[...], model=EvenfieldTorchSimModel(model_zoo.load("evenfield-s")), ...)
"""

from __future__ import annotations

from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from ...data_pipelines.batch import Batch
from ..hub.load import LoadedModel
from .calculator import check_elements, checked_level, moved
from .verlet_list import SkinList


class EvenfieldTorchSimModel(ModelInterface):
    """torch-sim's model interface over one level of theory of a loaded model.

    Results have the dtype of the network; a stress is NaN where the state is not periodic.  Each system keeps a
    neighbour list with a skin, which lasts as long as torch-sim keeps the system at its place.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        device: str | torch.device = "cpu",
        level_of_theory: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
    ) -> None:
        """`dtype`: float32 or float64, that of the weights when None; `skin` in A."""
        super().__init__()
        self.potential = moved(model.potential, device, dtype)
        parameter = next(self.potential.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._compute_stress = self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"
        self.level_of_theory = checked_level(model.potential, level_of_theory)
        self.head = model.potential.config.levels_of_theory.index(self.level_of_theory)
        self.elements = {
            chemical_symbols.index(s) for s in model.record.elements.get(self.level_of_theory, [])
        }
        self.skin = skin
        self._neighbours: list[SkinList] = []

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """energy (S,) eV, forces (N, 3) eV/A, stress (S, 3, 3) eV/A^3, tensile-positive."""
        if not isinstance(state, SimState):
            state = SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})
        check_elements(state.atomic_numbers.cpu().numpy(), self.elements, self.level_of_theory)
        with torch.no_grad():
            prediction = self.potential(self._batch(state))
        return {name: value.detach().to(self._dtype) for name, value in prediction.labels.items()}

    def _batch(self, state: SimState) -> Batch:
        sizes = torch.bincount(state.system_idx, minlength=state.n_systems)
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        cells = state.row_vector_cell.detach().double()
        pbc = torch.as_tensor(state.pbc, device=state.device).expand(3)
        edge_index, cell_shifts = self._edges(state, ptr, cells, pbc)
        return Batch(
            structure_index=state.system_idx,
            atomic_numbers=state.atomic_numbers.long(),
            positions=state.positions.detach().double(),
            cell=cells,
            pbc=pbc.expand(state.n_systems, 3),
            head=torch.full_like(sizes, self.head),
            edge_index=edge_index.to(state.device),
            cell_shifts=cell_shifts.to(state.device),
        )

    def _edges(
        self, state: SimState, ptr: Tensor, cells: Tensor, pbc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pairs of all systems; the search runs on the CPU, and seldom."""
        if len(self._neighbours) != state.n_systems:
            self._neighbours = [
                SkinList(self.potential.config.cutoff, self.skin) for _ in range(state.n_systems)
            ]
        positions, bounds = state.positions.detach().double().cpu().numpy(), ptr.tolist()
        rows, periodic = cells.cpu().numpy(), pbc.cpu().numpy()
        indices, shifts = [], []
        for system, neighbours in enumerate(self._neighbours):
            start, end = bounds[system], bounds[system + 1]
            index, shift = neighbours.edges(positions[start:end], rows[system], periodic)
            indices.append(torch.as_tensor(index + start))
            shifts.append(torch.as_tensor(shift))
        return torch.cat(indices, 1), torch.cat(shifts)
