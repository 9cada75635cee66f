"""Lanes: what one rank would read if there were as many ranks as lanes; a rank may serve several of them.

A step takes the same batches from every lane, so its global batch is a function of the number of lanes alone. Where
that is stated (`stream.lanes`), a run may change its number of ranks and still learn from the very same batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any

from ..batch import Batch
from .mixture import Mixture
from .stream import Stream


class Lanes:
    """The lanes of one rank, whose batches come in turn."""

    def __init__(self, lanes: Sequence[Stream | Mixture]) -> None:
        self.lanes = lanes

    @property
    def num_lanes(self) -> int:
        """Lanes that this rank serves; a step takes as many batches, or a multiple."""
        return len(self.lanes)

    @property
    def epoch(self) -> int:
        """The epoch of the first lane's next batch."""
        return self.lanes[0].epoch

    def batches(self) -> Generator[Batch, None, None]:
        """One batch of each lane after the other, without end; each lane is prepared in a thread of its own."""
        sources = [lane.batches() for lane in self.lanes]
        try:
            for source in itertools.cycle(sources):
                yield next(source)
        finally:
            for source in sources:
                source.close()

    def state(self) -> dict[str, Any]:
        """Where the lanes stand, JSON-ready."""
        return {"lanes": [lane.state() for lane in self.lanes]}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Go on from the states of all lanes, of which there may have been another number."""
        for lane in self.lanes:
            lane.load_state(states)


def lanes_of_rank(lanes: int, rank: int, world_size: int) -> list[int]:
    """The lanes that a rank serves; ValueError when they cannot be dealt out evenly."""
    if lanes % world_size:
        raise ValueError(
            f"stream.lanes={lanes} cannot be dealt out evenly to {world_size} ranks: set a multiple of their number, "
            "or 0 for one lane a rank"
        )
    return list(range(rank, lanes, world_size))


def states_of_lanes(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """States of ranks, which served one lane or several, as those of the lanes."""
    return [lane for state in states for lane in state.get("lanes", [state])]
