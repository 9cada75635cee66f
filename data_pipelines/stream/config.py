"""Settings of a training stream."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...core.settings import Settings
from ..census.weights import WeightConfig


class StreamConfig(Settings):
    """Batch limits and order of a training stream."""

    edge_budget: int = Field(default=6000, gt=0, description="most edges in a batch")
    atom_budget: int = Field(default=256, gt=0, description="most atoms in a batch")
    oversized: Literal["alone", "skip"] = Field(
        default="alone",
        description="a structure beyond a budget makes a batch of its own, or is left out",
    )
    window_blocks: int = Field(default=4, gt=0, description="blocks shuffled together")
    look_ahead: int = Field(
        default=32, gt=0, description="structures among which a batch is packed"
    )
    # the key predates the term "virtual ranks"; it stays because stored models record it
    lanes: int = Field(
        default=0,
        ge=0,
        le=65536,
        description="virtual ranks: batches of a step, whatever the number of real ranks, which "
        "must divide it; 0 for one per rank",
    )
    seed: int = Field(default=0, ge=0, description="of the order of structures")
    weights: WeightConfig = WeightConfig()
