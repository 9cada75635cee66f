"""The fixed sizes of a compiled training step, to which batches are padded.

Shapes: N atoms, T slots per tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..network.tiles import TILE_COST, TILE_SIZES, Tiles, count_tiles


# Cost of an atom without its edges, in units of the cost of a slot. Measured on a CPU.
ATOM_COST = 15
# Ratio of the times of an eager and a compiled step of the same size. Measured on a CPU.
GAIN = 1.5
# With a smaller overall gain, compiling does not pay off.
LEAST_GAIN = 1.05
# Candidate shares of batches that fit a shape. The other batches run eagerly.
SHARES = (0.75, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class PaddedShape:
    """The numbers of atoms, tiles and slots per tile of a padded batch."""

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
        """Return atomic numbers, heads, vectors, senders and receivers, padded to this shape.

        Padding atoms have Z = 0. Padding tiles hold edges from the last atom to itself that are
        longer than `cutoff` (A). They contribute exact zeros to energies, slopes and gradients.
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
    """Choose the shape with which similar batches take the least time.

    `degrees` holds, for each batch, the number of neighbours of every atom (N,). The result is None
    if compiling would not pay off.
    """
    atoms = torch.tensor([len(degree) for degree in degrees]).double()  # (batches,)
    tile_counts = [count_tiles(degree) for degree in degrees]
    tiles_of_size = torch.stack(tile_counts).double()  # (batches, sizes)

    # an eager step uses the cheapest tile size for each batch
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
