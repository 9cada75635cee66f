"""The settings of the network."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ..interface import MAX_ATOMIC_NUMBER, NetworkConfig


class SchNetConfig(NetworkConfig):
    """Sizes of the SchNet-like network, which sees distances only."""

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
        """Those of the last layer."""
        return self.channels

    @property
    def num_weights(self) -> int:
        """Counted as `network.py` makes them."""
        elements = (MAX_ATOMIC_NUMBER + 1) * self.channels
        # sent, the second half of the filter, and both halves of the update; three have biases
        matrices = 4 * self.channels**2 + 3 * self.channels
        first_of_filter = (self.num_gaussians + 1) * self.channels
        # the centres of the Gaussians are stored too
        return elements + self.num_layers * (matrices + first_of_filter) + self.num_gaussians
