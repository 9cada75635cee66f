"""The potential: backbone, readout and core repulsion -> energy, and by differentiation forces and stress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...data_pipelines.batch import Batch
from ..compile.compiled import CompiledSlopes, CompiledTraining, slopes
from ..compile.padded_shape import Frame
from ..network.embedding import MAX_ATOMIC_NUMBER
from ..network.exact_buffers import ExactBuffers
from ..network.gaunt.backbone import Backbone, BackboneConfig
from ..network.tiles import Tiles, tile_edges
from .prediction import Prediction
from .repulsion import Repulsion


SIZES: dict[str, dict[str, int]] = {
    "small": {"channels": 32},
    "medium": {"channels": 64},
    "large": {"channels": 128},
}


class ModelConfig(BackboneConfig):
    """What a user chooses; levels of theory, E0, scale and neighbour number come from the data.

    `size` may be given as well, a name of SIZES: what else is given is laid over it. It is not stored, its values are.
    """

    readout_size: int = Field(
        default=64, gt=0, le=512, description="features that the energy is linear in"
    )
    repulsion: bool = Field(default=True, description="ZBL repulsion of cores that come close")

    @model_validator(mode="before")
    @classmethod
    def _take_size(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "size" not in given:
            return given
        rest = {key: value for key, value in given.items() if key != "size"}
        if given["size"] not in SIZES:
            raise ValueError(
                f"size: there is none of the name {given['size']!r}: take one of {', '.join(SIZES)}"
            )
        return SIZES[given["size"]] | rest


class PotentialConfig(ModelConfig):
    """The model, and what was fixed from the training data."""

    levels_of_theory: list[str] = Field(
        default=["default"], min_length=1, description="one head each"
    )
    num_neighbours: float = Field(
        default=16.0, gt=0, description="mean number of neighbours in the data"
    )


class Readout(nn.Module):
    """Atom features -> phi (N, d); an atom's energy in a head is phi . (weight[head] + element_weight[head, z]).

    Linear in both weights: that is what the closed-form refit rests on. The element's own part starts at zero,
    so that an element never seen is read out as all are.
    """

    def __init__(self, num_features: int, size: int, num_heads: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, size)
        self.weight = nn.Parameter(torch.randn(num_heads, size) / size**0.5)
        self.element_weight = nn.Parameter(torch.zeros(num_heads, MAX_ATOMIC_NUMBER + 1, size))
        self.listener: Callable[[Tensor], None] | None = (
            None  # is told the hidden layer's values (N, d)
        )

    def features(self, scalars: Tensor) -> Tensor:
        """phi (N, d)."""
        hidden = self.hidden(scalars)
        if self.listener:
            self.listener(hidden)
        return nn.functional.silu(hidden)

    def forward(self, phi: Tensor, head: Tensor, atomic_numbers: Tensor) -> Tensor:
        """phi (N, d), head (N,), Z (N,) -> (N,). One tensor holds all heads, so all take part in every step."""
        row = head * (MAX_ATOMIC_NUMBER + 1) + atomic_numbers
        own = self.element_weight.flatten(0, 1).index_select(0, row)
        return (phi * (self.weight.index_select(0, head) + own)).sum(1)


class Potential(ExactBuffers):
    """E = sum_i E0[head, z_i] + scale[head] * phi_i . (w[head] + v[head, z_i]) + sum_ij E_ij / 2 of repulsion.py.

    F = -dE/dr; stress = dE/dstrain / V.

    `e0` (heads, 119) in eV and `scale` (heads,) in eV are buffers fixed by the data; E0 is summed in float64,
    so that a large total energy does not round the forces' energy scale away.
    """

    e0: Tensor
    scale: Tensor

    def __init__(self, config: PotentialConfig) -> None:
        super().__init__()
        self.config = config
        num_heads = len(config.levels_of_theory)
        self.backbone = Backbone(config, config.num_neighbours)
        self.readout = Readout(self.backbone.num_features, config.readout_size, num_heads)
        self.repulsion = Repulsion(config.cutoff, num_heads).requires_grad_(config.repulsion)
        self.compiled: CompiledSlopes | None = None
        self.compiled_training: CompiledTraining | None = None
        self.register_buffer(
            "e0", torch.zeros(num_heads, MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        )
        self.register_buffer("scale", torch.ones(num_heads, dtype=torch.float64))

    def use_compiler(self) -> None:
        """Compile the network for inference at its next call: a minute once, then a quarter less time a call."""
        self.compiled = CompiledSlopes(self)

    def use_compiler_in_training(self, frame: Frame) -> None:
        """Compile the network for training, for batches padded to a frame: minutes at the first step."""
        self.compiled_training = CompiledTraining(self, frame, self.config.cutoff)

    def forward(self, batch: Batch) -> Prediction:
        """Energy, forces and stress of every structure, and the energies of the atoms.

        Forces are computed here, inside forward, because DeepSpeed differentiates what forward returns.  The
        stress of a structure that is not periodic in three directions is NaN.
        """
        vectors, tiles = self.edge_vectors(batch)
        atom_head = batch.head[batch.structure_index]  # (N,)
        if compiled := self._compiled_now():
            interaction, slope = compiled(batch.atomic_numbers, atom_head, vectors, tiles)
        else:
            interaction, slope = slopes(
                self, batch.atomic_numbers, atom_head, vectors, tiles, self.training
            )
        energies = self.e0[atom_head, batch.atomic_numbers] + interaction.double()
        if self.config.repulsion:
            core_energies, core_slope = self.core_repulsion(batch, vectors, tiles)
            energies, slope = energies + core_energies, slope + core_slope
        energy = batch.sum_over_atoms(energies)
        forces, stress = forces_and_stress(slope, vectors.detach(), tiles, batch)
        return Prediction(
            labels={"energy": energy, "forces": forces, "stress": stress}, atom_energies=energies
        )

    def edge_vectors(self, batch: Batch) -> tuple[Tensor, Tiles]:
        """Edge vectors (E, 3) in tile order, as a leaf to differentiate by, and their tiles."""
        offset = batch.edge_offsets()
        compiled = self._compiled_now()
        size = compiled.tile_size if compiled else None
        tiles = tile_edges(batch.edge_index, offset, batch.num_atoms, self.config.cutoff, size)
        vectors = (
            batch.positions[tiles.sender] - batch.positions[tiles.slot_receiver] + tiles.offset
        )
        dtype = self.readout.weight.dtype
        return vectors.detach().to(dtype).requires_grad_(), tiles

    def _compiled_now(self) -> CompiledSlopes | CompiledTraining | None:
        """What computes a call of this kind, inference or training, if it was asked for."""
        if not torch.is_grad_enabled():
            return self.compiled
        return self.compiled_training if self.training else None

    def interaction(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> Tensor:
        """Energies (N,) in eV that the network gives to the atoms."""
        phi = self.features(atomic_numbers, vectors, tiles)
        energies = self.readout(phi, head, atomic_numbers)
        return energies * self.scale[head].to(energies.dtype)  # phi may be of lower precision

    def core_repulsion(self, batch: Batch, vectors: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
        """Repulsion energies (N,) float64 of the atoms and the slope (E, 3) by edge vectors."""
        receiver, z = tiles.slot_receiver, batch.atomic_numbers
        energy, slope = self.repulsion(
            vectors, z[receiver], z[tiles.sender], batch.head[batch.structure_index[receiver]]
        )
        energies = torch.zeros(len(z), dtype=torch.float64, device=energy.device)
        return energies.index_add(0, receiver, energy.double()), slope

    def features(self, atomic_numbers: Tensor, vectors: Tensor, tiles: Tiles) -> Tensor:
        """phi (N, d): what the energy of every head is linear in."""
        return self.readout.features(self.backbone(atomic_numbers, vectors, tiles))


def forces_and_stress(
    slope: Tensor, vectors: Tensor, tiles: Tiles, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Forces (N, 3) and stress (S, 3, 3) from the energy's slope dE/dv by every edge vector v = r_j - r_i.

    F_j = -dE/dv, F_i = +dE/dv, so the net force is zero by construction; stress = sum_v (dE/dv) v^T / V.
    """
    num_atoms = batch.num_atoms
    receiver = tiles.slot_receiver
    forces = (
        slope.new_zeros(num_atoms, 3)
        .index_add(0, receiver, slope)
        .index_add(0, tiles.sender, -slope)
    )
    outer = (slope.unsqueeze(2) * vectors.unsqueeze(1)).flatten(1)  # (E, 9)
    virial = outer.new_zeros(num_atoms, 9).index_add(0, receiver, outer)
    virial = batch.sum_over_atoms(virial).view(-1, 3, 3)
    periodic = batch.pbc.all(1).view(-1, 1, 1)
    # NaN is put in after the division: inside it, it would reach the gradients of unlabelled structures
    volume = torch.where(periodic, torch.linalg.det(batch.cell).abs().view(-1, 1, 1), 1.0).to(
        virial.dtype
    )
    stress = 0.5 * (virial + virial.transpose(1, 2)) / volume
    return forces, torch.where(periodic, stress, torch.nan)
