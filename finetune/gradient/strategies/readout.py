"""The strategy `readout`: only the readout learns, not the network below it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ....model_zoo.potential.potential import Potential
from ..config import GradientConfig
from ..strategy import GradientStrategy
from ..train import ParameterGroup


class ReadoutOnly(GradientStrategy):
    """Trains the readout with its hidden layer, which the closed-form refit does not change."""

    name = "readout"
    description = "the readout with its hidden layer"

    @contextmanager
    def learning(
        self, potential: Potential, config: GradientConfig, new_elements: list[int]
    ) -> Iterator[list[ParameterGroup]]:
        """One group: all parameters of the readout."""
        yield [ParameterGroup(list(potential.readout.parameters()))]
