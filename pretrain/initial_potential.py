"""What a fresh potential takes from its training data before the first step.

These are levels of theory, number of neighbours, radii of the core repulsion, and reference
energies E0 and energy scale of what the repulsion leaves of the labels.
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

# A fit sees the pairs within this multiple of the sum of their covalent radii. It is 1.5 times the
# reach that the repulsion starts with.
NEAR = 1.35

FIT_STEPS = 100
FIT_RATE = 0.04

# eV/A for a radius that grows by a factor of e. It keeps a radius with little data near its start.
PULL = 1e-3

Bare = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sample:
    """Structures end to end: N atoms, S structures, P near pairs; NaN where there is no label."""

    levels: np.ndarray  # (S,) names
    sizes: np.ndarray  # (S,) numbers of atoms
    atomic_numbers: Tensor  # (N,)
    energy: np.ndarray  # (S,) eV
    forces: Tensor  # (N, 3) eV/A
    sender: Tensor  # (P,)
    receiver: Tensor  # (P,)
    vectors: Tensor  # (P, 3) A, from receiver to sender
    num_edges: int  # within the cutoff

    @classmethod
    def of(cls, structures: list[Structure], cutoff: float) -> Self:
        """Look at structures; their edges within `cutoff` (A) are counted."""
        senders = []
        receivers = []
        vectors = []
        forces = []
        num_edges = 0
        start = 0
        for structure in structures:
            positions = structure.positions
            cell = structure.cell
            edge_index, shifts = neighbour_list(positions, cell, structure.pbc, cutoff)
            sender, receiver = edge_index
            edge_vectors = positions[sender] - positions[receiver] + shifts @ cell
            radii = covalent_radii[structure.atomic_numbers]
            limit = NEAR * (radii[sender] + radii[receiver])
            near = np.linalg.norm(edge_vectors, axis=1) < limit

            senders.append(start + sender[near])
            receivers.append(start + receiver[near])
            vectors.append(edge_vectors[near])
            if structure.forces is None:
                forces.append(np.full((len(structure), 3), np.nan))
            else:
                forces.append(structure.forces)
            num_edges += len(sender)
            start += len(structure)

        energies = [np.nan if s.energy is None else s.energy for s in structures]
        numbers = np.concatenate([s.atomic_numbers for s in structures]).astype(np.int64)
        return cls(
            levels=np.array([s.level_of_theory for s in structures]),
            sizes=np.array([len(s) for s in structures]),
            atomic_numbers=torch.from_numpy(numbers),
            energy=np.array(energies),
            forces=torch.from_numpy(np.concatenate(forces)).double(),
            sender=torch.from_numpy(np.concatenate(senders)),
            receiver=torch.from_numpy(np.concatenate(receivers)),
            vectors=torch.from_numpy(np.concatenate(vectors)),
            num_edges=num_edges,
        )

    def repulsion(self, repulsion: Repulsion, bare: Bare | None = None) -> tuple[Tensor, Tensor]:
        """Energies (N,) in eV and forces (N, 3) in eV/A, differentiable by the radii.

        The radii are those of the first head. `bare` saves computing what does not depend on them.
        """
        distance = self.vectors.norm(dim=1)
        reach = repulsion.reach(*self.ends(), head=0)
        energy, slope = switched(distance, *(bare or self.bare()), reach)
        pull = (slope / distance).unsqueeze(1) * self.vectors
        forces = torch.zeros_like(self.forces)
        forces = forces.index_add(0, self.receiver, pull)
        forces = forces.index_add(0, self.sender, -pull)
        atom_energies = energy.new_zeros(len(self.forces)).index_add(0, self.receiver, energy)
        return atom_energies, forces

    def bare(self) -> Bare:
        """The part of the repulsion that does not depend on the radii."""
        return bare_repulsion(self.vectors.norm(dim=1), *self.ends())

    def ends(self) -> tuple[Tensor, Tensor]:
        """Atomic numbers (P,) of the receivers and of the senders."""
        return self.atomic_numbers[self.receiver], self.atomic_numbers[self.sender]


def build_potential(config: PretrainConfig, data: Collection) -> Potential:
    """A fresh potential for a data set.

    What it takes from the data depends on the data and the model's cutoff alone. Its weights are
    random.
    """
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

    # what the core repulsion explains, and the forces that it leaves to the network
    energies = np.zeros(len(sample.forces))  # (N,)
    remaining = sample.forces  # (N, 3)
    if config.model.repulsion:
        fitted = Repulsion(config.model.cutoff)
        fit_radii(fitted, sample)
        with torch.no_grad():
            # all heads start alike
            potential.repulsion.log_factor.copy_(fitted.log_factor)
            atom_energies, forces = sample.repulsion(fitted)
        energies = atom_energies.numpy()
        remaining = sample.forces - forces
    energy = np.add.reduceat(energies, np.cumsum(sample.sizes) - sample.sizes)  # (S,)

    for head, level in enumerate(levels):
        of_level = sample.levels == level  # (S,)
        known = census["levels_of_theory"][level]["e0"]
        # an element without data gets the mean of the others
        potential.e0[head] = sum(known.values()) / max(1, len(known))
        references = _references(sample, energy, of_level & np.isfinite(sample.energy))
        for symbol, value in known.items():
            z = chemical_symbols.index(symbol)
            potential.e0[head, z] = value - references.get(z, 0.0)

        own = remaining[torch.from_numpy(np.repeat(of_level, sample.sizes))]
        own = own[torch.isfinite(own)]
        if len(own):
            potential.scale[head] = max(0.1, float(own.square().mean().sqrt()))
    return potential


def fit_radii(repulsion: Repulsion, sample: Sample) -> None:
    """Fit the radii in place to the sample's forces, by least mean absolute error.

    A weak pull (PULL) keeps them near where they were.
    """
    labelled = torch.isfinite(sample.forces)
    if not len(sample.sender) or not labelled.any():
        return
    bare = sample.bare()
    start = repulsion.log_factor.detach().clone()
    optimizer = torch.optim.Adam([repulsion.log_factor], lr=FIT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
    for _ in range(FIT_STEPS):
        optimizer.zero_grad()
        _, forces = sample.repulsion(repulsion, bare)
        error = (forces - sample.forces)[labelled].abs().mean()
        away = (repulsion.log_factor - start).square().sum()
        (error + PULL * away).backward()
        optimizer.step()
        schedule.step()
    repulsion.log_factor.grad = None


def _references(sample: Sample, energy: np.ndarray, chosen: np.ndarray) -> dict[int, float]:
    """Energies (S,) of the chosen structures as a sum over their atoms, eV by atomic number.

    Least squares is linear: E0 of the labels minus this is E0 of what the repulsion leaves of them.
    """
    if not chosen.any() or not energy.any():
        return {}
    fit = ReferenceFit()
    numbers = sample.atomic_numbers.numpy()[np.repeat(chosen, sample.sizes)]
    fit.add(compositions(numbers, sample.sizes[chosen]), energy[chosen])
    references, *_ = fit.solve()
    return references
