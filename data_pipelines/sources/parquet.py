"""Parquet on disk, behind a URL or on the hub -> records, read at Arrow level.

One reader for what is found in the wild: flat, nested, fixed-size and extension columns, structs reached by dotted
names, element symbols instead of atomic numbers, any number type, and null labels, which become missing ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ase.data import atomic_numbers as symbol_to_number

from ...core.labels import LABELS
from ..store.shards import ARROW_SCHEMA
from ..structure import BadRecordError
from .config import GEOMETRY, TEXTS, SourceConfig
from .locations import SourceError, open_binary
from .records import Record
from .source_format import Part, SourceFormat


BATCH = 512  # rows that stand in memory at once


class Parquet(SourceFormat):
    """Tables; of a remote one only the byte ranges of the named columns are read."""

    suffixes = (".parquet",)
    is_table = True

    def parts(self, name: str, records_per_part: int) -> list[Part]:
        """Runs of whole row groups."""
        with open_binary(name) as file:
            return [Part(name, *rows) for rows in row_ranges(file, name, records_per_part)]

    def records(
        self, part: Part, config: SourceConfig
    ) -> Iterator[tuple[int, Record | BadRecordError]]:
        """Index and record of each row; see SourceFormat."""
        with open_binary(part.name) as file:
            yield from iter_table(file, part.name, config, part.first, part.last)


def row_ranges(file: IO[bytes], name: str, rows: int) -> list[tuple[int, int]]:
    """Runs of whole row groups of at most `rows` rows (one row group at least), as ranges of rows."""
    metadata = open_parquet(file, name).metadata
    ranges: list[tuple[int, int]] = []
    start = stop = 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if stop > start and stop + size - start > rows:
            ranges.append((start, stop))
            start = stop
        stop += size
    return [*ranges, (start, stop)] if stop > start else ranges


def open_parquet(file: IO[bytes], name: str) -> pq.ParquetFile:
    """The opened file; BadRecordError names one that is no whole Parquet file."""
    try:
        return pq.ParquetFile(file, pre_buffer=True)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"not a whole Parquet file ({_said(error)})",
            file=name,
            remedy="fetch or write it again",
        ) from None


def iter_table(
    file: IO[bytes], name: str, config: SourceConfig, first: int, last: int | None
) -> Iterator[tuple[int, Record | BadRecordError]]:
    """Row index and record of rows [first, last); a row whose geometry cannot be read is its error instead."""
    parquet = open_parquet(file, name)
    columns = _columns(parquet.schema_arrow, name, config)
    groups, index = _groups(parquet.metadata, first, last)
    stop = parquet.metadata.num_rows if last is None else last
    roots = sorted({_root(parquet.schema_arrow, path) for path in columns.values()})
    try:
        for batch in parquet.iter_batches(BATCH, row_groups=groups, columns=roots):
            for record in _records(pa.Table.from_batches([batch]), columns, config):
                if first <= index < stop:
                    yield index, record
                index += 1
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"cannot be read after row {index} ({_said(error)})",
            file=name,
            remedy="fetch or write it again",
        ) from None


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _groups(metadata: pq.FileMetaData, first: int, last: int | None) -> tuple[list[int], int]:
    """The row groups that overlap [first, last), and the row that the first of them begins with."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    stop = starts[-1] if last is None else last
    groups = [g for g in range(len(sizes)) if starts[g] < stop and starts[g + 1] > first]
    return groups, int(starts[groups[0]]) if groups else first


def _columns(schema: pa.Schema, name: str, config: SourceConfig) -> dict[str, str]:
    """Key -> column path of everything that is read; raises BadRecordError, with those there, for a missing column."""
    is_ours = set(ARROW_SCHEMA.names) <= set(schema.names)
    wanted = dict(config.columns)
    if is_ours:  # our own shards state their units by being ours
        wanted = {
            field: field
            for field in (*GEOMETRY, *LABELS, "level_of_theory", "structure_id", "group")
        } | wanted
    for field in ("atomic_numbers", "positions"):
        wanted.setdefault(field, field)
    for field in ("cell", "pbc", *TEXTS):
        if field in schema.names:
            wanted.setdefault(field, field)
    asked = {f"columns.{field}": path for field, path in wanted.items()}
    asked |= {f"masks.{label}": key for label, key in config.masks.items()}
    asked |= {f"filters.{key}": key for key in config.filters}
    for key, path in asked.items():
        if not _exists(schema, path):
            raise SourceError(
                f"no column '{path}' for {key}; the file has: {', '.join(schema.names)}", file=name
            )
    if not any(label in wanted for label in LABELS):
        raise SourceError(
            f"the settings name no column of a label; the file has: {', '.join(schema.names)}",
            file=name,
            remedy="name one with its unit, as in columns.energy=E units.energy=eV",
        )
    return asked


def _root(schema: pa.Schema, path: str) -> str:
    return path if path in schema.names else path.split(".")[0]


def _exists(schema: pa.Schema, path: str) -> bool:
    root = _root(schema, path)
    if root not in schema.names:
        return False
    kind = schema.field(root).type
    for part in [] if root == path else path.split(".")[1:]:
        while pa.types.is_nested(kind) and not pa.types.is_struct(kind):
            kind = kind.value_type
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return False
        kind = kind.field(part).type
    return True


def _records(
    table: pa.Table, columns: dict[str, str], config: SourceConfig
) -> Iterator[Record | BadRecordError]:
    wanted = {
        key.removeprefix("columns."): path
        for key, path in columns.items()
        if key.startswith("columns.")
    }
    rows = {field: _Rows(table, wanted[field]) for field in (*GEOMETRY, *LABELS) if field in wanted}
    plain = {path for key, path in columns.items() if not key.startswith("columns.")}
    plain |= {wanted[field] for field in TEXTS if field in wanted}
    info = {path: _Rows(table, path).scalars() for path in plain}
    for k in range(table.num_rows):
        try:
            yield _record(k, rows, {path: values[k] for path, values in info.items()}, config)
        except BadRecordError as error:
            yield error


def _record(k: int, rows: dict[str, _Rows], info: dict[str, Any], config: SourceConfig) -> Record:
    numbers = _elements(rows["atomic_numbers"].row(k))
    positions = _floats(rows["positions"].row(k), "positions", 3 * len(numbers)).reshape(-1, 3)
    cell = _cell(rows, k)
    labels: dict[str, Any] = {label: rows[label].row(k) for label in LABELS if label in rows}
    if labels.get("forces") is not None:
        labels["forces"] = _floats(labels["forces"], "forces", 3 * len(numbers)).reshape(-1, 3)
    named = {config.columns.get(label, label): value for label, value in labels.items()}
    return Record(
        numbers, positions, cell, _pbc(rows, k, cell), named | info, named, recognised=labels
    )


def _cell(rows: dict[str, _Rows], k: int) -> np.ndarray:
    values = rows["cell"].row(k) if "cell" in rows else None
    return np.zeros((3, 3)) if values is None else _floats(values, "cell", 9).reshape(3, 3)


def _pbc(rows: dict[str, _Rows], k: int, cell: np.ndarray) -> np.ndarray:
    """As the source says; without a word of it, periodic along every lattice vector that is not zero."""
    values = rows["pbc"].row(k) if "pbc" in rows else None
    return (
        np.asarray(cell.any(axis=1)) if values is None else _floats(values, "pbc", 3).astype(bool)
    )


def _elements(values: np.ndarray | None) -> np.ndarray:
    if values is None:
        raise BadRecordError("has no atomic numbers: remove it from the file")
    if values.dtype.kind in "OU":
        unknown = [symbol for symbol in values if symbol not in symbol_to_number]
        if unknown:
            raise BadRecordError(
                f"has element '{unknown[0]}', which is no symbol: correct or remove it"
            )
        return np.array([symbol_to_number[symbol] for symbol in values], dtype=np.int64)
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0)
    if (numbers != np.rint(numbers)).any():
        raise BadRecordError("has atomic numbers that are not whole: check columns.atomic_numbers")
    return numbers.astype(np.int64)


def _floats(values: np.ndarray | None, field: str, size: int) -> np.ndarray:
    if values is None or values.size != size or values.dtype.kind in "OU":
        found = "none" if values is None else f"{values.size}"
        raise BadRecordError(
            f"has {found} {field} where {size} numbers belong: check columns.{field} or remove it"
        )
    return values.astype(np.float64)


class _Rows:
    """The leaf values of a column, and where each row's begin and end, whatever lists and structs lie between."""

    def __init__(self, table: pa.Table, path: str) -> None:
        root = _root(table.schema, path)
        array = table[root].combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0) if array.num_chunks else pa.array([], type=array.type)
        parts = [] if root == path else path.split(".")[1:]
        offsets = np.arange(len(array) + 1)
        while True:
            if isinstance(array, pa.ExtensionArray):
                array = array.storage
            elif pa.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            elif pa.types.is_struct(array.type) and parts:
                array = pc.struct_field(array, parts.pop(0))
            elif pa.types.is_nested(array.type) and not pa.types.is_struct(array.type):
                lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(
                    zero_copy_only=False
                )
                offsets = np.concatenate([[0], np.cumsum(lengths)])[offsets]
                array = pc.list_flatten(array)  # leaves out what null rows hide
            else:
                break
        self.values = array.to_numpy(zero_copy_only=False)
        self.is_null = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
        self.offsets = offsets

    def row(self, k: int) -> np.ndarray | None:
        """The values of row k; None where there are none or all are null."""
        span = slice(self.offsets[k], self.offsets[k + 1])
        values = self.values[span]
        empty = not len(values) or (self.is_null is not None and self.is_null[span].all())
        return None if empty else values

    def scalars(self) -> list[Any]:
        """One Python value a row, None where null; a list column gives arrays."""
        rows = (self.row(k) for k in range(len(self.offsets) - 1))
        return [row if row is None or len(row) != 1 else row[0] for row in rows]
