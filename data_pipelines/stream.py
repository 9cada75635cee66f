"""The stream: converted shards -> weighted, shuffled, edge-budget batches, exact under resume.

Order, a function of (seed, epoch) alone:
  blocks (row groups) are permuted; `window_blocks` of them in a row make a window; a window's structures are
  copied by weight, shuffled and packed into batches; window g belongs to rank g % world_size.
State: which windows are finished and how many batches of the open one were used. It says nothing about ranks,
so another number of ranks takes up the rest and every structure is still seen exactly once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import IterableDataset, load_dataset
from pydantic import Field
from torch_geometric.data import Batch, Data

from .graphs import collate, structure_graph
from .schema import Structure
from .settings import Settings
from .shards import ARROW_SCHEMA, from_table, shard_paths
from .weights import ElementWeights, WeightConfig, num_copies


class StreamConfig(Settings):
    """Batch limits and order of a training stream."""

    edge_budget: int = Field(default=6000, gt=0, description="most edges in a batch")
    atom_budget: int = Field(default=256, gt=0, description="most atoms in a batch")
    window_blocks: int = Field(default=4, gt=0, description="blocks shuffled together")
    look_ahead: int = Field(default=32, gt=0, description="structures among which a batch is packed")
    seed: int = 0
    weights: WeightConfig = WeightConfig()


@dataclass
class StreamState:
    """Where a stream stands: epoch, finished windows, and batches used of each open window."""

    epoch: int = 0
    finished: set[int] = field(default_factory=set)
    used: dict[int, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the finished windows as ranges (first, last, step), which they nearly are."""
        return {"epoch": self.epoch, "finished": _to_ranges(self.finished), "used": dict(self.used)}

    @classmethod
    def merge(cls, states: list[dict[str, Any]]) -> StreamState:
        """The states of all ranks as one, which any number of ranks can go on from.

        A rank that has begun the next epoch while another has not cannot occur: epochs end on all ranks at once.
        """
        epoch = max(state["epoch"] for state in states)
        merged = cls(epoch)
        for state in states:
            if state["epoch"] == epoch:
                for first, last, step in state["finished"]:
                    merged.finished.update(range(first, last + 1, step))
                merged.used |= {int(window): used for window, used in state["used"].items()}
        return merged


def _to_ranges(numbers: set[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        first, last, step = ranges[-1] if ranges else (0, 0, 0)
        if ranges and (first == last or number == last + step):
            ranges[-1] = [first, number, number - last]
        else:
            ranges.append([number, number, 1])
    return ranges


class Stream:
    """Training batches of one split of a converted data set, for one rank."""

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
    ) -> None:
        self.config, self.rank, self.world_size = config, rank, world_size
        self.cutoff, self.levels, self.dtype = cutoff, levels_of_theory, dtype
        self.blocks = open_blocks(folder, split)
        self.weights = ElementWeights.fit(element_sets(self.blocks), config.weights)
        self.num_windows = -(-self.blocks.num_shards // config.window_blocks)
        self.state = StreamState()

    def epoch(self) -> Iterator[Batch]:
        """The rest of this rank's batches in the current epoch; advances `state` as each batch is taken.

        A thread prepares the next batches while the caller computes: Arrow, vesin and torch release the lock.
        """
        for batch, window, number, last in _prefetch(self._produce(), depth=4):
            self.state.used[window] = number + 1
            if last:
                self.state.finished.add(window)
                del self.state.used[window]
            yield batch

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.state = StreamState(epoch=self.state.epoch + 1)

    def _produce(self) -> Iterator[tuple[Batch, int, int, bool]]:
        epoch = self.state.epoch
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.blocks.num_shards)
        for window in range(self.rank, self.num_windows, self.world_size):
            if window in self.state.finished:
                continue
            first = window * self.config.window_blocks
            batches = self._window(order[first : first + self.config.window_blocks], epoch, window)
            skip = self.state.used.get(window, 0)
            for number, (batch, last) in enumerate(_mark_last(batches)):
                if number >= skip:
                    yield collate(batch), window, number, last

    def _window(self, blocks: np.ndarray, epoch: int, window: int) -> Iterator[list[Data]]:
        seed = self.config.seed
        structures = []
        for block in blocks:
            for structure in read_block(self.blocks, int(block)):
                weight = self.weights(structure) if self.config.weights.sampling else 1.0
                structures += [structure] * num_copies(weight, structure.structure_id, seed, epoch)
        shuffled = np.random.default_rng([seed, epoch, window]).permutation(len(structures))
        graphs = (self._graph(structures[k]) for k in shuffled)
        yield from pack(graphs, self.config.edge_budget, self.config.atom_budget, self.config.look_ahead)

    def _graph(self, structure: Structure) -> Data:
        weight = self.weights.per_element() if self.config.weights.loss else None
        return structure_graph(structure, self.cutoff, self.levels, self.dtype, weight)


def open_blocks(folder: Path | str, split: str) -> IterableDataset:
    """A split's shards as a Hugging Face stream with one HF shard per row group, in Arrow format."""
    files = [str(path) for path in shard_paths(folder, split)]
    stream = load_dataset("parquet", data_files={split: files}, split=split, streaming=True)
    return stream.reshard()


def read_block(blocks: IterableDataset, index: int, columns: list[str] | None = None) -> Iterator[Structure]:
    """The structures of one block."""
    for table in _block_tables(blocks, index, columns or ARROW_SCHEMA.names):
        yield from from_table(table)


def element_sets(blocks: IterableDataset) -> list[np.ndarray]:
    """Distinct elements of every structure; reads the one column that it needs."""
    sets = []
    for index in range(blocks.num_shards):
        for table in _block_tables(blocks, index, ["atomic_numbers"]):
            sets += [np.unique(z.as_py()) for z in table["atomic_numbers"]]
    return sets


def _block_tables(blocks: IterableDataset, index: int, columns: list[str]) -> Iterator[pa.Table]:
    block = blocks.shard(blocks.num_shards, index).select_columns(columns).with_format("arrow")
    yield from block.iter(batch_size=1 << 20)


def pack(graphs: Iterator[Data], edge_budget: int, atom_budget: int, look_ahead: int) -> Iterator[list[Data]]:
    """Fill batches up to both budgets, first fit in order among `look_ahead` waiting graphs.

    A graph that alone exceeds a budget makes a batch of its own.
    """
    waiting: list[Data] = []
    exhausted = False
    while True:
        batch: list[Data] = []
        edges = atoms = 0
        while True:
            while not exhausted and len(waiting) < look_ahead:
                graph = next(graphs, None)
                exhausted = graph is None
                waiting += [] if graph is None else [graph]
            fits = (
                k
                for k, g in enumerate(waiting)
                if not batch or (edges + g.num_edges <= edge_budget and atoms + g.num_nodes <= atom_budget)
            )
            k = next(fits, None)
            if k is None:
                break
            graph = waiting.pop(k)
            batch.append(graph)
            edges, atoms = edges + graph.num_edges, atoms + graph.num_nodes
        if not batch:
            return
        yield batch


def _mark_last(items: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    held = next(items, None)
    while held is not None:
        following = next(items, None)
        yield held, following is None
        held = following


def _prefetch(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Run an iterator in a thread, at most `depth` items ahead; its exceptions are raised here."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()
