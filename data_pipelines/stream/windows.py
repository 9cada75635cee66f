"""The endless windows of one rank, packed into batches ahead of time and exactly resumable.

A window is a run of shuffled structures. Windows are numbered consecutively through the whole run,
and the content of a window depends only on its number. Window g belongs to rank g % world_size. No
rank waits for another at the end of an epoch.

The state records which windows are finished, and how many batches of each open window were used. It
does not mention ranks, so a run can resume with another number of ranks. Every structure still
appears once in an epoch (or as often as its weight says).
"""

from __future__ import annotations

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Any

import torch

from ...core.errors import EvenfieldWarning
from ..batch import Batch
from .config import StreamConfig
from .packing import pack
from .prefetch import prefetch
from .state import StreamState
from .training_stream import StreamError


# batches prepared ahead of the training loop; more would only use memory
PREFETCHED_BATCHES = 4


class WindowStream(ABC):
    """Training batches for one rank or virtual rank; subclasses define the content of a window."""

    num_virtual_ranks = 1

    def __init__(self, config: StreamConfig, rank: int, world_size: int) -> None:
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.progress = StreamState()
        # all windows of this rank below the cursor are finished
        self._cursor = rank

    @property
    @abstractmethod
    def windows_per_epoch(self) -> int:
        """Number of windows that hold every structure at least once, if there are no weights."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The folders, for error messages."""

    @abstractmethod
    def graphs(self, window: int) -> Iterator[Batch]:
        """Yield the structures of a window in order, each as a batch of one."""

    @abstractmethod
    def epoch_of(self, window: int) -> int:
        """The epoch at the beginning of a window."""

    @property
    def epoch(self) -> int:
        """The epoch of this rank's next batch, from 0."""
        return self.epoch_of(self._next_window())

    def batches(self) -> Generator[Batch, None, None]:
        """Yield this rank's batches without end; the state advances with each batch.

        A thread prepares the next batches while the caller computes, since Arrow, vesin and torch
        release the GIL. Raises StreamError if no structure is within the budgets.
        """
        for batch, window, used, is_last in prefetch(self._produce(), PREFETCHED_BATCHES):
            self.progress.used[window] = used
            if is_last:
                self.progress.finish(window)
            if batch is not None:
                yield batch

    def _continue_from(self, states: list[dict[str, Any]]) -> None:
        """Merge the progress of all ranks; their number may differ from the present one."""
        self.progress = StreamState.merge(states)
        self._cursor = self.rank

    def _next_window(self) -> int:
        while self.progress.is_finished(self._cursor):
            self._cursor += self.world_size
        return self._cursor

    def _produce(self) -> Iterator[tuple[Batch | None, int, int, bool]]:
        """Yield (batch, window, number of the batch in its window from 1, whether it is the last).

        An empty window yields None as its batch, so that it gets marked as finished too.
        """
        # a copy, because the caller changes the stream's state while this thread runs ahead
        start = StreamState(list(self.progress.finished), dict(self.progress.used))
        empty_windows = 0
        for window in itertools.count(self._next_window(), self.world_size):
            if start.is_finished(window):
                continue
            number = 0
            for number, (graphs, is_last) in enumerate(_mark_last(self._packed(window)), start=1):
                # used batches must be packed again, because the packing depends on all before
                if number > start.used.get(window, 0):
                    yield self._join(graphs), window, number, is_last

            if number:
                empty_windows = 0
                continue
            # the window's structures have no copies in this epoch, or none fits the budgets
            yield None, window, 0, True
            empty_windows += 1
            if empty_windows > 2 * self.windows_per_epoch:
                raise StreamError(
                    f"no structure is within the budget of {self.config.edge_budget} edges and "
                    f"{self.config.atom_budget} atoms",
                    file=self.description,
                    remedy="raise stream.edge_budget and stream.atom_budget",
                )

    def _join(self, graphs: list[Batch]) -> Batch:
        """Join graphs to one batch; it is page-locked if there is a GPU, for faster transfer."""
        batch = Batch.join(graphs)
        return batch.pin_memory() if torch.cuda.is_available() else batch

    def _packed(self, window: int) -> Iterator[list[Batch]]:
        config = self.config
        graphs = self.graphs(window)
        if config.oversized == "skip":
            graphs = (graph for graph in graphs if self._fits(graph))
        yield from pack(graphs, config.edge_budget, config.atom_budget, config.look_ahead)

    def _fits(self, graph: Batch) -> bool:
        """Whether a structure is within the budgets; warns if it is not."""
        fits_edges = graph.num_edges <= self.config.edge_budget
        fits_atoms = graph.num_atoms <= self.config.atom_budget
        if fits_edges and fits_atoms:
            return True
        warnings.warn(
            f"{graph.structure_ids[0]}: {graph.num_edges} edges, {graph.num_atoms} atoms are "
            "beyond the budget: left out; raise stream.edge_budget and stream.atom_budget, or set "
            "stream.oversized=alone",
            EvenfieldWarning,
            stacklevel=2,
        )
        return False


def _mark_last(items: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield each item with a flag that is True for the last one."""
    held = next(items, None)
    while held is not None:
        following = next(items, None)
        yield held, following is None
        held = following
