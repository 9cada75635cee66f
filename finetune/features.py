"""Frozen features of structures: what a linear readout of any property can be fitted to."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from ase import Atoms

from ..data_pipelines.batch import Batch
from ..data_pipelines.structure import Structure
from ..model_zoo.hub.load import LoadedModel


def structure_features(model: LoadedModel, frames: Iterable[Atoms]) -> np.ndarray:
    """Mean over atoms of the readout's features, (S, d), invariant and independent of the level of theory."""
    potential, rows = model.potential, []
    level, dtype = potential.config.levels_of_theory[0], next(potential.parameters()).dtype
    for atoms in frames:
        structure = Structure.from_atoms(atoms, level, "features")
        batch = Batch.from_structure(structure, potential.config.cutoff, [level], dtype)
        with torch.no_grad():
            vectors, tiles = potential.edge_vectors(batch)
            rows.append(
                potential.features(batch.atomic_numbers, vectors, tiles).mean(0).double().numpy()
            )
    return np.array(rows)
