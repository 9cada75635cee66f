"""What a model costs: parameters, FLOPs, bytes moved and peak memory of one call, counted without doing the work.

The network is run on fake tensors, which have sizes and no data, so the count follows the code and every size of model
can be counted on any machine. Costs are linear in atoms and edge slots; `per_atom_and_edge` finds the two slopes.
"""

from __future__ import annotations

import weakref
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..compile.compiled import slopes
from ..network.tiles import Tiles
from ..potential.potential import Potential, PotentialConfig


TILE = 16  # slots; the costs of an edge hardly depend on it


@dataclass(frozen=True)
class Cost:
    """Of one call: floating-point operations of matrix products, bytes read and written, peak bytes of tensors."""

    flops: float
    traffic: float  # bytes
    memory: float  # bytes; without parameters and optimizer state


class CostCounter(TorchDispatchMode):
    """Adds up what every operator does while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.traffic = self.memory = 0
        self._live = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        written = sum(self._register(t) for t in tree_leaves(out) if isinstance(t, Tensor))
        if written:  # a view moves nothing
            read = sum(
                t.numel() * t.element_size()
                for t in tree_leaves((args, kwargs))
                if isinstance(t, Tensor)
            )
            self.traffic += written + read
        return out

    def _register(self, tensor: Tensor) -> int:
        """Bytes of a tensor's storage if it is a new one, which is then followed until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._storages:
            return 0
        self._storages.add(storage)
        size = storage.nbytes()
        self._live += size
        self.memory = max(self.memory, self._live)
        weakref.finalize(storage, self._free, size)
        return size

    def _free(self, size: int) -> None:
        self._live -= size


def count(potential: Potential, num_atoms: int, num_tiles: int, *, training: bool) -> Cost:
    """Cost of energies and forces of atoms (N,) with tiles of TILE edge slots; of the gradients as well in training."""
    parameters = [p for p in potential.parameters() if p.requires_grad]
    device = parameters[0].device
    with FakeTensorMode(allow_non_fake_inputs=True), CostCounter() as counter:
        index = torch.zeros(num_tiles * TILE, dtype=torch.long, device=device)
        vectors = torch.ones(num_tiles * TILE, 3, dtype=parameters[0].dtype, device=device)
        atoms, tiles = (
            index.new_zeros(num_atoms),
            Tiles(index, index.new_zeros(num_tiles), vectors, TILE),
        )
        energies, slope = slopes(potential, atoms, atoms, vectors, tiles, keep_graph=training)
        if training:
            loss = energies.sum() + slope.square().sum()
            torch.autograd.grad(loss, parameters, allow_unused=True)
    return Cost(counter.flops, counter.traffic, counter.memory)


def per_atom_and_edge(
    config: PotentialConfig, dtype: torch.dtype, *, training: bool
) -> tuple[Cost, Cost]:
    """Cost of one more atom without edges and of one more edge slot, far from the fixed costs of a call."""
    potential = Potential(config).to(dtype)
    atoms, tiles = 500, 2000
    base = astuple(count(potential, atoms, tiles, training=training))
    more_atoms = astuple(count(potential, 2 * atoms, tiles, training=training))
    more_tiles = astuple(count(potential, atoms, 2 * tiles, training=training))
    atom = Cost(*((b - a) / atoms for a, b in zip(base, more_atoms, strict=True)))
    edge = Cost(*((b - a) / (tiles * TILE) for a, b in zip(base, more_tiles, strict=True)))
    return atom, edge
