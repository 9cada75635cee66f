"""The interface of a stream for the training loop."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from ...core.errors import EvenfieldError
from ..batch import Batch


class StreamError(EvenfieldError):
    """A training stream cannot be built as its settings demand, or has nothing to yield."""


class TrainingStream(Protocol):
    """An endless stream of one rank's batches, resumable from the states of all ranks.

    Implemented by `Stream` (one data set), `Mixture` (several) and `VirtualRanks`.
    """

    @property
    def num_virtual_ranks(self) -> int:
        """Number of virtual ranks here; a step takes this many batches, or a multiple of it."""

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""

    def batches(self) -> Generator[Batch, None, None]:
        """Yield batches from the current state on; the state advances with each batch."""

    def state(self) -> dict[str, Any]:
        """The state of this rank for `load_state`, as JSON content."""

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Resume from the states of all ranks; their number may differ from the present one."""
