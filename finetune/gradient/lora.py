"""Low-rank adapters: W + down @ up / rank is trained instead of W (Hu et al., LoRA, ICLR 2022).

The network names the weights that may be adapted: those for which it stays equivariant whatever
is added to them.

Shapes: a weight has C rows and C' columns; the rank is r.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...model_zoo.potential.potential import Potential


class LowRank(nn.Module):
    """Adds down (..., C, r) @ up (..., r, C') / r to a weight (..., C, C').

    Initially it adds nothing, because `up` is zero.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        *lead, rows, columns = weight.shape
        # drawn in float32, so that adapters start the same for weights of any dtype
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
    """Add adapters to all adaptable weights of the network, in place; returns their parameters.

    All other parameters are frozen. `merge_adapters` removes the adapters and unfreezes the rest.
    """
    potential.requires_grad_(False)
    adapters = []
    # with a parametrisation, the code of the network need not change
    for module, name in potential.backbone.adaptable_weights():
        adapter = LowRank(getattr(module, name), rank)
        parametrize.register_parametrization(module, name, adapter)
        adapters += [adapter.down, adapter.up]
    return adapters


def merge_adapters(potential: Potential) -> None:
    """Merge the adapters into the weights and remove them, in place; unfreezes all parameters."""
    for module, name in potential.backbone.adaptable_weights():
        if parametrize.is_parametrized(module, name):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    potential.requires_grad_(True)
