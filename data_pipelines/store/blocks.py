"""Blocks: the row groups of a data set's shards, read in any order and decoded without copies.

They are read with pyarrow and not with Hugging Face `datasets`. A stream that shuffles blocks opens
one block at a time, and with `datasets` opening a block takes five times as long as reading it
(docs/decisions/0003).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.labels import LABELS, Label
from ..structure import Structure
from .shards import (
    ARROW_SCHEMA,
    CONVERT_AGAIN,
    BrokenDataSetError,
    changed_shard,
    check_schema,
    refuse_excess,
    scan_shard,
    shard_paths,
    shard_sums,
)


OPEN_SHARDS = 32


class Block:
    """The decoded structures of a table; each Structure is created on demand, from views.

    The arrays of all structures are concatenated: atomic_numbers (N,) and positions (N, 3), with N
    atoms in all structures together. `starts` (S + 1,) are the offsets of the structures.
    """

    def __init__(self, table: pa.Table) -> None:
        self.num_structures = table.num_rows
        self.atomic_numbers, self.starts = _flat(table, "atomic_numbers", np.int64)
        positions, _ = _flat(table, "positions", np.float32)
        cell, _ = _flat(table, "cell", np.float64)
        pbc, _ = _flat(table, "pbc", np.bool_)
        self._positions = positions.reshape(-1, 3)
        self._cell = cell.reshape(-1, 3, 3)
        self._pbc = pbc.reshape(-1, 3)
        self._labels = [
            _read_label(table, label)
            for label in LABELS.values()
            if label.name in table.column_names
        ]
        # via numpy, which is twice as fast as to_pylist()
        self.structure_ids: list[str] = table["structure_id"].to_numpy().tolist()
        self._groups: list[str] = table["group"].to_numpy().tolist()
        self.levels: np.ndarray = table["level_of_theory"].to_numpy().astype(object)
        self._levels: list[str] = self.levels.tolist()
        # slicing with Python integers is three times as fast as with numpy integers
        self._bounds = self.starts.tolist()

    def __len__(self) -> int:
        return self.num_structures

    def structure(self, k: int) -> Structure:
        """The k-th structure. Its arrays are views into the block and must not be modified."""
        first = self._bounds[k]
        last = self._bounds[k + 1]
        labels = {}
        for column in self._labels:
            value = column.value(k)
            if value is not None:
                labels[column.name] = value

        # the __init__ of a frozen dataclass would take as long as everything else here together
        structure = object.__new__(Structure)
        fields = {
            "atomic_numbers": self.atomic_numbers[first:last],
            "positions": self._positions[first:last],
            "cell": self._cell[k],
            "pbc": self._pbc[k],
            "level_of_theory": self._levels[k],
            "structure_id": self.structure_ids[k],
            "group": self._groups[k],
            "labels": labels,
            "split": None,
        }
        object.__setattr__(structure, "__dict__", fields)
        return structure

    def __iter__(self) -> Iterator[Structure]:
        return map(self.structure, range(self.num_structures))


class _ScalarColumn:
    """A label with one number per structure."""

    def __init__(self, table: pa.Table, label: Label) -> None:
        self.name = label.name
        # numpy turns null into NaN, the only number that differs from itself
        numbers = table[label.name].to_numpy().tolist()
        self._values = [None if number != number else number for number in numbers]

    def value(self, k: int) -> float | None:
        return self._values[k]


class _ArrayColumn:
    """A label with an array per atom or structure; values are views into one large array."""

    def __init__(self, table: pa.Table, label: Label) -> None:
        self.name = label.name
        self._per_atom = label.per == "atom"
        values, offsets = _flat(table, label.name, np.dtype(label.storage))
        self._values = values.reshape(-1, *label.tensor_shape)
        # Arrow's offsets count numbers; bounds count values of 3^rank numbers each
        self._bounds = (offsets // 3**label.rank).tolist()

    def value(self, k: int) -> np.ndarray | None:
        first = self._bounds[k]
        last = self._bounds[k + 1]
        if first == last:
            return None
        if self._per_atom:
            return self._values[first:last]
        return self._values[first]


def _read_label(table: pa.Table, label: Label) -> _ScalarColumn | _ArrayColumn:
    # an energy is a plain column, everything else is a column of lists
    if label.shape(1) == ():
        return _ScalarColumn(table, label)
    return _ArrayColumn(table, label)


class BlockReader:
    """Random access to the blocks of one split of a converted data set."""

    def __init__(self, folder: Path | str, split: str) -> None:
        self._rows: list[tuple[Path, int]] = []
        self.sizes: list[int] = []
        """Number of structures in each block."""
        # the number of open shards is limited, because a parsed footer takes 0.1 MB
        self._open = lru_cache(maxsize=OPEN_SHARDS)(_open)
        for path in shard_paths(folder, split):
            file = self._open(path)
            check_schema(file.schema_arrow, path)
            for group in range(file.num_row_groups):
                self._rows.append((path, group))
                self.sizes.append(file.metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return len(self._rows)

    def table(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """Read one block as an Arrow table. Raises BrokenDataSetError for a damaged shard."""
        path, group = self._rows[index]
        names = columns or ARROW_SCHEMA.names
        try:
            sums = shard_sums(path)
            file = self._open(path)
            if sums is not None and not sums.blocks_are_right(file.metadata, [group]):
                raise changed_shard(path)
            # no threads, because the stream already runs in several processes
            return file.read_row_group(group, columns=names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None

    def block(self, index: int) -> Block:
        """Read and decode one block. Raises BrokenDataSetError for a damaged shard."""
        return Block(self.table(index))

    def sample(self, number: int, most_blocks: int = 64) -> Iterator[Structure]:
        """Yield at least `number` evenly spaced structures, if the blocks read have as many.

        At most `most_blocks` blocks are read, also evenly spaced.
        """
        chosen = _evenly_spaced(len(self), most_blocks)
        for index in chosen:
            block = self.block(index)
            per_block = math.ceil(number / len(chosen))
            yield from map(block.structure, _evenly_spaced(len(block), per_block))

    def element_lists(
        self, most: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield atomic numbers (N,), offsets of structures (S + 1,) and levels (S,) of each block.

        Only these columns are read.

        most: number of evenly spaced blocks to read; None for all.
        """
        for index in _evenly_spaced(len(self), most or len(self)):
            table = self.table(index, ["atomic_numbers", "level_of_theory"])
            numbers, starts = _flat(table, "atomic_numbers", np.uint8)
            yield numbers, starts, table["level_of_theory"].to_numpy().astype(object)


def iter_structures(folder: Path | str, split: str) -> Iterator[Structure]:
    """Yield all structures of one split in file order.

    This is meant for evaluation; training uses the stream. Raises BrokenDataSetError.
    """
    for path in shard_paths(folder, split):
        for table in scan_shard(path):
            yield from Block(table)


def _evenly_spaced(total: int, most: int) -> list[int]:
    """At most `most` evenly spaced indices below `total`."""
    number = min(total, most)
    return [k * total // number for k in range(number)]


def _open(path: Path) -> pq.ParquetFile:
    """Open a shard after verifying its footer. Raises BrokenDataSetError if it is damaged."""
    try:
        sums = shard_sums(path)
        if sums is not None and not sums.footer_is_right():
            raise changed_shard(path)
        file = pq.ParquetFile(path)
        # raises for column names that are not valid text
        file.schema_arrow  # noqa: B018
        refuse_excess(file.metadata, path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return file


def _damaged(path: Path, error: Exception) -> BrokenDataSetError:
    reason = " ".join(str(error).split())
    return BrokenDataSetError(f"shard cannot be read ({reason})", file=path, remedy=CONVERT_AGAIN)


def _flat(table: pa.Table, name: str, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated values of a list column, and the offsets (S + 1,) of its rows.

    A null row becomes empty.
    """
    column = _chunk(table, name)
    offsets = column.offsets.to_numpy()
    # the column may be a slice of a longer array
    own = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    values = own.to_numpy(zero_copy_only=False)
    return values.astype(dtype, copy=False), offsets - offsets[0]


def _chunk(table: pa.Table, name: str) -> pa.ListArray:
    column = table[name]
    if column.num_chunks == 1:
        return column.chunk(0)
    if column.num_chunks == 0:
        return pa.array([], type=column.type)
    return pa.concat_arrays(column.chunks)
