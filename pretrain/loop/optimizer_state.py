"""An optimizer's state under the names of its parameters, however ranks share it.

ZeRO 1 and 2 lay the parameters of a group end to end in one line. Each rank holds an equal part of
the line: its master weights and its moments. Here the parts are joined and cut into named tensors,
which depend neither on the number of ranks nor on the stage. Any number of ranks in any stage can
load them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from ..errors import ResumeError
from .soap import Soap


MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Line:
    """The parameters of a group, laid end to end; this rank holds `part` of them."""

    part: Tensor
    parameters: list[Tensor]
    starts: list[int]

    def cut(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its piece of the whole line (flat), in the parameter's shape."""
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            piece = flat[start : start + parameter.numel()]
            yield parameter, piece.view(parameter.shape)

    def own_part(self, pieces: list[Tensor]) -> Tensor:
        """What this rank holds of a line that is made of one piece for each parameter."""
        # Zeros fill the gaps: DeepSpeed pads a line so that its parts are equally long.
        flat = self.part.new_zeros(self.part.numel() * dist.get_world_size())
        for piece, start in zip(pieces, self.starts, strict=True):
            flat[start : start + piece.numel()] = piece.reshape(-1).to(flat)

        size = self.part.numel()
        first = dist.get_rank() * size
        return flat[first : first + size]


def whole_state(optimizer: Any, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """Moments, step counts and the like as `exp_avg/NAME`, `step/NAME`, ..., on the CPU.

    All ranks call it, and all get the whole state. `names` are those of the parameters. A parameter
    that was never stepped has no entry, or one of zeros.
    """
    if isinstance(optimizer, Optimizer):
        return _unshared_state(optimizer, names)

    state: dict[str, Tensor] = {}
    for line in _lines(optimizer):
        own = optimizer.optimizer.state.get(line.part, {})
        if not own:
            # The first step creates the state.
            continue
        for key in MOMENTS:
            flat = _gathered(own[key])
            for parameter, piece in line.cut(flat):
                # a copy: the piece is a view, and would keep the whole line alive
                state[f"{key}/{names[parameter]}"] = piece.cpu().clone()
        for parameter in line.parameters:
            state[f"step/{names[parameter]}"] = own["step"].detach().cpu().clone()
    return state


@torch.no_grad()
def load_whole_state(optimizer: Any, names: dict[Tensor, str], state: dict[str, Tensor]) -> None:
    """Load what `whole_state` returned.

    In ZeRO 1 and 2 also the master weights are set, to the weights that the parameters now hold.
    """
    if isinstance(optimizer, Soap):
        _load_into_soap(optimizer, names, state)
    elif isinstance(optimizer, Optimizer):
        _load_unshared_state(optimizer, names, state)
    else:
        _load_shared_state(optimizer, names, state)


def state_of_shape(state: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """A saved tensor; raises ResumeError when there is none, or one of another shape."""
    saved = state.get(name)
    if saved is None or saved.shape != shape:
        found = "is missing" if saved is None else f"has shape {tuple(saved.shape)}"
        raise ResumeError(
            f"{name} {found} in the checkpoint, and the model's has shape {tuple(shape)}",
            remedy="resume with the settings and the data of the run, or start a new run in "
            "another folder",
        )
    return saved


def _unshared_state(optimizer: Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for parameter, name in names.items():
        own = optimizer.state.get(parameter, {})
        for key, value in own.items():
            state[f"{key}/{name}"] = value.detach().cpu().clone()
    return state


def _load_into_soap(optimizer: Soap, names: dict[Tensor, str], state: dict[str, Tensor]) -> None:
    """Copy in place: the state of a parameter is a view of its stack's."""
    for parameter, name in names.items():
        if f"step/{name}" not in state:
            # a tensor of heads that has grown starts afresh
            continue
        for key, own in optimizer.state[parameter].items():
            own.copy_(state_of_shape(state, f"{key}/{name}", own.shape))


def _load_unshared_state(
    optimizer: Optimizer, names: dict[Tensor, str], state: dict[str, Tensor]
) -> None:
    for parameter, name in names.items():
        own = {}
        for key in (*MOMENTS, "step"):
            if f"{key}/{name}" not in state:
                continue
            shape = torch.Size([]) if key == "step" else parameter.shape
            saved = state_of_shape(state, f"{key}/{name}", shape)
            own[key] = _copy_to_device_of(parameter, saved)
        # AdamW creates its state at the first step only where it finds none at all.
        if own:
            optimizer.state[parameter] = own


def _load_shared_state(optimizer: Any, names: dict[Tensor, str], state: dict[str, Tensor]) -> None:
    """Cut this rank's part out of the line of every group."""
    for line in _lines(optimizer):
        # DeepSpeed steps a copy of the weights, and would write the old ones back.
        weights = [parameter.detach() for parameter in line.parameters]
        line.part.copy_(line.own_part(weights))

        if not line.parameters:
            continue
        # All parameters of a group are stepped together, so one count serves for all.
        steps = [state.get(f"step/{names[parameter]}") for parameter in line.parameters]
        step = next((count for count in steps if count is not None), None)
        if step is None:
            continue
        own = {"step": _copy_to_device_of(line.part, step)}
        for key in MOMENTS:
            pieces = []
            for parameter in line.parameters:
                name = f"{key}/{names[parameter]}"
                if name in state:
                    pieces.append(state_of_shape(state, name, parameter.shape))
                else:
                    # as above: it starts afresh, though with the step count of its group
                    pieces.append(torch.zeros_like(parameter))
            own[key] = line.own_part(pieces).clone()
        optimizer.optimizer.state[line.part] = own


def _copy_to_device_of(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy on the parameter's device; the fused AdamW wants its step count there too."""
    return value.clone().to(parameter.device)


def _lines(optimizer: Any) -> Iterator[_Line]:
    """The line of each group."""
    # No public interface of DeepSpeed tells where a parameter lies; these names are those of 0.19.
    groups = zip(
        optimizer.single_partition_of_fp32_groups,
        optimizer.round_robin_bit16_groups,
        optimizer.round_robin_bit16_offsets,
        strict=True,
    )
    for part, parameters, offsets in groups:
        yield _Line(part, list(parameters), list(offsets))


def _gathered(part: Tensor) -> Tensor:
    """The parts of all ranks, end to end."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)
