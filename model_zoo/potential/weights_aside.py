"""A module takes other weights for a while, or tries a change that may be undone.

The averaged weights of a run are evaluated this way, a fine-tuning undoes a change that made a
model worse, and the best weights of a training are kept. Weights are dictionaries of tensors under
the names of `state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


Weights = dict[str, Tensor]


def copied_weights(module: nn.Module, *, trainable: bool = False) -> Weights:
    """A copy of all parameters and buffers; with `trainable`, of the parameters that learn only."""
    own = module.state_dict(keep_vars=True)
    return {
        name: tensor.detach().clone()
        for name, tensor in own.items()
        if tensor.requires_grad or not trainable
    }


@torch.no_grad()
def put_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into the module, bit for bit; what they do not name keeps its values."""
    own = module.state_dict()
    for name, value in weights.items():
        own[name].copy_(value)


def interpolated(start: Weights, end: Weights, share: float) -> Weights:
    """Weights a share of the way from `start` to `end`; shares of 0 and 1 give their exact bits."""
    if share == 0.0:
        return start
    if share == 1.0:
        return end
    return {name: torch.lerp(value, end[name], share) for name, value in start.items()}


class WeightsAside:
    """The weights that a module had when the block of `weights_aside` began."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.changes_kept = False

    def keep_changes(self) -> None:
        """Leave the module as it is at the end of the block."""
        self.changes_kept = True


@contextmanager
def weights_aside(
    module: nn.Module, replacement: Mapping[str, Tensor] | None = None, *, trainable: bool = False
) -> Iterator[WeightsAside]:
    """Set the weights of `module` aside until the end of the block, also after an error.

    replacement: weights that the module takes inside the block; without them it keeps its own.
    trainable: set aside only the parameters that learn, where nothing else can change.

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
