"""What a model costs: operations, bytes moved and peak memory of one call, without doing the work.

The network is run on fake tensors, which have sizes but no data. The count therefore follows the
code of any network, and models of every size can be counted on any machine. Costs are linear in
atoms and edge slots; `per_atom_and_edge` finds the two coefficients.

Learned charges have a cost of their own, `of_charges`: in a crystal each atom meets all waves of
its structure, and these are as many as the volume has room for. So the cost of an atom grows with
the structure, and that of the structure as its square.
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


# Slots of a tile; the cost of an edge hardly depends on it.
TILE_SIZE = 16

# Atoms and tiles of the calls that are compared: so many that fixed costs do not show.
NUM_ATOMS = 500
NUM_TILES = 2000

# Atoms of the two crystals whose waves are counted, and the waves along an edge of their cell.
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


def of_charges(
    config: PotentialConfig,
    dtype: torch.dtype,
    num_atoms: int,
    volume: float,
    *,
    training: bool,
) -> Cost:
    """Cost of the learned charges of one atom in a crystal of so many, `volume` A^3 for each.

    It comes on top of `per_atom_and_edge`. Nothing for a model without charges. Waves are in
    float64, and are counted on a small crystal whose energies are computed. Molecules, which sum
    over pairs instead of waves, cost less.
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
    """Cost of the charges of atoms from their features, and of the slopes by these."""
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

    The number of waves follows from the cell, which a tensor without data does not have.
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
    """Cost of one of `steps` equal steps from `base` to `larger`."""
    pairs = zip(astuple(base), astuple(larger), strict=True)
    costs = [(after - before) / steps for before, after in pairs]
    return Cost(*costs)
