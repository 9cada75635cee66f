"""The backbone: contract after aggregation.

For receiver i and layer input x_j[l1 m1, c], edge (j -> i) with length r and direction n:

    A_i[l2 m2, l1 m1, c] = 1/sqrt(nbar) sum_j Y[l2 m2](n) R[l1, c](r; z_i, z_j) x_j[l1 m1, c]
    M_i[l3 m3, c']       = sum over paths (l1, l2 -> l3) and c of U[path, c, c'] CG A_i
    B^1 = M;  B^(k+1)    = mix(P((G B^k) * (G mix' M)))
    x'_i                 = sum_k mix_k(B^k) * gate_k(z_i) + skip(x_i)

With `angular_factors`, Y[l2 m2] has a factor f[l2](r; z_i, z_j) besides. Edges take part only in A, one batched matrix
product over tiles; the Clebsch-Gordan work is done once an atom.
Shapes: N atoms, E edge slots, C channels; K1, K2, K3 = (l + 1)^2 components of input, edge and message.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Self

import torch
from e3nn import o3
from pydantic import Field, model_validator
from torch import Tensor, nn

from ....core.settings import Settings
from ..embedding import ElementEmbedding
from ..radial import BesselBasis, RadialNetwork, polynomial_envelope
from ..tiles import TileProduct, Tiles
from .sphere import ChannelMix, CouplingPaths, SphereProduct, degree_heights


class BackboneConfig(Settings):
    """Size of the backbone."""

    channels: int = Field(default=32, gt=0, description="features per component")
    l_max: int = Field(
        default=3, ge=0, le=6, description="highest degree on edges and in the node products"
    )
    l_hidden: int = Field(default=1, ge=0, description="highest degree passed between layers")
    num_layers: int = Field(default=2, gt=0)
    correlation: int = Field(
        default=3, ge=1, description="neighbours coupled at once: body order minus 1"
    )
    cutoff: float = Field(default=5.0, gt=0, description="A")
    num_basis: int = Field(default=8, gt=0, description="Bessel functions")
    radial_hidden: int = Field(default=32, gt=0)
    embedding_size: int = Field(default=32, gt=0, description="length of an element's vector")
    angular_factors: bool = Field(
        default=False, description="a factor of r for every degree on edges"
    )

    @model_validator(mode="after")
    def _products_reach_what_is_passed_on(self) -> Self:
        if self.l_hidden > self.l_max:
            raise ValueError(
                f"l_hidden={self.l_hidden} is above l_max={self.l_max}: lower it, or raise l_max"
            )
        return self


@dataclass(frozen=True)
class EdgeGeometry:
    """What the layers need to know of the edges, in tile order."""

    tiles: Tiles
    harmonics: Tensor  # (tiles, T, K2), over sqrt(nbar)
    basis: Tensor  # (E, B)
    envelope: Tensor  # (E, 1)


class Interaction(nn.Module):
    """One layer: aggregate over edges, contract, raise the body order on the sphere, update."""

    def __init__(self, config: BackboneConfig, l_in: int, l_out: int) -> None:
        super().__init__()
        channels, l_max, size = config.channels, config.l_max, config.embedding_size
        self.l_in, self.l_out, self.heights = l_in, l_out, degree_heights(l_in)
        num_angular = (l_max + 1) * config.angular_factors
        self.radial = RadialNetwork(
            config.num_basis, config.radial_hidden, size, (l_in + 1) * channels, num_angular
        )
        self.paths = CouplingPaths(l_max, l_in, l_max, channels)
        self.products, self.factors, self.mixes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for order in range(2, config.correlation + 1):
            l_product = (
                l_out if order == config.correlation else l_max
            )  # nobody reads more of the last one
            self.factors.append(ChannelMix(l_max, channels, channels))
            self.products.append(SphereProduct(l_max, l_product))
            self.mixes.append(ChannelMix(l_product, channels, channels))
        self.outputs = nn.ModuleList(
            ChannelMix(l_out, channels, channels) for _ in range(config.correlation)
        )
        self.gates = nn.Linear(size, config.correlation * (l_out + 1) * channels)
        nn.init.ones_(self.gates.bias)
        self.skip = ChannelMix(min(l_in, l_out), channels, channels)

    def forward(self, x: Tensor, elements: Tensor, edges: EdgeGeometry) -> Tensor:
        """x (K1, N, C), elements (N, D) -> (K_out, N, C)."""
        message = soft_norm(self.paths(self.aggregate(x, elements, edges)))  # (K3, N, C)
        return self.update(x, message, elements)

    def aggregate(self, x: Tensor, elements: Tensor, edges: EdgeGeometry) -> list[Tensor]:
        """A by l1, each (K2 * (2 l1 + 1), N, C): one matrix product per tile, then a sum over the tiles of an atom."""
        tiles, (_, num_atoms, channels) = edges.tiles, x.shape
        radial, angular = self.radial(
            edges.basis, edges.envelope, elements, tiles.sender, tiles.receiver, tiles.size
        )
        directed = edges.harmonics  # (tiles, T, K2)
        if angular is not None:
            directed = directed * _repeat_degrees(angular).view_as(directed)
        parts = []
        # degree by degree: the tensors of all edges are the large ones, and so none of them is joined or cut
        for part, weight in zip(x.split(self.heights), radial.split(channels, 1), strict=True):
            sent = (
                part.permute(1, 0, 2).flatten(1).index_select(0, tiles.sender)
            )  # (E, (2 l1 + 1) * C)
            weighted = (sent.unflatten(1, (-1, channels)) * weight.unsqueeze(1)).flatten(1)
            product = TileProduct.apply(directed, weighted.unflatten(0, (-1, tiles.size))).flatten(
                1
            )
            total = product.new_zeros(num_atoms, product.shape[1]).index_add(
                0, tiles.receiver, product
            )
            parts.append(total.view(num_atoms, -1, channels).transpose(0, 1).contiguous())
        return parts

    def update(self, x: Tensor, message: Tensor, elements: Tensor) -> Tensor:
        """Powers of the message on the sphere, gated by the receiving element, plus the skip."""
        num_out = (self.l_out + 1) ** 2
        gates = self.gates(elements).view(elements.shape[0], len(self.outputs), self.l_out + 1, -1)
        gates = gates.permute(1, 2, 0, 3)  # (order, L + 1, N, C)
        power, total = message, self.outputs[0](message[:num_out]) * _repeat_rows(gates[0])
        for order, (factor, product, mix) in enumerate(
            zip(self.factors, self.products, self.mixes, strict=True), start=1
        ):
            power = mix(product(power, factor(message)))
            total = total + self.outputs[order](power[:num_out]) * _repeat_rows(gates[order])
        skip = self.skip(x[:num_out])
        return torch.cat([total[: len(skip)] + skip, total[len(skip) :]])


def soft_norm(x: Tensor) -> Tensor:
    """x / sqrt(1 + mean over components and channels of x^2), (K, N, C): near 1 times x when small, else bounded.

    Products of a message grow with its cube: without a bound one close contact dwarfs all other atoms. Smooth
    everywhere, so that a message still vanishes with two derivatives at the cutoff.
    """
    return x * torch.rsqrt(1.0 + (x * x).mean(dim=(0, 2), keepdim=True))


def _repeat_degrees(x: Tensor) -> Tensor:
    """(E, l_max + 1) -> (E, K): one value per degree to one per component."""
    return torch.cat(
        [f.unsqueeze(1).expand(-1, 2 * degree + 1) for degree, f in enumerate(x.unbind(1))], 1
    )


def _repeat_rows(x: Tensor) -> Tensor:
    """(l_max + 1, N, C) -> (K, N, C)."""
    return torch.cat([f.expand(2 * degree + 1, -1, -1) for degree, f in enumerate(x)])


class Backbone(nn.Module):
    """Atomic numbers and edge vectors -> invariant features of every atom, from every layer."""

    def __init__(self, config: BackboneConfig, num_neighbours: float) -> None:
        super().__init__()
        self.config, self.norm = config, num_neighbours**-0.5
        self.embedding = ElementEmbedding(config.embedding_size)
        self.start = nn.Linear(config.embedding_size, config.channels)
        self.harmonics = o3.SphericalHarmonics(
            list(range(config.l_max + 1)), normalize=True, normalization="component"
        )
        self.bessel = BesselBasis(config.num_basis, config.cutoff)
        degrees = [
            0,
            *[config.l_hidden] * (config.num_layers - 1),
            0,
        ]  # the readout takes scalars only
        self.layers = nn.ModuleList(
            Interaction(config, l_in, l_out) for l_in, l_out in itertools.pairwise(degrees)
        )

    @property
    def num_features(self) -> int:
        """Length of an atom's feature vector."""
        return self.config.channels * self.config.num_layers

    def forward(self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles) -> Tensor:
        """Z (N,), edge vectors (E, 3) in A in tile order -> scalars of all layers (N, num_features)."""
        elements = self.embedding(atomic_numbers)
        distance = edge_vectors.norm(dim=1, keepdim=True)  # (E, 1)
        edges = EdgeGeometry(
            tiles=tiles,
            harmonics=(self.harmonics(edge_vectors) * self.norm).unflatten(0, (-1, tiles.size)),
            basis=self.bessel(distance),
            envelope=polynomial_envelope(distance / self.config.cutoff),
        )
        x = self.start(elements).unsqueeze(0)  # (1, N, C)
        scalars = []
        for layer in self.layers:
            x = layer(x, elements, edges)
            scalars.append(x[0])
        return torch.cat(scalars, dim=1)
