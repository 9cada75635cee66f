"""Elements that pretraining never saw: their embedding starts from that of their neighbours in the periodic table."""

from __future__ import annotations

import numpy as np
import torch

from ...model_zoo.network.embedding import element_descriptors
from ...model_zoo.potential.potential import Potential


NEIGHBOURS = 3


def start_from_neighbours(potential: Potential, new: list[int], known: set[int]) -> None:
    """Set the embeddings of `new` elements in place to the mean of their nearest `known` ones, nearer ones heavier.

    Distance is that of the descriptors that the embedding starts from. Without known elements nothing is changed.
    """
    if not known:
        return
    descriptors, others = element_descriptors(), np.array(sorted(known))
    weight = potential.backbone.element_vectors
    for z in new:
        distance = np.linalg.norm(descriptors[others] - descriptors[z], axis=1)
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        share = 1.0 / np.maximum(distance[nearest], 1e-3)
        mean = weight.new_tensor(share / share.sum()) @ weight[torch.as_tensor(others[nearest])]
        with torch.no_grad():
            weight[z] = mean
