"""What a fresh potential takes from its training data before the first step.

Levels of theory, number of neighbours, radii of core repulsion, and E0 and the energy scale of what it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii
from torch import Tensor

from ..data_pipelines.census.census import ReferenceFit, compositions
from ..data_pipelines.neighbours import neighbour_list
from ..data_pipelines.stream.collection import Collection
from ..data_pipelines.structure import Structure
from ..model_zoo.potential.config import PotentialConfig
from ..model_zoo.potential.potential import Potential
from ..model_zoo.potential.repulsion import Repulsion, bare_repulsion, switched
from .config import PretrainConfig


SAMPLE = 2048  # structures looked at, for some seconds
NEAR = (
    1.35  # of the sum of covalent radii: 1.5 times the start; a fit does not see the pairs beyond
)
FIT_STEPS, FIT_RATE = 100, 0.04
PULL = 1e-3  # eV/A for a radius that grows by e: one that few data speak of stays near where it was

Bare = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sample:
    """Structures end to end: N atoms, S structures, P near pairs; NaN where there is no label."""

    levels: np.ndarray  # (S,) names
    sizes: np.ndarray  # (S,)
    atomic_numbers: Tensor  # (N,)
    energy: np.ndarray  # (S,) eV
    forces: Tensor  # (N, 3) eV/A
    sender: Tensor  # (P,)
    receiver: Tensor  # (P,)
    vectors: Tensor  # (P, 3) A
    num_edges: int  # within the cutoff

    @classmethod
    def of(cls, structures: list[Structure], cutoff: float) -> Self:
        """Look at structures; their neighbours within `cutoff` (A) are counted."""
        senders, receivers, vectors, num_edges, start = [], [], [], 0, 0
        for s in structures:
            edge_index, shifts = neighbour_list(s.positions, s.cell, s.pbc, cutoff)
            sender, receiver = edge_index
            edge_vectors = s.positions[sender] - s.positions[receiver] + shifts @ s.cell
            radii = covalent_radii[s.atomic_numbers]
            near = np.linalg.norm(edge_vectors, axis=1) < NEAR * (radii[sender] + radii[receiver])
            senders.append(start + sender[near])
            receivers.append(start + receiver[near])
            vectors.append(edge_vectors[near])
            num_edges, start = num_edges + len(sender), start + len(s)
        forces = [
            np.full((len(s), 3), np.nan) if s.forces is None else s.forces for s in structures
        ]
        return cls(
            levels=np.array([s.level_of_theory for s in structures]),
            sizes=np.array([len(s) for s in structures]),
            atomic_numbers=torch.from_numpy(
                np.concatenate([s.atomic_numbers for s in structures]).astype(np.int64)
            ),
            energy=np.array([np.nan if s.energy is None else s.energy for s in structures]),
            forces=torch.from_numpy(np.concatenate(forces)).double(),
            sender=torch.from_numpy(np.concatenate(senders)),
            receiver=torch.from_numpy(np.concatenate(receivers)),
            vectors=torch.from_numpy(np.concatenate(vectors)),
            num_edges=num_edges,
        )

    def repulsion(self, repulsion: Repulsion, bare: Bare | None = None) -> tuple[Tensor, Tensor]:
        """Energies (N,) in eV and forces (N, 3) in eV/A with the radii of the first head, differentiable by them."""
        distance, reach = self.vectors.norm(dim=1), repulsion.reach(*self.ends(), head=0)
        energy, slope = switched(distance, *(bare or self.bare()), reach)
        pull = (slope / distance).unsqueeze(1) * self.vectors
        forces = (
            torch.zeros_like(self.forces)
            .index_add(0, self.receiver, pull)
            .index_add(0, self.sender, -pull)
        )
        return energy.new_zeros(len(self.forces)).index_add(0, self.receiver, energy), forces

    def bare(self) -> Bare:
        """What of the repulsion does not depend on the radii."""
        return bare_repulsion(self.vectors.norm(dim=1), *self.ends())

    def ends(self) -> tuple[Tensor, Tensor]:
        """Atomic numbers (P,) of the receivers and of the senders."""
        return self.atomic_numbers[self.receiver], self.atomic_numbers[self.sender]


def build_potential(config: PretrainConfig, data: Collection) -> Potential:
    """A fresh potential for a data set; what it takes from it depends on the data and the model's cutoff alone."""
    census = data.census()
    levels = [
        level for level, row in census["levels_of_theory"].items() if row["structures"].get("train")
    ]
    sample = Sample.of(data.sample("train", SAMPLE), config.model.cutoff)
    num_neighbours = max(1.0, sample.num_edges / len(sample.atomic_numbers))
    potential = Potential(
        PotentialConfig(
            **config.model.model_dump(), levels_of_theory=levels, num_neighbours=num_neighbours
        )
    )
    energies, left = np.zeros(len(sample.forces)), sample.forces
    if config.model.repulsion:
        fitted = Repulsion(config.model.cutoff)
        fit_radii(fitted, sample)
        with torch.no_grad():
            potential.repulsion.log_factor.copy_(fitted.log_factor)  # all heads start alike
            atom_energies, forces = sample.repulsion(fitted)
        energies, left = atom_energies.numpy(), sample.forces - forces
    energy = np.add.reduceat(energies, np.cumsum(sample.sizes) - sample.sizes)  # (S,)
    for head, level in enumerate(levels):
        known = census["levels_of_theory"][level]["e0"]
        potential.e0[head] = sum(known.values()) / max(
            1, len(known)
        )  # an element never seen: the mean of the others
        references = _references(
            sample, energy, (sample.levels == level) & np.isfinite(sample.energy)
        )
        for symbol, value in known.items():
            z = chemical_symbols.index(symbol)
            potential.e0[head, z] = value - references.get(z, 0.0)
        own = left[torch.from_numpy(np.repeat(sample.levels == level, sample.sizes))]
        own = own[torch.isfinite(own)]
        if len(own):
            potential.scale[head] = max(0.1, float(own.square().mean().sqrt()))
    return potential


def fit_radii(repulsion: Repulsion, sample: Sample) -> None:
    """Fit the radii in place to the sample's forces: least mean absolute error, with a weak pull to where they were."""
    labelled = torch.isfinite(sample.forces)
    if not len(sample.sender) or not labelled.any():
        return
    bare, start = sample.bare(), repulsion.log_factor.detach().clone()
    optimizer = torch.optim.Adam([repulsion.log_factor], lr=FIT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
    for _ in range(FIT_STEPS):
        optimizer.zero_grad()
        _, forces = sample.repulsion(repulsion, bare)
        error = (forces - sample.forces)[labelled].abs().mean()
        (error + PULL * (repulsion.log_factor - start).square().sum()).backward()
        optimizer.step()
        schedule.step()
    repulsion.log_factor.grad = None


def _references(sample: Sample, energy: np.ndarray, chosen: np.ndarray) -> dict[int, float]:
    """Energies (S,) of the chosen structures as a sum over their atoms, eV by atomic number.

    Least squares is linear: E0 of the labels less this is E0 of what the repulsion leaves of them.
    """
    if not chosen.any() or not energy.any():
        return {}
    fit = ReferenceFit()
    numbers = sample.atomic_numbers.numpy()[np.repeat(chosen, sample.sizes)]
    fit.add(compositions(numbers, sample.sizes[chosen]), energy[chosen])
    return fit.solve()[0]
