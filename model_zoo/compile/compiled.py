"""torch.compile for a potential: atomic energies and their derivatives by edge vectors.

A potential computes energies and slopes with its `slope_functions`, if it has any. The functions
here put compiled versions there. The potential therefore does not depend on compilation, and
compilation does not depend on the network.

The derivative is traced into the graph (tracing.py), so torch.compile sees a plain function of edge
vectors. For inference, the numbers of atoms and edges stay symbolic, so one compilation serves
structures of any size. For training, the second derivative is compiled as well. Symbolic sizes
would then cost most of the gain (docs/performance.md), so every batch is padded to the same shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ...core.errors import EvenfieldWarning
from ..network.tiles import Tiles
from ..potential.derivatives import EdgeSlopes, InteractionEnergies, energies_and_slopes
from ..potential.potential import Potential
from .padded_shape import PaddedShape
from .tracing import trace


def compile_for_inference(potential: Potential) -> CompiledInference:
    """Compile a potential, in place, for calls under `torch.no_grad`.

    The next call takes a minute. Later calls take about a quarter less time than without
    compilation.
    """
    compiled = CompiledInference(potential)
    potential.slope_functions["inference"] = compiled
    return compiled


def compile_for_training(potential: Potential, shape: PaddedShape) -> CompiledTraining:
    """Compile a potential, in place, for training on batches padded to one shape.

    The first step takes minutes.
    """
    compiled = CompiledTraining(potential, shape, potential.config.cutoff)
    potential.slope_functions["training"] = compiled
    return compiled


class CompiledInference:
    """Energies and slopes for inference, compiled at the first call for the tile size of that call.

    If torch.compile fails, for example without a C++ compiler, this warns once and runs eagerly
    from then on.
    """

    def __init__(self, network: InteractionEnergies) -> None:
        self.tile_size: int | None = None
        self.failed = False
        self._network = network
        self._call: Callable[..., tuple[Tensor, Tensor]] | None = None

    def __call__(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> EdgeSlopes:
        """Atomic numbers (N,), heads (N,) and vectors (E, 3) in A -> energies and slopes."""
        # torch.compile treats the sizes 0 and 1 as constants
        too_small = len(atomic_numbers) < 2 or len(tiles.receiver) < 2
        if self.failed or too_small:
            return self._eager(atomic_numbers, head, vectors, tiles)

        try:
            if self._call is None:
                self._call = _compiled_inference(self._network, vectors, tiles.size)
                self.tile_size = tiles.size
            energies, slopes = self._call(
                atomic_numbers, head, vectors, tiles.sender, tiles.receiver
            )
        except Exception as error:  # the compilers raise errors of many classes
            _warn(error)
            self.failed = True
            self.tile_size = None
            return self._eager(atomic_numbers, head, vectors, tiles)
        return EdgeSlopes(energies, slopes, hidden=None)

    def _eager(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> EdgeSlopes:
        return energies_and_slopes(
            self._network, atomic_numbers, head, vectors, tiles, keep_graph=False
        )


class CompiledTraining:
    """Energies and slopes for training, for batches padded to one shape.

    They are differentiable with respect to the weights. Compilation happens at the first call. A
    batch that is too large for the shape runs eagerly. If torch.compile fails, this warns once and
    runs all batches eagerly.
    """

    def __init__(self, network: InteractionEnergies, shape: PaddedShape, cutoff: float) -> None:
        self.shape = shape
        self.failed = False
        self._network = network
        self._cutoff = cutoff
        self._call: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None

    @property
    def tile_size(self) -> int | None:
        """The number of slots per tile that batches must have; None if any number will do."""
        return None if self.failed else self.shape.tile_size

    def __call__(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> EdgeSlopes:
        """Atomic numbers (N,), heads (N,) and vectors (E, 3) in A -> energies and slopes."""
        if self.failed or not self.shape.fits(len(atomic_numbers), tiles):
            return self._eager(atomic_numbers, head, vectors, tiles)

        try:
            if self._call is None:
                self._call = _compiled_training(self._network, vectors, tiles.size)
            padded = self.shape.pad(atomic_numbers, head, vectors, tiles, self._cutoff)
            energies, slopes, hidden = self._call(*padded)
        except Exception as error:  # the compilers raise errors of many classes
            _warn(error)
            self.failed = True
            return self._eager(atomic_numbers, head, vectors, tiles)

        num_atoms = len(atomic_numbers)
        return EdgeSlopes(energies[:num_atoms], slopes[: len(vectors)], hidden[:num_atoms])

    def _eager(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> EdgeSlopes:
        return energies_and_slopes(
            self._network, atomic_numbers, head, vectors, tiles, keep_graph=True
        )


def _warn(error: Exception) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = f"torch.compile failed, continuing without it: {reason}"
    warnings.warn(text, EvenfieldWarning, stacklevel=3)


def _compiled_inference(
    network: InteractionEnergies, like: Tensor, tile_size: int
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A compiled function of (atomic numbers, heads, vectors, senders, receivers), of any size."""

    def function(
        atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor]:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        found = energies_and_slopes(network, atomic_numbers, head, vectors, tiles, keep_graph=False)
        return found.energies, found.slopes

    return torch.compile(trace(function, like, tile_size), dynamic=True)


def _compiled_training(
    network: InteractionEnergies, like: Tensor, tile_size: int
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A compiled function of (atomic numbers, heads, vectors, senders, receivers).

    Its sizes are fixed by the first call.
    """

    def function(
        atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        found = energies_and_slopes(network, atomic_numbers, head, vectors, tiles, keep_graph=True)
        assert found.hidden is not None
        return found.energies, found.slopes, found.hidden

    return torch.compile(trace(function, like, tile_size), dynamic=False)
