"""The windows of one rank: packed into batches, prepared ahead, exact under resume, without end.

Windows are numbered through the whole run, and what a window holds depends on its number alone.
Window g belongs to rank g % world_size. No rank waits for another at the end of an epoch.
State:
  Which windows are finished, and how many batches of the open ones were used. It names no ranks, so
  another number of ranks can continue, and every structure still comes once in an epoch (or as
  often as its weight says).
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


# batches that wait for the training loop; more would only take memory
PREFETCHED_BATCHES = 4


class WindowStream(ABC):
    """Training batches for one rank or one virtual rank; a subclass says what a window holds."""

    num_virtual_ranks = 1

    def __init__(self, config: StreamConfig, rank: int, world_size: int) -> None:
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.progress = StreamState()
        # no window of this rank below the cursor is unfinished
        self._cursor = rank

    @property
    @abstractmethod
    def windows_per_epoch(self) -> int:
        """Windows that hold every structure at least once, without weights."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The folders, for errors."""

    @abstractmethod
    def graphs(self, window: int) -> Iterator[Batch]:
        """The structures of a window in their order, each a batch of one."""

    @abstractmethod
    def epoch_of(self, window: int) -> int:
        """The epoch at the beginning of a window."""

    @property
    def epoch(self) -> int:
        """The epoch of this rank's next batch, from 0."""
        return self.epoch_of(self._next_window())

    def batches(self) -> Generator[Batch, None, None]:
        """This rank's batches, epoch after epoch; the state advances as each one is taken.

        A thread prepares the next batches while the caller computes: Arrow, vesin and torch release
        Python's lock. Raises StreamError if no structure is within the budgets.
        """
        for batch, window, used, is_last in prefetch(self._produce(), PREFETCHED_BATCHES):
            self.progress.used[window] = used
            if is_last:
                self.progress.finish(window)
            if batch is not None:
                yield batch

    def _continue_from(self, states: list[dict[str, Any]]) -> None:
        """Take up the progress of all ranks, whose number may have been another."""
        self.progress = StreamState.merge(states)
        self._cursor = self.rank

    def _next_window(self) -> int:
        while self.progress.is_finished(self._cursor):
            self._cursor += self.world_size
        return self._cursor

    def _produce(self) -> Iterator[tuple[Batch | None, int, int, bool]]:
        """Batch, its window, batches of the window used with this one, and whether it is the last.

        An empty window gives None instead of a batch, so that it is finished too.
        """
        # a copy, because the state of the stream advances while the thread is ahead
        start = StreamState(list(self.progress.finished), dict(self.progress.used))
        empty_windows = 0
        for window in itertools.count(self._next_window(), self.world_size):
            if start.is_finished(window):
                continue
            number = 0
            for number, (graphs, is_last) in enumerate(_mark_last(self._packed(window)), start=1):
                # packing is repeated up to the first unused batch: it depends on all before
                if number > start.used.get(window, 0):
                    yield self._join(graphs), window, number, is_last

            if number:
                empty_windows = 0
                continue
            # its structures have no copies in this epoch, or none fits the budgets
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
        """One batch; page-locked if there is a GPU, so that copying overlaps with computing."""
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
    """Each item, and whether it is the last."""
    held = next(items, None)
    while held is not None:
        following = next(items, None)
        yield held, following is None
        held = following
