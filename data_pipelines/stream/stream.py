"""The stream of one data set: weighted, shuffled, packed batches, exact under resume, without end.

Order, a function of (seed, epoch) alone:
  Blocks (row groups) are permuted, and `window_blocks` of them in a row make a window. The
  structures of a window are copied by weight, shuffled, and packed into batches. Windows are
  numbered through all epochs, and window g belongs to rank g % world_size. No rank waits for
  another at the end of an epoch.
State:
  Which windows are finished, and how many batches of the open ones were used. It names no ranks, so
  another number of ranks can continue, and every structure still comes once in an epoch (or as
  often as its weight says).
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase.data import atomic_numbers
from pydantic import Field

from ...core.settings import Settings
from ..batch import Batch
from ..census.census import NUM_ELEMENTS, read_census
from ..census.weights import ElementWeights, WeightConfig, num_copies
from ..store.blocks import BlockReader
from ..structure import Structure
from .packing import pack
from .prefetch import prefetch
from .state import StreamState
from .training_stream import StreamError


# 131,072 structures fix the scale of the weights to some parts in a thousand
FITTED_BLOCKS = 512
# batches that wait for the training loop; more would only take memory
PREFETCHED_BATCHES = 4


class StreamConfig(Settings):
    """Batch limits and order of a training stream."""

    edge_budget: int = Field(default=6000, gt=0, description="most edges in a batch")
    atom_budget: int = Field(default=256, gt=0, description="most atoms in a batch")
    oversized: Literal["alone", "skip"] = Field(
        default="alone",
        description="a structure beyond a budget makes a batch of its own, or is left out",
    )
    window_blocks: int = Field(default=4, gt=0, description="blocks shuffled together")
    look_ahead: int = Field(
        default=32, gt=0, description="structures among which a batch is packed"
    )
    # the key is older than the field's term "virtual ranks"; records of stored models contain it
    lanes: int = Field(
        default=0,
        ge=0,
        description="virtual ranks: batches of a step, whatever the number of real ranks, which "
        "must divide it; 0 for one per rank",
    )
    seed: int = Field(default=0, description="of the order of structures")
    weights: WeightConfig = WeightConfig()


class Stream:
    """Training batches of one split of a converted data set, for one rank or one virtual rank."""

    num_virtual_ranks = 1

    def __init__(
        self,
        folder: Path | str,
        config: StreamConfig,
        *,
        cutoff: float,
        levels_of_theory: list[str],
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        dtype: torch.dtype = torch.float32,
        weights: SharedWeights | None = None,
    ) -> None:
        """Open a data set.

        cutoff: of the neighbour lists, A.
        levels_of_theory: heads of the model, in their order.
        dtype: precision of labels that need not be exact.
        weights: importance weights that other virtual ranks share; they are fitted once.

        Raises BrokenDataSetError for a folder that is not a converted data set.
        """
        self.folder = Path(folder)
        self.config = config
        self.split = split
        self.rank = rank
        self.world_size = world_size
        self.cutoff = cutoff
        self.levels = levels_of_theory
        self.dtype = dtype
        self.blocks = BlockReader(folder, split)
        self.windows_per_epoch = -(-len(self.blocks) // config.window_blocks)
        self.progress = StreamState()
        self.shared_weights = weights or SharedWeights()
        # no window of this rank below the cursor is unfinished
        self._cursor = rank

    @property
    def weights(self) -> ElementWeights:
        """Importance weights, fitted to the data at the first use."""
        # virtual ranks share them, and each prepares its batches in a thread
        with self.shared_weights.lock:
            if self.shared_weights.fitted is None:
                self.shared_weights.fitted = fit_weights(
                    self.folder, self.split, self.config.weights, self.blocks
                )
            return self.shared_weights.fitted

    @property
    def epoch(self) -> int:
        """The epoch of this rank's next batch, from 0."""
        return self._next_window() // self.windows_per_epoch

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

    def state(self) -> dict[str, Any]:
        """The state of this rank, JSON-ready, below 10 kB.

        It holds the weights, because fitting them again would delay every resume.
        """
        return self.progress.to_dict() | {"weights": self.weights.to_dict()}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Continue from the states of all ranks, whose number may have been another."""
        self.progress = StreamState.merge(states)
        self._cursor = self.rank
        self.shared_weights.fitted = ElementWeights.from_dict(states[0]["weights"])

    def window(self, number: int) -> Iterator[Structure]:
        """The structures of a window, copied by weight and shuffled."""
        epoch, place = divmod(number, self.windows_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.blocks))
        first = place * self.config.window_blocks
        chosen = order[first : first + self.config.window_blocks]
        blocks = [self.blocks.block(int(index)) for index in chosen]

        # rows of each block, those with several copies repeated
        rows: list[np.ndarray] = []
        for block in blocks:
            copies = np.ones(len(block), dtype=np.int64)
            if self.config.weights.sampling and self.config.weights.beta > 0:
                weights = self.weights(block.atomic_numbers, block.starts)
                copies = num_copies(weights, block.structure_ids, self.config.seed, epoch)
            rows.append(np.repeat(np.arange(len(block)), copies))

        owners = np.repeat(np.arange(len(blocks)), [len(own) for own in rows])
        generator = np.random.default_rng([self.config.seed, epoch, place])
        shuffled = generator.permutation(len(owners))
        # lists: Python's own integers index a block three times as fast
        shuffled_owners = owners[shuffled].tolist()
        shuffled_rows = np.concatenate(rows)[shuffled].tolist()
        for owner, row in zip(shuffled_owners, shuffled_rows, strict=True):
            yield blocks[owner].structure(row)

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
                    file=self.folder,
                    remedy="raise stream.edge_budget and stream.atom_budget",
                )

    def _join(self, graphs: list[Batch]) -> Batch:
        """One batch; page-locked if there is a GPU, so that copying overlaps with computing."""
        batch = Batch.join(graphs)
        return batch.pin_memory() if torch.cuda.is_available() else batch

    def _packed(self, window: int) -> Iterator[list[Batch]]:
        config = self.config
        graphs: Iterator[Batch] = map(self._graph, self.window(window))
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
            stacklevel=2,
        )
        return False

    def _graph(self, structure: Structure) -> Batch:
        element_weight = self.weights.per_element() if self.config.weights.loss else None
        return Batch.from_structure(structure, self.cutoff, self.levels, self.dtype, element_weight)


class SharedWeights:
    """The importance weights of one data set, once for all virtual ranks of a process."""

    def __init__(self) -> None:
        self.fitted: ElementWeights | None = None
        self.lock = threading.Lock()


def fit_weights(
    folder: Path | str, split: str, config: WeightConfig, blocks: BlockReader
) -> ElementWeights:
    """Fit weights to the counts of the census and the elements of up to FITTED_BLOCKS blocks."""
    counts = np.zeros(NUM_ELEMENTS)
    for symbol, row in read_census(folder)["per_element"].items():
        counts[atomic_numbers[symbol]] = row["structures"].get(split, 0)
    return ElementWeights.fit(counts, blocks.element_lists(FITTED_BLOCKS), config)


def _mark_last(items: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Each item, and whether it is the last."""
    held = next(items, None)
    while held is not None:
        following = next(items, None)
        yield held, following is None
        held = following
