"""The atomic features that heads are linear in, from a frozen network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ...data_pipelines.structure import Structure
from ..network.interface import CarriedFeatures
from ..network.tiles import Tiles
from ..potential.potential import Potential
from .description import Features
from .head import Head


# Limits the memory of a batch. A larger structure forms a batch alone.
ATOMS_PER_BATCH = 512


class BatchFeatures:
    """Features of the atoms of one batch, computed on first use and cached."""

    def __init__(self, potential: Potential, batch: Batch) -> None:
        self._potential = potential
        self._batch = batch
        self._known: dict[tuple[Features, int], CarriedFeatures] = {}

    def of(self, head: Head) -> CarriedFeatures:
        """The features that a head reads."""
        name = head.description.features
        key = (name, id(head.own))
        if key not in self._known:
            potential = in_place_of(self._potential, head.own)
            self._known[key] = batch_features(potential, self._batch, name)
        return self._known[key]


def in_place_of(potential: Potential, own: Potential | None) -> Potential:
    """The potential whose features a head reads: `own` if given, else that of the model.

    `own` is moved, in place, to the device and dtype of `potential`.
    """
    return potential if own is None else own.to(next(potential.parameters()))


@own_modes()
def batch_features(potential: Potential, batch: Batch, features: Features) -> CarriedFeatures:
    """Features of the atoms of a batch, in the dtype of the potential.

    They do not depend on the level of theory. "network" and "readout" features are invariant under
    rotation, inversion and translation, and contain neither vectors nor tensors.
    """
    with torch.no_grad(), torch.autocast(batch.positions.device.type, enabled=False):
        vectors, tiles = potential.edge_vectors(batch)
        return edge_features(potential, batch.atomic_numbers, vectors, tiles, features)


def edge_features(
    potential: Potential, numbers: Tensor, vectors: Tensor, tiles: Tiles, features: Features
) -> CarriedFeatures:
    """Features of atoms from atomic numbers (N,) and edge vectors (E, 3) in A.

    They are differentiable with respect to the edge vectors.
    """
    backbone = potential.backbone
    if features == "equivariant":
        return backbone.carried(numbers, vectors, tiles)
    if features == "readout":
        return CarriedFeatures.of_invariants(potential.features(numbers, vectors, tiles))
    return CarriedFeatures.of_invariants(backbone(numbers, vectors, tiles))


def atom_features(
    potential: Potential, frames: Iterable[Atoms], features: Features = "network"
) -> Iterator[np.ndarray]:
    """Yield invariants (N, F), float64, for each structure in order."""
    for own in carried_features(potential, frames, features):
        yield own.invariants.double().numpy()


def carried_features(
    potential: Potential, frames: Iterable[Atoms], features: Features = "equivariant"
) -> Iterator[CarriedFeatures]:
    """Yield features of each structure in order, on the CPU, in the dtype of the potential."""
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
) -> Iterator[CarriedFeatures]:
    found = batch_features(potential, batch_of(potential, frames), features)
    sizes = [len(atoms) for atoms in frames]
    parts = [part.cpu().split(sizes) for part in (found.invariants, found.vectors, found.tensors)]
    for invariants, vectors, tensors in zip(*parts, strict=True):
        yield CarriedFeatures(invariants, vectors, tensors)


def batch_of(potential: Potential, frames: list[Atoms]) -> Batch:
    """Join structures into one batch for computing features."""
    parameter = next(potential.parameters())
    # a batch needs a level of theory, but features do not depend on it
    levels = potential.config.levels_of_theory
    structures = [Structure.from_atoms(atoms, levels[0], "features") for atoms in frames]
    batch = Batch.from_structures(structures, potential.cutoff, levels, parameter.dtype)
    return batch.to(parameter.device)
