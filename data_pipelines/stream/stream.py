"""The stream: converted shards -> weighted, shuffled, edge-budget batches, exact under resume, without end.

Order, a function of (seed, epoch) alone:
  blocks (row groups) are permuted; `window_blocks` of them in a row make a window; a window's structures are
  copied by weight, shuffled and packed into batches. Windows are numbered through all epochs, and window g belongs
  to rank g % world_size: no rank ever waits for another at the end of an epoch.
State: which windows are finished and how many batches of the open ones were used. It says nothing about ranks,
so another number of ranks takes up the rest and every structure still comes once (or as often as its weight says).
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


FITTED_BLOCKS = 512  # 131,072 structures fix the scale of the weights to some parts in a thousand


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
    lanes: int = Field(
        default=0,
        ge=0,
        description="batches of a step, whatever the number of ranks, which must divide it; 0 is one a rank",
    )
    seed: int = 0
    weights: WeightConfig = WeightConfig()


class Stream:
    """Training batches of one split of a converted data set, for one rank, or for one lane as if it were a rank."""

    num_lanes = 1

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
        """weights: those of another lane, which are then fitted once."""
        self.folder, self.config, self.split = Path(folder), config, split
        self.rank, self.world_size = rank, world_size
        self.cutoff, self.levels, self.dtype = cutoff, levels_of_theory, dtype
        self.blocks = BlockReader(folder, split)
        self.windows_per_epoch = -(-len(self.blocks) // config.window_blocks)
        self.progress = StreamState()
        self._cursor = rank  # no window of this rank below it is unfinished
        self.shared_weights = weights or SharedWeights()

    @property
    def weights(self) -> ElementWeights:
        """Importance weights, fitted to the data when first asked for."""
        with self.shared_weights.lock:  # the threads of several lanes ask at once
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
        """This rank's batches from where it stands on, epoch after epoch; the state advances as each is taken.

        A thread prepares the next ones while the caller computes: Arrow, vesin and torch release the lock.
        """
        for batch, window, used, last in prefetch(self._produce(), depth=4):
            self.progress.used[window] = used
            if last:
                self.progress.finish(window)
            if batch is not None:
                yield batch

    def state(self) -> dict[str, Any]:
        """Where this rank stands, JSON-ready, below 10 kB; with the weights, so that a resume starts at once."""
        return self.progress.to_dict() | {"weights": self.weights.to_dict()}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Go on from the states of all ranks, of which there may have been another number."""
        self.progress, self._cursor = StreamState.merge(states), self.rank
        self.shared_weights.fitted = ElementWeights.from_dict(states[0]["weights"])

    def window(self, number: int) -> Iterator[Structure]:
        """The structures of a window, copied by weight and shuffled."""
        epoch, place = divmod(number, self.windows_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.blocks))
        first = place * self.config.window_blocks
        blocks = [
            self.blocks.block(int(k)) for k in order[first : first + self.config.window_blocks]
        ]
        rows: list[np.ndarray] = []
        for block in blocks:
            copies = np.ones(len(block), dtype=np.int64)
            if self.config.weights.sampling and self.config.weights.beta > 0:
                weights = self.weights(block.atomic_numbers, block.starts)
                copies = num_copies(weights, block.structure_ids, self.config.seed, epoch)
            rows.append(np.repeat(np.arange(len(block)), copies))
        owner = np.repeat(np.arange(len(blocks)), [len(own) for own in rows])
        shuffled = np.random.default_rng([self.config.seed, epoch, place]).permutation(len(owner))
        for index, row in zip(
            owner[shuffled].tolist(), np.concatenate(rows)[shuffled].tolist(), strict=True
        ):
            yield blocks[index].structure(row)

    def _next_window(self) -> int:
        while self.progress.is_finished(self._cursor):
            self._cursor += self.world_size
        return self._cursor

    def _produce(self) -> Iterator[tuple[Batch | None, int, int, bool]]:
        """(batch, window, batches of the window used with this one, is it the last); None for an empty window."""
        start = StreamState(
            list(self.progress.finished), dict(self.progress.used)
        )  # a copy: the caller's advances
        empty = 0
        for window in itertools.count(self._next_window(), self.world_size):
            if start.is_finished(window):
                continue
            number = 0
            for number, (graphs, last) in enumerate(_mark_last(self._packed(window)), start=1):
                if number > start.used.get(window, 0):
                    yield self._collate(graphs), window, number, last
            if number == 0:  # its structures have no copies in this epoch, or none fits the budget
                yield None, window, 0, True
            empty = 0 if number else empty + 1
            if empty > 2 * self.windows_per_epoch:
                raise ValueError(
                    f"{self.folder}: no structure is within the budget of {self.config.edge_budget} edges and "
                    f"{self.config.atom_budget} atoms: raise stream.edge_budget and stream.atom_budget"
                )

    def _collate(self, graphs: list[Batch]) -> Batch:
        """The batch; in page-locked memory where there is a GPU, so that its copy overlaps with computing."""
        batch = Batch.join(graphs)
        return batch.pin_memory() if torch.cuda.is_available() else batch

    def _packed(self, window: int) -> Iterator[list[Batch]]:
        config = self.config
        graphs: Iterator[Batch] = map(self._graph, self.window(window))
        if config.oversized == "skip":
            graphs = (graph for graph in graphs if self._fits(graph))
        yield from pack(graphs, config.edge_budget, config.atom_budget, config.look_ahead)

    def _fits(self, graph: Batch) -> bool:
        fits = (
            graph.num_edges <= self.config.edge_budget
            and graph.num_atoms <= self.config.atom_budget
        )
        if not fits:
            warnings.warn(
                f"{graph.structure_ids[0]}: {graph.num_edges} edges, {graph.num_atoms} atoms are beyond the budget: left "
                "out; raise stream.edge_budget and stream.atom_budget, or set stream.oversized=alone",
                stacklevel=2,
            )
        return fits

    def _graph(self, structure: Structure) -> Batch:
        weight = self.weights.per_element() if self.config.weights.loss else None
        return Batch.from_structure(structure, self.cutoff, self.levels, self.dtype, weight)


class SharedWeights:
    """The importance weights of one data set, once for all lanes of a rank."""

    def __init__(self) -> None:
        self.fitted: ElementWeights | None = None
        self.lock = threading.Lock()


def fit_weights(
    folder: Path | str, split: str, config: WeightConfig, blocks: BlockReader
) -> ElementWeights:
    """Weights from the census's counts and the elements of up to 131,072 structures, evenly drawn."""
    counts = np.zeros(NUM_ELEMENTS)
    for symbol, row in read_census(folder)["per_element"].items():
        counts[atomic_numbers[symbol]] = row["structures"].get(split, 0)
    return ElementWeights.fit(counts, blocks.element_lists(FITTED_BLOCKS), config)


def _mark_last(items: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    held = next(items, None)
    while held is not None:
        following = next(items, None)
        yield held, following is None
        held = following
