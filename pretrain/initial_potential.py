"""Initialise a potential from its training data before the first step.

The data determine levels of theory, number of neighbours, radii of the core repulsion, reference
energies E0 and energy scale. E0 and scale are fitted to the labels minus the core repulsion. If the
potential has charges, the contributions of the initial charges are subtracted from the labels
before all fits.
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


SAMPLE = 2048  # structures in the sample, which takes a few seconds
SAMPLE_OF_A_LEVEL = 64  # structures of each level of theory that the sample has missed

# A fit uses pairs within this multiple of the sum of their covalent radii. It is 1.5 times the
# initial reach of the repulsion.
NEAR = 1.35

FIT_STEPS = 100
FIT_RATE = 0.04

# Penalty in eV/A for a radius that changes by a factor of e. It keeps radii with little data near
# their start.
PULL = 1e-3

Bare = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sample:
    """A sample of structures in concatenated arrays; missing labels are NaN.

    Shapes: N atoms, S structures, P near pairs.
    """

    levels: np.ndarray  # (S,) names of levels of theory
    sizes: np.ndarray  # (S,) numbers of atoms
    atomic_numbers: Tensor  # (N,)
    energy: np.ndarray  # (S,) eV
    forces: Tensor  # (N, 3) eV/A
    sender: Tensor  # (P,)
    receiver: Tensor  # (P,)
    vectors: Tensor  # (P, 3) A, from receiver to sender
    num_edges: int  # number of edges within the cutoff
    charge_energy: np.ndarray  # (S,) eV, of the initial charges; zero without charges

    @classmethod
    def of(
        cls, structures: list[Structure], cutoff: float, charge_width: float | None = None
    ) -> Self:
        """Collect a sample from structures, and count their edges within `cutoff` (A).

        `charge_width` is the width of the initial charges in A, or None without charges. Their
        forces are subtracted from the labels, and their energies are stored in `charge_energy`.
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
            # atoms are numbered over all structures
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
        """Repulsion energies (N,) in eV and forces (N, 3) in eV/A, differentiable by the radii.

        The radii are those of the first head. `bare` may hold the result of `bare()`, which does
        not depend on the radii.
        """
        if bare is None:
            bare = self.bare()
        distance = self.vectors.norm(dim=1)  # (P,)
        reach = repulsion.reach(*self.ends(), head=0)
        energy, slope = switched(distance, *bare, reach)

        # the slope is negative, so the receiver is pushed away from the sender
        pull = (slope / distance).unsqueeze(1) * self.vectors
        forces = torch.zeros_like(self.forces)
        forces = forces.index_add(0, self.receiver, pull)
        forces = forces.index_add(0, self.sender, -pull)

        # a pair has two edges, and each edge has half of the pair's energy
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
    """Build a potential for a data set, with random weights.

    All values taken from the data depend only on the data and the model settings.

    kept: heads and normalisation of a checkpoint or model that will be loaded into the potential.
        Its heads keep their order, and new levels of theory follow.

    Raises PhysicsError if a model with learned charges meets a wire, a structure that is periodic
    in one direction only, in the sample.
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
    """The energies of core repulsion and charges in a sample, and the remaining forces."""

    sample: Sample
    energy: np.ndarray  # (S,) eV, of repulsion and charges together
    forces: Tensor  # (N, 3) eV/A, labels minus the forces of repulsion and charges

    @classmethod
    def of(cls, sample: Sample, potential: Potential) -> Self:
        """Compute the remainder with the radii of a potential, which all heads still share.

        Without `repulsion` in the config, only charges are subtracted.
        """
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
        """The part of E0, in eV by atomic number, that repulsion and charges explain at a level."""
        chosen = (self.sample.levels == level) & np.isfinite(self.sample.energy)  # (S,)
        return _references(self.sample, self.energy, chosen)

    def scale(self, level: str) -> float | None:
        """RMS of the remaining forces at a level of theory, in eV/A; None without force labels."""
        of_level = np.repeat(self.sample.levels == level, self.sample.sizes)  # (N,)
        own = self.forces[torch.from_numpy(of_level)]
        own = own[torch.isfinite(own)]
        if not len(own):
            return None
        # a lower bound, because with zero forces in the data the scale would be zero
        return max(0.1, float(own.square().mean().sqrt()))


def _more_of_rare_levels(
    data: Collection, potential: Potential, sample: Sample
) -> Remainder | None:
    """The remainder for the levels of theory that `sample` has missed; None if there are none."""
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
    """Fit the radii of the potential to the sample."""
    # fitted for one head and copied, because the radii of all heads start equal
    fitted = Repulsion(potential.config.cutoff)
    fit_radii(fitted, sample)
    with torch.no_grad():
        potential.repulsion.log_factor.copy_(fitted.log_factor)


def _set_e0(e0: Tensor, known: dict[str, float], references: dict[int, float]) -> None:
    """Set E0 (119,) of a head, in eV, to `known` minus `references`.

    `known` are fitted to the labels, and `references` to the energies of repulsion and charges.
    """
    # elements without data get the mean of the others, because zero could be off by keV
    e0[:] = sum(known.values()) / max(1, len(known))
    for symbol, value in known.items():
        z = chemical_symbols.index(symbol)
        e0[z] = value - references.get(z, 0.0)


def fit_radii(repulsion: Repulsion, sample: Sample) -> None:
    """Fit the radii to the forces of the sample, in place, by least mean absolute error.

    A weak penalty (PULL) keeps them near their initial values.
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

    # no gradient of the fit may remain for training
    repulsion.log_factor.grad = None


def _edges(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Senders (E,) and receivers (E,) within `cutoff`, and edge vectors (E, 3), both in A."""
    positions = structure.positions
    cell = structure.cell
    (sender, receiver), shifts = neighbour_list(positions, cell, structure.pbc, cutoff)
    vectors = positions[sender] - positions[receiver] + shifts @ cell
    return sender, receiver, vectors


def _is_near(
    structure: Structure, sender: np.ndarray, receiver: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """A mask (E,) of edges that are short enough for the repulsion."""
    radii = covalent_radii[structure.atomic_numbers]
    limit = NEAR * (radii[sender] + radii[receiver])
    return np.linalg.norm(vectors, axis=1) < limit


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _references(sample: Sample, energy: np.ndarray, chosen: np.ndarray) -> dict[int, float]:
    """Fit energies (S,) of the chosen structures by a sum over atoms; eV by atomic number.

    Least squares is linear. E0 of the labels minus this result is therefore E0 of the labels minus
    `energy`.
    """
    if not chosen.any() or not energy.any():
        return {}
    fit = ReferenceFit()
    # atoms are in the order of their structures
    numbers = sample.atomic_numbers.numpy()[np.repeat(chosen, sample.sizes)]
    fit.add(compositions(numbers, sample.sizes[chosen]), energy[chosen])
    references, _ = fit.solve()
    return references
