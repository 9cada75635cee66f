"""The strategy `full`: all parameters learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ....model_zoo.potential.potential import Potential
from ..config import GradientConfig
from ..strategy import GradientStrategy
from ..train import ParameterGroup


class Full(GradientStrategy):
    """Trains all parameters; with `layer_decay` < 1, layers near the input learn more slowly."""

    name = "full"
    description = "all parameters"
    learning_rate = 2e-3
    # Smaller, because replayed structures pull the weights back toward the old minimum.
    learning_rate_with_replay = 5e-4

    @contextmanager
    def learning(
        self, potential: Potential, config: GradientConfig, new_elements: list[int]
    ) -> Iterator[list[ParameterGroup]]:
        """Groups: readout and charges, each layer, and last the element vectors and core radii."""
        bottom, *layers = potential.backbone.depth_groups()
        depth = len(layers)
        decay = config.layer_decay

        top = list(potential.readout.parameters())
        if potential.charges is not None:
            top += potential.charges.parameters()
        groups = [ParameterGroup(top)]
        for index, layer in enumerate(layers):
            groups.append(ParameterGroup(layer, decay ** (depth - index)))

        # core radii belong to elements, like the element vectors in this group
        if potential.config.repulsion:
            bottom += potential.repulsion.parameters()
        groups.append(ParameterGroup(bottom, decay ** (depth + 1)))
        yield groups
