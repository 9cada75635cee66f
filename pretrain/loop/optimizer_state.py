"""An optimizer's state by parameter name, whole, from and to whatever the ranks share out.

ZeRO 1 and 2 lay the parameters of a group end to end, and each rank holds one equal part of that line: its master
weights and its moments. Here the parts are put together and cut into named tensors, which say nothing of ranks or of
the stage; any number of ranks in any stage takes them up again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from .soap import Soap


MOMENTS = ("exp_avg", "exp_avg_sq")


def whole_state(optimizer: Any, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """Moments, step count and the like as `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME` on the CPU; all ranks call it.

    names: of the parameters. A parameter that was never stepped has no entry, or one of zeros.
    """
    state: dict[str, Tensor] = {}
    if isinstance(optimizer, Optimizer):
        for parameter, name in names.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"{key}/{name}"] = value.detach().cpu().clone()
        return state
    for part, line in _lines(optimizer):
        own = optimizer.optimizer.state.get(part, {})
        if not own:
            continue
        for key in MOMENTS:
            flat = _gathered(own[key])
            for parameter, start in line:
                piece = flat[start : start + parameter.numel()].view(parameter.shape)
                state[f"{key}/{names[parameter]}"] = piece.cpu().clone()
        for parameter, _ in line:
            state[f"step/{names[parameter]}"] = own["step"].detach().cpu().clone()
    return state


@torch.no_grad()
def load_whole_state(optimizer: Any, names: dict[Tensor, str], state: dict[str, Tensor]) -> None:
    """Take up what `whole_state` gave and, in ZeRO, the weights that the parameters now hold."""
    if isinstance(optimizer, Optimizer):
        for parameter, name in names.items():
            if isinstance(optimizer, Soap):
                for key, own in optimizer.state[parameter].items():
                    own.copy_(state[f"{key}/{name}"])
                continue
            keys = [key for key in (*MOMENTS, "step") if f"{key}/{name}" in state]
            if keys:
                optimizer.state[parameter] = {
                    key: _at(state[f"{key}/{name}"], parameter) for key in keys
                }
        return
    rank = dist.get_rank()
    for part, line in _lines(optimizer):
        here = slice(rank * part.numel(), (rank + 1) * part.numel())
        part.copy_(_laid_out([p.detach() for p, _ in line], line, part)[here])
        if not line or f"step/{names[line[0][0]]}" not in state:
            continue
        own = {"step": _at(state[f"step/{names[line[0][0]]}"], part)}
        for key in MOMENTS:
            pieces = [state[f"{key}/{names[parameter]}"] for parameter, _ in line]
            own[key] = _laid_out(pieces, line, part)[here].clone()
        optimizer.optimizer.state[part] = own


def _at(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy where the parameter is: the fused AdamW wants its count of steps there too."""
    return value.clone().to(parameter.device)


Line = list[tuple[Tensor, int]]  # parameters and where they start


def _lines(optimizer: Any) -> Iterator[tuple[Tensor, Line]]:
    """For each group this rank's part of the line, and the line."""
    groups = zip(
        optimizer.single_partition_of_fp32_groups,
        optimizer.round_robin_bit16_groups,
        optimizer.round_robin_bit16_offsets,
        strict=True,
    )
    for part, parameters, offsets in groups:
        yield part, list(zip(parameters, offsets, strict=True))


def _gathered(part: Tensor) -> Tensor:
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def _laid_out(pieces: list[Tensor], line: Line, part: Tensor) -> Tensor:
    """The pieces at their places in a line of zeros as long as all ranks' parts."""
    flat = part.new_zeros(part.numel() * dist.get_world_size())
    for piece, (_, start) in zip(pieces, line, strict=True):
        flat[start : start + piece.numel()] = piece.reshape(-1).to(flat)
    return flat
