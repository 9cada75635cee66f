"""Blocks: the row groups of a data set's shards, read in any order and decoded at the speed of Arrow.

pyarrow reads them, not `datasets`: opening one block of a Hugging Face stream costs five times what reading it does
(docs/decisions/0003), and a stream that shuffles blocks opens one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .schema import Structure
from .shards import ARROW_SCHEMA, BrokenDataSetError, shard_paths


class Block:
    """Decoded structures one after the other; a structure is made, as views, when it is asked for.

    Lists lie flat with offsets: atomic_numbers (sum N,), positions and forces (sum N, 3).
    """

    def __init__(self, table: pa.Table) -> None:
        self.num_structures = table.num_rows
        self.atomic_numbers, self.starts = _flat(table, "atomic_numbers", np.int64)
        self._positions = _flat(table, "positions", np.float32)[0].reshape(-1, 3)
        self._forces, self._force_starts = _flat(table, "forces", np.float32)
        self._cell = _flat(table, "cell", np.float64)[0].reshape(-1, 3, 3)
        self._pbc = _flat(table, "pbc", np.bool_)[0].reshape(-1, 3)
        self._stress, self._stress_starts = _flat(table, "stress", np.float64)
        self._has_forces = _valid(table, "forces")
        self._has_stress = _valid(table, "stress")
        self._energy = table["energy"].to_pylist()
        self.structure_ids: list[str] = table["structure_id"].to_pylist()
        self._groups: list[str] = table["group"].to_pylist()
        self._levels: list[str] = table["level_of_theory"].to_pylist()

    def __len__(self) -> int:
        return self.num_structures

    def structure(self, k: int) -> Structure:
        """The k-th structure; its arrays are views into the block, not to be written to."""
        first, last = self.starts[k], self.starts[k + 1]
        forces = stress = None
        if self._has_forces[k]:
            forces = self._forces[self._force_starts[k] : self._force_starts[k + 1]].reshape(-1, 3)
        if self._has_stress[k]:
            stress = self._stress[self._stress_starts[k] : self._stress_starts[k + 1]].reshape(3, 3)
        return Structure(
            self.atomic_numbers[first:last],
            self._positions[first:last],
            self._cell[k],
            self._pbc[k],
            self._levels[k],
            self.structure_ids[k],
            self._groups[k],
            self._energy[k],
            forces,
            stress,
        )

    def __iter__(self) -> Iterator[Structure]:
        return map(self.structure, range(self.num_structures))


class BlockReader:
    """Random access to the blocks of one split of a converted data set."""

    def __init__(self, folder: Path | str, split: str) -> None:
        self._rows: list[tuple[Path, int]] = []
        for path in shard_paths(folder, split):
            self._rows += [(path, group) for group in range(_open(path).num_row_groups)]

    def __len__(self) -> int:
        return len(self._rows)

    def table(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """One block as an Arrow table; raises BrokenDataSetError for a damaged shard."""
        path, group = self._rows[index]
        try:
            with _open(path) as file:
                return file.read_row_group(group, columns=columns or ARROW_SCHEMA.names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None

    def block(self, index: int) -> Block:
        """One block, decoded."""
        return Block(self.table(index))

    def element_lists(self, most: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Block by block: atomic numbers (sum N,) and where each structure begins (S + 1,); reads one column.

        At most `most` blocks, evenly spaced, when it is given.
        """
        for index in range(0, len(self), max(1, -(-len(self) // (most or len(self))))):
            yield _flat(self.table(index, ["atomic_numbers"]), "atomic_numbers", np.uint8)


def iter_structures(folder: Path | str, split: str) -> Iterator[Structure]:
    """All structures of one split in file order (for evaluation; training uses the stream)."""
    reader = BlockReader(folder, split)
    for index in range(len(reader)):
        yield from reader.block(index)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> BrokenDataSetError:
    reason = " ".join(str(error).split())
    return BrokenDataSetError(f"{path}: shard cannot be read ({reason}): convert the source again")


def _flat(table: pa.Table, name: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Values of a list column end to end, and the offsets (S + 1,) of its rows; a null row is empty."""
    column = _chunk(table, name)
    offsets = column.offsets.to_numpy()
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy(zero_copy_only=False)
    return values.astype(dtype, copy=False), offsets - offsets[0]


def _valid(table: pa.Table, name: str) -> list[bool]:
    return _chunk(table, name).is_valid().to_numpy(zero_copy_only=False).tolist()


def _chunk(table: pa.Table, name: str) -> pa.ListArray:
    column = table[name]
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
