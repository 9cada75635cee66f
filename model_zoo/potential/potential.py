"""The potential: network, readout and core repulsion give the energy, and its derivatives.

Read `forward` first. `derivatives.py` has the way from energies to forces and stress, `readout.py`
the way from features to energies, `repulsion.py` the core repulsion, `charges.py` charges that are
learned through their Coulomb energy, `config.py` the settings.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...core.forks import survive_forks
from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ..network.architectures import build_network
from ..network.exact_buffers import ExactBuffers
from ..network.interface import MAX_ATOMIC_NUMBER
from ..network.tiles import Tiles, tile_edges
from .charges import Charges, CoulombTerm, coulomb_energies, coulomb_term
from .config import PotentialConfig
from .derivatives import (
    EdgeSlopes,
    Purpose,
    SlopeFunction,
    energies_and_slopes,
    forces_and_stress,
)
from .prediction import Prediction
from .readout import Readout
from .repulsion import Repulsion


# "matrix": a map between features, or a stack of such maps; has weight decay, and optimizers that
# work on matrices may use its rows and columns. "table": one row for each element, most of which
# have no gradient in a given step; has weight decay. "vector": everything else, without decay.
ParameterRole = Literal["matrix", "table", "vector"]

# Tensors whose first dimension counts the heads.
TENSORS_OF_HEADS = (
    "readout.weight",
    "readout.element_weight",
    "repulsion.log_factor",
    "e0",
    "scale",
)

# here, because every way to compute passes through this module
survive_forks()


class Potential(ExactBuffers):
    """The energy of structures, and by differentiation their forces and stress.

        E = sum_i E0[head, z_i] + scale[head] * phi_i . (w[head] + v[head, z_i]) + repulsion
            + Coulomb energy of learned charges, with config.charges
        F = -dE/dr,  stress = dE/dstrain / V

    A model with `config.physics` has learned labels minus that physics, and so are its predictions
    here. `evenfield.model_zoo.engines` and `evaluate` give those of the whole.

    phi are the features of the readout, w and v its weights. `e0` (heads, 119) in eV and `scale`
    (heads,) in eV are buffers that the data fixed. E0 is summed in float64, so that rounding of a
    large total energy does not hide the energies that forces come from.

    Shapes: N atoms, S structures, E edge slots, d features of the readout.
    """

    e0: Tensor
    scale: Tensor

    # whatever the caller has set, the same random numbers are the same weights
    @own_modes()
    def __init__(self, config: PotentialConfig) -> None:
        super().__init__()
        self.config = config
        num_heads = len(config.levels_of_theory)
        self.backbone = build_network(config.network, config.num_neighbours)
        self.readout = Readout(self.backbone.num_features, config.readout_size, num_heads)
        self.repulsion = Repulsion(config.cutoff, num_heads)
        self.repulsion.requires_grad_(config.repulsion)
        # drawn last, so that the other weights are those of a potential without charges
        self.charges = Charges(self.backbone.num_features) if config.charges else None
        e0 = torch.zeros(num_heads, MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        self.register_buffer("e0", e0)
        self.register_buffer("scale", torch.ones(num_heads, dtype=torch.float64))

        # replacements of `energies_and_slopes`, such as compiled ones: set from outside
        self.slope_functions: dict[Purpose, SlopeFunction] = {}

    @property
    def cutoff(self) -> float:
        """A; atoms further apart are not neighbours."""
        return self.config.cutoff

    def forward(self, batch: Batch) -> Prediction:
        """Energy, forces and stress of every structure, and the energies of the atoms.

        Forces are computed here, inside forward, because DeepSpeed differentiates what forward
        returns. The stress of a structure that is not periodic in all three directions is NaN.
        """
        if torch.is_inference_mode_enabled():
            # forces need autograd, which a caller's inference mode switches off for its tensors
            with torch.inference_mode(False), torch.no_grad():
                return self(batch.clone())

        vectors, tiles = self.edge_vectors(batch)
        atom_head = batch.head[batch.structure_index]  # (N,)

        coulomb = None
        if self.charges is None:
            found = self._energies_and_slopes(batch.atomic_numbers, atom_head, vectors, tiles)
        else:
            found, coulomb = self._with_charges(self.charges, batch, atom_head, vectors, tiles)
        energies = self.e0[atom_head, batch.atomic_numbers] + found.energies.double()
        slopes = found.slopes
        if self.config.repulsion:
            core_energies, core_slopes = self.core_repulsion(batch, vectors, tiles)
            energies = energies + core_energies
            slopes = slopes + core_slopes
        if coulomb is not None:
            energies = energies + coulomb.energies

        energy = batch.sum_over_atoms(energies)
        forces, stress = forces_and_stress(slopes, vectors.detach(), tiles, batch, coulomb)
        return Prediction(
            labels={"energy": energy, "forces": forces, "stress": stress},
            atom_energies=energies,
            hidden=None if found.hidden is None else found.hidden.detach(),
            charges=None if coulomb is None else coulomb.charges.detach(),
        )

    def edge_vectors(self, batch: Batch) -> tuple[Tensor, Tiles]:
        """Edge vectors (E, 3) in tile order, as a leaf to differentiate by, and their tiles."""
        offset = batch.edge_offsets()
        function = self._slope_function()
        size = function.tile_size if function else None
        tiles = tile_edges(batch.edge_index, offset, batch.num_atoms, self.config.cutoff, size)

        # differences of float64 positions are rounded to the dtype of the network only here
        receiver = tiles.slot_receiver
        vectors = batch.positions[tiles.sender] - batch.positions[receiver] + tiles.offset
        return vectors.detach().to(self.readout.weight.dtype).requires_grad_(), tiles

    def interaction(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> tuple[Tensor, Tensor]:
        """Energies (N,) in eV that the network gives to the atoms.

        They are without E0, repulsion, and the Coulomb energy of charges.

        The second result is the output of the readout's hidden layer, (N, d).
        """
        features = self.backbone(atomic_numbers, vectors, tiles)
        return self._learned_energies(features, atomic_numbers, head)

    def energies_without_forces(
        self, batch: Batch, features: Tensor, vectors: Tensor, tiles: Tiles
    ) -> Tensor:
        """Energies (N,) float64 in eV of the atoms, from the features (N, F) of the network.

        For callers that have the features for another purpose and need no derivatives.
        """
        atom_head = batch.head[batch.structure_index]
        learned, _ = self._learned_energies(features, batch.atomic_numbers, atom_head)
        energies = self.e0[atom_head, batch.atomic_numbers] + learned.double()
        if self.config.repulsion:
            core_energies, _ = self.core_repulsion(batch, vectors, tiles)
            energies = energies + core_energies
        if self.charges is not None:
            charges = self.charges(features, batch)
            energies = energies + coulomb_energies(charges, batch, self.config.charge_width)
        return energies

    def _learned_energies(
        self, features: Tensor, atomic_numbers: Tensor, head: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `interaction` gives, from the features of the network."""
        hidden = self.readout.hidden(features)
        phi = self.readout.activation(hidden)
        energies = self.readout(phi, head, atomic_numbers)
        # under autocast phi is of lower precision than the weights
        energies = energies * self.scale[head].to(energies.dtype)
        return energies, hidden

    def features(self, atomic_numbers: Tensor, vectors: Tensor, tiles: Tiles) -> Tensor:
        """phi (N, d), in which the energy of every head is linear."""
        hidden = self.readout.hidden(self.backbone(atomic_numbers, vectors, tiles))
        return self.readout.activation(hidden)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """How an optimizer should treat each parameter, by name."""
        roles: dict[str, ParameterRole] = {}
        for name, parameter in self.named_parameters():
            if name == "readout.element_weight":
                roles[name] = "table"
            elif (
                parameter.ndim < 2
                or name in TENSORS_OF_HEADS
                or parameter is self.backbone.element_vectors
            ):
                # Rows of heads have nothing to do with each other. As a matrix, the radii of all
                # heads and elements were mixed in every step (docs/decisions/0007).
                roles[name] = "vector"
            else:
                roles[name] = "matrix"
        return roles

    def core_repulsion(self, batch: Batch, vectors: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
        """Repulsion energies (N,) float64 in eV, and their slopes (E, 3) by edge vectors."""
        z = batch.atomic_numbers
        receiver = tiles.slot_receiver
        edge_head = batch.head[batch.structure_index[receiver]]
        energy, slopes = self.repulsion(vectors, z[receiver], z[tiles.sender], edge_head)
        energies = torch.zeros(len(z), dtype=torch.float64, device=energy.device)
        return energies.index_add(0, receiver, energy.double()), slopes

    def _energies_and_slopes(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> EdgeSlopes:
        function = self._slope_function()
        if function is not None:
            return function(atomic_numbers, head, vectors, tiles)
        return energies_and_slopes(
            self, atomic_numbers, head, vectors, tiles, keep_graph=self.training
        )

    def _with_charges(
        self, charges_of: Charges, batch: Batch, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> tuple[EdgeSlopes, CoulombTerm]:
        """What `_energies_and_slopes` gives, and the Coulomb energy of learned charges.

        The slopes contain how the charges follow the edge vectors, times dE/dq.
        """
        keep_graph = self.training
        function = self._slope_function()
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            features = self.backbone(batch.atomic_numbers, vectors, tiles)
            charges = charges_of(features, batch)
            coulomb = coulomb_term(charges, batch, self.config.charge_width, keep_graph=keep_graph)
            if function is None:
                energies, hidden = self._learned_energies(features, batch.atomic_numbers, head)
                (slopes,) = torch.autograd.grad(
                    [energies, charges],
                    vectors,
                    [torch.ones_like(energies), coulomb.by_charges],
                    create_graph=keep_graph,
                )
                return EdgeSlopes(energies, slopes, hidden), coulomb
            (slopes,) = torch.autograd.grad(
                charges, vectors, coulomb.by_charges, create_graph=keep_graph
            )

        # a replacement knows the learned energies alone, and passes through the network again
        found = function(batch.atomic_numbers, head, vectors, tiles)
        return found._replace(slopes=found.slopes + slopes), coulomb

    def _slope_function(self) -> SlopeFunction | None:
        """The replacement for a call of this kind, if there is one."""
        if not torch.is_grad_enabled():
            return self.slope_functions.get("inference")
        if self.training:
            return self.slope_functions.get("training")
        return None
