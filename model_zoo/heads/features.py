"""The features of atoms that heads are linear in, from a network that stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ...data_pipelines.structure import Structure
from ..potential.potential import Potential
from .description import Features


# of a batch, so that memory is bounded; a larger structure is a batch of its own
ATOMS_PER_BATCH = 512


@own_modes()
def batch_features(potential: Potential, batch: Batch, features: Features) -> Tensor:
    """Features (N, F) of the atoms of a batch, in the precision of the potential.

    They are invariant under rotation, inversion and translation, and independent of the level of
    theory.
    """
    with torch.no_grad(), torch.autocast(batch.positions.device.type, enabled=False):
        vectors, tiles = potential.edge_vectors(batch)
        if features == "readout":
            return potential.features(batch.atomic_numbers, vectors, tiles)
        found: Tensor = potential.backbone(batch.atomic_numbers, vectors, tiles)
        return found


def atom_features(
    potential: Potential, frames: Iterable[Atoms], features: Features = "network"
) -> Iterator[np.ndarray]:
    """Features (N, F) in float64 of each structure, in order."""
    waiting: list[Atoms] = []
    num_waiting = 0
    for atoms in frames:
        if waiting and num_waiting + len(atoms) > ATOMS_PER_BATCH:
            yield from _of_one_batch(potential, waiting, features)
            waiting = []
            num_waiting = 0
        waiting.append(atoms)
        num_waiting += len(atoms)
    if waiting:
        yield from _of_one_batch(potential, waiting, features)


def _of_one_batch(
    potential: Potential, frames: list[Atoms], features: Features
) -> Iterator[np.ndarray]:
    parameter = next(potential.parameters())
    # features are the same for all levels, and a batch must have one
    levels = potential.config.levels_of_theory
    structures = [Structure.from_atoms(atoms, levels[0], "features") for atoms in frames]
    batch = Batch.from_structures(structures, potential.cutoff, levels, parameter.dtype)
    found = batch_features(potential, batch.to(parameter.device), features)
    for part in found.cpu().double().split([len(atoms) for atoms in frames]):
        yield part.numpy()
