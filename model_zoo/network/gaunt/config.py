"""The settings of the network."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..interface import NetworkConfig


class GauntConfig(NetworkConfig):
    """Sizes of the equivariant network. The upper limits are far above any useful model.

    They keep a bad model folder from filling the memory.
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
    def fewest_weights(self) -> int:
        """Every layer has several matrices of channels x channels."""
        return self.channels**2 * self.num_layers
