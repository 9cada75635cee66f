"""The strategy `full`: all parameters learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ....model_zoo.potential.potential import Potential
from ..config import GradientConfig
from ..strategy import GradientStrategy
from ..train import ParameterGroup


class Full(GradientStrategy):
    """Trains everything, layers near the input more slowly where `layer_decay` asks for it."""

    name = "full"
    description = "all parameters"
    learning_rate = 2e-3
    # Replayed structures pull back toward the old minimum; a smaller rate lets both be followed.
    learning_rate_with_replay = 5e-4

    @contextmanager
    def learning(
        self, potential: Potential, config: GradientConfig, new_elements: list[int]
    ) -> Iterator[list[ParameterGroup]]:
        """Readout and charges, layers from first to last, then element vectors and core radii."""
        bottom, *layers = potential.backbone.depth_groups()
        depth = len(layers)
        decay = config.layer_decay

        top = list(potential.readout.parameters())
        if potential.charges is not None:
            top += potential.charges.parameters()
        groups = [ParameterGroup(top)]
        for index, layer in enumerate(layers):
            groups.append(ParameterGroup(layer, decay ** (depth - index)))

        # core radii belong to elements, as the first group of a network does
        if potential.config.repulsion:
            bottom += potential.repulsion.parameters()
        groups.append(ParameterGroup(bottom, decay ** (depth + 1)))
        yield groups
