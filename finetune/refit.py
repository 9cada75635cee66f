"""Closed-form refit of the linear readout on a frozen backbone.

With the backbone frozen, energies and forces are linear in the readout weights w of a head:
    E_s = sum_z n_sz E0_z + scale sum_{i in s} phi_i . w        F_ja = -scale d(sum_i phi_i)/dr_ja . w
so that the minimum of
    sum_s ((E_s - E_s^DFT) / N_s)^2 / sigma_E^2 + sum |F - F^DFT|^2 / sigma_F^2 + lambda |w - w_pretrained|^2
(E0 free but for a vanishing ridge) is one linear solve. Rows are streamed into the normal matrix and never kept;
lambda is chosen by generalised cross-validation (Golub, Heath and Wahba 1979).
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
from ..data_pipelines.schema import MAX_ATOMIC_NUMBER, Structure
from ..data_pipelines.settings import Settings
from ..data_pipelines.stream import pack
from ..model_zoo.potential import Potential, forces_and_stress


E0_RIDGE = 1e-8  # in units of the largest eigenvalue: breaks ties between elements only


class RefitConfig(Settings):
    """Noise that the fit assumes; only the ratio matters beside the chosen lambda."""

    energy_noise: float = Field(default=0.01, gt=0, description="eV/atom")
    force_noise: float = Field(default=0.1, gt=0, description="eV/A")


@dataclass
class NormalEquations:
    """A^T A, A^T y, y^T y and the number of rows of a whitened linear problem; sums, so they add up."""

    matrix: np.ndarray  # (P, P)
    moment: np.ndarray  # (P,)
    square: float = 0.0
    rows: int = 0

    @classmethod
    def empty(cls, size: int) -> NormalEquations:
        return cls(np.zeros((size, size)), np.zeros(size))

    def add(self, rows: np.ndarray, target: np.ndarray) -> None:
        """Add rows (R, P) with targets (R,), both already divided by the noise; NaN targets are left out."""
        labelled = np.isfinite(target)
        rows, target = rows[labelled], target[labelled]
        self.matrix += rows.T @ rows
        self.moment += rows.T @ target
        self.square += float(target @ target)
        self.rows += len(target)


@dataclass(frozen=True)
class RefitReport:
    """Outcome of a refit: lambda, effective parameters, rows, and the relative gradient left at the solution."""

    ridge: float
    effective_parameters: float
    rows: int
    relative_gradient: float


def refit_readout(
    potential: Potential, head: int, structures: list[Structure], config: RefitConfig | None = None
) -> RefitReport:
    """Refit readout weights and E0 of one head in place to energies and forces; the backbone is not touched."""
    config = config or RefitConfig()
    elements = np.unique(np.concatenate([s.atomic_numbers for s in structures]))
    size = potential.readout.weight.shape[1]
    equations = NormalEquations.empty(size + len(elements))
    for rows, target in _linear_rows(potential, head, structures, elements, config):
        equations.add(rows, target)
    if equations.rows == 0:
        raise ValueError("no structure has an energy or forces: there is nothing to fit")
    penalty = np.r_[np.ones(size), np.zeros(len(elements))]
    floor = E0_RIDGE * np.linalg.eigvalsh(equations.matrix)[-1] * (1 - penalty)
    ridge, effective = choose_ridge(equations, size, floor)
    change = np.linalg.solve(equations.matrix + np.diag(ridge * penalty + floor), equations.moment)
    gradient = equations.matrix @ change + (ridge * penalty + floor) * change - equations.moment
    with torch.no_grad():
        potential.readout.weight[head] += potential.readout.weight.new_tensor(change[:size])
        potential.e0[head, elements] += potential.e0.new_tensor(change[size:])
    scale = np.linalg.norm(equations.moment)
    return RefitReport(ridge, effective, equations.rows, float(np.linalg.norm(gradient) / max(scale, 1e-300)))


def choose_ridge(equations: NormalEquations, size: int, floor: np.ndarray) -> tuple[float, float]:
    """lambda of least GCV score n RSS / (n - tr A)^2 over 25 decades, and the effective number of parameters.

    E0 (the parameters after `size`) is eliminated first, so that the scan needs one eigendecomposition.
    """
    matrix = equations.matrix + np.diag(floor)
    w, e = slice(0, size), slice(size, None)
    to_e0 = np.linalg.solve(matrix[e, e], matrix[e, w])
    schur = matrix[w, w] - matrix[w, e] @ to_e0
    moment = equations.moment[w] - to_e0.T @ equations.moment[e]
    constant = equations.square - equations.moment[e] @ np.linalg.solve(matrix[e, e], equations.moment[e])
    values, vectors = np.linalg.eigh(0.5 * (schur + schur.T))
    values, projected = np.maximum(values, 0.0), vectors.T @ moment
    best = (np.inf, 0.0, 0.0)
    for ridge in values[-1] * np.logspace(-13, 12, 251):
        solution = projected / (values + ridge)
        rss = constant - 2 * solution @ projected + values @ solution**2
        effective = (values / (values + ridge)).sum() + len(floor) - size
        if effective < equations.rows:
            score = equations.rows * max(rss, 0.0) / (equations.rows - effective) ** 2
            best = min(best, (score, float(ridge), float(effective)))
    return best[1], best[2]


def _linear_rows(
    potential: Potential, head: int, structures: list[Structure], elements: np.ndarray, config: RefitConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whitened rows (R, d + elements) and residual targets (R,) of energies and forces, batch by batch."""
    parameter = next(potential.parameters())
    levels, cutoff = potential.config.levels_of_theory, potential.config.cutoff
    scale = float(potential.scale[head])
    graphs = (structure_graph(s, cutoff, levels, parameter.dtype) for s in structures)
    column = np.full(MAX_ATOMIC_NUMBER + 1, -1)
    column[elements] = np.arange(len(elements))
    for graph_list in pack(graphs, 20_000, 1024, 1):
        batch = collate(graph_list).to(parameter.device)
        with torch.no_grad():
            out = potential(batch)
        phi, jacobian = feature_jacobian(potential, batch)
        index, num = batch.batch.cpu().numpy(), np.bincount(batch.batch.cpu().numpy())
        composition = np.zeros((len(num), len(elements)))
        np.add.at(composition, (index, column[batch.atomic_numbers.cpu().numpy()]), 1.0)
        energy_rows = np.hstack([scale * _numpy(phi), composition]) / num[:, None] / config.energy_noise
        yield energy_rows, _numpy(batch.energy - out["energy"]) / num / config.energy_noise
        force_rows = scale * _numpy(jacobian).reshape(len(phi[0]), -1).T  # (3 N, d)
        force_rows = np.hstack([force_rows, np.zeros((len(force_rows), len(elements)))]) / config.force_noise
        yield force_rows, _numpy((batch.forces - out["forces"]).flatten()) / config.force_noise


def feature_jacobian(potential: Potential, batch: Batch) -> tuple[Tensor, Tensor]:
    """Features summed over each structure (S, d), and minus their derivative by all positions (d, N, 3).

    Times the readout weights these are the interaction energies and the forces, exactly.
    """
    with torch.enable_grad():
        vectors, tiles = potential.edge_vectors(batch)
        phi = potential.features(batch.atomic_numbers, vectors, tiles)
        total = phi.sum(0)  # structures do not see each other, so one sum serves all
        rows = []
        for feature in range(phi.shape[1]):
            (slope,) = torch.autograd.grad(total[feature], vectors, retain_graph=True)
            rows.append(forces_and_stress(slope, vectors.detach(), tiles, batch)[0])
    summed = phi.detach().double()
    summed = summed.new_zeros(batch.num_graphs, phi.shape[1]).index_add(0, batch.batch, summed)
    return summed, torch.stack(rows)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
