"""What the training loop needs of a stream: of one data set, a mixture, or virtual ranks."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from ...core.errors import EvenfieldError
from ..batch import Batch


class StreamError(EvenfieldError):
    """A training stream that cannot give what its settings ask for."""


class TrainingStream(Protocol):
    """Batches of one rank without end, resumable from the states of all ranks."""

    @property
    def num_virtual_ranks(self) -> int:
        """Batches that one step takes from this rank, or a multiple of it."""

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""

    def batches(self) -> Generator[Batch, None, None]:
        """The batches from the current state on; the state advances as each one is taken."""

    def state(self) -> dict[str, Any]:
        """What `load_state` needs of this rank, JSON-ready."""

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Continue from the states of all ranks, whose number may have been another."""
