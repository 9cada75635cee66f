"""The fixed sizes of a compiled training step: batches are padded to them, as torch.compile wants constants."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network.tiles import SIZES, TILE_COST, Tiles, count_tiles


ATOM_COST = 15  # slots; measured on CPU: what the work of an atom costs beside that of its edges
GAIN = 1.5  # measured on CPU: a plain step over a compiled one of the same sizes
WORTH = 1.05  # a smaller gain does not pay for compiling
SHARES = (0.75, 0.9, 0.95, 1.0)  # of the batches that a frame may hold; the others go the plain way


@dataclass(frozen=True)
class Frame:
    """Numbers of atoms and tiles, and slots of a tile, that every batch is padded to."""

    num_atoms: int
    num_tiles: int
    tile_size: int

    def holds(self, num_atoms: int, tiles: Tiles) -> bool:
        """Does a batch fit?"""
        fits = num_atoms <= self.num_atoms and len(tiles.receiver) <= self.num_tiles
        return fits and tiles.size == self.tile_size

    def pad(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles, cutoff: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(z, head, vectors, sender, receiver) of the frame's sizes.

        Atoms are added with Z = 0, and tiles of edges from the last atom to itself beyond the cutoff: they add exact
        zeros to energies, slopes and gradients.
        """
        atoms, extra = self.num_atoms - len(atomic_numbers), self.num_tiles - len(tiles.receiver)
        last = self.num_atoms - 1
        beyond = vectors.new_zeros(extra * self.tile_size, 3)
        beyond[:, 0] = 2.0 * cutoff
        pad = torch.nn.functional.pad
        return (
            pad(atomic_numbers, (0, atoms)),
            pad(head, (0, atoms)),
            torch.cat([vectors.detach(), beyond]),
            pad(tiles.sender, (0, extra * self.tile_size), value=last),
            pad(tiles.receiver, (0, extra), value=last),
        )


def choose_frame(degrees: list[Tensor]) -> Frame | None:
    """The frame with which batches like these take least time; None if compiling would not pay.

    degrees: the number of neighbours of every atom (N,) of each batch.
    """
    atoms = torch.tensor([len(degree) for degree in degrees]).double()
    counts = torch.stack([count_tiles(degree) for degree in degrees]).double()  # (batches, SIZES)
    plain = (counts * (torch.tensor(SIZES) + TILE_COST)).min(1).values + ATOM_COST * atoms
    best, frame = WORTH, None
    for (k, size), share in itertools.product(enumerate(SIZES), SHARES):
        tiles = counts[:, k]
        most_atoms, most_tiles = (
            int(torch.quantile(x, share, interpolation="higher")) for x in (atoms, tiles)
        )
        fits = (atoms <= most_atoms) & (tiles <= most_tiles)
        padded = (most_tiles * (size + TILE_COST) + ATOM_COST * most_atoms) / GAIN
        gain = float(plain.mean() / torch.where(fits, padded, plain).mean())
        if gain > best:
            best, frame = gain, Frame(most_atoms, most_tiles, size)
    return frame
