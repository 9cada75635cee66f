"""Low-rank adapters on the channel mixes: W + down @ up / rank, trained instead of W and merged into it afterwards.

Channel mixes act on channels alone, the same for all components of one degree, so whatever is added to them keeps the
potential equivariant (Hu et al., LoRA, ICLR 2022, for the form).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...model_zoo.network.gaunt.sphere import ChannelMix, CouplingPaths
from ...model_zoo.potential.potential import Potential


class LowRank(nn.Module):
    """Adds down (..., C, r) @ up (..., r, C') / r to a weight (..., C, C'); nothing at the start, since up is zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        *lead, rows, columns = weight.shape
        self.rank = rank
        self.down = nn.Parameter(torch.randn(*lead, rows, rank).to(weight) / rows**0.5)
        self.up = nn.Parameter(torch.zeros(*lead, rank, columns).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.down @ self.up / self.rank


def add_adapters(potential: Potential, rank: int) -> list[nn.Parameter]:
    """Put adapters on every channel mix of the backbone in place; returns their parameters, all that is to be trained.

    All other parameters are frozen. `merge_adapters` undoes both.
    """
    potential.requires_grad_(False)
    adapters = []
    for module, name in _mixes(potential):
        adapter = LowRank(getattr(module, name), rank)
        parametrize.register_parametrization(module, name, adapter)
        adapters += [adapter.down, adapter.up]
    return adapters


def merge_adapters(potential: Potential) -> None:
    """Add the adapters to the weights and remove them: the potential is again one like any other."""
    for module, name in _mixes(potential):
        if parametrize.is_parametrized(module, name):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    potential.requires_grad_(True)


def _mixes(potential: Potential) -> list[tuple[nn.Module, str]]:
    found: list[tuple[nn.Module, str]] = []
    for module in potential.backbone.modules():
        if isinstance(module, ChannelMix):
            found.append((module, "weight"))
        elif isinstance(module, CouplingPaths):
            found += [(module.weights, str(k)) for k in range(len(module.weights))]
    return found
