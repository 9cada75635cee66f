"""The interface between a network and the rest of evenfield.

A network maps atomic numbers and edge vectors to features of every atom. The features do not change
when the structure is rotated, inverted, translated or renumbered. Readout, reference energies,
forces, training, fine-tuning, publishing and engines are the same for all networks. They use only
the interface defined in this file.

To add a network, make a folder next to `gaunt/` and `schnet/`, and add a line to
`architectures.py`. `evenfield.testing` checks that the network satisfies this interface.

Shapes: N atoms, E edge slots, F features, D length of an element vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...core.settings import Settings
from .tiles import Tiles


# every network supports the elements 1 to 118
MAX_ATOMIC_NUMBER = 118


class NetworkConfig(Settings):
    """The settings that all networks share. Each network adds its own settings and a tag."""

    # the named sizes of `model.size`, each with the settings that it implies
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {}
    # Settings that are younger than the first models. They are not stored at their defaults, so
    # that the stored form and the digest of a potential stay what they were. Otherwise each new
    # setting would void the records of uncertainty, heads and checks of all models that exist.
    # Their defaults must never change, because older models have these values.
    ADDED_LATER: ClassVar[tuple[str, ...]] = ("silent_below", "whole_from")

    architecture: str = Field(description="which network; see model_zoo/network/architectures.py")
    cutoff: float = Field(
        default=5.0, gt=0, le=100, description="A; atoms further apart are not neighbours"
    )
    silent_below: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of the sum of both covalent radii; the network ignores shorter edges",
    )
    whole_from: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of the sum of both covalent radii; the core switch leaves longer edges "
        "alone",
    )

    @model_validator(mode="after")
    def _the_core_switch_rises(self) -> Self:
        if self.silent_below >= self.whole_from:
            raise ValueError(
                f"silent_below={self.silent_below:g} is not below whole_from={self.whole_from:g}: "
                "lower it, or raise whole_from"
            )
        return self

    @property
    @abstractmethod
    def num_features(self) -> int:
        """F, the number of features of an atom."""

    @property
    @abstractmethod
    def num_weights(self) -> int:
        """How many numbers the state of the network holds, counted without building it.

        If the settings in a model folder ask for more weights than its files hold, the folder is
        refused before any memory is allocated. A test compares this count with a built network.
        """


@dataclass(frozen=True)
class CarriedFeatures:
    """All features of the atoms: invariants, V vectors and T tensors. V and T may be zero.

    `invariants` (N, F) are the result of `forward`. `vectors` (N, 3, V) are polar: they rotate with
    the structure and change sign under inversion. `tensors` (N, 3, 3, T) are symmetric and
    traceless. They transform as R t R^T under a rotation R and are unchanged by inversion.
    """

    invariants: Tensor
    vectors: Tensor
    tensors: Tensor

    @classmethod
    def of_invariants(cls, invariants: Tensor) -> CarriedFeatures:
        """Features that consist of invariants (N, F) only, without vectors or tensors."""
        # not len(), which would become a constant in a traced graph
        num_atoms = invariants.shape[0]
        return cls(
            invariants=invariants,
            vectors=invariants.new_zeros(num_atoms, 3, 0),
            tensors=invariants.new_zeros(num_atoms, 3, 3, 0),
        )

    def cpu(self) -> CarriedFeatures:
        """The same features on the CPU."""
        return self.to(torch.device("cpu"))

    def to(self, device: torch.device) -> CarriedFeatures:
        """The same features on another device."""
        parts = (self.invariants, self.vectors, self.tensors)
        return CarriedFeatures(*(part.to(device) for part in parts))


class Network(nn.Module, ABC):
    """Maps atomic numbers and edge vectors to invariant features of every atom.

    The constructor takes a config and the mean number of neighbours in the training data. A network
    must be twice differentiable: forces are a first derivative, and training on them needs a
    second. Features and their first two derivatives must be continuous when an edge crosses the
    cutoff; `radial.polynomial_envelope` ensures this.
    """

    def __init__(self, config: NetworkConfig, num_neighbours: float) -> None:
        super().__init__()

    @property
    @abstractmethod
    def num_features(self) -> int:
        """F, the number of features of an atom."""

    @property
    @abstractmethod
    def receptive_field(self) -> float:
        """Largest distance in A at which an atom can influence the features of another atom."""

    @property
    @abstractmethod
    def element_vectors(self) -> nn.Parameter:
        """The learned vectors of the elements, (119, D), indexed by atomic number.

        A new element starts from its neighbours in the periodic table, and the fine-tuning strategy
        `new-element` trains only its row. Element vectors have no weight decay.
        """

    @abstractmethod
    def depth_groups(self) -> list[list[nn.Parameter]]:
        """All parameters, grouped by depth from input to output.

        Full fine-tuning may use a smaller learning rate for groups near the input.
        """

    @abstractmethod
    def adaptable_weights(self) -> list[tuple[nn.Module, str]]:
        """The weights to which LoRA may add a low-rank matrix, as pairs (module, weight name).

        The last two dimensions of each weight form a matrix. Adding any matrix of that shape must
        keep the features invariant.
        """

    @abstractmethod
    def forward(self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles) -> Tensor:
        """Atomic numbers (N,) and edge vectors (E, 3) in A -> invariant features (N, F).

        Edge vectors come in the order of `tiles` and point from receiver to sender. Padded slots
        have vectors longer than the cutoff and must contribute exactly zero.
        """

    @property
    def num_carried(self) -> tuple[int, int]:
        """The numbers V and T of vectors and tensors per atom; (0, 0) by default."""
        return 0, 0

    def carried(
        self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles
    ) -> CarriedFeatures:
        """The features of `forward` together with equivariant vectors and tensors of each atom.

        Heads for vector and tensor properties are linear in the vectors and tensors. By default, as
        for a network that uses only distances, there are none.
        """
        return CarriedFeatures.of_invariants(self(atomic_numbers, edge_vectors, tiles))
