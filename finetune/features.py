"""Frozen features of structures, to which a linear readout of any property can be fitted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from ase import Atoms

from ..data_pipelines.batch import Batch
from ..data_pipelines.structure import Structure
from ..model_zoo.hub.load import LoadedModel


def structure_features(model: LoadedModel, frames: Iterable[Atoms]) -> np.ndarray:
    """Features of S structures, each the mean over its atoms: (S, d).

    They are invariant under rotation, and independent of the level of theory.
    """
    potential = model.potential
    dtype = next(potential.parameters()).dtype
    cutoff = potential.config.cutoff
    level = potential.config.levels_of_theory[0]

    rows = []
    for atoms in frames:
        structure = Structure.from_atoms(atoms, level, "features")
        batch = Batch.from_structure(structure, cutoff, [level], dtype)
        with torch.no_grad():
            vectors, tiles = potential.edge_vectors(batch)
            features = potential.features(batch.atomic_numbers, vectors, tiles)  # (N, d)
        rows.append(features.mean(0).double().numpy())
    return np.array(rows)
