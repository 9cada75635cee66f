"""The settings of the equivariant network."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..interface import MAX_ATOMIC_NUMBER, NetworkConfig
from .paths import layer_degrees, natural_parity_paths


class GauntConfig(NetworkConfig):
    """Settings of the equivariant network.

    The upper limits are far above any useful model. They keep a malformed model folder from
    filling the memory.
    """

    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"channels": 32},
        "medium": {"channels": 64},
        "large": {"channels": 128},
    }

    architecture: Literal["gaunt"] = Field(
        default="gaunt", description="which network; the other keys depend on it"
    )
    channels: int = Field(default=32, gt=0, le=8192, description="features per component")
    l_max: int = Field(
        default=3, ge=0, le=6, description="highest degree on edges and in the tensor products"
    )
    l_hidden: int = Field(default=1, ge=0, le=8, description="highest degree passed between layers")
    num_layers: int = Field(default=2, gt=0, le=64, description="rounds of message passing")
    correlation: int = Field(
        default=3, ge=1, le=16, description="neighbours coupled at once: body order minus 1"
    )
    num_basis: int = Field(default=8, gt=0, le=1024, description="Bessel functions")
    radial_hidden: int = Field(
        default=32, gt=0, le=8192, description="hidden width of the radial network"
    )
    embedding_size: int = Field(
        default=32, gt=0, le=8192, description="length of an element vector"
    )
    angular_factors: bool = Field(
        default=False, description="a factor of the distance for every degree on edges"
    )

    @model_validator(mode="after")
    def _products_reach_what_is_passed_on(self) -> Self:
        if self.l_hidden > self.l_max:
            raise ValueError(
                f"l_hidden={self.l_hidden} is above l_max={self.l_max}: lower it, or raise l_max"
            )
        return self

    @property
    def num_features(self) -> int:
        """F, the number of features of an atom: the scalars of all layers."""
        return self.channels * self.num_layers

    @property
    def num_weights(self) -> int:
        """How many numbers the state of the network holds, counted without building it."""
        elements = (MAX_ATOMIC_NUMBER + 1) * self.embedding_size
        start = (self.embedding_size + 1) * self.channels
        layers = 0
        for l_in, l_out in layer_degrees(self.num_layers, self.l_hidden):
            layers += self._radial_weights(l_in) + self._layer_weights(l_in, l_out)
        return elements + start + layers

    def _radial_weights(self, l_in: int) -> int:
        """The number of weights in the radial network of a layer."""
        inputs = self.num_basis + 2 * self.embedding_size + 1
        outputs = (l_in + 1) * self.channels
        angular = (self.l_max + 1) if self.angular_factors else 0
        return self.radial_hidden * (inputs + outputs + angular) + angular

    def _layer_weights(self, l_in: int, l_out: int) -> int:
        """The number of weights in a layer, without its radial network."""
        # how many matrices of shape (channels, channels) there are
        num_matrices = 0
        for l3 in range(self.l_max + 1):
            num_matrices += len(natural_parity_paths(l_in, self.l_max, l3))
        for order in range(2, self.correlation + 1):
            l_product = l_out if order == self.correlation else self.l_max
            num_matrices += (self.l_max + 1) + (l_product + 1)
        num_outputs = self.correlation * (l_out + 1)
        num_skip = min(l_in, l_out) + 1
        num_matrices += num_outputs + num_skip

        gates = (self.embedding_size + 1) * num_outputs * self.channels
        return num_matrices * self.channels**2 + gates
