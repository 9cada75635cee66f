"""The training stream of a rank, and the sizes of its batches that a compiled step is made for."""

from __future__ import annotations

from itertools import islice

import torch

from ..data_pipelines.stream.collection import Collection
from ..data_pipelines.stream.training_stream import TrainingStream
from ..model_zoo.compile.padded_shape import PaddedShape, choose_padded_shape
from .config import PretrainConfig


LOOK = 64  # batches, for a second or two


def open_stream(
    config: PretrainConfig,
    data: Collection,
    levels_of_theory: list[str],
    rank: int,
    world_size: int,
) -> TrainingStream:
    """A rank's share of the training stream, from its beginning."""
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
    """The padded shape for the first batches of one rank alone: the same on all ranks and at every resume.

    None if compiling would not pay.
    """
    stream = open_stream(config, data, levels_of_theory, rank=0, world_size=1).batches()
    try:
        return choose_padded_shape(
            [torch.bincount(b.edge_index[1], minlength=b.num_atoms) for b in islice(stream, LOOK)]
        )
    finally:
        stream.close()
