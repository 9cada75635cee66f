"""The radial weights of an edge, which depend on its length and on the elements of both atoms.

Shapes: N atoms, E edge slots, B basis functions, H hidden width, D length of an element vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RadialNetwork(nn.Module):
    """Radial weights R[l, c](r; z_i, z_j) and, optionally, angular factors f[l2](r; z_i, z_j).

    The inputs of the single hidden layer are the radial basis and the vectors of both elements. R
    includes the envelope, so every message and its first two derivatives vanish at the cutoff.
    """

    def __init__(
        self, num_basis: int, hidden: int, embedding_size: int, num_outputs: int, num_angular: int
    ) -> None:
        super().__init__()
        self.basis = nn.Linear(num_basis, hidden, bias=False, dtype=torch.float32)
        self.sender = nn.Linear(embedding_size, hidden, bias=False, dtype=torch.float32)
        self.receiver = nn.Linear(embedding_size, hidden, dtype=torch.float32)
        self.outputs = nn.Linear(hidden, num_outputs, bias=False, dtype=torch.float32)
        self.angular = nn.Linear(hidden, num_angular, dtype=torch.float32) if num_angular else None

        # angular factors start near 1, which is the same as leaving them out
        if self.angular:
            nn.init.ones_(self.angular.bias)
        nn.init.normal_(self.outputs.weight, std=math.sqrt(2.0 / hidden))

    def forward(
        self,
        basis: Tensor,
        envelope: Tensor,
        elements: Tensor,
        sender: Tensor,
        tile_receiver: Tensor,
        tile_size: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return radial weights (E, num_outputs), and angular factors (E, num_angular) or None.

        Inputs: basis (E, B), envelope (E, 1), elements (N, D), sender (E,), tile_receiver (tiles,).
        """
        from_sender = self.sender(elements).index_select(0, sender)  # (E, H)
        # all slots of a tile have one receiver, so it is looked up once per tile
        from_receiver = self.receiver(elements).index_select(0, tile_receiver)  # (tiles, H)

        hidden = self.basis(basis) + from_sender
        hidden = hidden.unflatten(0, (-1, tile_size)) + from_receiver.unsqueeze(1)
        hidden = nn.functional.silu(hidden.flatten(0, 1))  # (E, H)

        weights = self.outputs(hidden * envelope)
        factors = self.angular(hidden) if self.angular else None
        return weights, factors
