"""Virtual ranks: the batches of a step stay the same when the number of real ranks changes.

A virtual rank is the stream that one rank would read if there were as many ranks as virtual ones. A
real rank serves one or several of them. A step takes the same number of batches from every virtual
rank, so its global batch depends on their number alone. With `stream.lanes` set, a run may change
its number of ranks and still learn from the very same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any

from ..batch import Batch
from .training_stream import StreamError, TrainingStream


# key of the state; stored checkpoints contain it
STATE_KEY = "lanes"


class VirtualRanks:
    """The virtual ranks that one real rank serves; their batches come in turn."""

    def __init__(self, streams: Sequence[TrainingStream]) -> None:
        self.streams = streams

    @property
    def num_virtual_ranks(self) -> int:
        """Virtual ranks that this rank serves; a step takes as many batches, or a multiple."""
        return len(self.streams)

    @property
    def epoch(self) -> int:
        """The epoch of the next batch of the first virtual rank."""
        return self.streams[0].epoch

    def batches(self) -> Generator[Batch, None, None]:
        """One batch of each virtual rank after the other, each prepared in a thread of its own."""
        sources = [stream.batches() for stream in self.streams]
        try:
            for source in itertools.cycle(sources):
                yield next(source)
        finally:
            # closing a source stops its thread
            for source in sources:
                source.close()

    def state(self) -> dict[str, Any]:
        """The states of the virtual ranks, JSON-ready."""
        return {STATE_KEY: [stream.state() for stream in self.streams]}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Continue from the states of all virtual ranks; see `states_of_virtual_ranks`."""
        for stream in self.streams:
            stream.load_state(states)


def virtual_ranks_of(num_virtual_ranks: int, rank: int, world_size: int) -> list[int]:
    """The virtual ranks that a real rank serves.

    Raises StreamError where the real ranks would not serve equally many.
    """
    if num_virtual_ranks % world_size:
        raise StreamError(
            f"stream.lanes={num_virtual_ranks} cannot be divided evenly among {world_size} ranks",
            remedy="set a multiple of their number, or 0 for one virtual rank per rank",
        )
    return list(range(rank, num_virtual_ranks, world_size))


def states_of_virtual_ranks(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """States of real ranks, which served one virtual rank or several, as those of virtual ranks."""
    flat = []
    for state in states:
        flat += state.get(STATE_KEY, [state])
    return flat
