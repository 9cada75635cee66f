"""Several data sets as one stream: a fixed schedule says which of them gives the next batch."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ...core.settings import Settings
from ..batch import Batch
from .stream import Stream
from .training_stream import StreamError


GOLDEN_RATIO = (5**0.5 - 1) / 2


class MixingConfig(Settings):
    """Shares of batches that come from each data set."""

    temperature: float = Field(
        default=1.0,
        ge=1,
        description="share ~ structures^(1/temperature): 1 by size, large for equal shares",
    )
    shares: dict[str, float] = Field(
        default={}, description="or stated: folder name -> share, for all of them"
    )


class Mixture:
    """Batches of several streams in given shares; each stream goes through its own epochs.

    Batch n of all ranks comes from the data set in whose interval of [0, 1) the point
    frac(1/2 + n * golden ratio) lies. That sequence has the lowest discrepancy of its kind: every
    stretch of a run has the right shares within a batch or two, where random draws would be off by
    their square root. It is a function of n alone, and so exact under resume.
    """

    num_virtual_ranks = 1

    def __init__(self, streams: list[Stream], shares: np.ndarray) -> None:
        """`shares` need not sum to 1."""
        self.streams = streams
        self.shares = shares / shares.sum()
        self._edges = np.cumsum(self.shares)[:-1]
        # batches that this rank has taken
        self.drawn = 0

    @property
    def epoch(self) -> int:
        """The epoch of the first data set's next batch."""
        return self.streams[0].epoch

    def source_of(self, number: int) -> int:
        """Index of the data set that gives batch `number`, counted over all ranks."""
        point = (0.5 + number * GOLDEN_RATIO) % 1.0
        return int(np.searchsorted(self._edges, point, side="right"))

    def batches(self) -> Generator[Batch, None, None]:
        """This rank's batches from the current state on."""
        sources = [stream.batches() for stream in self.streams]
        rank = self.streams[0].rank
        world_size = self.streams[0].world_size
        try:
            while True:
                # batches are counted over all ranks, so the ranks draw different points
                source = sources[self.source_of(self.drawn * world_size + rank)]
                batch = next(source)
                self.drawn += 1
                yield batch
        finally:
            for source in sources:
                source.close()

    def state(self) -> dict[str, Any]:
        """The state of this rank, JSON-ready."""
        sources = {stream.folder.name: stream.state() for stream in self.streams}
        return {"drawn": self.drawn, "sources": sources}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Continue from the states of all ranks, whose number may have been another.

        Raises StreamError for a data set that was not part of the run.
        """
        # the steps are counted in batches of all ranks, whatever their number was
        total = sum(state["drawn"] for state in states)
        self.drawn = total // self.streams[0].world_size
        for stream in self.streams:
            name = stream.folder.name
            if any(name not in state["sources"] for state in states):
                raise StreamError(
                    "was not part of the run that is resumed",
                    file=stream.folder,
                    remedy="start a new run with it",
                )
            stream.load_state([state["sources"][name] for state in states])


def shares_of(folders: list[Path], num_structures: list[int], config: MixingConfig) -> np.ndarray:
    """Shares of batches, not yet normalised.

    Raises StreamError where the stated shares do not fit the folders.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise StreamError(
            f"data sets to mix must have different folder names: {', '.join(map(str, folders))}"
        )
    if not config.shares:
        return np.array(num_structures, dtype=float) ** (1.0 / config.temperature)
    if set(config.shares) != set(names) or min(config.shares.values()) <= 0:
        raise StreamError(f"mixing.shares must give each of {', '.join(names)} a share above 0")
    return np.array([config.shares[name] for name in names])
