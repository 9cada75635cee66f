"""SchNet: continuous-filter convolutions on distances alone (Schuett et al., NeurIPS 2017).

    x_i   <- x_i + W3 ssp(W2 m_i + b2) + b3
    m_i    = 1/sqrt(nbar) sum_j (W1 x_j) * filter(r_ij) u(r_ij / cutoff)
    filter = W5 ssp(W4 gaussians(r) + b4) + b5

ssp is the shifted softplus, nbar the mean number of neighbours, u the polynomial envelope. The
published network uses a cosine envelope, whose second derivative jumps at the cutoff.

This network is a baseline and the shortest implementation of `interface.py`. It shows how a network
written for torch-geometric fits in: the convolution is a MessagePassing module, and the Gaussians
and the activation come from torch_geometric.nn.models.schnet.

Shapes: N atoms, E edge slots, C channels, G Gaussians.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.models.schnet import GaussianSmearing, ShiftedSoftplus

from ..embedding import ElementEmbedding
from ..interface import Network
from ..radial import CoreSwitch, polynomial_envelope
from ..tiles import Tiles
from .config import SchNetConfig


class FilterConvolution(MessagePassing):  # type: ignore[misc]  # torch-geometric has no types
    """Computes m_i: the sum over neighbours of their features times a filter of the distance."""

    def __init__(self, channels: int, num_gaussians: int) -> None:
        super().__init__(aggr="sum")
        self.sent = nn.Linear(channels, channels, bias=False, dtype=torch.float32)
        self.filter = nn.Sequential(
            nn.Linear(num_gaussians, channels, dtype=torch.float32),
            ShiftedSoftplus(),
            nn.Linear(channels, channels, dtype=torch.float32),
        )

    def forward(self, x: Tensor, edge_index: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
        """Map x (N, C), edge_index (2, E), basis (E, G), envelope (E, 1) to messages (N, C)."""
        weight = self.filter(basis) * envelope
        message: Tensor = self.propagate(edge_index, x=self.sent(x), weight=weight)
        return message

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        """The message of an edge. MessagePassing passes x_j, the features of the sender."""
        return x_j * weight


class SchNetLayer(nn.Module):
    """One convolution, followed by an update of the atomic features."""

    def __init__(self, channels: int, num_gaussians: int) -> None:
        super().__init__()
        self.convolution = FilterConvolution(channels, num_gaussians)
        self.update = nn.Sequential(
            nn.Linear(channels, channels, dtype=torch.float32),
            ShiftedSoftplus(),
            nn.Linear(channels, channels, dtype=torch.float32),
        )

    def forward(self, x: Tensor, edge_index: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
        """Map features x (N, C) to updated features (N, C)."""
        return x + self.update(self.convolution(x, edge_index, basis, envelope))


class SchNet(Network):
    """Invariant message passing; the features of an atom are the output of the last layer."""

    def __init__(self, config: SchNetConfig, num_neighbours: float) -> None:
        super().__init__(config, num_neighbours)
        self.config = config
        self.norm = num_neighbours**-0.5
        self.embedding = ElementEmbedding(config.channels)
        self.gaussians = GaussianSmearing(0.0, config.cutoff, config.num_gaussians)
        # torch-geometric creates the centres in torch's default dtype, which may not be float32
        centres = torch.linspace(0.0, config.cutoff, config.num_gaussians, dtype=torch.float32)
        self.gaussians.offset = centres
        self.gaussians.coeff = -0.5 / float(centres[1] - centres[0]) ** 2
        self.core_switch = CoreSwitch(config.silent_below, config.whole_from)
        self.layers = nn.ModuleList(
            SchNetLayer(config.channels, config.num_gaussians) for _ in range(config.num_layers)
        )

    @property
    def num_features(self) -> int:
        return self.config.num_features

    @property
    def receptive_field(self) -> float:
        """In A. Every layer extends it by one cutoff."""
        return self.config.cutoff * self.config.num_layers

    @property
    def element_vectors(self) -> nn.Parameter:
        return self.embedding.weight

    def depth_groups(self) -> list[list[nn.Parameter]]:
        return [
            list(self.embedding.parameters()),
            *(list(layer.parameters()) for layer in self.layers),
        ]

    def adaptable_weights(self) -> list[tuple[nn.Module, str]]:
        """All linear maps. They act on invariants, so the features stay invariant in any case."""
        return [(module, "weight") for module in self.modules() if isinstance(module, nn.Linear)]

    def forward(self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles) -> Tensor:
        """The features of the last layer, (N, C)."""
        edge_index = torch.stack([tiles.sender, tiles.slot_receiver])
        distance = edge_vectors.norm(dim=1, keepdim=True)  # (E, 1)
        envelope = polynomial_envelope(distance / self.config.cutoff) * self.norm
        core = self.core_switch(distance, atomic_numbers, tiles.sender, tiles.slot_receiver)
        basis = self.gaussians(distance)  # (E, G)

        x = self.embedding(atomic_numbers)
        for layer in self.layers:
            x = layer(x, edge_index, basis, envelope * core)
        return x
