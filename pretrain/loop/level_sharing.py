"""Levels of theory that share a part of their readouts in training.

The readout W of a level is the sum of a part S shared by several levels, and a difference D of the
level. With gradients g[h] of the levels h, a step of gradient descent on S and D moves W = S + D by

    change of W[h]  ~  g[h] + strength * sum of g over the levels that share

It is therefore enough to add this sum to the gradients of W. The readout needs no additional
parameters, and a model trained in this way is stored and fine-tuned like any other. A level with
few structures mostly follows the sum, and a level with many structures mostly follows its own
gradient.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...core.settings import Settings
from ...model_zoo.potential.potential import Potential


class LevelSharingConfig(Settings):
    """Which levels of theory share a part of their readouts, and how strongly."""

    levels: list[str] = Field(
        default=[],
        description="levels of theory that nearly agree, up to the energies of free atoms; none to "
        "keep all readouts apart",
        # the readouts and energy scales of these levels start equal
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
    """Give the sharing levels equal readouts, and share their gradients from now on.

    Readouts are in multiples of the energy scale. All sharing levels therefore get the same scale,
    the root mean square of their scales. The potential must have all levels in the config;
    `check_data` ensures this.
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

    # with DeepSpeed too, hooks run before gradients are summed over ranks
    for weight in (readout.weight, readout.element_weight):
        weight.register_hook(shared)
