"""Refuse weights that are not finite, so that they are never saved, exported or kept."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import TrainingError


def refuse_infinite_weights(module: nn.Module, step: int) -> None:
    """Raise TrainingError if a parameter of `module` is not finite after `step`."""
    parameters = dict(module.named_parameters())
    # one read from the device for all parameters; an overflowing norm is as bad as a NaN
    norms = torch.stack(torch._foreach_norm(list(parameters.values())))
    if bool(torch.isfinite(norms).all()):
        return

    finite = torch.isfinite(norms).tolist()
    names = [name for name, whole in zip(parameters, finite, strict=True) if not whole]
    raise TrainingError(
        f"step {step}: {len(names)} tensors of weights are no longer finite, such as {names[0]}",
        remedy="start again with a lower optimizer.learning_rate or a longer "
        "schedule.warmup_steps, or with compute.precision=float32 if it was another",
    )
