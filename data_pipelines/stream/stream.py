"""The stream of one data set: an endless series of weighted, packed batches, exactly resumable.

`source.py` defines which structures a window holds, `windows.py` how they become batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..batch import Batch
from ..census.weights import LevelWeights
from ..structure import Structure
from .source import Source
from .windows import WindowStream


class Stream(WindowStream):
    """Training batches of one split of a converted data set, for one rank or one virtual rank."""

    def __init__(self, source: Source, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(source.config, rank, world_size)
        self.source = source

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows that hold every structure once, if there are no weights."""
        return self.source.windows_per_epoch

    @property
    def description(self) -> str:
        """The folder, for error messages."""
        return str(self.source.folder)

    @property
    def weights(self) -> LevelWeights:
        """Importance weights, fitted to the data on first use."""
        return self.source.weights

    def window(self, number: int) -> Iterator[Structure]:
        """Yield the structures of a window, repeated according to their weights and shuffled."""
        return self.source.window(number)

    def graphs(self, window: int) -> Iterator[Batch]:
        """Yield the structures of a window in order, each as a batch of one."""
        return map(self.source.graph, self.source.window(window))

    def epoch_of(self, window: int) -> int:
        """The epoch of a window, from 0."""
        return window // self.source.windows_per_epoch

    def state(self) -> dict[str, Any]:
        """The state of this rank, as JSON content of less than 10 kB.

        The weights are included, because fitting them again would delay every resume.
        """
        return self.progress.to_dict() | {"weights": self.weights.to_dict()}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Resume from the states of all ranks; their number may differ from the present one."""
        self._continue_from(states)
        self.source.shared_weights.fitted = LevelWeights.from_dict(states[0]["weights"])
