"""The interface between a network and the rest of evenfield.

A network turns atomic numbers and edge vectors into features of every atom that do not change when
the structure is rotated, inverted, translated or renumbered. The readout, reference energies,
forces, training, fine-tuning, publishing and the engines are the same for all networks, and know
nothing of one except what this file says.

A new network is a folder next to `gaunt/` and `schnet/`, and one line in `architectures.py`.
`evenfield.testing` checks that it keeps the promises made here.

Shapes: N atoms, E edge slots, F features, D length of an element vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ...core.settings import Settings
from .tiles import Tiles


# every network knows the elements 1 to 118
MAX_ATOMIC_NUMBER = 118


class NetworkConfig(Settings):
    """The settings that all networks share. Each network adds its own and states its tag."""

    # named sizes for `model.size`: each sets some of the other settings
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {}

    architecture: str = Field(description="which network; see model_zoo/network/architectures.py")
    cutoff: float = Field(
        default=5.0, gt=0, le=100, description="A; atoms further apart are not neighbours"
    )

    @property
    @abstractmethod
    def num_features(self) -> int:
        """F, the number of features of an atom."""

    @property
    @abstractmethod
    def num_weights(self) -> int:
        """Numbers in the state of the network, counted without building it.

        A model folder whose settings ask for more weights than its files hold is refused before any
        memory is taken. A test of the package compares the count with the network that is built.
        """


@dataclass(frozen=True)
class CarriedFeatures:
    """What a network knows of each atom; V vectors and T tensors, of which there may be none.

    `invariants` (N, F) are what `forward` gives. `vectors` (N, 3, V) are polar: they turn with the
    structure, and change sign under inversion. `tensors` (N, 3, 3, T) are symmetric and traceless,
    turn on both sides, and stay the same under inversion.
    """

    invariants: Tensor
    vectors: Tensor
    tensors: Tensor

    @classmethod
    def of_invariants(cls, invariants: Tensor) -> CarriedFeatures:
        """Invariants (N, F) without any vectors and tensors."""
        # not a length, which would be a constant of a traced graph
        num_atoms = invariants.shape[0]
        return cls(
            invariants=invariants,
            vectors=invariants.new_zeros(num_atoms, 3, 0),
            tensors=invariants.new_zeros(num_atoms, 3, 3, 0),
        )

    def cpu(self) -> CarriedFeatures:
        """The same in the memory of the processor."""
        return self.to(torch.device("cpu"))

    def to(self, device: torch.device) -> CarriedFeatures:
        """The same in the memory of a device."""
        parts = (self.invariants, self.vectors, self.tensors)
        return CarriedFeatures(*(part.to(device) for part in parts))


class Network(nn.Module, ABC):
    """Atomic numbers and edge vectors -> invariant features of every atom.

    A subclass takes its config and the mean number of neighbours in the training data. It must be
    differentiable twice, since forces are a first derivative and training on them needs a second.
    Features and their first two derivatives must be continuous where an edge crosses the cutoff;
    `radial.polynomial_envelope` does that.
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
        """Largest distance in A from which an atom can influence the features of another."""

    @property
    @abstractmethod
    def element_vectors(self) -> nn.Parameter:
        """What the network knows of each element, (119, D); the row is the atomic number.

        A new element starts from its neighbours in the periodic table, and the fine-tuning strategy
        `new-element` trains its row alone. Element vectors have no weight decay.
        """

    @abstractmethod
    def depth_groups(self) -> list[list[nn.Parameter]]:
        """All parameters in groups, from the input to the output.

        Full fine-tuning may give groups near the input a smaller learning rate.
        """

    @abstractmethod
    def adaptable_weights(self) -> list[tuple[nn.Module, str]]:
        """Modules, and the names of their weights to which LoRA may add a low-rank matrix.

        The last two dimensions of each weight are those of a matrix. Adding any matrix of that
        shape must keep the features invariant.
        """

    @abstractmethod
    def forward(self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles) -> Tensor:
        """Atomic numbers (N,) and edge vectors (E, 3) in A, in the order of `tiles` -> (N, F).

        The edge vector of a slot points from its receiver to its sender. Padded slots have vectors
        longer than the cutoff, and must contribute exactly zero.
        """

    @property
    def num_carried(self) -> tuple[int, int]:
        """V and T, the numbers of vectors and tensors of an atom; none by default."""
        return 0, 0

    def carried(
        self, atomic_numbers: Tensor, edge_vectors: Tensor, tiles: Tiles
    ) -> CarriedFeatures:
        """The features of `forward`, and the vectors and tensors that the network has of each atom.

        Heads that rotate are linear in them. A network on distances alone has none.
        """
        return CarriedFeatures.of_invariants(self(atomic_numbers, edge_vectors, tiles))
