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

from ..network.tiles import Tiles
from .padded_shape import Frame
from .tracing import trace


class Network(Protocol):
    """What can be compiled: anything with the energies of its atoms."""

    def interaction(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> Tensor: ...


class Readout(Protocol):
    """A readout that tells a listener the values of its hidden layer."""

    listener: Callable[[Tensor], None] | None


class TrainedNetwork(Network, Protocol):
    """A network whose readout can be listened to."""

    @property
    def readout(self) -> Readout: ...


def slopes(
    network: Network,
    atomic_numbers: Tensor,
    head: Tensor,
    vectors: Tensor,
    tiles: Tiles,
    keep_graph: bool,
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

    def __call__(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> tuple[Tensor, Tensor]:
        """z (N,), head (N,), vectors (E, 3) in A -> energies (N,) in eV, slopes (E, 3) in eV/A."""
        # torch.compile makes constants of the sizes 0 and 1
        if self.failed or len(atomic_numbers) < 2 or len(tiles.receiver) < 2:
            return slopes(self._network, atomic_numbers, head, vectors, tiles, keep_graph=False)
        arguments = (atomic_numbers, head, vectors, tiles.sender, tiles.receiver)
        try:
            if self._call is None:
                self._call, self.tile_size = (
                    _for_inference(self._network, vectors, tiles.size),
                    tiles.size,
                )
            return self._call(*arguments)
        except (
            Exception
        ) as error:  # dynamo, inductor and the C++ compiler each raise what they like
            _warn(error)
            self.failed, self.tile_size = True, None
            return self(atomic_numbers, head, vectors, tiles)


class CompiledTraining:
    """`slopes` that can be differentiated by the weights, compiled at the first call for batches padded to a frame.

    A batch beyond the frame goes the plain way, and all do where torch.compile fails, after a warning.
    """

    def __init__(self, network: TrainedNetwork, frame: Frame, cutoff: float) -> None:
        self._network, self.frame, self._cutoff = network, frame, cutoff
        self._call: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
        self.failed = False

    @property
    def tile_size(self) -> int | None:
        return None if self.failed else self.frame.tile_size

    def __call__(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> tuple[Tensor, Tensor]:
        """z (N,), head (N,), vectors (E, 3) in A -> energies (N,) in eV, slopes (E, 3) in eV/A."""
        if self.failed or not self.frame.holds(len(atomic_numbers), tiles):
            return slopes(self._network, atomic_numbers, head, vectors, tiles, keep_graph=True)
        try:
            if self._call is None:
                self._call = _for_training(self._network, vectors, tiles.size)
            padded = self.frame.pad(atomic_numbers, head, vectors, tiles, self._cutoff)
            energies, slope, hidden = self._call(*padded)
        except Exception as error:
            _warn(error)
            self.failed = True
            return self(atomic_numbers, head, vectors, tiles)
        if listener := self._network.readout.listener:
            listener(hidden[: len(atomic_numbers)])
        return energies[: len(atomic_numbers)], slope[: len(vectors)]


def _warn(error: Exception) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(f"torch.compile failed, going on without it: {reason}", stacklevel=3)


def _for_inference(
    network: Network, like: Tensor, tile_size: int
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A compiled function of (z, head, vectors, sender, receiver), of any sizes."""

    def function(
        atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor]:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        return slopes(network, atomic_numbers, head, vectors, tiles, keep_graph=False)

    return torch.compile(trace(function, like, tile_size), dynamic=True)


def _for_training(
    network: TrainedNetwork, like: Tensor, tile_size: int
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A compiled function of (z, head, vectors, sender, receiver), of the sizes of its first call.

    Its third result is what the readout's listener would be told.
    """

    def function(
        atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        heard: list[Tensor] = []
        listener, network.readout.listener = network.readout.listener, heard.append
        try:
            energies, slope = slopes(network, atomic_numbers, head, vectors, tiles, keep_graph=True)
        finally:
            network.readout.listener = listener
        return energies, slope, heard[0]

    return torch.compile(trace(function, like, tile_size), dynamic=False)
