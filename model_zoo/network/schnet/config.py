"""The settings of the SchNet-like network."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ..interface import MAX_ATOMIC_NUMBER, NetworkConfig


class SchNetConfig(NetworkConfig):
    """Settings of the SchNet-like network, which uses only distances."""

    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"channels": 64},
        "medium": {"channels": 128},
        "large": {"channels": 256},
    }

    architecture: Literal["schnet"] = Field(
        default="schnet", description="which network; the other keys depend on it"
    )
    channels: int = Field(default=64, gt=0, le=8192, description="features of an atom")
    num_layers: int = Field(default=3, gt=0, le=64, description="rounds of message passing")
    num_gaussians: int = Field(default=32, gt=1, le=1024, description="functions of the distance")

    @property
    def num_features(self) -> int:
        """F, the number of features of an atom."""
        return self.channels

    @property
    def num_weights(self) -> int:
        """How many numbers the state of the network holds, counted without building it."""
        elements = (MAX_ATOMIC_NUMBER + 1) * self.channels
        # four matrices: `sent`, the second of the filter, and both of the update; three have biases
        matrices = 4 * self.channels**2 + 3 * self.channels
        first_of_filter = (self.num_gaussians + 1) * self.channels
        # the centres of the Gaussians are stored too
        return elements + self.num_layers * (matrices + first_of_filter) + self.num_gaussians
