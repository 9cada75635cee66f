"""Levels of theory that learn their readouts from each other.

The readout of a level is a part S that all levels share plus a difference D of its own. A step of
gradient descent on both moves the sum W = S + D, for the gradient g of each level h, by

    change of W[h]  ~  g[h] + strength * sum over all levels of g

so it is enough to add that sum to the gradients of W, and the readout needs no other parameters: a
model that was trained like this is stored and fine-tuned as any other. A level with few structures
mostly follows the sum, and one with many mostly follows itself.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ...core.settings import Settings
from ...model_zoo.potential.potential import Potential


class LevelSharingConfig(Settings):
    """How much levels of theory learn from each other in the readout."""

    strength: float = Field(
        default=0.0,
        ge=0,
        description="of the readout that all levels of theory share, as a multiple of their own; 0 "
        "keeps them apart",
        # it decides what the readouts and their units start from
        json_schema_extra={"resume": "not_from_off"},
    )


def share_readouts(potential: Potential, strength: float) -> None:
    """Let the gradients of the readouts be shared from now on. With strength 0, nothing changes."""
    if strength == 0:
        return

    def shared(gradient: Tensor) -> Tensor:
        return gradient + strength * gradient.sum(0, keepdim=True)

    for weight in (potential.readout.weight, potential.readout.element_weight):
        # under DeepSpeed, too, this comes before gradients are added up over ranks
        weight.register_hook(shared)


def start_alike(potential: Potential) -> None:
    """Give all heads of a fresh potential the weights of the first, and one energy scale.

    What they share is in multiples of the scale, so different scales could share nothing.
    """
    readout = potential.readout
    readout.weight.data.copy_(readout.weight.data[:1].expand_as(readout.weight).clone())
    potential.scale.fill_(float(potential.scale.square().mean().sqrt()))
