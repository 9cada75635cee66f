"""The state of an optimizer by parameter name, independent of how ranks share it.

ZeRO 1 and 2 concatenate the parameters of a group to a flat line. Each rank holds an equal part of
the line, with its master weights and moments. The functions here join the parts and cut them into
named tensors, which depend neither on the number of ranks nor on the ZeRO stage. They can be loaded
on any number of ranks in any stage.
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
    """The concatenated parameters of a group. This rank holds `part` of the line."""

    part: Tensor
    parameters: list[Tensor]
    starts: list[int]

    def cut(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter with its piece of the whole line `flat`, in its shape."""
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            piece = flat[start : start + parameter.numel()]
            yield parameter, piece.view(parameter.shape)

    def own_part(self, pieces: list[Tensor]) -> Tensor:
        """This rank's part of a line that consists of one piece per parameter."""
        # zeros fill the gaps, because DeepSpeed pads a line to make all parts equally long
        flat = self.part.new_zeros(self.part.numel() * dist.get_world_size())
        for piece, start in zip(pieces, self.starts, strict=True):
            flat[start : start + piece.numel()] = piece.reshape(-1).to(flat)

        size = self.part.numel()
        first = dist.get_rank() * size
        return flat[first : first + size]


def whole_state(optimizer: Any, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer state as `exp_avg/NAME`, `step/NAME`, ..., on the CPU.

    All ranks must call this, and all get the whole state. `names` maps parameters to names. A
    parameter that was never stepped has no entries, or entries of zeros.
    """
    if isinstance(optimizer, Optimizer):
        return _unshared_state(optimizer, names)

    state: dict[str, Tensor] = {}
    for line in _lines(optimizer):
        own = optimizer.optimizer.state.get(line.part, {})
        if not own:
            # the state does not exist before the first step
            continue
        for key in MOMENTS:
            flat = _gathered(own[key])
            for parameter, piece in line.cut(flat):
                # a copy, because a view would keep the whole line alive
                state[f"{key}/{names[parameter]}"] = piece.cpu().clone()
        for parameter in line.parameters:
            state[f"step/{names[parameter]}"] = own["step"].detach().cpu().clone()
    return state


@torch.no_grad()
def load_whole_state(optimizer: Any, names: dict[Tensor, str], state: dict[str, Tensor]) -> None:
    """Load the result of `whole_state`.

    In ZeRO 1 and 2, the master weights are also set to the current values of the parameters. Raises
    ResumeError if a tensor has the wrong shape.
    """
    if isinstance(optimizer, Soap):
        _load_into_soap(optimizer, names, state)
    elif isinstance(optimizer, Optimizer):
        _load_unshared_state(optimizer, names, state)
    else:
        _load_shared_state(optimizer, names, state)


def state_of_shape(state: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """Get a saved tensor. Raises ResumeError if it is missing or has another shape."""
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
    """Copy the state in place, because the state of a parameter is a view into its stack."""
    for parameter, name in names.items():
        if f"step/{name}" not in state:
            # a tensor that has gained heads starts afresh
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
        # set only if not empty, because AdamW creates its state only if it finds none at all
        if own:
            optimizer.state[parameter] = own


def _load_shared_state(optimizer: Any, names: dict[Tensor, str], state: dict[str, Tensor]) -> None:
    """Load this rank's part of the line of every group."""
    for line in _lines(optimizer):
        # DeepSpeed steps a copy of the weights, and would otherwise write back the old ones
        weights = [parameter.detach() for parameter in line.parameters]
        line.part.copy_(line.own_part(weights))

        if not line.parameters:
            continue
        # all parameters of a group are stepped together, so they share one step count
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
                    # the parameter starts afresh, but with the step count of its group
                    pieces.append(torch.zeros_like(parameter))
            own[key] = line.own_part(pieces).clone()
        optimizer.optimizer.state[line.part] = own


def _copy_to_device_of(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy on the parameter's device. The fused AdamW needs its step count there too."""
    return value.clone().to(parameter.device)


def _lines(optimizer: Any) -> Iterator[_Line]:
    """The line of each group."""
    # DeepSpeed has no public interface for the positions of parameters; these names are from 0.19
    groups = zip(
        optimizer.single_partition_of_fp32_groups,
        optimizer.round_robin_bit16_groups,
        optimizer.round_robin_bit16_offsets,
        strict=True,
    )
    for part, parameters, offsets in groups:
        yield _Line(part, list(parameters), list(offsets))


def _gathered(part: Tensor) -> Tensor:
    """The concatenated parts of all ranks."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)
