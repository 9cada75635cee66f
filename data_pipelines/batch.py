"""Structure -> torch-geometric graph -> batch; the one batch type of the pipeline.

A batch holds, besides PyG's own `batch` (N,) and `ptr`:
    atomic_numbers (N,) int64      positions (N, 3)        cell (S, 3, 3)       pbc (S, 3)
    edge_index (2, E) = (sender j, receiver i), sorted by receiver             cell_shifts (E, 3)
    head (S,) int64: index of the level of theory             energy (S,) float64
    forces (N, 3)                  stress (S, 3, 3)        a missing label is NaN
    force_weight (N,)
Positions, cell and shifts are float64: the edge vectors are their small differences, rounded to the model's dtype
only then, so that a coordinate of 100 A costs no accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch_geometric.data import Batch, Data

from .neighbours import neighbour_list
from .structure import Structure


def structure_graph(
    structure: Structure,
    cutoff: float,
    levels_of_theory: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    element_weight: np.ndarray | None = None,
) -> Data:
    """One structure as a graph with all neighbours within `cutoff` (A); `dtype` is that of its force labels.

    `levels_of_theory` gives the head's index; a level that is not in it raises ValueError.
    """
    edge_index, cell_shifts = neighbour_list(
        structure.positions, structure.cell, structure.pbc, cutoff
    )
    num_atoms = len(structure)
    forces = np.full((num_atoms, 3), np.nan) if structure.forces is None else structure.forces
    has_stress = (
        structure.stress is not None and structure.pbc.all()
    )  # some codes state one for slabs too
    stress = structure.stress if has_stress else np.full((3, 3), np.nan)
    energy = np.nan if structure.energy is None else structure.energy
    weight = (
        np.ones(num_atoms) if element_weight is None else element_weight[structure.atomic_numbers]
    )
    # torch.tensor copies: the arrays may be read-only views into a block
    return Data(
        num_nodes=num_atoms,
        atomic_numbers=torch.tensor(structure.atomic_numbers, dtype=torch.long),
        positions=torch.tensor(structure.positions, dtype=torch.float64),
        cell=torch.tensor(structure.cell, dtype=torch.float64).unsqueeze(0),
        pbc=torch.tensor(structure.pbc).unsqueeze(0),
        edge_index=torch.as_tensor(edge_index),
        cell_shifts=torch.as_tensor(cell_shifts, dtype=torch.float64),
        head=torch.tensor([_head_index(structure, levels_of_theory)]),
        energy=torch.tensor([energy], dtype=torch.float64),
        forces=torch.tensor(forces, dtype=dtype),
        stress=torch.tensor(stress, dtype=dtype).unsqueeze(0),
        force_weight=torch.as_tensor(weight, dtype=dtype),
        structure_id=structure.structure_id,
    )


def _head_index(structure: Structure, levels_of_theory: Sequence[str]) -> int:
    if not levels_of_theory:
        return 0
    if structure.level_of_theory not in levels_of_theory:
        raise ValueError(
            f"{structure.structure_id}: level of theory '{structure.level_of_theory}' has no head; "
            f"the model has: {', '.join(levels_of_theory)}"
        )
    return list(levels_of_theory).index(structure.level_of_theory)


def collate(graphs: Sequence[Data]) -> Batch:
    """Graphs as one batch; PyG offsets the edge indices."""
    return Batch.from_data_list(list(graphs))
