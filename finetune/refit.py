"""Closed-form refit of the linear readout on a frozen backbone.

With the backbone frozen, energies and forces are linear in the readout weights of a head, which are shared (w) or an
element's own (v_z):
    E_s = sum_z n_sz E0_z + scale sum_{i in s} phi_i . (w + v_{z_i})        F_ja = -dE/dr_ja
so that the minimum of
    sum_s (E_s - E_s^DFT)^2 / (N_s sigma_s)^2 + sum |F - F^DFT|^2 / sigma_F,s^2 + pull toward the pretrained weights
is one linear solve. Own weights are refitted for elements that the head never saw; E0 as in reference_energies.py.
A structure's noise sigma_s is the assumed floor and its own residual before the refit, added in squares: one
far-off structure then counts once, not a hundred times (one step of iteratively reweighted least squares).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from ..data_pipelines.graphs import collate, structure_graph
from ..data_pipelines.packing import pack
from ..data_pipelines.schema import Structure
from ..data_pipelines.settings import Settings
from ..model_zoo.potential import Potential, forces_and_stress
from .linear_system import Fold, choose_pull
from .reference_energies import reference_precision


MAX_FOLDS = 16
Rows = tuple[np.ndarray, np.ndarray]


class RefitConfig(Settings):
    """Floor of the noise that the fit assumes."""

    energy_noise: float = Field(default=0.01, gt=0, description="eV/atom")
    force_noise: float = Field(default=0.1, gt=0, description="eV/A")


@dataclass(frozen=True)
class RefitReport:
    """Outcome: labels used, cross-validated error before and after in units of the noise, and the gradient left.

    `relative_gradient` is |gradient| / |moment| of the objective at the solution: 0 up to rounding.
    """

    rows: int
    error_before: float
    error_after: float
    relative_gradient: float


@dataclass(frozen=True)
class Parameters:
    """Layout of the unknowns: shared weights, own weights of the new elements, E0 of all elements present."""

    size: int  # features d
    new_elements: np.ndarray
    elements: np.ndarray

    @property
    def num_weights(self) -> int:
        return self.size * (1 + len(self.new_elements))

    @property
    def num(self) -> int:
        return self.num_weights + len(self.elements)

    def pattern(self, shared: float = 0.0, own: float = 0.0, e0: np.ndarray | float = 0.0) -> np.ndarray:
        """A vector over the unknowns, constant over each kind."""
        parts = np.repeat([shared, own], [self.size, self.num_weights - self.size])
        return np.concatenate([parts, np.broadcast_to(e0, len(self.elements))])


def refit_readout(
    potential: Potential,
    head: int,
    structures: list[Structure],
    *,
    known: set[int],
    known_e0: set[int],
    config: RefitConfig | None = None,
) -> RefitReport:
    """Refit readout weights and E0 of one head in place to energies and forces; the backbone is not touched.

    `known` and `known_e0` are the atomic numbers for which the head's weights and its E0 were trained. Raises
    ValueError without any label.
    """
    elements = np.unique(np.concatenate([s.atomic_numbers for s in structures]))
    new = np.array([z for z in elements if z not in known], dtype=int)
    layout = Parameters(potential.readout.weight.shape[1], new, elements)
    folds = [Fold.empty(layout.num) for _ in range(min(MAX_FOLDS, len(structures)))]
    for k, fold in enumerate(folds):
        for energy, forces in _linear_rows(
            potential, head, structures[k :: len(folds)], layout, config or RefitConfig()
        ):
            fold.energy.add(*energy)
            fold.forces.add(*forces)
    total = sum((fold.all for fold in folds[1:]), folds[0].all)
    if total.rows == 0:
        raise ValueError("no structure has an energy or forces: there is nothing to fit")
    e0_pull = layout.pattern(e0=reference_precision(elements, known_e0))
    choice = choose_pull(folds, layout.pattern(shared=1.0), layout.pattern(own=1.0), e0_pull)
    change = total.solve(choice.pull)
    gradient = total.matrix @ change + choice.pull * change - total.moment
    _apply_change(potential, head, layout, change)
    relative = float(np.linalg.norm(gradient) / max(float(np.linalg.norm(total.moment)), 1e-300))
    return RefitReport(total.rows, choice.error_before, choice.error_after, relative)


def _apply_change(potential: Potential, head: int, layout: Parameters, change: np.ndarray) -> None:
    weights = change[: layout.num_weights].reshape(-1, layout.size)
    readout = potential.readout
    with torch.no_grad():
        readout.weight[head] += readout.weight.new_tensor(weights[0])
        readout.element_weight[head, layout.new_elements] += readout.weight.new_tensor(weights[1:])
        potential.e0[head, layout.elements] += potential.e0.new_tensor(change[layout.num_weights :])


def _linear_rows(
    potential: Potential, head: int, structures: list[Structure], layout: Parameters, config: RefitConfig
) -> Iterator[tuple[Rows, Rows]]:
    """Rows (R, P) and targets (R,) of energies and of forces, over the noise, batch by batch."""
    parameter = next(potential.parameters())
    levels, cutoff = potential.config.levels_of_theory, potential.config.cutoff
    scale = float(potential.scale[head])
    graphs = (structure_graph(s, cutoff, levels, parameter.dtype) for s in structures)
    for graph_list in pack(graphs, 20_000, 1024, 1):
        batch = collate(graph_list).to(parameter.device)
        with torch.no_grad():
            out = potential(batch)
        z, index = _numpy(batch.atomic_numbers).astype(int), _numpy(batch.batch).astype(int)
        num = np.bincount(index)
        phi, jacobian = feature_jacobian(potential, batch, layout.new_elements.tolist())
        composition = np.zeros((len(num), len(layout.elements)))
        np.add.at(composition, (index, np.searchsorted(layout.elements, z)), 1.0)
        energy_error = _numpy(batch.energy - out["energy"]) / num
        force_error = _numpy(batch.forces - out["forces"])
        energy_noise = np.hypot(config.energy_noise, np.nan_to_num(energy_error))
        force_noise = np.repeat(_force_noise(force_error, index, len(num), config.force_noise)[index], 3)
        energy_rows = np.hstack([scale * _numpy(phi), composition]) / (num * energy_noise)[:, None]
        force_rows = scale * _numpy(jacobian).reshape(layout.num_weights, -1).T / force_noise[:, None]
        force_rows = np.hstack([force_rows, np.zeros((len(force_rows), len(layout.elements)))])
        yield (energy_rows, energy_error / energy_noise), (force_rows, force_error.ravel() / force_noise)


def _force_noise(error: np.ndarray, index: np.ndarray, num_structures: int, floor: float) -> np.ndarray:
    """Noise (S,) of each structure's force components: the floor and their RMS residual, added in squares."""
    square = np.bincount(index, np.nan_to_num(error**2).mean(1), num_structures)
    return np.sqrt(floor**2 + square / np.bincount(index, minlength=num_structures))


def feature_jacobian(potential: Potential, batch: Batch, new_elements: list[int]) -> tuple[Tensor, Tensor]:
    """Features summed over each structure (S, P), and minus their derivative by all positions (P, N, 3).

    P counts the features summed over all atoms, then over the atoms of each new element. Times the readout
    weights these are the interaction energies and the forces, exactly.
    """
    with torch.enable_grad():
        vectors, tiles = potential.edge_vectors(batch)
        phi = potential.features(batch.atomic_numbers, vectors, tiles)
        masks = [torch.ones_like(phi[:, :1]), *((batch.atomic_numbers == z).unsqueeze(1) for z in new_elements)]
        blocks = torch.cat([phi * mask for mask in masks], dim=1)  # (N, P)
        total = blocks.sum(0)  # structures do not see each other, so one sum serves all
        rows = []
        for feature in total:
            (slope,) = torch.autograd.grad(feature, vectors, retain_graph=True)
            rows.append(forces_and_stress(slope, vectors.detach(), tiles, batch)[0])
    blocks = blocks.detach().double()
    summed = blocks.new_zeros(batch.num_graphs, blocks.shape[1]).index_add(0, batch.batch, blocks)
    return summed, torch.stack(rows)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
