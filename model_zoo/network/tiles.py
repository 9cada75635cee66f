"""Edges sorted by receiver and packed into tiles, so that aggregation is a batched matrix product.

Shapes: N atoms, T slots per tile, E = tiles * T edge slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Edges packed into tiles. A tile belongs to one receiving atom; a slot is an edge or padding.

    The edge vector of a slot is positions[sender] - positions[receiver] + offset. A padded slot is
    an edge from the atom to itself with an offset beyond the cutoff. The envelope makes its
    contribution and all derivatives exactly zero, so no mask is needed.
    """

    sender: Tensor  # (tiles * T,)
    receiver: Tensor  # (tiles,)
    offset: Tensor  # (tiles * T, 3), A
    size: int  # T

    @property
    def slot_receiver(self) -> Tensor:
        """Receiving atom of each slot, (tiles * T,)."""
        return self.receiver.repeat_interleave(self.size)


TILE_SIZES = (8, 16, 24, 32, 48)
# Overhead per tile, in units of the cost of a slot. Measured on a CPU.
TILE_COST = 3


def cheapest_size(degree: Tensor) -> int:
    """The cheapest tile size for atoms with `degree` (N,) neighbours.

    Larger tiles need more padding; smaller tiles are more numerous.
    """
    sizes = torch.tensor(TILE_SIZES, device=degree.device)
    costs = count_tiles(degree) * (sizes + TILE_COST)
    return TILE_SIZES[int(costs.argmin())]


def count_tiles(degree: Tensor) -> Tensor:
    """How many tiles each of TILE_SIZES needs for atoms with `degree` (N,) neighbours."""
    sizes = torch.tensor(TILE_SIZES, device=degree.device).unsqueeze(1)
    # rounded up: the last tile of an atom may be partly filled
    tiles = (degree + sizes - 1) // sizes  # (sizes, N)
    return tiles.sum(1)


def tile_edges(
    edge_index: Tensor, edge_offset: Tensor, num_atoms: int, cutoff: float, size: int | None = None
) -> Tiles:
    """Pack edges into tiles.

    `edge_index` (2, edges) holds senders and receivers, `edge_offset` (edges, 3) the periodic
    offsets in A. `size` is the number of slots per tile; None chooses the cheapest.
    """
    sender, receiver = edge_index
    if size is None:
        degree = torch.bincount(receiver, minlength=num_atoms)
        size = cheapest_size(degree)
    padded_sender, tile_receiver, offset = lay_tiles(
        sender, receiver, edge_offset, num_atoms, cutoff, size
    )
    return Tiles(padded_sender, tile_receiver, offset, size)


def lay_tiles(
    sender: Tensor, receiver: Tensor, edge_offset: Tensor, num_atoms: int, cutoff: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sender, receiver and offset of `Tiles`, differentiable with respect to the offsets.

    This function must stay compatible with TorchScript, which compiles it for models that engines
    load.
    """
    if receiver.numel() > 0 and bool((receiver[1:] < receiver[:-1]).any()):
        order = torch.argsort(receiver, stable=True)
        sender = sender[order]
        receiver = receiver[order]
        edge_offset = edge_offset[order]

    # the slot of each edge: the first slot of its atom, and its place among the edges of the atom
    degree = torch.bincount(receiver, minlength=num_atoms)  # (N,)
    num_tiles = (degree + size - 1) // size
    first_slot = size * (num_tiles.cumsum(0) - num_tiles)
    first_edge = degree.cumsum(0) - degree
    edge = torch.arange(len(receiver), device=receiver.device)
    slot = edge + (first_slot - first_edge)[receiver]  # (E,)

    atoms = torch.arange(num_atoms, device=receiver.device)
    tile_receiver = atoms.repeat_interleave(num_tiles)

    # every slot starts as padding, an edge from the atom to itself; real edges overwrite theirs
    padded_sender = tile_receiver.repeat_interleave(size)
    padded_sender[slot] = sender
    offset = edge_offset.new_zeros(len(padded_sender), 3)
    offset[:, 0] = 2.0 * cutoff
    offset[slot] = edge_offset
    return padded_sender, tile_receiver, offset


class TileProduct(torch.autograd.Function):
    """a (tiles, T, K) and b (tiles, T, F) -> a^T b summed over the slots of a tile, (tiles, K, F).

    The result equals torch.bmm with a transposed. Here, first and second derivatives have the
    memory layout of a and b, slot by slot. With the formulas of bmm, the second derivative with
    respect to b, the largest tensor of a training step, would be transposed. This would cost a slow
    product and a copy.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.bmm(a.mT, b)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        # autocast may have changed the dtype of what was saved
        saved_a, saved_b = ctx.saved_tensors
        a = saved_a.to(slope.dtype)
        b = saved_b.to(slope.dtype)
        return torch.bmm(b, slope.mT), torch.bmm(a, slope)
