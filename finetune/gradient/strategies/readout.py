"""The strategy `readout`: the readout learns, the network below it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ....model_zoo.potential.potential import Potential
from ..config import GradientConfig
from ..strategy import GradientStrategy
from ..train import ParameterGroup


class ReadoutOnly(GradientStrategy):
    """Trains the readout with its hidden layer, which the closed-form refit leaves alone."""

    name = "readout"
    description = "the readout with its hidden layer"

    @contextmanager
    def learning(
        self, potential: Potential, config: GradientConfig, new_elements: list[int]
    ) -> Iterator[list[ParameterGroup]]:
        """All parameters of the readout."""
        yield [ParameterGroup(list(potential.readout.parameters()))]
