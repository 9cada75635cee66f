"""All uncertainties of one structure from a single forward pass, for the calculator.

The committee members differ only in their last weights, so they share all features. Each direction
in which the members differ costs one more backward pass. The passes run one after the other, so
they need no additional memory. All other uncertainties use features that are computed anyway.
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


# The keys that the calculator adds to its results. `stress_radius` is added only if the structure
# has a stress and the record has radii for it.
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
    """A replacement of `energies_and_slopes` that keeps the quantities that uncertainties need."""

    tile_size: int | None = None

    def __init__(self, potential: Potential, directions: Tensor) -> None:
        """`directions` (K, d) are those of the readout weights, times the scale of the head."""
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
                # the last use frees the graph
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
        """Forces (K, N, 3) in eV/A and stress (K, S, 3, 3) in eV/A^3 along each direction.

        `batch` must be the batch of the last call. The stress of a structure that is not periodic
        in three directions is NaN.
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
    """The raw quantities that one pass of the network gives for N atoms of S structures."""

    forces: np.ndarray
    """(K, N, 3) in eV/A: changes of the forces along each committee direction."""
    distance: np.ndarray
    """(N,) distances from the training atoms of the element."""
    inside: np.ndarray
    """(N,) whether the distance is within the threshold of the element."""
    ingredients: np.ndarray
    """(4, N) the inputs of the force spread, in the order of `INGREDIENTS`."""
    stress_ingredients: np.ndarray
    """(4, S) the inputs of the stress spread, in the order of `STRESS_INGREDIENTS`. The first three
    are NaN for structures that are not periodic in three directions."""

    def disagreements(self, mixing: np.ndarray) -> np.ndarray:
        """Largest difference (N,) in eV/A between the forces of any two members on each atom.

        `mixing` (M, K) holds the coefficients of the members in the directions.
        """
        if len(self.forces) == 1:
            # all members lie on one line
            return np.ptp(mixing[:, 0]) * np.linalg.norm(self.forces[0], axis=1)
        largest = np.zeros(self.forces.shape[1])
        # pair by pair, because all pairs at once would need too much memory
        for one, other in combinations(mixing, 2):
            difference = np.tensordot(one - other, self.forces, axes=1)  # (N, 3)
            np.maximum(largest, np.linalg.norm(difference, axis=1), out=largest)
        return largest

    def components(self, spread: np.ndarray, alignment: float) -> np.ndarray:
        """Standard deviations (N, 3) of the force components, given `spread` (N,), both in eV/A.

        `alignment` is the share of the variance that follows the directions in which the committee
        differs. The rest is isotropic.
        """
        squares = np.square(self.forces).sum(0)  # (N, 3)
        total = np.maximum(squares.sum(1, keepdims=True), np.finfo(float).tiny)
        share = np.where(squares.sum(1, keepdims=True) > 0, squares / total, 1 / 3)
        shares = (1 - alignment) / 3 + alignment * share
        return spread[:, None] * np.sqrt(shares)


class Estimator:
    """Computes the uncertainties of a potential's predictions at one level of theory."""

    def __init__(self, own: LevelUncertainty, potential: Potential, head: int) -> None:
        """Prepare an estimator. Predictions must be made with `self.potential`.

        It is a copy of `potential` that shares its weights and records what the estimates need.
        """
        self.own = own
        self.potential = copy.copy(potential)
        weight = potential.readout.weight
        self._size = weight.shape[1]
        self._scale = float(potential.scale[head])
        directions = torch.as_tensor(self._scale * own.directions).to(weight)
        self._slopes = CommitteeSlopes(potential, directions)
        # a separate dictionary, so that other engines of the model are not slowed down
        self.potential.slope_functions = {"inference": self._slopes}
        self._distance = own.gaussians.on(weight.device, weight.dtype)
        # for the energy of a single atom, without E0
        factor = self._scale * own.factor[: self._size]
        self._weight_factor = torch.as_tensor(factor).to(weight)  # (d, P)

    @property
    def phi(self) -> Tensor:
        """Features (N, d) of the last prediction."""
        return self._slopes.phi

    def measures(self, batch: Batch, prediction: Prediction) -> Measures:
        """The measures of the last prediction, which must be the prediction for `batch`."""
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
        """The inputs (4, S) of the stress spread.

        The stress is linear in the weights too, but its standard deviation under the posterior
        would take one backward pass per feature. These quantities take none. `along` (K, S, 3, 3)
        is the stress along the committee directions, `distance` (N,) the distances of the atoms.
        """
        volume = _array(torch.linalg.det(batch.cell).abs())
        # only the weights matter, because strain does not change E0
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
        """Standard deviation (S,) in eV of the energy of each structure in the last prediction."""
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
        """The entries that the calculator adds to its results.

        `batch` holds a single structure, and `prediction` must be the last one.
        """
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
