"""A model for torch-sim (extra `engines`), which moves many structures at once on one device.

    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    model = EvenfieldTorchSimModel(model_zoo.load("evenfield-s"), level_of_theory="EMT")
    torch_sim.integrate(system=[...], model=model, ...)

torch-sim says "system" for what is a structure elsewhere in this package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import MissingPackageError
from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ..hub.load import LoadedModel
from .calculator import check_elements, moved, refuse_physics, refuse_results, trained_elements
from .domain_watch import DomainWatch, StructureWatch
from .verlet_list import VerletList


try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "torch_sim":
        raise
    raise MissingPackageError(
        "torch-sim", needed_for="a model for torch-sim", extra="engines"
    ) from error


class EvenfieldTorchSimModel(ModelInterface):  # type: ignore[misc]  # torch-sim ships no types
    """torch-sim's model interface, for one level of theory of a loaded model.

    Results have the dtype of the network. The stress of a system that is not periodic in three
    directions is NaN. Each system keeps a Verlet list, as long as torch-sim keeps the system at its
    place in the batch.
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
        """Prepare a model for one level of theory; by default the model's own default.

        `dtype` is float32 or float64; by default it is that of the weights. `skin` is the margin of
        the Verlet lists in A. Raises LevelError for an unknown level of theory and where a model
        of several has no default, EngineError for an unknown dtype and a model with physics.
        """
        super().__init__()
        refuse_physics(model.potential, "torch-sim")
        self.potential = moved(model.potential, device, dtype)
        self.level_of_theory = model.level_to_use(level_of_theory)
        self.head = model.potential.config.levels_of_theory.index(self.level_of_theory)
        self.elements = trained_elements(model.record, self.level_of_theory)
        self.skin = skin
        self._verlet_lists: list[VerletList] = []
        levels = model.potential.config.levels_of_theory
        self._domain_watch = DomainWatch.of(
            model.record, levels, self.level_of_theory, model.domains
        )
        self._watches: list[StructureWatch] = []

        # torch-sim's interface reads these
        parameter = next(self.potential.parameters())
        self._device = parameter.device
        self._dtype = parameter.dtype
        self._compute_stress = True
        self._compute_forces = True
        # its estimate of how many systems fit into the memory: edges, not atoms, fill it
        self._memory_scales_with = "n_atoms_x_density"

    # Forces are derivatives: they need autograd, whatever mode the caller is in.
    @own_modes()
    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """energy (S,) in eV, forces (N, 3) in eV/A, tensile-positive stress (S, 3, 3) in eV/A^3."""
        if not isinstance(state, SimState):
            # a dictionary of torch-sim may lack masses, which no prediction needs
            masses = torch.ones_like(state["positions"][:, 0])
            state = SimState(**{"masses": masses, **state})

        atomic_numbers = state.atomic_numbers.cpu().numpy()
        check_elements(atomic_numbers, self.elements, self.level_of_theory)
        batch = self._batch(state)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            prediction = self.potential(batch)

        # NaN would spread from one system into the optimiser or thermostat of all
        finite = torch.isfinite(prediction.energy).all() & torch.isfinite(prediction.forces).all()
        if not finite:
            refuse_results(batch)

        # torch-sim expects the dtype that this model states
        results = {}
        for name, value in prediction.labels.items():
            results[name] = value.detach().to(self._dtype)
        return results

    def _batch(self, state: SimState) -> Batch:
        sizes = torch.bincount(state.system_idx, minlength=state.n_systems)
        cells = state.row_vector_cell.detach().double()
        pbc = torch.as_tensor(state.pbc, device=state.device).expand(3)
        edge_index, cell_shifts = self._edges(state, sizes, cells, pbc)
        batch = Batch(
            atomic_numbers=state.atomic_numbers.long(),
            positions=state.positions.detach().double(),
            cell=cells,
            pbc=pbc.expand(state.n_systems, 3),
            edge_index=edge_index.to(state.device),
            cell_shifts=cell_shifts.to(state.device),
            structure_index=state.system_idx,
            head=torch.full_like(sizes, self.head),
        )
        # tensors of a caller in inference mode cannot be differentiated; their copies can
        return batch.clone() if state.positions.is_inference() else batch

    def _edges(
        self, state: SimState, sizes: Tensor, cells: Tensor, pbc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """edge_index (2, E) and cell_shifts (E, 3) of all systems; the search runs on the CPU."""
        # torch-sim adds and removes systems; a list that meets another system just searches again
        if len(self._verlet_lists) != state.n_systems:
            cutoff = self.potential.config.cutoff
            self._verlet_lists = [VerletList(cutoff, self.skin) for _ in range(state.n_systems)]
            watch = self._domain_watch
            self._watches = [StructureWatch(watch, own) for own in self._verlet_lists if watch]

        positions = state.positions.detach().double().cpu().numpy()
        row_cells = cells.cpu().numpy()
        periodic = pbc.cpu().numpy()
        atomic_numbers = state.atomic_numbers.cpu().numpy()

        edge_indices = []
        cell_shifts = []
        start = 0
        for system, size in enumerate(sizes.tolist()):
            verlet_list = self._verlet_lists[system]
            own_positions = positions[start : start + size]
            # the list numbers atoms from 0 in each system, the batch through all systems
            index, shifts = verlet_list.edges(own_positions, row_cells[system], periodic)
            if self._watches:
                numbers = atomic_numbers[start : start + size]
                self._watches[system].look(numbers, own_positions, row_cells[system], periodic)
            edge_indices.append(torch.as_tensor(index + start))
            cell_shifts.append(torch.as_tensor(shifts))
            start += size
        return torch.cat(edge_indices, 1), torch.cat(cell_shifts)
