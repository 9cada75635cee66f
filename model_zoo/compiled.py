"""torch.compile of the network for inference: energies of the atoms and their slopes by edge vectors.

The derivative is traced into the graph (make_fx), so torch.compile sees a plain function of edge vectors. The numbers
of atoms and edges stay symbols: one compilation serves structures of any size. Training is left alone: its second
derivative compiles too, but is no faster with symbolic sizes (docs/performance.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .tiles import Tiles
from .traced import trace


class Network(Protocol):
    """What can be compiled: anything with the energies of its atoms."""

    def interaction(self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles) -> Tensor: ...


def slopes(
    network: Network, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles, keep_graph: bool
) -> tuple[Tensor, Tensor]:
    """Energies (N,) in eV and their slopes (E, 3) in eV/A; `keep_graph` lets the slopes be differentiated in turn."""
    with torch.enable_grad():
        vectors = vectors.detach().requires_grad_()
        energies = network.interaction(atomic_numbers, head, vectors, tiles)
        (slope,) = torch.autograd.grad(energies.sum(), vectors, create_graph=keep_graph)
    return energies, slope


class CompiledSlopes:
    """`slopes` without a graph, compiled at the first call for the tile size of that call.

    Where torch.compile fails, for want of a C++ compiler say, it warns once and goes on with the plain function.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._call: Callable[..., tuple[Tensor, Tensor]] | None = None
        self.tile_size: int | None = None
        self.failed = False

    def __call__(self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
        """z (N,), head (N,), vectors (E, 3) in A -> energies (N,) in eV, slopes (E, 3) in eV/A."""
        # torch.compile makes constants of the sizes 0 and 1
        if self.failed or len(atomic_numbers) < 2 or len(tiles.receiver) < 2:
            return slopes(self._network, atomic_numbers, head, vectors, tiles, keep_graph=False)
        arguments = (atomic_numbers, head, vectors, tiles.sender, tiles.receiver)
        try:
            if self._call is None:
                self._call, self.tile_size = _compile(self._network, arguments, tiles.size), tiles.size
            return self._call(*arguments)
        except Exception as error:  # dynamo, inductor and the C++ compiler each raise what they like
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"torch.compile failed, going on without it: {reason}", stacklevel=2)
            self.failed, self.tile_size = True, None
            return self(atomic_numbers, head, vectors, tiles)


def _compile(network: Network, arguments: tuple[Tensor, ...], tile_size: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """A compiled function of (z, head, vectors, sender, receiver)."""

    def function(
        atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor]:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        energies, slope = slopes(network, atomic_numbers, head, vectors, tiles, keep_graph=False)
        return energies.detach(), slope

    return torch.compile(trace(function, arguments[2], tile_size), dynamic=True)
