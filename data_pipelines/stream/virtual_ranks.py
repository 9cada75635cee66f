"""Virtual ranks keep the batches of a step the same when the number of real ranks changes.

With V virtual ranks, each virtual rank is the stream that one of V real ranks would read. A real
rank serves one or several virtual ranks. A step takes the same number of batches from every virtual
rank, so its global batch depends only on V. With `stream.lanes` set to V, a run may resume on
another number of ranks and still train on exactly the same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any

from ..batch import Batch
from .training_stream import StreamError, TrainingStream


# key in the state; it must not change, because stored checkpoints contain it
STATE_KEY = "lanes"


class VirtualRanks:
    """The virtual ranks that one real rank serves; it takes batches from them in turn."""

    def __init__(self, streams: Sequence[TrainingStream]) -> None:
        self.streams = streams

    @property
    def num_virtual_ranks(self) -> int:
        """Number of virtual ranks here; a step takes this many batches, or a multiple of it."""
        return len(self.streams)

    @property
    def epoch(self) -> int:
        """The epoch of the first virtual rank's next batch."""
        return self.streams[0].epoch

    def batches(self) -> Generator[Batch, None, None]:
        """Yield batches from the virtual ranks in turn; each prepares its batches in a thread."""
        sources = [stream.batches() for stream in self.streams]
        try:
            for source in itertools.cycle(sources):
                yield next(source)
        finally:
            # closing a source stops its thread
            for source in sources:
                source.close()

    def state(self) -> dict[str, Any]:
        """The states of the virtual ranks, as JSON content."""
        return {STATE_KEY: [stream.state() for stream in self.streams]}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Resume from the states of all virtual ranks; see `states_of_virtual_ranks`."""
        for stream in self.streams:
            stream.load_state(states)


def virtual_ranks_of(num_virtual_ranks: int, rank: int, world_size: int) -> list[int]:
    """The virtual ranks that a real rank serves.

    Raises StreamError if the virtual ranks cannot be divided evenly among the real ranks.
    """
    if num_virtual_ranks % world_size:
        raise StreamError(
            f"stream.lanes={num_virtual_ranks} cannot be divided evenly among {world_size} ranks",
            remedy="set a multiple of their number, or 0 for one virtual rank per rank",
        )
    return list(range(rank, num_virtual_ranks, world_size))


def states_of_virtual_ranks(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Flatten the states of real ranks to the states of all virtual ranks that they served."""
    flat = []
    for state in states:
        flat += state.get(STATE_KEY, [state])
    return flat
