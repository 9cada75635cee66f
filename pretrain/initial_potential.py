"""What a fresh potential takes from its training data before the first step.

These are levels of theory, number of neighbours, radii of the core repulsion, and reference
energies E0 and energy scale of what the repulsion leaves of the labels. Of a potential with charges
all of it is fitted to what the charges that training starts with leave.
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
from ..model_zoo.potential.charges import energy_at_start, refuse_wires
from ..model_zoo.potential.config import ModelConfig, PotentialConfig
from ..model_zoo.potential.potential import Potential
from ..model_zoo.potential.repulsion import Repulsion, bare_repulsion, switched
from .callbacks.validation import spread_structures
from .checkpoints.run_data import KeptHeads, trained_levels
from .config import PretrainConfig


SAMPLE = 2048  # structures looked at, for some seconds
SAMPLE_OF_A_LEVEL = 64  # the same, of a level of theory that is not among them

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
    charge_energy: np.ndarray  # (S,) eV, of charges as training starts with them; else zero

    @classmethod
    def of(
        cls, structures: list[Structure], cutoff: float, charge_width: float | None = None
    ) -> Self:
        """Look at structures; their edges within `cutoff` (A) are counted.

        charge_width: in A, of charges as training starts with them; None for none. Their forces
        are taken off the labels, and their energies are kept apart.
        """
        levels = []
        sizes = []
        numbers = []
        energies = []
        forces = []
        senders = []
        receivers = []
        vectors = []
        charge_energies = []
        num_edges = 0
        num_atoms = 0
        for structure in structures:
            size = len(structure)
            levels.append(structure.level_of_theory)
            sizes.append(size)
            numbers.append(structure.atomic_numbers)
            energies.append(np.nan if structure.energy is None else structure.energy)
            own_forces = structure.forces
            if own_forces is None:
                own_forces = np.full((size, 3), np.nan)
            charge_energy = 0.0
            if charge_width is not None:
                charge_energy, charge_forces = energy_at_start(structure, charge_width)
                own_forces = own_forces - charge_forces
            charge_energies.append(charge_energy)
            forces.append(own_forces)

            sender, receiver, edge_vectors = _edges(structure, cutoff)
            near = _is_near(structure, sender, receiver, edge_vectors)
            # atoms are counted through all structures
            senders.append(num_atoms + sender[near])
            receivers.append(num_atoms + receiver[near])
            vectors.append(edge_vectors[near])
            num_edges += len(sender)
            num_atoms += size

        return cls(
            levels=np.array(levels),
            sizes=np.array(sizes),
            atomic_numbers=_joined(numbers).long(),
            energy=np.array(energies),
            forces=_joined(forces).double(),
            sender=_joined(senders),
            receiver=_joined(receivers),
            vectors=_joined(vectors),
            num_edges=num_edges,
            charge_energy=np.array(charge_energies),
        )

    def repulsion(self, repulsion: Repulsion, bare: Bare | None = None) -> tuple[Tensor, Tensor]:
        """Energies (N,) in eV and forces (N, 3) in eV/A, differentiable by the radii.

        The radii are those of the first head. `bare` saves computing what does not depend on them.
        """
        if bare is None:
            bare = self.bare()
        distance = self.vectors.norm(dim=1)  # (P,)
        reach = repulsion.reach(*self.ends(), head=0)
        energy, slope = switched(distance, *bare, reach)

        # The slope is negative, so the receiver is pushed away from the sender.
        pull = (slope / distance).unsqueeze(1) * self.vectors
        forces = torch.zeros_like(self.forces)
        forces = forces.index_add(0, self.receiver, pull)
        forces = forces.index_add(0, self.sender, -pull)

        # A pair has two edges, and each edge half of the pair's energy.
        atom_energies = energy.new_zeros(len(self.forces))
        atom_energies = atom_energies.index_add(0, self.receiver, energy)
        return atom_energies, forces

    def bare(self) -> Bare:
        """The part of the repulsion that does not depend on the radii."""
        return bare_repulsion(self.vectors.norm(dim=1), *self.ends())

    def ends(self) -> tuple[Tensor, Tensor]:
        """Atomic numbers (P,) of the receivers and of the senders."""
        return self.atomic_numbers[self.receiver], self.atomic_numbers[self.sender]


def build_potential(
    config: PretrainConfig, data: Collection, kept: KeptHeads | None = None
) -> Potential:
    """A fresh potential for a data set.

    What it takes from the data depends on the data and the model's cutoff alone. Its weights are
    random.

    kept: of a checkpoint that will be loaded into it. Heads then have the places that they had,
    and levels of theory that are new follow them.

    Raises PhysicsError for learned charges where a structure looked at is a wire.
    """
    census = data.census()
    structures = data.sample("train", SAMPLE)
    if config.model.charges:
        refuse_wires(structures, str(data))
    sample = Sample.of(structures, config.model.cutoff, _charge_width(config.model))
    levels = list(trained_levels(data))
    num_neighbours = max(1.0, sample.num_edges / len(sample.atomic_numbers))
    if kept is not None:
        new_levels = [level for level in levels if level not in kept.elements]
        levels = [*kept.elements, *new_levels]
        num_neighbours = kept.num_neighbours
    potential = Potential(
        PotentialConfig(
            **config.model.model_dump(),
            levels_of_theory=levels,
            num_neighbours=num_neighbours,
            physics=data.physics,
        )
    )

    if config.model.repulsion:
        _fit_repulsion(potential, sample)
    remainder = Remainder.of(sample, potential)
    more = _more_of_rare_levels(data, potential, sample)

    for head, level in enumerate(potential.config.levels_of_theory):
        known = census["levels_of_theory"][level]["e0"]
        own = more if more is not None and level not in sample.levels else remainder
        _set_e0(potential.e0[head], known, own.references(level))
        scale = own.scale(level)
        if scale is not None:
            potential.scale[head] = scale
    return potential


@dataclass(frozen=True)
class Remainder:
    """What core repulsion and charges explain of a sample, and the forces that they leave over."""

    sample: Sample
    energy: np.ndarray  # (S,) eV, of both
    forces: Tensor  # (N, 3) eV/A, of the labels minus those of both

    @classmethod
    def of(cls, sample: Sample, potential: Potential) -> Self:
        """With the radii of a potential that are the same for all heads, or without repulsion."""
        energies = np.zeros(len(sample.forces))  # (N,)
        forces = sample.forces
        if potential.config.repulsion:
            with torch.no_grad():
                atom_energies, own_forces = sample.repulsion(potential.repulsion)
            energies = atom_energies.numpy()
            forces = sample.forces - own_forces
        first_atoms = np.cumsum(sample.sizes) - sample.sizes
        summed = np.add.reduceat(energies, first_atoms)
        return cls(sample, summed + sample.charge_energy, forces)

    def references(self, level: str) -> dict[int, float]:
        """These energies at a level of theory, as a sum over atoms; see `_references`."""
        chosen = (self.sample.levels == level) & np.isfinite(self.sample.energy)  # (S,)
        return _references(self.sample, self.energy, chosen)

    def scale(self, level: str) -> float | None:
        """RMS of the remaining forces of a level of theory, eV/A; None without labels."""
        of_level = np.repeat(self.sample.levels == level, self.sample.sizes)  # (N,)
        own = self.forces[torch.from_numpy(of_level)]
        own = own[torch.isfinite(own)]
        if not len(own):
            return None
        # The floor is for data whose atoms rest: a scale of zero could not learn.
        return max(0.1, float(own.square().mean().sqrt()))


def _more_of_rare_levels(
    data: Collection, potential: Potential, sample: Sample
) -> Remainder | None:
    """What is left of structures of those levels that a sample of all structures has missed."""
    missed = [level for level in trained_levels(data) if level not in sample.levels]
    structures = spread_structures(data, "train", missed, SAMPLE_OF_A_LEVEL * len(missed))
    if not structures:
        return None
    config = potential.config
    if config.charges:
        refuse_wires(structures, str(data))
    return Remainder.of(Sample.of(structures, config.cutoff, _charge_width(config)), potential)


def _charge_width(config: ModelConfig) -> float | None:
    return config.charge_width if config.charges else None


def _fit_repulsion(potential: Potential, sample: Sample) -> None:
    """Fit the potential's radii to the sample."""
    # One head serves for all: the radii of all heads start alike.
    fitted = Repulsion(potential.config.cutoff)
    fit_radii(fitted, sample)
    with torch.no_grad():
        potential.repulsion.log_factor.copy_(fitted.log_factor)


def _set_e0(e0: Tensor, known: dict[str, float], references: dict[int, float]) -> None:
    """Fill E0 (119,) of a head, in eV: those of the labels minus those of the repulsion."""
    # An element without data gets the mean of the others. Zero would be keV away from some.
    e0[:] = sum(known.values()) / max(1, len(known))
    for symbol, value in known.items():
        z = chemical_symbols.index(symbol)
        e0[z] = value - references.get(z, 0.0)


def fit_radii(repulsion: Repulsion, sample: Sample) -> None:
    """Fit the radii in place to the sample's forces, by least mean absolute error.

    A weak pull (PULL) keeps them near where they were.
    """
    labelled = torch.isfinite(sample.forces)
    if not len(sample.sender) or not labelled.any():
        return

    # computed once for all steps
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

    # Nothing of the fit may reach the training.
    repulsion.log_factor.grad = None


def _edges(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Senders (E,) and receivers (E,) within `cutoff`, and the vectors (E, 3) between them in A."""
    positions = structure.positions
    cell = structure.cell
    (sender, receiver), shifts = neighbour_list(positions, cell, structure.pbc, cutoff)
    vectors = positions[sender] - positions[receiver] + shifts @ cell
    return sender, receiver, vectors


def _is_near(
    structure: Structure, sender: np.ndarray, receiver: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """Which edges (E,) are short enough for the repulsion to reach."""
    radii = covalent_radii[structure.atomic_numbers]
    limit = NEAR * (radii[sender] + radii[receiver])
    return np.linalg.norm(vectors, axis=1) < limit


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _references(sample: Sample, energy: np.ndarray, chosen: np.ndarray) -> dict[int, float]:
    """Energies (S,) of the chosen structures as a sum over their atoms, eV by atomic number.

    Least squares is linear: E0 of the labels minus this is E0 of what the repulsion leaves of them.
    """
    if not chosen.any() or not energy.any():
        return {}
    fit = ReferenceFit()
    # atoms follow each other as their structures do
    numbers = sample.atomic_numbers.numpy()[np.repeat(chosen, sample.sizes)]
    fit.add(compositions(numbers, sample.sizes[chosen]), energy[chosen])
    references, _ = fit.solve()
    return references
