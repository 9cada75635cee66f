"""An optimizer's state under the names of its parameters, whatever the ranks share out.

ZeRO 1 and 2 lay the parameters of a group end to end in one line, and each rank holds an equal part
of it: its master weights and its moments. Here the parts are put together and cut into named
tensors, which depend neither on the number of ranks nor on the stage. Any number of ranks in any
stage can load them.
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

Line = list[tuple[Tensor, int]]  # parameters of a group, and where each starts in the line


def whole_state(optimizer: Any, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """Moments, step counts and the like as `exp_avg/NAME`, `step/NAME`, ..., on the CPU.

    All ranks call it, and all get the whole state. `names` are those of the parameters. A parameter
    that was never stepped has no entry, or one of zeros.
    """
    if isinstance(optimizer, Optimizer):
        return _unshared_state(optimizer, names)

    state: dict[str, Tensor] = {}
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
    """Load what `whole_state` returned.

    In ZeRO 1 and 2 also the master weights are set, to the weights that the parameters now hold.
    """
    if isinstance(optimizer, Soap):
        for parameter, name in names.items():
            for key, own in optimizer.state[parameter].items():
                own.copy_(state[f"{key}/{name}"])
    elif isinstance(optimizer, Optimizer):
        for parameter, name in names.items():
            keys = [key for key in (*MOMENTS, "step") if f"{key}/{name}" in state]
            if keys:
                optimizer.state[parameter] = {
                    key: _copy_beside(state[f"{key}/{name}"], parameter) for key in keys
                }
    else:
        _load_shared_state(optimizer, names, state)


def _unshared_state(optimizer: Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for parameter, name in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{key}/{name}"] = value.detach().cpu().clone()
    return state


def _load_shared_state(optimizer: Any, names: dict[Tensor, str], state: dict[str, Tensor]) -> None:
    """Cut this rank's part out of every group's line."""
    rank = dist.get_rank()
    for part, line in _lines(optimizer):
        here = slice(rank * part.numel(), (rank + 1) * part.numel())
        weights = [parameter.detach() for parameter, _ in line]
        part.copy_(_laid_out(weights, line, part)[here])

        # all parameters of a group are stepped together, so one count stands for all
        step = f"step/{names[line[0][0]]}" if line else ""
        if step not in state:
            continue
        own = {"step": _copy_beside(state[step], part)}
        for key in MOMENTS:
            pieces = [state[f"{key}/{names[parameter]}"] for parameter, _ in line]
            own[key] = _laid_out(pieces, line, part)[here].clone()
        optimizer.optimizer.state[part] = own


def _copy_beside(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy on the parameter's device, where the fused AdamW wants its step count too."""
    return value.clone().to(parameter.device)


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
    """The parts of all ranks, end to end."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def _laid_out(pieces: list[Tensor], line: Line, part: Tensor) -> Tensor:
    """The pieces at their places in a line of zeros as long as the parts of all ranks."""
    flat = part.new_zeros(part.numel() * dist.get_world_size())
    for piece, (_, start) in zip(pieces, line, strict=True):
        flat[start : start + piece.numel()] = piece.reshape(-1).to(flat)
    return flat
