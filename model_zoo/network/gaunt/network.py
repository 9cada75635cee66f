"""The equivariant network: aggregation first, then contraction.

For the receiver i, the layer input x_j[l1 m1, c], and an edge (j -> i) of length r and direction n:

    A_i[l2 m2, l1 m1, c] = 1/sqrt(nbar) sum_j Y[l2 m2](n) R[l1, c](r; z_i, z_j) x_j[l1 m1, c]
    M_i[l3 m3, c']       = sum over paths (l1, l2 -> l3) and c of U[path, c, c'] CG A_i
    B^1 = M;  B^(k+1)    = mix(P((G B^k) * (G mix' M)))
    x'_i                 = sum_k mix_k(B^k) * gate_k(z_i) + skip(x_i)

nbar is the mean number of neighbours, U are learned weights, CG are the Clebsch-Gordan
coefficients, and G and P are the evaluation and projection steps of the Gaunt tensor product in
`algebra.py`. With `angular_factors`, Y[l2 m2] is also multiplied by a factor f[l2](r; z_i, z_j).
Edges enter only A, which is one batched matrix product over tiles. The Clebsch-Gordan contraction
and the tensor products are done once per atom.

Shapes: N atoms, E edge slots, C channels, K = (l_max + 1)^2 components.
"""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from ..embedding import ElementEmbedding
from ..interface import CarriedFeatures, Network
from ..radial import BesselBasis, CoreSwitch, polynomial_envelope
from ..tiles import Tiles
from .algebra import ClebschGordanContraction, EquivariantLinear
from .config import GauntConfig
from .layer import EdgeGeometry, InteractionLayer
from .paths import layer_degrees


class GauntNetwork(Network):
    """Equivariant message passing; the features of an atom are the scalars of all layers."""

    def __init__(self, config: GauntConfig, num_neighbours: float) -> None:
        super().__init__(config, num_neighbours)
        self.config = config
        self.norm = num_neighbours**-0.5
        self.embedding = ElementEmbedding(config.embedding_size)
        self.start = nn.Linear(config.embedding_size, config.channels, dtype=torch.float32)
        self.harmonics = o3.SphericalHarmonics(
            list(range(config.l_max + 1)), normalize=True, normalization="component"
        )
        self.bessel = BesselBasis(config.num_basis, config.cutoff)
        self.core_switch = CoreSwitch(config.silent_below, config.whole_from)

        self.layers = nn.ModuleList()
        for l_in, l_out in layer_degrees(config.num_layers, config.l_hidden):
            self.layers.append(InteractionLayer(config, l_in, l_out))

    @property
    def num_features(self) -> int:
        """F, the number of features of an atom: the scalars of all layers."""
        return self.config.num_features

    @property
    def receptive_field(self) -> float:
        """In A. Every layer extends it by one cutoff."""
        return self.config.cutoff * self.config.num_layers

    @property
    def element_vectors(self) -> nn.Parameter:
        """The weight of the element embedding, (119, embedding_size)."""
        return self.embedding.weight

    def depth_groups(self) -> list[list[nn.Parameter]]:
        """The element vectors with the first linear map, then one group per layer."""
        bottom = [*self.embedding.parameters(), *self.start.parameters()]
        groups = [bottom]
        for layer in self.layers:
            groups.append(list(layer.parameters()))
        return groups

    def adaptable_weights(self) -> list[tuple[nn.Module, str]]:
        """All linear maps between channels.

        A map is the same for all components of one degree, so the network stays equivariant
        whatever matrix is added to the map.
        """
        found: list[tuple[nn.Module, str]] = []
        for module in self.modules():
            if isinstance(module, EquivariantLinear):
                found.append((module, "weight"))
            elif isinstance(module, ClebschGordanContraction):
                # a ParameterList names its entries by their index
                for index in range(len(module.weights)):
                    found.append((module.weights, str(index)))
        return found

    def forward(self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles) -> Tensor:
        """The scalars of all layers, (N, num_features)."""
        elements = self.embedding(atomic_numbers)
        edges = self._edges(atomic_numbers, edge_vectors, tiles)
        x = self.start(elements).unsqueeze(0)  # (1, N, C)
        scalars = []
        for layer in self.layers:
            x = layer(x, elements, edges)
            scalars.append(x[0])
        return torch.cat(scalars, dim=1)

    @property
    def num_carried(self) -> tuple[int, int]:
        """The numbers of vectors and tensors per atom.

        Vectors come from all messages and from the features passed between layers, tensors from all
        messages.
        """
        config = self.config
        num_hidden = config.num_layers - 1 if config.l_hidden >= 1 else 0
        num_messages = config.num_layers
        vectors = (num_messages + num_hidden) * config.channels if config.l_max >= 1 else 0
        tensors = num_messages * config.channels if config.l_max >= 2 else 0
        return vectors, tensors

    def carried(
        self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles
    ) -> CarriedFeatures:
        """The features of `forward`, with vectors and tensors from the messages.

        Vectors are the degree-1 parts of the messages and of the features passed between layers.
        Tensors are the degree-2 parts of the messages. All paths have natural parity, so a part of
        degree l has parity (-1)^l: vectors are polar, and tensors are unchanged by inversion. The
        cost is that of `forward`.
        """
        elements = self.embedding(atomic_numbers)
        edges = self._edges(atomic_numbers, edge_vectors, tiles)
        x = self.start(elements).unsqueeze(0)
        scalars = []
        # shape[0], not len(), which would become a constant in a traced graph
        vectors = [x.new_zeros(3, elements.shape[0], 0)]
        tensors = [x.new_zeros(5, elements.shape[0], 0)]
        for layer in self.layers:
            assert isinstance(layer, InteractionLayer)
            message = layer.message(x, elements, edges)
            x = layer.update(x, message, elements)
            scalars.append(x[0])
            vectors += [part[1:4] for part in (message, x) if len(part) > 1]
            tensors += [message[4:9]] if len(message) > 4 else []

        of_degree_2 = torch.cat(tensors, dim=2)
        # maps the five components to symmetric traceless matrices, in the axis order of degree 1
        basis = o3.wigner_3j(1, 1, 2, dtype=x.dtype, device=x.device)
        return CarriedFeatures(
            invariants=torch.cat(scalars, dim=1),
            vectors=torch.cat(vectors, dim=2).transpose(0, 1),
            tensors=torch.einsum("abm,mnc->nabc", basis, of_degree_2),
        )

    def _edges(self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles) -> EdgeGeometry:
        """The geometric quantities of the edges that all layers share."""
        distance = edge_vectors.norm(dim=1, keepdim=True)  # (E, 1)
        # this is the factor 1/sqrt(nbar) of A, applied once for all layers
        harmonics = self.harmonics(edge_vectors) * self.norm
        envelope = polynomial_envelope(distance / self.config.cutoff)
        core = self.core_switch(distance, atomic_numbers, tiles.sender, tiles.slot_receiver)
        return EdgeGeometry(
            tiles=tiles,
            harmonics=harmonics.unflatten(0, (-1, tiles.size)),
            basis=self.bessel(distance),
            envelope=envelope * core,
        )
