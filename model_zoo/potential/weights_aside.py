"""Give a module other weights temporarily, or try a change that may be undone.

This is used to evaluate the averaged weights of a run, to undo a fine-tuning step that made a model
worse, and to keep the best weights of a training. Weights are dictionaries of tensors, with the
names of `state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


Weights = dict[str, Tensor]


def copied_weights(module: nn.Module, *, trainable: bool = False) -> Weights:
    """Copy all parameters and buffers, or with `trainable` only the trainable parameters."""
    own = module.state_dict(keep_vars=True)
    return {
        name: tensor.detach().clone()
        for name, tensor in own.items()
        if tensor.requires_grad or not trainable
    }


@torch.no_grad()
def put_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into the module, bit for bit. Tensors not named in `weights` are unchanged."""
    own = module.state_dict()
    for name, value in weights.items():
        own[name].copy_(value)


def interpolated(start: Weights, end: Weights, share: float) -> Weights:
    """Interpolate linearly between `start` and `end`. Shares of 0 and 1 return them unchanged."""
    if share == 0.0:
        return start
    if share == 1.0:
        return end
    return {name: torch.lerp(value, end[name], share) for name, value in start.items()}


class WeightsAside:
    """The weights that a module had when its `weights_aside` block began."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.changes_kept = False

    def keep_changes(self) -> None:
        """Do not restore the weights at the end of the block."""
        self.changes_kept = True


@contextmanager
def weights_aside(
    module: nn.Module, replacement: Mapping[str, Tensor] | None = None, *, trainable: bool = False
) -> Iterator[WeightsAside]:
    """Save the weights of `module` and restore them at the end of the block, even after an error.

    replacement: weights for the module inside the block; by default it keeps its own.
    trainable: save only trainable parameters, for blocks in which nothing else can change.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> before = layer.weight.item()
    >>> with weights_aside(layer, {"weight": torch.ones(1, 1)}):
    ...     layer.weight.item()
    1.0
    >>> layer.weight.item() == before
    True
    """
    aside = WeightsAside(copied_weights(module, trainable=trainable))
    try:
        if replacement is not None:
            put_weights(module, replacement)
        yield aside
    finally:
        if not aside.changes_kept:
            put_weights(module, aside.weights)
