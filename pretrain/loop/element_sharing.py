"""Elements that learn from chemically similar elements in training.

A potential has two tables with one row per element: the element vectors of the network, and the
element weights of the readout. Let a row v[Z] be the sum of a smooth function s of the properties
of the element, and a difference r[Z] of the element. With gradients g[Z] of the rows, a step of
gradient descent on s and r moves the rows by

    change of v[Z]  ~  g[Z] + strength * sum over all other elements Z' of K[Z, Z'] g[Z']
    K[Z, Z'] = exp(-d^2 / (2 width^2))

d is the root mean square difference of the standardised descriptors of both elements. It is
therefore enough to add this sum to the gradients, and the potential needs no additional parameters.
The row of a rare element has few gradients and mostly follows similar elements; the row of a common
element mostly follows its own gradient. `level_sharing` does the same for levels of theory.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...core.settings import Settings
from ...model_zoo.network.embedding import element_descriptors
from ...model_zoo.potential.potential import Potential


class ElementSharingConfig(Settings):
    """How strongly the tables of an element follow those of similar elements."""

    strength: float = Field(
        default=0.0,
        ge=0,
        description="of the gradients of similar elements, as a multiple of the element's own; 0 "
        "is off",
        json_schema_extra={"resume": "applied"},
    )
    width: float = Field(
        default=0.3,
        gt=0,
        description="how far similarity reaches, in standard deviations of the properties of "
        "elements",
        json_schema_extra={"resume": "applied"},
    )


def similarities(width: float) -> Tensor:
    """K (119, 119), float32. The diagonal is zero, and so are row and column 0."""
    descriptors = element_descriptors()
    difference = descriptors[:, None] - descriptors[None]
    squared_distance = (difference**2).mean(-1)
    kernel = np.exp(-0.5 * squared_distance / width**2)
    np.fill_diagonal(kernel, 0.0)
    # row 0 is no element
    kernel[0] = 0.0
    kernel[:, 0] = 0.0
    return torch.from_numpy(kernel).float()


def share_elements(potential: Potential, config: ElementSharingConfig) -> None:
    """From now on, add the gradients of similar elements to those of both tables."""
    if not config.strength:
        return
    weights = config.strength * similarities(config.width)

    def shared(gradient: Tensor) -> Tensor:
        # (119, D) for the network; (heads, 119, R) for the readout, and matmul treats heads alike
        return gradient + weights.to(gradient) @ gradient

    # with DeepSpeed too, hooks run before gradients are summed over ranks
    for table in (potential.backbone.element_vectors, potential.readout.element_weight):
        table.register_hook(shared)
