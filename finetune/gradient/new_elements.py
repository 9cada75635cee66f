"""New elements, which pretraining never saw: their vectors start from chemical neighbours."""

from __future__ import annotations

import numpy as np
import torch

from ...model_zoo.network.embedding import element_descriptors
from ...model_zoo.potential.potential import Potential


NUM_NEIGHBOURS = 3
# Lower bound of distances: a known element with the same descriptors would get an infinite weight.
SHORTEST_DISTANCE = 1e-3


def start_from_neighbours(potential: Potential, new: list[int], known: set[int]) -> None:
    """Set the vectors of `new` elements to means over their nearest `known` elements, in place.

    Distances are between the descriptors from which element vectors are initialised; the weights of
    the mean are inverse distances. Without known elements, nothing changes. Elements are given by
    atomic numbers.
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
