"""The potential: network, readout and core repulsion give the energy and its derivatives.

Read `forward` first. The other modules:

- `readout.py`      from features to energies
- `derivatives.py`  from energies to forces and stress
- `repulsion.py`    the core repulsion
- `charges.py`      charges that are learned through their Coulomb energy
- `config.py`       the settings
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


# "matrix": a linear map between features, or a stack of them. It has weight decay, and matrix
# optimizers may use its rows and columns.
# "table": one row per element. It has weight decay; most rows have no gradient in a given step.
# "vector": everything else, without weight decay.
ParameterRole = Literal["matrix", "table", "vector"]

# Tensors whose first dimension counts the heads.
TENSORS_OF_HEADS = (
    "readout.weight",
    "readout.element_weight",
    "repulsion.log_factor",
    "e0",
    "scale",
)

# called here, because every computation imports this module
survive_forks()


class Potential(ExactBuffers):
    """The energy of structures, with forces and stress as its derivatives.

        E = sum_i E0[head, z_i] + scale[head] * phi_i . (w[head] + v[head, z_i]) + repulsion
            + Coulomb energy of learned charges, with config.charges
        F = -dE/dr,  stress = dE/dstrain / V

    phi are the features of the readout, and w and v are its weights. The buffers `e0` (heads, 119)
    in eV and `scale` (heads,) in eV are set from the training data. E0 is summed in float64. In
    float32, rounding of the large total energy would hide the energies that give the forces.

    A model with `config.physics` was trained on labels minus that physics, and its predictions here
    leave the physics out. `evenfield.model_zoo.engines` and `evaluate` add it back.

    Shapes: N atoms, S structures, E edge slots, d features of the readout.
    """

    e0: Tensor
    scale: Tensor

    # the caller's torch modes must not change the initial weights drawn from a given seed
    @own_modes()
    def __init__(self, config: PotentialConfig) -> None:
        super().__init__()
        self.config = config
        num_heads = len(config.levels_of_theory)
        self.backbone = build_network(config.network, config.num_neighbours)
        self.readout = Readout(self.backbone.num_features, config.readout_size, num_heads)
        self.repulsion = Repulsion(config.cutoff, num_heads)
        self.repulsion.requires_grad_(config.repulsion)
        # drawn last, so that the other weights are the same as without charges
        self.charges = Charges(self.backbone.num_features) if config.charges else None
        e0 = torch.zeros(num_heads, MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        self.register_buffer("e0", e0)
        self.register_buffer("scale", torch.ones(num_heads, dtype=torch.float64))

        # replacements of `energies_and_slopes`, such as compiled versions; set by other modules
        self.slope_functions: dict[Purpose, SlopeFunction] = {}

    @property
    def cutoff(self) -> float:
        """A; atoms further apart are not neighbours."""
        return self.config.cutoff

    def forward(self, batch: Batch) -> Prediction:
        """Predict energy, forces and stress of every structure, and the energies of the atoms.

        Forces are computed inside `forward`, because DeepSpeed differentiates what `forward`
        returns. The stress of a structure that is not periodic in all three directions is NaN.
        Raises PhysicsError for a wire (periodic in one direction only) if the potential has
        charges.
        """
        if torch.is_inference_mode_enabled():
            # forces need autograd, which does not work on tensors made in inference mode
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
        """Edge vectors (E, 3) in A, in tile order, and their tiles.

        The vectors are an autograd leaf that requires gradients.
        """
        offset = batch.edge_offsets()
        function = self._slope_function()
        size = function.tile_size if function else None
        tiles = tile_edges(batch.edge_index, offset, batch.num_atoms, self.config.cutoff, size)

        # positions are subtracted in float64 and rounded to the network's dtype only afterwards
        receiver = tiles.slot_receiver
        vectors = batch.positions[tiles.sender] - batch.positions[receiver] + tiles.offset
        return vectors.detach().to(self.readout.weight.dtype).requires_grad_(), tiles

    def interaction(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> tuple[Tensor, Tensor]:
        """Learned energies (N,) in eV of the atoms, and outputs (N, d) of the hidden layer.

        The energies do not include E0, repulsion, or the Coulomb energy of charges. The hidden
        layer is that of the readout.
        """
        features = self.backbone(atomic_numbers, vectors, tiles)
        return self._learned_energies(features, atomic_numbers, head)

    def energies_without_forces(
        self, batch: Batch, features: Tensor, vectors: Tensor, tiles: Tiles
    ) -> Tensor:
        """Energies (N,) in eV, float64, of the atoms, from the features (N, F) of the network.

        For callers that already have the features and need no derivatives. Raises PhysicsError for
        a wire (periodic in one direction only) if the potential has charges.
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
        """The results of `interaction`, from the features (N, F) of the network."""
        hidden = self.readout.hidden(features)
        phi = self.readout.activation(hidden)
        energies = self.readout(phi, head, atomic_numbers)
        # under autocast, phi has lower precision than the weights
        energies = energies * self.scale[head].to(energies.dtype)
        return energies, hidden

    def features(self, atomic_numbers: Tensor, vectors: Tensor, tiles: Tiles) -> Tensor:
        """The readout features phi (N, d). The energy of every head is linear in them."""
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
                # The rows of different heads are unrelated. Treating the radii as a matrix mixed
                # all heads and elements in every step (docs/decisions/0007).
                roles[name] = "vector"
            else:
                roles[name] = "matrix"
        return roles

    def core_repulsion(self, batch: Batch, vectors: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
        """Repulsion energies (N,) in eV, float64, and slopes (E, 3) in eV/A.

        The slopes are derivatives with respect to the edge vectors.
        """
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
        """The results of `_energies_and_slopes`, and the Coulomb term of the learned charges.

        The slopes include dE/dq times the derivatives of the charges by the edge vectors.
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

        # a replacement computes only the learned energies, so it evaluates the network again
        found = function(batch.atomic_numbers, head, vectors, tiles)
        return found._replace(slopes=found.slopes + slopes), coulomb

    def _slope_function(self) -> SlopeFunction | None:
        """The replacement of `energies_and_slopes` for the current mode, if there is one."""
        if not torch.is_grad_enabled():
            return self.slope_functions.get("inference")
        if self.training:
            return self.slope_functions.get("training")
        return None
