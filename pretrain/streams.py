"""The training stream of a rank, and the padded shape for compiled training."""

from __future__ import annotations

from itertools import islice

import torch

from ..data_pipelines.stream.collection import Collection
from ..data_pipelines.stream.training_stream import TrainingStream
from ..model_zoo.compile.padded_shape import PaddedShape, choose_padded_shape
from .config import PretrainConfig


NUM_BATCHES = 64  # batches from which the padded shape is chosen, in a second or two


def open_stream(
    config: PretrainConfig,
    data: Collection,
    levels_of_theory: list[str],
    rank: int,
    world_size: int,
) -> TrainingStream:
    """Open a rank's share of the training stream, at its beginning."""
    return data.stream(
        config.stream,
        config.mixing,
        cutoff=config.model.cutoff,
        levels_of_theory=levels_of_theory,
        rank=rank,
        world_size=world_size,
    )


def padded_shape_of(
    config: PretrainConfig, data: Collection, levels_of_theory: list[str]
) -> PaddedShape | None:
    """The padded shape for compiled training; None if compiling would not pay off.

    It is chosen from the first batches of a single-rank stream, so it is the same on all ranks and
    at every resume.
    """
    stream = open_stream(config, data, levels_of_theory, rank=0, world_size=1).batches()
    try:
        num_neighbours = [
            torch.bincount(batch.edge_index[1], minlength=batch.num_atoms)
            for batch in islice(stream, NUM_BATCHES)
        ]
        return choose_padded_shape(num_neighbours)
    finally:
        # stops the thread that prepares batches
        stream.close()
