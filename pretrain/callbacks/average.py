"""An exponential moving average of the weights, held apart from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from ...core.settings import Settings
from ...model_zoo.potential.potential import Potential
from .callback import Callback


if TYPE_CHECKING:
    from ..loop.trainer import StepReport, Trainer


class AverageConfig(Settings):
    """Whether validations and the exported model take averaged weights."""

    decay: float = Field(
        default=0.0, ge=0, lt=1, description="share that a step leaves of the average; 0 is off"
    )


class WeightAverage(Callback):
    """a += (1 - d) (w - a) after every step taken, with d = min(decay, (1 + n) / (10 + n)) at update n.

    Rank 0 holds it: after a step the weights are the same on all ranks. Frozen weights and buffers are no part of it.
    """

    def __init__(self, potential: Potential, config: AverageConfig) -> None:
        self._own = {name: p for name, p in potential.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._own.items()}
        self.decay, self.updates = config.decay, 0

    @torch.no_grad()
    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.bad_structures:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self._average.values()), list(self._own.values()), 1.0 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The potential with the averaged weights, and afterwards with its own again, bit for bit."""
        with torch.no_grad():
            kept = {name: p.clone() for name, p in self._own.items()}
            self._put(self._average)
        try:
            yield
        finally:
            with torch.no_grad():
                self._put(kept)

    def tensors(self) -> dict[str, Tensor]:
        """On the CPU, by name, for a checkpoint."""
        state = {f"average/{name}": weight.cpu().clone() for name, weight in self._average.items()}
        return state | {"updates": torch.tensor(self.updates)}

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave; ValueError when the run before kept no average."""
        if not state:
            raise ValueError(
                "average.decay: the run to resume kept no average of its weights: leave it 0"
            )
        for name, weight in self._average.items():
            weight.copy_(state[f"average/{name}"])
        self.updates = int(state["updates"])

    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._own.items():
            parameter.copy_(weights[name])
