"""torch.compile of the network: energies of the atoms and their slopes by edge vectors.

The derivative is traced into the graph (make_fx), so torch.compile sees a plain function of edge vectors. For inference
the numbers of atoms and edges stay symbols: one compilation serves structures of any size. For training, where the
second derivative is compiled as well, symbols cost most of the gain (docs/performance.md): every batch is padded to the
constant sizes of a frame.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .frame import Frame
from .tiles import Tiles
from .traced import trace


Compiled = Callable[..., tuple[Tensor, Tensor]]


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
        self._call: Compiled | None = None
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
                self._call = _compile(self._network, vectors, tiles.size, keep_graph=False)
                self.tile_size = tiles.size
            return self._call(*arguments)
        except Exception as error:  # dynamo, inductor and the C++ compiler each raise what they like
            _warn(error)
            self.failed, self.tile_size = True, None
            return self(atomic_numbers, head, vectors, tiles)


class CompiledTraining:
    """`slopes` that can be differentiated by the weights, compiled at the first call for batches padded to a frame.

    A batch beyond the frame goes the plain way, and all do where torch.compile fails, after a warning.
    """

    def __init__(self, network: Network, frame: Frame, cutoff: float) -> None:
        self._network, self.frame, self._cutoff = network, frame, cutoff
        self._call: Compiled | None = None
        self.failed = False

    @property
    def tile_size(self) -> int | None:
        return None if self.failed else self.frame.tile_size

    def __call__(self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
        """z (N,), head (N,), vectors (E, 3) in A -> energies (N,) in eV, slopes (E, 3) in eV/A."""
        if self.failed or not self.frame.holds(len(atomic_numbers), tiles):
            return slopes(self._network, atomic_numbers, head, vectors, tiles, keep_graph=True)
        try:
            if self._call is None:
                self._call = _compile(self._network, vectors, tiles.size, keep_graph=True)
            padded = self.frame.pad(atomic_numbers, head, vectors, tiles, self._cutoff)
            energies, slope = self._call(*padded)
        except Exception as error:
            _warn(error)
            self.failed = True
            return self(atomic_numbers, head, vectors, tiles)
        return energies[: len(atomic_numbers)], slope[: len(vectors)]


def _warn(error: Exception) -> None:
    reason = str(error).strip().splitlines()[0]
    warnings.warn(f"torch.compile failed, going on without it: {reason}", stacklevel=3)


def _compile(network: Network, like: Tensor, tile_size: int, *, keep_graph: bool) -> Compiled:
    """A compiled function of (z, head, vectors, sender, receiver); of constant sizes if it keeps the graph."""

    def function(
        atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor]:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        return slopes(network, atomic_numbers, head, vectors, tiles, keep_graph)

    return torch.compile(trace(function, like, tile_size), dynamic=not keep_graph)
