"""One layer of the network: aggregate, contract, multiply, update. `network.py` has the equations.

Shapes: N atoms, E edge slots, T slots per tile, C channels, B radial basis functions, D length of
an element vector. The input, edge and message have K1, K2 and K3 components, each (l + 1)^2.
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
    """Geometric quantities of the edges that all layers share, in tile order."""

    tiles: Tiles
    harmonics: Tensor  # (tiles, T, K2), divided by sqrt(nbar)
    basis: Tensor  # (E, B)
    envelope: Tensor  # (E, 1)


class InteractionLayer(nn.Module):
    """One message-passing layer.

    It aggregates over edges, contracts, raises the body order by Gaunt tensor products, and
    updates the features.
    """

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
            # only the components that are passed on are needed from the last power
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
        """Input x (K1, N, C) and element vectors (N, D) -> output ((l_out + 1)^2, N, C)."""
        return self.update(x, self.message(x, elements, edges), elements)

    def message(self, x: Tensor, elements: Tensor, edges: EdgeGeometry) -> Tensor:
        """The messages M that the atoms receive from their neighbours, (K3, N, C)."""
        aggregated = self.aggregate(x, elements, edges)
        return soft_norm(self.paths(aggregated))

    def aggregate(self, x: Tensor, elements: Tensor, edges: EdgeGeometry) -> list[Tensor]:
        """Return A as a list over l1, with entries of shape (K2 * (2 l1 + 1), N, C).

        There is one matrix product per tile, followed by a sum over the tiles of each atom.
        """
        tiles = edges.tiles
        _, num_atoms, channels = x.shape
        radial, angular = self.radial(
            edges.basis, edges.envelope, elements, tiles.sender, tiles.receiver, tiles.size
        )
        directed = edges.harmonics  # (tiles, T, K2)
        if angular is not None:
            directed = directed * _repeat_over_components(angular).view_as(directed)

        # Degree by degree: tensors over all edges are the largest, so they are neither concatenated
        # nor sliced.
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

            # back to component-major layout, which the contraction treats as a matrix
            by_component = total.view(num_atoms, -1, channels)
            component_major = by_component.transpose(0, 1)
            aggregated.append(component_major.contiguous())
        return aggregated

    def update(self, x: Tensor, message: Tensor, elements: Tensor) -> Tensor:
        """Return the layer output ((l_out + 1)^2, N, C).

        It is the sum of the powers of the message, gated by the element of the receiving atom, plus
        the skip connection.
        """
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

        # each iteration raises the power by one: a product with another linear map of the message
        powers = zip(self.factors, self.products, self.mixes, strict=True)
        for order, (factor, product, mix) in enumerate(powers, start=1):
            multiplied = product(power, factor(message))
            power = mix(multiplied)
            gate = _repeat_over_rows(gates[order])
            output = self.outputs[order](power[:num_out])
            total = total + output * gate

        # components of higher degree than the input have no skip connection
        skip = self.skip(x[:num_out])
        num_skip = len(skip)
        with_skip = total[:num_skip] + skip
        return torch.cat([with_skip, total[num_skip:]])


def soft_norm(x: Tensor) -> Tensor:
    """Return x / sqrt(1 + mean of x^2 over components and channels), (K, N, C).

    Small features hardly change, and large ones are bounded. Third-order products grow as the cube
    of the message, so without a bound one close contact would dwarf all other atoms. The function
    is smooth everywhere, so messages and their first two derivatives still vanish at the cutoff.
    """
    mean_square = (x * x).mean(dim=(0, 2), keepdim=True)  # (1, N, 1)
    return x * torch.rsqrt(1.0 + mean_square)


def _repeat_over_components(x: Tensor) -> Tensor:
    """Expand one value per degree (E, l_max + 1) to one per component (E, K)."""
    columns = []
    for degree, values in enumerate(x.unbind(1)):
        column = values.unsqueeze(1)
        columns.append(column.expand(-1, 2 * degree + 1))
    return torch.cat(columns, 1)


def _repeat_over_rows(x: Tensor) -> Tensor:
    """Expand one row per degree (l_max + 1, N, C) to one per component (K, N, C)."""
    rows = []
    for degree, values in enumerate(x):
        rows.append(values.expand(2 * degree + 1, -1, -1))
    return torch.cat(rows)
