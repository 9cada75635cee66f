"""Low-rank adapters: W + down @ up / rank is trained instead of W (Hu et al., LoRA, ICLR 2022).

The network says which of its weights may be adapted: those that keep it equivariant whatever is
added to them.

Shapes: C and C' rows and columns of a weight, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...model_zoo.potential.potential import Potential


class LowRank(nn.Module):
    """Adds down (..., C, r) @ up (..., r, C') / r to a weight (..., C, C').

    It adds nothing at the start, because `up` is zero.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        *lead, rows, columns = weight.shape
        # one dtype for the draw: adapters start alike whatever the dtype of the weights is
        noise = torch.randn(*lead, rows, rank, dtype=torch.float32)
        down = noise.to(weight) / rows**0.5
        up = torch.zeros(*lead, rank, columns).to(weight)
        self.rank = rank
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.down @ self.up / self.rank


def add_adapters(potential: Potential, rank: int) -> list[nn.Parameter]:
    """Put adapters on every weight that the network offers, in place; returns their parameters.

    All other parameters are frozen. `merge_adapters` undoes both.
    """
    potential.requires_grad_(False)
    adapters = []
    # a parametrisation leaves the code of the network as it is
    for module, name in potential.backbone.adaptable_weights():
        adapter = LowRank(getattr(module, name), rank)
        parametrize.register_parametrization(module, name, adapter)
        adapters += [adapter.down, adapter.up]
    return adapters


def merge_adapters(potential: Potential) -> None:
    """Add the adapters to the weights and remove them, so that the potential is like any other."""
    for module, name in potential.backbone.adaptable_weights():
        if parametrize.is_parametrized(module, name):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    potential.requires_grad_(True)
