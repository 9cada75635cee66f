"""The one batch type of the pipeline: structures end to end, as tensors, with their neighbours.

Shapes: N atoms, E edges, S structures, all structures together. Positions, cells and shifts are
float64: the edge vectors are their small differences, and are rounded to the precision of the model
only then, so that a coordinate of 100 A costs no accuracy.
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
    """A structure of a level of theory for which the model has no head."""


@dataclass
class Batch:
    """Structures as one graph; a single structure is a batch of one.

    `edge_index` holds (sender j, receiver i) and is sorted by receiver. A missing label is NaN,
    and a label that no structure of the batch could have is absent.
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
    """(E, 3) float64, in lattice vectors"""
    structure_index: Tensor
    """(N,) int64: the structure that an atom belongs to"""
    head: Tensor
    """(S,) int64: index of the level of theory"""
    labels: dict[str, Tensor] = field(default_factory=dict)
    """By name of `core.labels`: (S, ...) or (N, ...)"""
    atom_weight: Tensor | None = None
    """(N,) weight of an atom's labels in the loss"""
    structure_ids: list[str] = field(default_factory=list)
    """(S,)"""

    @classmethod
    def from_structure(
        cls,
        structure: Structure,
        cutoff: float,
        levels_of_theory: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        element_weight: np.ndarray | None = None,
    ) -> Batch:
        """One structure with all neighbours within `cutoff` (A); `dtype` is that of inexact labels.

        The head is the place of the structure's level in `levels_of_theory`, or 0 without any.
        Raises UnknownLevelError for a level that is not among them.
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
        """Several structures as one batch; arguments as for `from_structure`."""
        return cls.join(
            [cls.from_structure(one, cutoff, levels_of_theory, dtype) for one in structures]
        )

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """Batches end to end, with the indices of atoms and structures counted through."""
        edges = []
        owners = []
        first_atom = 0
        first_structure = 0
        for part in parts:
            edges.append(part.edge_index + first_atom)
            owners.append(part.structure_index + first_structure)
            first_atom += part.num_atoms
            first_structure += part.num_structures

        # the first part decides which labels there are: parts of one stream have the same
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
        """N"""
        return len(self.atomic_numbers)

    @property
    def num_structures(self) -> int:
        """S"""
        return len(self.head)

    @property
    def num_edges(self) -> int:
        """E"""
        return self.edge_index.shape[1]

    @property
    def atoms_per_structure(self) -> Tensor:
        """(S,) int64"""
        return torch.bincount(self.structure_index, minlength=self.num_structures)

    def edge_offsets(self) -> Tensor:
        """What the cell's images add to each edge vector, (E, 3) in A."""
        edge_cell = self.cell[self.structure_index[self.edge_index[1]]]  # (E, 3, 3)
        return torch.einsum("ea,eab->eb", self.cell_shifts, edge_cell)

    def edge_vectors(self) -> Tensor:
        """Vectors from receiver to sender, (E, 3) in A."""
        sender, receiver = self.edge_index
        return self.positions[sender] - self.positions[receiver] + self.edge_offsets()

    def sum_over_atoms(self, values: Tensor) -> Tensor:
        """Values of atoms (N, ...) summed over each structure, (S, ...)."""
        total = values.new_zeros(self.num_structures, *values.shape[1:])
        return total.index_add(0, self.structure_index, values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on a device; dtypes stay as they are."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which copies to a GPU overlap with computing."""
        return self._each(lambda tensor: tensor.pin_memory())

    def clone(self) -> Batch:
        """A deep copy."""
        return self._each(lambda tensor: tensor.clone())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """A copy with every tensor changed."""
        changed: dict[str, object] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                changed[entry.name] = change(value)
        changed["labels"] = {name: change(value) for name, value in self.labels.items()}
        return dataclasses.replace(self, **changed)  # type: ignore[arg-type]


def _label_tensors(structure: Structure, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every registered label as a tensor, NaN where the structure lacks it."""
    tensors = {}
    num_atoms = len(structure)
    for name, label in LABELS.items():
        value = structure.labels.get(name)
        # some codes state a stress for slabs too, where it has no meaning
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
