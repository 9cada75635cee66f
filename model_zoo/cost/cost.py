"""What a model costs: operations, bytes moved and peak memory of one call, without doing the work.

The network is run on fake tensors, which have sizes but no data. The count therefore follows the
code of any network, and models of every size can be counted on any machine. Costs are linear in
atoms and edge slots; `per_atom_and_edge` finds the two coefficients.
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

from ..network.tiles import Tiles
from ..potential.config import PotentialConfig
from ..potential.derivatives import energies_and_slopes
from ..potential.potential import Potential


# Slots of a tile; the cost of an edge hardly depends on it.
TILE_SIZE = 16

# Atoms and tiles of the calls that are compared: so many that fixed costs do not show.
NUM_ATOMS = 500
NUM_TILES = 2000


@dataclass(frozen=True)
class Cost:
    """The cost of one call."""

    flops: float
    """Floating-point operations of matrix products"""
    traffic: float
    """Bytes read and written"""
    memory: float
    """Peak bytes of tensors, without parameters and optimizer state"""


class CostCounter(TorchDispatchMode):
    """Adds up what every operator does while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.traffic = 0
        self.memory = 0
        self._live = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # the registry has matrix products and the like; other operators add to the traffic only
        count_flops = flop_registry.get(func._overloadpacket)
        if count_flops is not None:
            self.flops += count_flops(*args, **kwargs, out_val=out)

        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        written = sum(self._register(tensor) for tensor in outputs)
        # a view writes nothing, and so moves nothing
        if written:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            read = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
            self.traffic += written + read
        return out

    def _register(self, tensor: Tensor) -> int:
        """Bytes of a tensor's storage if it is a new one. Its memory counts until it is freed."""
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
    """Cost of energies and forces of so many atoms and tiles of TILE_SIZE edge slots.

    In training the cost of the gradients by the parameters is included.
    """
    parameters = []
    for parameter in potential.parameters():
        if parameter.requires_grad:
            parameters.append(parameter)
    device = parameters[0].device
    dtype = parameters[0].dtype

    with FakeTensorMode(allow_non_fake_inputs=True), CostCounter() as counter:
        sender = torch.zeros(num_tiles * TILE_SIZE, dtype=torch.long, device=device)
        receiver = sender.new_zeros(num_tiles)
        vectors = torch.ones(num_tiles * TILE_SIZE, 3, dtype=dtype, device=device)
        tiles = Tiles(sender, receiver, vectors, TILE_SIZE)

        # values do not matter: all atoms are of one element and head
        atoms = sender.new_zeros(num_atoms)
        found = energies_and_slopes(potential, atoms, atoms, vectors, tiles, keep_graph=training)
        if training:
            loss = found.energies.sum() + found.slopes.square().sum()
            torch.autograd.grad(loss, parameters, allow_unused=True)
    return Cost(counter.flops, counter.traffic, counter.memory)


def per_atom_and_edge(
    config: PotentialConfig, dtype: torch.dtype, *, training: bool
) -> tuple[Cost, Cost]:
    """Cost of one more atom without edges, and of one more edge slot, in a large call."""
    potential = Potential(config).to(dtype)
    base = count(potential, NUM_ATOMS, NUM_TILES, training=training)
    more_atoms = count(potential, 2 * NUM_ATOMS, NUM_TILES, training=training)
    more_tiles = count(potential, NUM_ATOMS, 2 * NUM_TILES, training=training)

    # the fixed costs of a call cancel in the differences
    atom = _difference(base, more_atoms, NUM_ATOMS)
    edge = _difference(base, more_tiles, NUM_TILES * TILE_SIZE)
    return atom, edge


def _difference(base: Cost, larger: Cost, steps: int) -> Cost:
    """Cost of one of `steps` equal steps from `base` to `larger`."""
    pairs = zip(astuple(base), astuple(larger), strict=True)
    costs = [(after - before) / steps for before, after in pairs]
    return Cost(*costs)
