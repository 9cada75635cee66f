"""Load a checkpoint into an engine that has more heads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..loop.engine import Engine


WEIGHT = "weight/"


class WithNewHeads:
    """An engine that can load states in which the last heads are missing.

    The heads of the state must be the first ones of the engine, in the same order. Tensors whose
    first dimension counts heads are completed with rows of the engine. Their optimizer state starts
    afresh for all heads, because SOAP keeps it for the tensor as a whole.
    """

    def __init__(self, engine: Engine, num_saved: int) -> None:
        self._engine = engine
        self.num_saved = num_saved
        self.rank = engine.rank
        self.world_size = engine.world_size

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load a state. Raises ResumeError if anything but the number of heads differs."""
        completed = filled_up(state, self._engine.state(), self.num_saved)
        grown = []
        for name, tensor in completed.items():
            if name.startswith(WEIGHT) and tensor is not state[name]:
                grown.append(name.removeprefix(WEIGHT))
        for name in state:
            _, _, parameter = name.partition("/")
            if parameter in grown and not name.startswith(WEIGHT):
                del completed[name]
        self._engine.load_state(completed)


def filled_up(
    saved: dict[str, Tensor], own: dict[str, Tensor], num_saved: int
) -> dict[str, Tensor]:
    """The saved tensors, completed with the last rows of `own` if `own` has more heads."""
    completed = {}
    for name, tensor in saved.items():
        target = own.get(name)
        if target is not None and _lacks_heads(tensor, target, num_saved):
            tensor = torch.cat([tensor, target[num_saved:].to(tensor)])
        completed[name] = tensor
    return completed


def _lacks_heads(saved: Tensor, own: Tensor, num_saved: int) -> bool:
    """Whether two tensors differ only in the number of heads, their first dimension."""
    if not saved.ndim or saved.ndim != own.ndim:
        return False
    same_rows = saved.shape[1:] == own.shape[1:]
    return same_rows and len(saved) == num_saved and len(own) > num_saved
