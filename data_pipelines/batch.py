"""The batch type of the pipeline: concatenated structures, as tensors, with their neighbour lists.

Shapes: N atoms, E edges, S structures, each summed over the batch. Positions, cells and shifts are
float64. Edge vectors are small differences of large coordinates, so they are computed in float64
and only then rounded to the precision of the model. A coordinate of 100 A thus costs no accuracy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..core.errors import EvenfieldError
from ..core.labels import LABELS
from .neighbours import neighbour_list
from .structure import Structure


class UnknownLevelError(EvenfieldError):
    """The model has no head for the level of theory of a structure."""


@dataclass
class Batch:
    """Structures as one disconnected graph; a single structure is a batch of size one.

    `edge_index` holds (sender j, receiver i) and is sorted by receiver. A label that a structure
    lacks is NaN.
    """

    atomic_numbers: Tensor
    """(N,) int64"""
    positions: Tensor
    """(N, 3) float64, A"""
    cell: Tensor
    """(S, 3, 3) float64, A, rows are lattice vectors"""
    pbc: Tensor
    """(S, 3) bool"""
    edge_index: Tensor
    """(2, E) int64: sender, receiver"""
    cell_shifts: Tensor
    """(E, 3) float64, integer multiples of the lattice vectors"""
    structure_index: Tensor
    """(N,) int64: index of the structure that each atom belongs to"""
    head: Tensor
    """(S,) int64: index of the readout head, one per level of theory"""
    labels: dict[str, Tensor] = field(default_factory=dict)
    """Name from `core.labels` -> values, (S, ...) or (N, ...)"""
    atom_weight: Tensor | None = None
    """(N,) weight of each atom's labels in the loss"""
    structure_ids: list[str] = field(default_factory=list)
    """(S,) ids of the structures, unique within their data set"""

    @classmethod
    def from_structure(
        cls,
        structure: Structure,
        cutoff: float,
        levels_of_theory: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        element_weight: np.ndarray | None = None,
    ) -> Batch:
        """Build a batch of one structure, with all neighbours within `cutoff` (A).

        levels_of_theory: the structure's head is the index of its level in this sequence, or 0 if
            the sequence is empty.
        dtype: precision of the atom weights and of all labels that are not `exact` (see
            `core.labels`).
        element_weight: loss weight of an atom, indexed by atomic number; 1 by default.

        Raises UnknownLevelError if the structure's level is not in `levels_of_theory`, and
        GeometryError if the structure cannot be searched for neighbours.
        """
        edge_index, cell_shifts = neighbour_list(
            structure.positions, structure.cell, structure.pbc, cutoff
        )
        num_atoms = len(structure)
        weight = np.ones(num_atoms)
        if element_weight is not None:
            weight = element_weight[structure.atomic_numbers]

        # torch.tensor copies: the arrays may be read-only views into a block
        return cls(
            atomic_numbers=torch.tensor(structure.atomic_numbers, dtype=torch.long),
            positions=torch.tensor(structure.positions, dtype=torch.float64),
            cell=torch.tensor(structure.cell, dtype=torch.float64).unsqueeze(0),
            pbc=torch.tensor(structure.pbc).unsqueeze(0),
            edge_index=torch.as_tensor(edge_index),
            cell_shifts=torch.as_tensor(cell_shifts, dtype=torch.float64),
            structure_index=torch.zeros(num_atoms, dtype=torch.long),
            head=torch.tensor([_head_index(structure, levels_of_theory)]),
            labels=_label_tensors(structure, dtype),
            atom_weight=torch.as_tensor(weight, dtype=dtype),
            structure_ids=[structure.structure_id],
        )

    @classmethod
    def from_structures(
        cls,
        structures: Iterable[Structure],
        cutoff: float,
        levels_of_theory: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """Build one batch of several structures; arguments and errors as in `from_structure`."""
        return cls.join(
            [cls.from_structure(one, cutoff, levels_of_theory, dtype) for one in structures]
        )

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """Concatenate batches; the indices of atoms and structures are offset accordingly."""
        edges = []
        owners = []
        first_atom = 0
        first_structure = 0
        for part in parts:
            edges.append(part.edge_index + first_atom)
            owners.append(part.structure_index + first_structure)
            first_atom += part.num_atoms
            first_structure += part.num_structures

        # all batches of one stream have the same labels, so the first one is enough
        labels = {}
        for name in parts[0].labels:
            labels[name] = torch.cat([part.labels[name] for part in parts])
        weights = [part.atom_weight for part in parts if part.atom_weight is not None]
        return cls(
            atomic_numbers=torch.cat([part.atomic_numbers for part in parts]),
            positions=torch.cat([part.positions for part in parts]),
            cell=torch.cat([part.cell for part in parts]),
            pbc=torch.cat([part.pbc for part in parts]),
            edge_index=torch.cat(edges, dim=1),
            cell_shifts=torch.cat([part.cell_shifts for part in parts]),
            structure_index=torch.cat(owners),
            head=torch.cat([part.head for part in parts]),
            labels=labels,
            atom_weight=torch.cat(weights) if weights else None,
            structure_ids=[name for part in parts for name in part.structure_ids],
        )

    @property
    def num_atoms(self) -> int:
        """Number of atoms, N."""
        return len(self.atomic_numbers)

    @property
    def num_structures(self) -> int:
        """Number of structures, S."""
        return len(self.head)

    @property
    def num_edges(self) -> int:
        """Number of edges, E."""
        return self.edge_index.shape[1]

    @property
    def atoms_per_structure(self) -> Tensor:
        """Number of atoms in each structure, (S,) int64."""
        return torch.bincount(self.structure_index, minlength=self.num_structures)

    def edge_offsets(self) -> Tensor:
        """Displacement that periodic images add to each edge vector, (E, 3) in A."""
        edge_cell = self.cell[self.structure_index[self.edge_index[1]]]  # (E, 3, 3)
        return torch.einsum("ea,eab->eb", self.cell_shifts, edge_cell)

    def edge_vectors(self) -> Tensor:
        """Vectors from receiver to sender, (E, 3) in A."""
        sender, receiver = self.edge_index
        return self.positions[sender] - self.positions[receiver] + self.edge_offsets()

    def sum_over_atoms(self, values: Tensor) -> Tensor:
        """Sum per-atom values (N, ...) over each structure; returns (S, ...)."""
        total = values.new_zeros(self.num_structures, *values.shape[1:])
        return total.index_add(0, self.structure_index, values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy of the batch on `device`; dtypes do not change."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, whose transfer to a GPU can overlap with computation."""
        return self._each(lambda tensor: tensor.pin_memory())

    def clone(self) -> Batch:
        """A deep copy."""
        return self._each(lambda tensor: tensor.clone())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """A copy in which `change` has been applied to every tensor."""
        changed: dict[str, object] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                changed[entry.name] = change(value)
        changed["labels"] = {name: change(value) for name, value in self.labels.items()}
        return dataclasses.replace(self, **changed)  # type: ignore[arg-type]


def _label_tensors(structure: Structure, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every registered label as a tensor, filled with NaN if the structure lacks it."""
    tensors = {}
    num_atoms = len(structure)
    for name, label in LABELS.items():
        value = structure.labels.get(name)
        # some codes write a stress for slabs too, although it has no meaning there
        if value is None or (label.periodic_only and not structure.pbc.all()):
            value = np.full(label.shape(num_atoms), np.nan)
        tensor = torch.tensor(value, dtype=torch.float64 if label.exact else dtype)
        tensors[name] = tensor if label.per == "atom" else tensor.unsqueeze(0)
    return tensors


def _head_index(structure: Structure, levels_of_theory: Sequence[str]) -> int:
    if not levels_of_theory:
        return 0
    if structure.level_of_theory not in levels_of_theory:
        raise UnknownLevelError(
            f"level of theory '{structure.level_of_theory}' has no head; "
            f"the model has: {', '.join(levels_of_theory)}",
            file=structure.structure_id,
        )
    return list(levels_of_theory).index(structure.level_of_theory)
