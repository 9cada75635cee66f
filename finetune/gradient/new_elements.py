"""Elements that pretraining never saw: their element vectors start from chemical neighbours."""

from __future__ import annotations

import numpy as np
import torch

from ...model_zoo.network.embedding import element_descriptors
from ...model_zoo.potential.potential import Potential


NUM_NEIGHBOURS = 3
# An element that has the same descriptors as a known one would otherwise get an infinite weight.
SHORTEST_DISTANCE = 1e-3


def start_from_neighbours(potential: Potential, new: list[int], known: set[int]) -> None:
    """Set the element vectors of `new` elements in place to a mean of their nearest `known` ones.

    The distance is that of the descriptors from which element vectors are initialised, and nearer
    elements weigh more. Without known elements nothing changes.
    """
    if not known:
        return
    descriptors = element_descriptors()
    others = np.array(sorted(known))
    vectors = potential.backbone.element_vectors
    for z in new:
        difference = descriptors[others] - descriptors[z]
        distance = np.linalg.norm(difference, axis=1)
        # a stable sort gives the same neighbours on every machine
        nearest = np.argsort(distance, kind="stable")[:NUM_NEIGHBOURS]

        share = 1.0 / np.maximum(distance[nearest], SHORTEST_DISTANCE)
        share /= share.sum()
        neighbours = vectors[torch.as_tensor(others[nearest])]
        mean = vectors.new_tensor(share) @ neighbours
        with torch.no_grad():
            vectors[z] = mean
