"""Count operations, memory traffic and peak memory of a model call without computing it.

The network runs on fake tensors, which have sizes but no data. The count therefore works for any
network, and for models of any size on any machine. Costs are linear in atoms and edge slots;
`per_atom_and_edge` finds the two coefficients.

Learned charges are counted separately, by `of_charges`. In a crystal, each atom interacts with all
reciprocal-space waves of its structure, and their number is proportional to the volume. The cost
per atom therefore grows linearly with the structure, and the cost of the structure as its square.
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

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ...data_pipelines.physics.coulomb import resolution, smooth_deviation
from ..network.tiles import Tiles
from ..potential.charges import Charges, coulomb_term
from ..potential.config import PotentialConfig
from ..potential.derivatives import energies_and_slopes
from ..potential.potential import Potential


# Slots per tile; the cost of an edge hardly depends on it.
TILE_SIZE = 16

# Atoms and tiles of the compared calls, large enough to make fixed costs negligible.
NUM_ATOMS = 500
NUM_TILES = 2000

# Atoms of the smaller of two crystals whose waves are counted, and waves along their cell edges.
FEW_ATOMS = 16
WAVES_ALONG = 12


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
    """Sums up operations, traffic and memory of all operators while it is active."""

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
        # the registry covers matrix products and the like; other operators add only traffic
        count_flops = flop_registry.get(func._overloadpacket)
        if count_flops is not None:
            self.flops += count_flops(*args, **kwargs, out_val=out)

        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        written = sum(self._register(tensor) for tensor in outputs)
        # a view writes nothing, so it moves no data
        if written:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            read = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
            self.traffic += written + read
        return out

    def _register(self, tensor: Tensor) -> int:
        """Count a new storage until it is freed. Returns its bytes, or 0 if it is not new."""
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
    """Cost of energies and slopes for `num_atoms` atoms and `num_tiles` tiles of TILE_SIZE slots.

    With `training`, the gradients with respect to the parameters are included.
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

        # values do not matter, so all atoms have the same element and head
        atoms = sender.new_zeros(num_atoms)
        found = energies_and_slopes(potential, atoms, atoms, vectors, tiles, keep_graph=training)
        if training:
            loss = found.energies.sum() + found.slopes.square().sum()
            torch.autograd.grad(loss, parameters, allow_unused=True)
    return Cost(counter.flops, counter.traffic, counter.memory)


def per_atom_and_edge(
    config: PotentialConfig, dtype: torch.dtype, *, training: bool
) -> tuple[Cost, Cost]:
    """Marginal costs, in a large call, of an atom without edges and of an edge slot."""
    potential = Potential(config).to(dtype)
    base = count(potential, NUM_ATOMS, NUM_TILES, training=training)
    more_atoms = count(potential, 2 * NUM_ATOMS, NUM_TILES, training=training)
    more_tiles = count(potential, NUM_ATOMS, 2 * NUM_TILES, training=training)

    # the fixed costs of a call cancel in the differences
    atom = _difference(base, more_atoms, NUM_ATOMS)
    edge = _difference(base, more_tiles, NUM_TILES * TILE_SIZE)
    return atom, edge


def of_charges(
    config: PotentialConfig,
    dtype: torch.dtype,
    num_atoms: int,
    volume: float,
    *,
    training: bool,
) -> Cost:
    """Cost of the learned charges per atom, in a crystal of `num_atoms` atoms.

    `volume` is the volume per atom in A^3. The cost comes on top of `per_atom_and_edge`, and is
    zero for a model without charges. Waves are computed in float64. They are counted on two small
    crystals whose energies are computed. Molecules cost less, because they sum over pairs instead.
    """
    if not config.charges:
        return Cost(0.0, 0.0, 0.0)
    num_features = Potential(config).backbone.num_features
    head = Charges(num_features).to(dtype)
    hidden = [_count_hidden(head, n, training=training) for n in (NUM_ATOMS, 2 * NUM_ATOMS)]
    own = _difference(hidden[0], hidden[1], NUM_ATOMS)

    width = config.charge_width
    counts = [_count_waves(width, n, training=training) for n in (FEW_ATOMS, 2 * FEW_ATOMS)]
    of_few = _difference(counts[0], counts[1], FEW_ATOMS)
    num_waves = num_atoms * volume / resolution(smooth_deviation(width)) ** 3
    share = num_waves / WAVES_ALONG**3
    pairs = zip(astuple(own), astuple(of_few), strict=True)
    return Cost(*(of_atom + share * of_waves for of_atom, of_waves in pairs))


def _count_hidden(head: Charges, num_atoms: int, *, training: bool) -> Cost:
    """Cost of computing charges from features, and derivatives with respect to the features."""
    size = head.hidden.in_features
    dtype = head.weight.dtype
    with FakeTensorMode(allow_non_fake_inputs=True), CostCounter() as counter, torch.enable_grad():
        features = torch.ones(num_atoms, size, dtype=dtype, requires_grad=True)
        charges = torch.nn.functional.silu(head.hidden(features)) @ head.weight
        slopes = torch.autograd.grad(charges.sum(), features, create_graph=training)
        if training:
            loss = charges.sum() + slopes[0].square().sum()
            torch.autograd.grad(loss, [features, *head.parameters()], allow_unused=True)
    return Cost(counter.flops, counter.traffic, counter.memory)


@own_modes()
def _count_waves(width: float, num_atoms: int, *, training: bool) -> Cost:
    """Cost of the Coulomb energy of a cubic crystal, and of its derivatives.

    They are really computed, because the number of waves depends on the values of the cell.
    """
    length = (WAVES_ALONG - 0.5) * resolution(smooth_deviation(width))
    generator = torch.Generator().manual_seed(0)
    fractions = torch.rand(num_atoms, 3, dtype=torch.float64, generator=generator)
    nothing = torch.zeros(num_atoms, dtype=torch.long)
    batch = Batch(
        atomic_numbers=nothing + 1,
        positions=length * fractions,
        cell=length * torch.eye(3, dtype=torch.float64)[None],
        pbc=torch.ones(1, 3, dtype=torch.bool),
        edge_index=torch.zeros(2, 0, dtype=torch.long),
        cell_shifts=torch.zeros(0, 3, dtype=torch.float64),
        structure_index=nothing,
        head=torch.zeros(1, dtype=torch.long),
    )
    charges = torch.linspace(-1, 1, num_atoms, dtype=torch.float64, requires_grad=True)
    with CostCounter() as counter, torch.enable_grad():
        term = coulomb_term(charges, batch, width, keep_graph=training)
        if training:
            parts = (term.energies, term.by_positions, term.by_strain, term.by_charges)
            loss = torch.stack([part.square().sum() for part in parts]).sum()
            torch.autograd.grad(loss, charges)
    return Cost(counter.flops, counter.traffic, counter.memory)


def _difference(base: Cost, larger: Cost, steps: int) -> Cost:
    """The cost difference from `base` to `larger`, divided by `steps`."""
    pairs = zip(astuple(base), astuple(larger), strict=True)
    costs = [(after - before) / steps for before, after in pairs]
    return Cost(*costs)
