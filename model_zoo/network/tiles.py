"""Edges sorted by receiver and cut into tiles of T slots, so that aggregation is a batched matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Every tile belongs to one receiving atom; a slot is an edge or padding.

    sender (tiles * T,), receiver (tiles,) and offset (tiles * T, 3): the slot's edge vector is
    positions[sender] - positions[receiver] + offset.  A padded slot is an edge from the atom to itself with an
    offset beyond the cutoff: the envelope makes it and all its derivatives exactly zero, without a mask.
    """

    sender: Tensor
    receiver: Tensor
    offset: Tensor
    size: int

    @property
    def slot_receiver(self) -> Tensor:
        """Receiving atom of each slot, (tiles * T,)."""
        return self.receiver.repeat_interleave(self.size)


SIZES = (8, 16, 24, 32, 48)
TILE_COST = 3  # slots; measured on CPU: the share of a tile that does not grow with its slots


def cheapest_size(degree: Tensor) -> int:
    """The number of slots that costs least: padding weighs against the number of tiles. degree (N,)."""
    sizes = torch.tensor(SIZES, device=degree.device)
    return SIZES[int((count_tiles(degree) * (sizes + TILE_COST)).argmin())]


def count_tiles(degree: Tensor) -> Tensor:
    """Numbers of tiles, one for each of SIZES, for atoms of these numbers of neighbours (N,)."""
    sizes = torch.tensor(SIZES, device=degree.device).unsqueeze(1)
    return ((degree + sizes - 1) // sizes).sum(1)


def tile_edges(
    edge_index: Tensor, edge_offset: Tensor, num_atoms: int, cutoff: float, size: int | None = None
) -> Tiles:
    """Lay edges (2, E), with the periodic offset (E, 3) of each in A, into tiles of `size` slots or the cheapest."""
    sender, receiver = edge_index
    size = size or cheapest_size(torch.bincount(receiver, minlength=num_atoms))
    return Tiles(*lay_tiles(sender, receiver, edge_offset, num_atoms, cutoff, size), size)


def lay_tiles(
    sender: Tensor, receiver: Tensor, edge_offset: Tensor, num_atoms: int, cutoff: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sender, receiver and offset of `Tiles`; TorchScript compiles it too. Differentiable by the offsets (E, 3)."""
    if receiver.numel() > 0 and bool((receiver[1:] < receiver[:-1]).any()):
        order = torch.argsort(receiver, stable=True)
        sender, receiver, edge_offset = sender[order], receiver[order], edge_offset[order]
    degree = torch.bincount(receiver, minlength=num_atoms)  # (N,)
    num_tiles = (degree + size - 1) // size
    first_slot = size * (num_tiles.cumsum(0) - num_tiles)
    first_edge = degree.cumsum(0) - degree
    slot = (
        torch.arange(len(receiver), device=receiver.device) + (first_slot - first_edge)[receiver]
    )  # (E,)

    atoms = torch.arange(num_atoms, device=receiver.device)
    tile_receiver = atoms.repeat_interleave(num_tiles)
    padded_sender = tile_receiver.repeat_interleave(size)
    padded_sender[slot] = sender
    offset = edge_offset.new_zeros(len(padded_sender), 3)
    offset[:, 0] = 2.0 * cutoff
    offset[slot] = edge_offset
    return padded_sender, tile_receiver, offset


class TileProduct(torch.autograd.Function):
    """a (tiles, T, K) and b (tiles, T, F) -> sum over the slots of a tile a^T b (tiles, K, F).

    As torch.bmm of the transposed a, but its derivatives, and theirs, come slot by slot as a and b do. With bmm's own
    formulas the second derivative by b, the largest tensor of a step, came transposed: a slow product, and a copy.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.bmm(a.mT, b)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (x.to(slope.dtype) for x in ctx.saved_tensors)  # which autocast made bfloat16
        return torch.bmm(b, slope.mT), torch.bmm(a, slope)
