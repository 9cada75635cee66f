"""One layer of the network: aggregate, contract, multiply, update. `network.py` has the equations.

Shapes: N atoms, E edge slots, T slots of a tile, C channels, D length of an element vector, and
K1, K2, K3 = (l + 1)^2 components of input, edge and message.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tiles import TileProduct, Tiles
from .algebra import (
    ClebschGordanContraction,
    EquivariantLinear,
    GauntTensorProduct,
    components_per_degree,
)
from .config import GauntConfig
from .radial import RadialNetwork


@dataclass(frozen=True)
class EdgeGeometry:
    """What all layers need of the edges, in tile order."""

    tiles: Tiles
    harmonics: Tensor  # (tiles, T, K2), divided by sqrt(nbar)
    basis: Tensor  # (E, B)
    envelope: Tensor  # (E, 1)


class InteractionLayer(nn.Module):
    """Aggregates over edges, contracts, raises the body order by Gaunt tensor products, updates."""

    def __init__(self, config: GauntConfig, l_in: int, l_out: int) -> None:
        super().__init__()
        channels = config.channels
        l_max = config.l_max
        embedding_size = config.embedding_size
        self.l_in = l_in
        self.l_out = l_out
        self.input_sizes = components_per_degree(l_in)

        # messages
        num_angular = (l_max + 1) if config.angular_factors else 0
        self.radial = RadialNetwork(
            config.num_basis,
            config.radial_hidden,
            embedding_size,
            (l_in + 1) * channels,
            num_angular,
        )
        self.paths = ClebschGordanContraction(l_max, l_in, l_max, channels)

        # powers of the message
        self.products = nn.ModuleList()
        self.factors = nn.ModuleList()
        self.mixes = nn.ModuleList()
        for order in range(2, config.correlation + 1):
            # of the last power only the components that are passed on are read
            l_product = l_out if order == config.correlation else l_max
            self.factors.append(EquivariantLinear(l_max, channels, channels))
            self.products.append(GauntTensorProduct(l_max, l_product))
            self.mixes.append(EquivariantLinear(l_product, channels, channels))

        # update
        self.outputs = nn.ModuleList()
        for _ in range(config.correlation):
            self.outputs.append(EquivariantLinear(l_out, channels, channels))
        self.gates = nn.Linear(
            embedding_size, config.correlation * (l_out + 1) * channels, dtype=torch.float32
        )
        # gates start near 1, so that every power takes part from the first step
        nn.init.ones_(self.gates.bias)
        self.skip = EquivariantLinear(min(l_in, l_out), channels, channels)

    def forward(self, x: Tensor, elements: Tensor, edges: EdgeGeometry) -> Tensor:
        """x (K1, N, C), elements (N, D) -> (K_out, N, C)."""
        return self.update(x, self.message(x, elements, edges), elements)

    def message(self, x: Tensor, elements: Tensor, edges: EdgeGeometry) -> Tensor:
        """What an atom receives from its neighbours, (K3, N, C)."""
        aggregated = self.aggregate(x, elements, edges)
        return soft_norm(self.paths(aggregated))

    def aggregate(self, x: Tensor, elements: Tensor, edges: EdgeGeometry) -> list[Tensor]:
        """A by l1, each (K2 * (2 l1 + 1), N, C).

        One matrix product for each tile, then a sum over the tiles of an atom.
        """
        tiles = edges.tiles
        _, num_atoms, channels = x.shape
        radial, angular = self.radial(
            edges.basis, edges.envelope, elements, tiles.sender, tiles.receiver, tiles.size
        )
        directed = edges.harmonics  # (tiles, T, K2)
        if angular is not None:
            directed = directed * _repeat_over_components(angular).view_as(directed)

        # Degree by degree: tensors over all edges are the largest, so none is joined or cut.
        aggregated = []
        parts = x.split(self.input_sizes)
        weights = radial.split(channels, 1)
        for part, weight in zip(parts, weights, strict=True):
            by_atom = part.permute(1, 0, 2).flatten(1)  # (N, (2 l1 + 1) * C)
            sent = by_atom.index_select(0, tiles.sender)  # (E, (2 l1 + 1) * C)
            by_component = sent.unflatten(1, (-1, channels))  # (E, 2 l1 + 1, C)
            weighted = by_component * weight.unsqueeze(1)
            weighted = weighted.flatten(1)
            by_tile = weighted.unflatten(0, (-1, tiles.size))  # (tiles, T, (2 l1 + 1) * C)

            product = TileProduct.apply(directed, by_tile)
            product = product.flatten(1)
            total = product.new_zeros(num_atoms, product.shape[1])
            total = total.index_add(0, tiles.receiver, product)

            # back to component-major layout, which the contraction reads as one matrix
            by_component = total.view(num_atoms, -1, channels)
            component_major = by_component.transpose(0, 1)
            aggregated.append(component_major.contiguous())
        return aggregated

    def update(self, x: Tensor, message: Tensor, elements: Tensor) -> Tensor:
        """Powers of the message, gated by the element of the receiving atom, and the skip."""
        num_out = (self.l_out + 1) ** 2
        num_atoms = elements.shape[0]
        gates = self.gates(elements)
        gates = gates.view(num_atoms, len(self.outputs), self.l_out + 1, -1)
        gates = gates.permute(1, 2, 0, 3)  # (order, l_out + 1, N, C)

        # the first power is the message itself
        power = message
        gate = _repeat_over_rows(gates[0])
        output = self.outputs[0](message[:num_out])
        total = output * gate

        # each turn raises the power by one: its product with another mix of the message
        powers = zip(self.factors, self.products, self.mixes, strict=True)
        for order, (factor, product, mix) in enumerate(powers, start=1):
            multiplied = product(power, factor(message))
            power = mix(multiplied)
            gate = _repeat_over_rows(gates[order])
            output = self.outputs[order](power[:num_out])
            total = total + output * gate

        # an input of lower degree than the output has no skip for the components above its own
        skip = self.skip(x[:num_out])
        num_skip = len(skip)
        with_skip = total[:num_skip] + skip
        return torch.cat([with_skip, total[num_skip:]])


def soft_norm(x: Tensor) -> Tensor:
    """x / sqrt(1 + mean of x^2 over components and channels), (K, N, C).

    Small features are hardly changed, large ones are bounded. Products of a message grow with its
    cube: without a bound, one close contact dwarfs all other atoms. The function is smooth
    everywhere, so a message still vanishes with two derivatives at the cutoff.
    """
    mean_square = (x * x).mean(dim=(0, 2), keepdim=True)  # (1, N, 1)
    return x * torch.rsqrt(1.0 + mean_square)


def _repeat_over_components(x: Tensor) -> Tensor:
    """One value for each degree (E, l_max + 1) -> one for each component (E, K)."""
    columns = []
    for degree, values in enumerate(x.unbind(1)):
        column = values.unsqueeze(1)
        columns.append(column.expand(-1, 2 * degree + 1))
    return torch.cat(columns, 1)


def _repeat_over_rows(x: Tensor) -> Tensor:
    """One row for each degree (l_max + 1, N, C) -> one for each component (K, N, C)."""
    rows = []
    for degree, values in enumerate(x):
        rows.append(values.expand(2 * degree + 1, -1, -1))
    return torch.cat(rows)
