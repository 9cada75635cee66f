"""The strategy `new-element`: only the vectors of elements that pretraining never saw learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ....core.errors import EvenfieldError
from ....model_zoo.potential.potential import Potential
from ..config import GradientConfig
from ..strategy import GradientStrategy
from ..train import ParameterGroup


class NewElement(GradientStrategy):
    """Trains the element vectors of new elements; the network does not change for all others."""

    name = "new-element"
    description = "of the network only the vectors of elements that pretraining never saw"

    @contextmanager
    def learning(
        self, potential: Potential, config: GradientConfig, new_elements: list[int]
    ) -> Iterator[list[ParameterGroup]]:
        """One group: the element vectors; their gradient is zero except for `new_elements`.

        Raises EvenfieldError if there are no new elements.
        """
        if not new_elements:
            raise EvenfieldError(
                "strategy=new-element: the data contain no element that is new to the model",
                remedy="choose another strategy",
            )

        def only_new_rows(gradient: Tensor) -> Tensor:
            kept = torch.zeros_like(gradient)
            kept[new_elements] = gradient[new_elements]
            return kept

        vectors = potential.backbone.element_vectors
        vectors.requires_grad_()  # hooks cannot be registered on a frozen tensor
        hook = vectors.register_hook(only_new_rows)
        try:
            yield [ParameterGroup([vectors])]
        finally:
            hook.remove()
