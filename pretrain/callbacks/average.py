"""An exponential moving average of the weights, separate from the trained weights."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from pydantic import Field
from torch import Tensor

from ...core.settings import Settings
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.weights_aside import copied_weights, weights_aside
from ..loop.optimizer_state import state_of_shape
from .callback import Callback, Loop, StepReport


class AverageConfig(Settings):
    """Whether averaged weights are validated and exported."""

    decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the average that a step keeps; 0 is off",
        # a checkpoint without an average has none to start from
        json_schema_extra={"resume": "not_from_off"},
    )


class WeightAverage(Callback):
    """a += (1 - d) (w - a) after every step taken; d = min(decay, (1 + n) / (10 + n)) at update n.

    The smaller decay of the first updates lets the average forget the random initial weights. Only
    rank 0 keeps the average, because weights are equal on all ranks after a step. Frozen weights
    and buffers are not averaged.
    """

    name = "average"

    def __init__(self, potential: Potential, config: AverageConfig) -> None:
        self.potential = potential
        self.decay = config.decay
        self.updates = 0
        self._own = {
            name: parameter
            for name, parameter in potential.named_parameters()
            if parameter.requires_grad
        }
        self._average = copied_weights(potential, trainable=True)

    @torch.no_grad()
    def on_step(self, loop: Loop, report: StepReport) -> None:
        if report.bad_structures:
            # the step was not taken
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged = [self._average[name] for name in self._own]
        own: list[Tensor] = list(self._own.values())
        # one kernel for all weights instead of one each
        torch._foreach_lerp_(averaged, own, 1.0 - decay)
        self.updates += 1

    def evaluated_weights(self) -> AbstractContextManager[object]:
        """Inside the block, the potential has the averaged weights; then its own, bit for bit."""
        return weights_aside(self.potential, self._average, trainable=True)

    def tensors(self) -> dict[str, Tensor]:
        # copies, because on a CPU the next step would change a checkpoint that is being written
        averaged = {name: weight.cpu().clone() for name, weight in self._average.items()}
        return averaged | {"updates": torch.tensor(self.updates)}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for name, weight in self._average.items():
            weight.copy_(state_of_shape(tensors, name, weight.shape))
        self.updates = int(tensors["updates"])
