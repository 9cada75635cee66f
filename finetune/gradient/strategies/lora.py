"""The strategy `lora`: low-rank adapters on the network's weights, and the readout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ....model_zoo.potential.potential import Potential
from ..config import GradientConfig
from ..lora import add_adapters, merge_adapters
from ..strategy import GradientStrategy
from ..train import ParameterGroup


class Lora(GradientStrategy):
    """Trains the readout and low-rank changes of the weights, which are merged at the end."""

    name = "lora"
    description = "low-rank adapters of the network's weights, and the readout"

    @contextmanager
    def learning(
        self, potential: Potential, config: GradientConfig, new_elements: list[int]
    ) -> Iterator[list[ParameterGroup]]:
        """Groups: adapters and readout; on exit, the adapters are merged into the weights."""
        adapters = add_adapters(potential, config.rank)
        readout = list(potential.readout.parameters())
        try:
            yield [ParameterGroup(adapters), ParameterGroup(readout)]
        finally:
            merge_adapters(potential)
