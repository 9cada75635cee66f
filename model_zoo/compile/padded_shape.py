"""The fixed sizes of a compiled training step.

torch.compile needs constant sizes there, so batches are padded to them.

Shapes: N atoms, T slots of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..network.tiles import TILE_COST, TILE_SIZES, Tiles, count_tiles


# What an atom costs besides its edges, in slots. Measured on a CPU.
ATOM_COST = 15
# The time of an eager step over that of a compiled one of the same size. Measured on a CPU.
GAIN = 1.5
# A smaller gain over a whole run does not pay for compiling.
LEAST_GAIN = 1.05
# Shares of the batches that a shape may fit. The other batches run without the compiler.
SHARES = (0.75, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class PaddedShape:
    """Numbers of atoms and tiles, and slots of a tile, that every batch is padded to."""

    num_atoms: int
    num_tiles: int
    tile_size: int

    def fits(self, num_atoms: int, tiles: Tiles) -> bool:
        """Whether a batch can be padded to this shape."""
        small_enough = num_atoms <= self.num_atoms and len(tiles.receiver) <= self.num_tiles
        return small_enough and tiles.size == self.tile_size

    def pad(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles, cutoff: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Atomic numbers, heads, vectors, senders and receivers, padded to this shape.

        The added atoms have Z = 0. The added tiles hold edges from the last atom to itself, longer
        than the cutoff. They add exact zeros to energies, slopes and gradients.
        """
        extra_atoms = self.num_atoms - len(atomic_numbers)
        extra_tiles = self.num_tiles - len(tiles.receiver)
        extra_slots = extra_tiles * self.tile_size
        last = self.num_atoms - 1

        beyond = vectors.new_zeros(extra_slots, 3)
        beyond[:, 0] = 2.0 * cutoff
        pad = torch.nn.functional.pad
        return (
            pad(atomic_numbers, (0, extra_atoms)),
            pad(head, (0, extra_atoms)),
            torch.cat([vectors.detach(), beyond]),
            pad(tiles.sender, (0, extra_slots), value=last),
            pad(tiles.receiver, (0, extra_tiles), value=last),
        )


def choose_padded_shape(degrees: list[Tensor]) -> PaddedShape | None:
    """The shape with which batches like these take least time; None if compiling would not pay.

    degrees: for each batch the number of neighbours of every atom (N,).
    """
    atoms = torch.tensor([len(degree) for degree in degrees]).double()  # (batches,)
    tile_counts = [count_tiles(degree) for degree in degrees]
    tiles_of_size = torch.stack(tile_counts).double()  # (batches, sizes)

    # the eager step takes the cheapest tile size for each batch
    cost_of_tile = torch.tensor(TILE_SIZES) + TILE_COST
    cost_of_size = tiles_of_size * cost_of_tile  # (batches, sizes)
    eager = cost_of_size.min(1).values + ATOM_COST * atoms

    best_gain = LEAST_GAIN
    best_shape = None
    for column, size in enumerate(TILE_SIZES):
        tiles = tiles_of_size[:, column]
        for share in SHARES:
            most_atoms = int(torch.quantile(atoms, share, interpolation="higher"))
            most_tiles = int(torch.quantile(tiles, share, interpolation="higher"))

            # batches that do not fit run eagerly, at the eager cost
            fits = (atoms <= most_atoms) & (tiles <= most_tiles)
            padded = (most_tiles * (size + TILE_COST) + ATOM_COST * most_atoms) / GAIN
            mixed = torch.where(fits, padded, eager)
            gain = float(eager.mean() / mixed.mean())
            if gain > best_gain:
                best_gain = gain
                best_shape = PaddedShape(most_atoms, most_tiles, size)
    return best_shape
