"""A model for torch-sim (extra `engines`), which simulates many structures at once on one device.

    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    model = EvenfieldTorchSimModel(model_zoo.load("evenfield-s"), level_of_theory="EMT")
    torch_sim.integrate(system=[...], model=model, ...)

Heads for other properties can be added to the outputs, and to trajectories:

    model = EvenfieldTorchSimModel(model_zoo.load("heads"), heads=True)
    reporter = {"filenames": [...], "prop_calculators": {10: model.property_calculators()}}
    torch_sim.integrate(system=[...], model=model, trajectory_reporter=reporter, ...)

torch-sim calls a structure a "system".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.errors import MissingPackageError
from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ..heads.features import BatchFeatures
from ..heads.results import OF_MOLECULES, ResultHeads
from ..hub.load import LoadedModel
from .calculator import check_elements, moved, refuse_physics, refuse_results, trained_elements
from .domain_watch import DomainWatch, StructureWatch
from .errors import EngineError
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
    """torch-sim's model interface for one level of theory of a loaded model.

    Results have the dtype of the network. The stress of a system that is not periodic in three
    directions is NaN, and so is the dipole of a periodic system. Each system has a Verlet list,
    which is reused as long as the system keeps its position in the batch.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        device: str | torch.device = "cpu",
        level_of_theory: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
        heads: bool | Sequence[str] = False,
    ) -> None:
        """Prepare a model for one level of theory; by default, the default level of the model.

        `dtype` is float32 or float64; the default is the dtype of the weights. `skin` is the margin
        of the Verlet lists in A. `heads` adds the predictions of heads for other properties: True
        for all of them, or a list of names, as in `LoadedModel.calculator`. torch-sim has no net
        charges, so all systems are neutral.

        Raises LevelError for an unknown level of theory, or if the model has several levels and no
        default; EngineError for an invalid device or dtype, and for a model with physics; HeadError
        if the model has no heads or lacks one of those named.
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

        chosen = model.chosen_heads(heads)
        self.heads = None if chosen is None else ResultHeads(chosen)
        # the last systems passed to the heads, and the results
        self._asked: tuple[list[Tensor], dict[str, Tensor]] | None = None

        # torch-sim's interface reads these attributes
        parameter = next(self.potential.parameters())
        self._device = parameter.device
        self._dtype = parameter.dtype
        self._compute_stress = True
        self._compute_forces = True
        # how torch-sim estimates the number of systems that fit into memory: edges fill it, not
        # atoms
        self._memory_scales_with = "n_atoms_x_density"

    # Forces need autograd, whatever torch modes the caller has set.
    @own_modes()
    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Predict energy (S,) in eV, forces (N, 3) in eV/A and stress (S, 3, 3) in eV/A^3.

        The stress is tensile-positive. A model with learned charges adds `charges` (N,) in e. Heads
        add per-system properties (S, ...), class probabilities (S, K) and per-atom properties
        (N, ...), under the same names as in the calculator's results.

        Raises UnseenElementError for an element without training data, EngineError if a result is
        not finite, and HeadError for an element that a head was fitted without.
        """
        state = self._whole(state)
        self._keep_lists(state)
        batch = self._batch(state, self._verlet_lists, self._watches)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            prediction = self.potential(batch)

        # NaN would spread from one system to the optimiser or thermostat of all systems
        finite = torch.isfinite(prediction.energy).all() & torch.isfinite(prediction.forces).all()
        if not finite:
            refuse_results(batch)

        # torch-sim expects the dtype that this model declares
        results = {}
        for name, value in prediction.labels.items():
            results[name] = value.detach().to(self._dtype)
        if prediction.charges is not None:
            results["charges"] = prediction.charges.to(self._dtype)
        if self.heads is not None:
            # last, as in the calculator: fitted charges take precedence over learned ones
            results |= self._of_heads(self.heads, batch)
        return results

    @property
    def implemented_properties(self) -> list[str]:
        """The names of all outputs."""
        names = ["energy", "forces", "stress"]
        if self.potential.config.charges:
            names.append("charges")
        return list(dict.fromkeys([*names, *self._names_of_heads()]))

    def property_calculators(
        self, names: Sequence[str] | None = None
    ) -> dict[str, Callable[[SimState], Tensor]]:
        """Functions for `prop_calculators` of torch-sim's reporter; by default, one per property.

        Each function takes one system, as the reporter passes it. Functions that are called for the
        same system share one pass through the network. Raises EngineError for a name that no head
        predicts.
        """
        known = self._names_of_heads()
        chosen = known if names is None else list(names)
        unknown = sorted(set(chosen) - set(known))
        if unknown or not chosen:
            raise EngineError(
                f"{', '.join(unknown) or 'no property'}: no head of this model gives it",
                remedy=f"choose from {', '.join(known)}" if known else "make the model with heads=",
            )
        return {name: self._calculator_of(name) for name in chosen}

    def _calculator_of(self, name: str) -> Callable[[SimState], Tensor]:
        assert self.heads is not None
        is_of_atoms = self.heads.is_of_atoms(name)

        def calculate(state: SimState) -> Tensor:
            found = self.properties_of(state)[name]
            return found if is_of_atoms else found[0]

        return calculate

    def _names_of_heads(self) -> list[str]:
        return [] if self.heads is None else self.heads.names

    @own_modes()
    def properties_of(self, state: SimState | dict[str, Any]) -> dict[str, Tensor]:
        """The predictions of the heads, as in `forward`, but without energy and forces.

        Raises EngineError if the model was made without heads.
        """
        if self.heads is None:
            raise EngineError("the model was made without heads", remedy="make it with heads=True")
        state = self._whole(state)
        asked = [state.positions, state.cell, state.atomic_numbers, state.system_idx]
        asked.append(torch.as_tensor(state.pbc, device=state.device))
        if self._asked is not None and all(map(_are_equal, asked, self._asked[0])):
            return self._asked[1]

        # a reporter passes systems one by one, so the Verlet lists of the dynamics do not apply
        lists = [VerletList(self.potential.config.cutoff, 0.0) for _ in range(state.n_systems)]
        found = self._of_heads(self.heads, self._batch(state, lists, []))
        self._asked = ([tensor.clone() for tensor in asked], found)
        return found

    def _of_heads(self, heads: ResultHeads, batch: Batch) -> dict[str, Tensor]:
        features = BatchFeatures(self.potential, batch)
        neutral = batch.positions.new_zeros(len(batch.cell))
        with torch.no_grad():
            found = heads.answers(
                features, batch.atomic_numbers, batch.positions, batch.structure_index, neutral
            )
        for name in OF_MOLECULES & set(found):
            found[name][batch.pbc.any(1)] = torch.nan
        return {name: value.to(self._dtype) for name, value in found.items()}

    def _whole(self, state: SimState | dict[str, Any]) -> SimState:
        """Convert `state` to a SimState and check its elements."""
        if not isinstance(state, SimState):
            # a dictionary of torch-sim may lack masses, which no prediction needs
            masses = torch.ones_like(state["positions"][:, 0])
            state = SimState(**{"masses": masses, **state})
        check_elements(state.atomic_numbers.cpu().numpy(), self.elements, self.level_of_theory)
        return state

    def _keep_lists(self, state: SimState) -> None:
        """Make sure that there are as many Verlet lists as systems."""
        # torch-sim adds and removes systems; a list that gets another system searches again
        if len(self._verlet_lists) != state.n_systems:
            cutoff = self.potential.config.cutoff
            self._verlet_lists = [VerletList(cutoff, self.skin) for _ in range(state.n_systems)]
            watch = self._domain_watch
            self._watches = [StructureWatch(watch, own) for own in self._verlet_lists if watch]

    def _batch(
        self, state: SimState, lists: list[VerletList], watches: list[StructureWatch]
    ) -> Batch:
        """The batch of all systems with their edges. `watches` belong to `lists`, or are empty."""
        sizes = torch.bincount(state.system_idx, minlength=state.n_systems)
        cells = state.row_vector_cell.detach().double()
        pbc = torch.as_tensor(state.pbc, device=state.device).expand(3)
        edge_index, cell_shifts = self._edges(state, sizes, cells, pbc, lists, watches)
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
        # tensors made in inference mode cannot be differentiated, but copies can
        return batch.clone() if state.positions.is_inference() else batch

    @staticmethod
    def _edges(
        state: SimState,
        sizes: Tensor,
        cells: Tensor,
        pbc: Tensor,
        lists: list[VerletList],
        watches: list[StructureWatch],
    ) -> tuple[Tensor, Tensor]:
        """edge_index (2, E) and cell_shifts (E, 3) of all systems; the search runs on the CPU."""
        positions = state.positions.detach().double().cpu().numpy()
        row_cells = cells.cpu().numpy()
        periodic = pbc.cpu().numpy()
        atomic_numbers = state.atomic_numbers.cpu().numpy()

        edge_indices = []
        cell_shifts = []
        start = 0
        for system, size in enumerate(sizes.tolist()):
            own_positions = positions[start : start + size]
            # a Verlet list numbers the atoms of its system from 0, the batch those of all systems
            index, shifts = lists[system].edges(own_positions, row_cells[system], periodic)
            if watches:
                numbers = atomic_numbers[start : start + size]
                watches[system].look(numbers, own_positions, row_cells[system], periodic)
            edge_indices.append(torch.as_tensor(index + start))
            cell_shifts.append(torch.as_tensor(shifts))
            start += size
        return torch.cat(edge_indices, 1), torch.cat(cell_shifts)


def _are_equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)
