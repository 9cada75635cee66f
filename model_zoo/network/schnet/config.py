"""The settings of the network."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ..interface import NetworkConfig


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
    def fewest_weights(self) -> int:
        """A layer has four matrices of channels x channels."""
        return 4 * self.channels**2 * self.num_layers
