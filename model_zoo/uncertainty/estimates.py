"""Uncertainties of one structure, for the calculator: all of them from one pass of the network.

The committee differs from the model only in the last weights, so that features are shared and each
direction in which members differ costs one more backward pass, and no memory: the passes come one
after the other. Everything else is made from features that are there anyway.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data_pipelines.batch import Batch
from ..network.interface import MAX_ATOMIC_NUMBER
from ..network.tiles import Tiles
from ..potential.derivatives import EdgeSlopes, forces_and_stress
from ..potential.potential import Potential
from ..potential.prediction import Prediction
from .record import LevelUncertainty


# what the calculator adds to its results, `stress_radius` only where there is a stress and a radius
ADDED = (
    "energy_std",
    "energy_radius",
    "forces_std",
    "forces_radius",
    "stress_radius",
    "committee_disagreement",
    "max_committee_disagreement",
    "distance",
    "inside",
)


class CommitteeSlopes:
    """`energies_and_slopes` of a potential, which keeps what the uncertainties are made of."""

    tile_size: int | None = None

    def __init__(self, potential: Potential, directions: Tensor) -> None:
        """`directions` (K, d) of the weights, times the scale of the head."""
        self._potential = potential
        self._directions = directions
        self.phi = torch.empty(0)
        """(N, d) features of the last call."""
        self._slopes: list[Tensor] = []
        self._vectors = torch.empty(0)
        self._tiles: Tiles | None = None

    def __call__(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> EdgeSlopes:
        """Atomic numbers (N,), heads (N,) and vectors (E, 3) in A -> energies and slopes."""
        self._slopes = []
        left = len(self._directions)
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            energies, hidden = self._potential.interaction(atomic_numbers, head, vectors, tiles)
            phi = self._potential.readout.activation(hidden)
            (slopes,) = torch.autograd.grad(energies.sum(), vectors, retain_graph=left > 0)
            for direction in self._directions:
                # the graph is freed by its last use
                left -= 1
                (along,) = torch.autograd.grad(
                    phi, vectors, direction.expand_as(phi), retain_graph=left > 0
                )
                self._slopes.append(along)
        self.phi = phi.detach()
        self._vectors = vectors.detach()
        self._tiles = tiles
        return EdgeSlopes(energies, slopes, hidden)

    def forces_and_stress(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What each direction adds to forces (K, N, 3) in eV/A and stress (K, S, 3, 3) in eV/A^3.

        The batch is that of the last call. The stress of a structure that is not periodic in three
        directions is NaN.
        """
        assert self._tiles is not None
        forces = [self._vectors.new_zeros(0, batch.num_atoms, 3)]
        stress = [self._vectors.new_zeros(0, batch.num_structures, 3, 3)]
        for slopes in self._slopes:
            of_atoms, of_structures = forces_and_stress(slopes, self._vectors, self._tiles, batch)
            forces.append(of_atoms.unsqueeze(0))
            stress.append(of_structures.unsqueeze(0))
        return torch.cat(forces), torch.cat(stress)


@dataclass(frozen=True)
class Measures:
    """What one pass of the network says about N atoms of S structures, before it is combined."""

    forces: np.ndarray
    """(K, N, 3) differences of the force along each direction of the committee, eV/A."""
    distance: np.ndarray
    """(N,)"""
    inside: np.ndarray
    """(N,) whether the distance is below the threshold of the element."""
    ingredients: np.ndarray
    """(4, N) what the spread is made of, as `INGREDIENTS` lists them."""
    stress_ingredients: np.ndarray
    """(4, S) the same of the stress, as `STRESS_INGREDIENTS` lists them; NaN where a structure is
    not periodic in three directions."""

    def disagreements(self, mixing: np.ndarray) -> np.ndarray:
        """Largest difference (N,), in eV/A, of the forces of two members on each atom.

        mixing (M, K): the members as sums of directions.
        """
        if len(self.forces) == 1:
            # all members lie on one line
            return np.ptp(mixing[:, 0]) * np.linalg.norm(self.forces[0], axis=1)
        largest = np.zeros(self.forces.shape[1])
        # one pair after the other: all at once would need too much memory
        for one, other in combinations(mixing, 2):
            difference = np.tensordot(one - other, self.forces, axes=1)  # (N, 3)
            np.maximum(largest, np.linalg.norm(difference, axis=1), out=largest)
        return largest

    def components(self, spread: np.ndarray, alignment: float) -> np.ndarray:
        """Deviation (N, 3) of the components of forces whose errors have the size `spread` (N,).

        alignment: share of the variance that lies where the committee differs; the rest is the
        same in all directions.
        """
        squares = np.square(self.forces).sum(0)  # (N, 3)
        total = np.maximum(squares.sum(1, keepdims=True), np.finfo(float).tiny)
        share = np.where(squares.sum(1, keepdims=True) > 0, squares / total, 1 / 3)
        shares = (1 - alignment) / 3 + alignment * share
        return spread[:, None] * np.sqrt(shares)


class Estimator:
    """The uncertainties of the structures that a potential predicts at one level of theory."""

    def __init__(self, own: LevelUncertainty, potential: Potential, head: int) -> None:
        """`self.potential` becomes a copy that shares the weights, and must be asked."""
        self.own = own
        self.potential = copy.copy(potential)
        weight = potential.readout.weight
        self._size = weight.shape[1]
        self._scale = float(potential.scale[head])
        directions = torch.as_tensor(self._scale * own.directions).to(weight)
        self._slopes = CommitteeSlopes(potential, directions)
        # a dictionary of its own: other engines of the model must not pay for this
        self.potential.slope_functions = {"inference": self._slopes}
        self._distance = own.gaussians.on(weight.device, weight.dtype)
        # of the energy of one atom, where E0 has no part
        factor = self._scale * own.factor[: self._size]
        self._weight_factor = torch.as_tensor(factor).to(weight)  # (d, P)

    @property
    def phi(self) -> Tensor:
        """Features (N, d) of the last prediction."""
        return self._slopes.phi

    def measures(self, batch: Batch, prediction: Prediction) -> Measures:
        """What the last prediction, which was that of the batch, says about its atoms."""
        distance, inside = self._distance(self.phi, batch.atomic_numbers)
        energy = (self.phi @ self._weight_factor).norm(dim=1)
        along_forces, along_stress = self._slopes.forces_and_stress(batch)
        forces = _array(along_forces)
        ingredients = [
            _array(prediction.forces.norm(dim=1)),
            np.sqrt(np.square(forces).sum((0, 2))),
            _array(energy),
            _array(distance),
        ]
        return Measures(
            forces=forces,
            distance=_array(distance),
            inside=inside.cpu().numpy(),
            ingredients=np.stack(ingredients),
            stress_ingredients=self._stress_ingredients(batch, prediction, along_stress, distance),
        )

    def _stress_ingredients(
        self, batch: Batch, prediction: Prediction, along: Tensor, distance: Tensor
    ) -> np.ndarray:
        """What the spread of the stress is made of, (4, S).

        The stress is linear in the weights too, but its deviation by the posterior would take one
        more backward pass for each feature. These take none. along: stress (K, S, 3, 3) along the
        directions of the committee. distance: (N,) of the atoms.
        """
        volume = _array(torch.linalg.det(batch.cell).abs())
        # of the weights alone: strain does not change E0
        summed = batch.sum_over_atoms(self.phi.double())
        energy = _array((summed @ self._weight_factor.double()).norm(dim=1))
        atoms = np.bincount(batch.structure_index.cpu().numpy(), minlength=batch.num_structures)
        total_distance = _array(batch.sum_over_atoms(distance.double()))
        periodic = batch.pbc.all(1).cpu().numpy()
        per_volume = np.divide(energy, volume, out=np.full(len(volume), np.nan), where=periodic)
        return np.stack(
            [
                np.sqrt(np.square(_array(prediction.stress)).sum((1, 2))),
                np.sqrt(np.square(_array(along)).sum((0, 2, 3))),
                per_volume,
                total_distance / atoms,
            ]
        )

    def energy_deviations(self, batch: Batch) -> np.ndarray:
        """Deviation (S,) in eV of the energy of each structure of the last prediction."""
        own = self.own
        summed = self._scale * _array(batch.sum_over_atoms(self.phi.double()))  # (S, d)
        numbers = batch.atomic_numbers.cpu().numpy()
        structure_index = batch.structure_index.cpu().numpy()
        column = np.full(MAX_ATOMIC_NUMBER + 1, -1)
        column[own.e0_elements] = np.arange(len(own.e0_elements))
        place = column[numbers]
        known = place >= 0
        composition = np.zeros((len(summed), len(own.e0_elements)))
        np.add.at(composition, (structure_index[known], place[known]), 1.0)
        rows = np.hstack([summed, composition]) @ own.factor
        return own.energy_scale * np.linalg.norm(rows, axis=1)

    def results(self, batch: Batch, prediction: Prediction, coverage: float) -> dict[str, Any]:
        """What the calculator adds to its results for the one structure of a batch."""
        own = self.own
        numbers = batch.atomic_numbers.cpu().numpy()
        measures = self.measures(batch, prediction)
        spread = own.spread(measures.ingredients, numbers)
        radius = own.force_quantiles(coverage)[own.group_of(numbers)] * spread
        deviation = float(self.energy_deviations(batch)[0])
        disagreement = measures.disagreements(own.mixing)
        of_stress = {}
        if own.stress is not None and bool(batch.pbc.all()):
            size = float(own.stress.spread(measures.stress_ingredients)[0])
            of_stress["stress_radius"] = own.stress.scores.quantile(coverage) * size
        return {
            "energy_std": deviation,
            "energy_radius": own.energy_scores.quantile(coverage) * deviation,
            "forces_std": measures.components(spread, own.alignment),
            "forces_radius": radius,
            "committee_disagreement": disagreement,
            "max_committee_disagreement": float(disagreement.max(initial=0.0)),
            "distance": measures.distance,
            "inside": measures.inside,
        } | of_stress


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
