"""Levels of theory that learn their readouts from each other.

The readout W of a level is a part S that several levels share plus a difference D of its own. A
step of gradient descent on both moves the sum W = S + D, for the gradient g of each level h, by

    change of W[h]  ~  g[h] + strength * sum of g over the levels that share

so it is enough to add that sum to the gradients of W, and the readout needs no other parameters: a
model that was trained like this is stored and fine-tuned as any other. A level with few structures
mostly follows the sum, and one with many mostly follows itself.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...core.settings import Settings
from ...model_zoo.potential.potential import Potential


class LevelSharingConfig(Settings):
    """Which levels of theory learn their readouts from each other, and how much."""

    levels: list[str] = Field(
        default=[],
        description="levels of theory that nearly agree, up to the energies of free atoms; none to "
        "keep all readouts apart",
        # their readouts and energy scales start alike
        json_schema_extra={"resume": "refused"},
    )
    strength: float = Field(
        default=1.0,
        gt=0,
        description="of the shared part of a readout, as a multiple of the level's own",
        json_schema_extra={"resume": "applied"},
    )

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(self.levels) == 1 or len(set(self.levels)) < len(self.levels):
            raise ValueError("level_sharing.levels names two or more different levels, or none")
        return self


def share_readouts(potential: Potential, config: LevelSharingConfig) -> None:
    """Let the levels that share start alike, and let their gradients be shared from now on.

    What they share is in multiples of the energy scale, so all of them get one scale: the root of
    the mean square of theirs. `check_data` has refused levels that the potential does not have.
    """
    if not config.levels:
        return

    known = potential.config.levels_of_theory
    heads = torch.tensor([known.index(level) for level in config.levels])
    readout = potential.readout
    with torch.no_grad():
        readout.weight[heads] = readout.weight[heads[0]].clone()
        potential.scale[heads] = potential.scale[heads].square().mean().sqrt()

    def shared(gradient: Tensor) -> Tensor:
        of_all = gradient[heads].sum(0)
        added = torch.zeros_like(gradient)
        added[heads] = config.strength * of_all
        return gradient + added

    # under DeepSpeed, too, a hook comes before gradients are added up over ranks
    for weight in (readout.weight, readout.element_weight):
        weight.register_hook(shared)
