"""One data set as the stream reads it: windows of shuffled structures, through all epochs.

The order of structures depends only on (seed, epoch). The blocks (Parquet row groups) are permuted,
and each run of `window_blocks` consecutive blocks forms a window. The structures of a window are
repeated according to their weights and shuffled.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_numbers

from ..batch import Batch
from ..census.census import NUM_ELEMENTS, read_census
from ..census.weights import LevelWeights, WeightConfig, has_element, num_copies
from ..store.blocks import Block, BlockReader
from ..structure import Structure
from .config import StreamConfig


# 512 blocks have 131,072 structures, which determine the scale of the weights to a few parts in a
# thousand
FITTED_BLOCKS = 512
# structures whose neighbours are counted to estimate the number of edges per atom
MEASURED_STRUCTURES = 256


class Source:
    """The structures of one split of a converted data set, in the order of training."""

    def __init__(
        self,
        folder: Path | str,
        config: StreamConfig,
        *,
        cutoff: float,
        levels_of_theory: list[str],
        split: str = "train",
        dtype: torch.dtype = torch.float32,
        weights: SharedWeights | None = None,
        only_level: str | None = None,
    ) -> None:
        """Open a data set.

        config: batch limits, order and weights of the stream.
        cutoff: cutoff of the neighbour lists, A.
        levels_of_theory: the model's heads, in order.
        split: the split to read.
        dtype: precision of labels that are not `exact` (see `core.labels`).
        weights: importance weights shared with other virtual ranks, so that they are fitted once.
        only_level: if given, structures of other levels of theory are left out. They still occupy
            positions (see `between`).

        Raises BrokenDataSetError if the folder is not a converted data set.
        """
        self.folder = Path(folder)
        self.only_level = only_level
        self.config = config
        self.split = split
        self.cutoff = cutoff
        self.levels = levels_of_theory
        self.dtype = dtype
        self.blocks = BlockReader(folder, split)
        self.windows_per_epoch = -(-len(self.blocks) // config.window_blocks)
        self.shared_weights = weights or SharedWeights()
        # cache of the last opened window, because callers read consecutive slices of one window
        self._opened: tuple[int, _OpenWindow] | None = None
        # cache of one epoch: its number, and the positions at which its windows begin
        self._starts: tuple[int, list[int]] | None = None

    @property
    def name(self) -> str:
        """Name of the source in a mixture: the folder, and the level if only one is read."""
        name = self.folder.name
        return name if self.only_level is None else f"{name}: {self.only_level}"

    @property
    def weights(self) -> LevelWeights:
        """Importance weights, fitted to the data on first use."""
        # locked, because virtual ranks share the weights and prepare their batches in threads
        with self.shared_weights.lock:
            if self.shared_weights.fitted is None:
                self.shared_weights.fitted = fit_weights(
                    self.folder, self.split, self.config.weights, self.blocks
                )
            return self.shared_weights.fitted

    @cached_property
    def num_structures(self) -> int:
        """Number of structures in an epoch, before they are repeated according to their weights."""
        return sum(self.blocks.sizes)

    def window(self, number: int) -> Iterator[Structure]:
        """Yield the structures of a window, repeated according to their weights and shuffled."""
        window = self._open(number)
        yield from window.structures(0, len(window))

    def graph(self, structure: Structure) -> Batch:
        """Make a batch of one structure, with its neighbours.

        Raises UnknownLevelError if its level of theory is not among the model's heads.
        """
        element_weight = None
        if self.config.weights.loss:
            element_weight = self.weights.of_level(structure.level_of_theory).per_element()
        return Batch.from_structure(structure, self.cutoff, self.levels, self.dtype, element_weight)

    def between(self, first: int, last: int) -> Iterator[tuple[float, Structure]]:
        """Yield the structures at positions [first, last), each with its own position.

        Positions count the structures of all epochs, window by window, before weights are applied.
        So the range of positions of a window is known without reading it. The weighted copies in a
        window are spread evenly over its positions, so that adjacent ranges contain every copy
        exactly once. The position of a copy may therefore be a fraction.
        """
        while first < last:
            epoch, place, start, size = self._window_at(first)
            end = min(last, start + size)
            window = self._open(epoch * self.windows_per_epoch + place)
            num_copies = len(window)
            if num_copies:
                first_copy = (first - start) * num_copies // size
                last_copy = (end - start) * num_copies // size
                structures = window.structures(first_copy, last_copy)
                for copy, structure in enumerate(structures, start=first_copy):
                    yield start + (copy + 0.5) * size / num_copies - 0.5, structure
            first = end

    def atoms_per_structure(self) -> float:
        """Mean number of atoms per structure, from up to FITTED_BLOCKS blocks."""
        atoms = 0
        structures = 0
        for numbers, starts, _ in self.blocks.element_lists(FITTED_BLOCKS):
            atoms += len(numbers)
            structures += len(starts) - 1
        return atoms / structures

    def edges_per_structure(self) -> float:
        """Mean number of edges per structure, estimated from MEASURED_STRUCTURES structures.

        The sample gives the number of edges per atom, which is then multiplied by the mean number
        of atoms. Edges per atom vary less than edges per structure, so a small sample is enough.
        """
        atoms = 0
        edges = 0
        for structure in self.blocks.sample(MEASURED_STRUCTURES):
            graph = self.graph(structure)
            atoms += graph.num_atoms
            edges += graph.num_edges
        return self.atoms_per_structure() * edges / atoms

    def _order(self, epoch: int) -> np.ndarray:
        """The order in which an epoch reads the blocks."""
        return np.random.default_rng([self.config.seed, epoch]).permutation(len(self.blocks))

    def _open(self, number: int) -> _OpenWindow:
        if self._opened is not None and self._opened[0] == number:
            return self._opened[1]
        # drop the old window first, so that two are never in memory together
        self._opened = None
        window = self._read(number)
        self._opened = (number, window)
        return window

    def _read(self, number: int) -> _OpenWindow:
        epoch, place = divmod(number, self.windows_per_epoch)
        first = place * self.config.window_blocks
        chosen = self._order(epoch)[first : first + self.config.window_blocks]
        blocks = [self.blocks.block(int(index)) for index in chosen]

        # rows of each block, repeated by their number of copies
        rows: list[np.ndarray] = []
        for block in blocks:
            copies = np.ones(len(block), dtype=np.int64)
            if self.config.weights.sampling and self.config.weights.beta > 0:
                weights = self.weights(block.atomic_numbers, block.starts, block.levels)
                copies = num_copies(weights, block.structure_ids, self.config.seed, epoch)
            if self.only_level is not None:
                copies = np.where(block.levels == self.only_level, copies, 0)
            rows.append(np.repeat(np.arange(len(block)), copies))

        owners = np.repeat(np.arange(len(blocks)), [len(own) for own in rows])
        generator = np.random.default_rng([self.config.seed, epoch, place])
        shuffled = generator.permutation(len(owners))
        return _OpenWindow(blocks, owners[shuffled], np.concatenate(rows)[shuffled])

    def _window_at(self, position: int) -> tuple[int, int, int, int]:
        """The window that holds a position: its epoch, index in the epoch, first position, size."""
        epoch, within = divmod(position, self.num_structures)
        if self._starts is None or self._starts[0] != epoch:
            sizes = np.array(self.blocks.sizes)[self._order(epoch)]
            bounds = np.concatenate([[0], np.cumsum(sizes)])
            # every window begins with a block, and the last one ends with the epoch
            starts = [*bounds[:-1][:: self.config.window_blocks].tolist(), self.num_structures]
            self._starts = (epoch, starts)
        starts = self._starts[1]
        place = bisect_right(starts, within) - 1
        first = epoch * self.num_structures + starts[place]
        return epoch, place, first, starts[place + 1] - starts[place]


class _OpenWindow:
    """The blocks of a window in memory, and the order of its structures."""

    def __init__(self, blocks: list[Block], owners: np.ndarray, rows: np.ndarray) -> None:
        self._blocks = blocks
        # lists, because Python integers index a block three times as fast as numpy's
        self._owners: list[int] = owners.tolist()
        self._rows: list[int] = rows.tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def structures(self, first: int, last: int) -> Iterator[Structure]:
        """Yield structures [first, last) of the window's order."""
        for place in range(first, last):
            yield self._blocks[self._owners[place]].structure(self._rows[place])


class SharedWeights:
    """The importance weights of one data set, shared by all virtual ranks of a process."""

    def __init__(self) -> None:
        self.fitted: LevelWeights | None = None
        self.lock = threading.Lock()


def fit_weights(
    folder: Path | str, split: str, config: WeightConfig, blocks: BlockReader
) -> LevelWeights:
    """Fit the weights of each level to its counts and to a sample of up to FITTED_BLOCKS blocks."""
    counts = _counts_by_level(folder, split, blocks)
    return LevelWeights.fit(counts, blocks.element_lists(FITTED_BLOCKS), config)


def _counts_by_level(folder: Path | str, split: str, blocks: BlockReader) -> dict[str, np.ndarray]:
    """Level of theory -> (119,) structures of the split that contain each element."""
    census = read_census(folder)
    levels = {
        name: row
        for name, row in census["levels_of_theory"].items()
        if row["structures"].get(split, 0)
    }
    counts = {name: np.zeros(NUM_ELEMENTS) for name in levels}
    if len(levels) == 1:
        (of_level,) = counts.values()
        for symbol, row in census["per_element"].items():
            of_level[atomic_numbers[symbol]] = row["structures"].get(split, 0)
        return counts

    if split == "train":
        for name, row in levels.items():
            for symbol, number in row["train_elements"].items():
                counts[name][atomic_numbers[symbol]] = number
        return counts

    # the census counts elements by level only for the train split
    for numbers, starts, of_structure in blocks.element_lists():
        present = has_element(numbers, starts)
        for name in np.unique(of_structure):
            counts[str(name)] += present[of_structure == name].sum(axis=0)
    return counts
