"""Parquet files on disk, behind a URL or on the hub, read with Arrow.

One reader handles the layouts in which structures are published: flat, nested, fixed-size and
extension columns; structs, whose fields have dotted names; element symbols instead of atomic
numbers; any number type; and null labels, which become missing labels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ase.data import atomic_numbers as symbol_to_number

from ...core.labels import LABELS
from ..store.parquet_limits import MOST_LETTERS, excess_of, excess_of_rows, shared_texts
from ..store.shards import ARROW_SCHEMA
from ..structure import BadRecordError
from .config import GEOMETRY, TEXTS, SourceConfig
from .label_names import PER_ATOM, REFERENCE_LEVEL, LookAlike, look_alike
from .locations import SourceError, open_binary
from .records import Record
from .source_format import Part, SourceFormat


ROWS_AT_ONCE = 512  # in memory
# a map is not among them, because it has keys
LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)

# a table with all of these is a shard of a converted data set
OWN_COLUMNS = tuple(name for name in ARROW_SCHEMA.names if name not in LABELS)


class Parquet(SourceFormat):
    """Parquet tables. From a remote file, only the byte ranges of the needed columns are read."""

    suffixes = (".parquet",)
    is_table = True

    def parts(self, name: str, records_per_part: int) -> list[Part]:
        """Runs of whole row groups, with at most `records_per_part` rows or a single row group."""
        with open_binary(name) as file:
            parquet = _open(file, name)
            sizes = _group_sizes(parquet.metadata)
        # a row group is the smallest unit that Parquet reads, so parts never divide one
        parts = []
        start = 0
        stop = 0
        for size in sizes:
            is_empty = stop == start
            if not is_empty and stop + size - start > records_per_part:
                parts.append(Part(name, start, stop))
                start = stop
            stop += size
        if stop > start:
            parts.append(Part(name, start, stop))
        return parts

    def records(
        self, part: Part, config: SourceConfig
    ) -> Iterator[tuple[int, Record | BadRecordError]]:
        """Yield the index and record of each row; see `SourceFormat.records`."""
        with open_binary(part.name) as file:
            parquet = _open(file, part.name)
            schema = parquet.schema_arrow
            columns = _Columns.of(schema, part.name, config)
            groups, index = _overlapping_groups(parquet.metadata, part)
            # Arrow reads whole columns; fields of structs are extracted later
            roots = {_root(schema, path) for path in columns.paths}
            last = part.last
            if last is None:
                last = parquet.metadata.num_rows
            parquet = _within_limits(parquet, file, part.name, groups, roots)
            batches = parquet.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=sorted(roots))
            try:
                for batch in batches:
                    table = pa.Table.from_batches([batch])
                    for record in _records(table, columns, config):
                        # the first and last row group may extend beyond the part
                        if part.first <= index < last:
                            yield index, record
                        index += 1
            except BadRecordError as error:
                # raised for a whole column: errors of single rows are yielded
                raise SourceError(
                    error.message, file=part.name, record=index, remedy=error.remedy
                ) from None
            except (pa.ArrowException, OSError) as error:
                raise SourceError(
                    f"cannot be read after row {index} ({_one_line(error)})",
                    file=part.name,
                    remedy="fetch or write it again",
                ) from None


def _within_limits(
    parquet: pq.ParquetFile, file: IO[bytes], name: str, groups: list[int], roots: set[str]
) -> pq.ParquetFile:
    """Reopen the file if needed, so that a text shared by many rows is in memory only once.

    Raises SourceError if row groups would unpack to far more than their size in the file.
    """
    metadata = parquet.metadata
    excess = excess_of(metadata, groups, roots)
    if excess is not None:
        raise SourceError(excess, file=name, remedy="write it again, in smaller row groups")
    texts = shared_texts(metadata, groups, roots)
    if not texts:
        return parquet
    return pq.ParquetFile(file, metadata=metadata, pre_buffer=True, read_dictionary=texts)


def _open(file: IO[bytes], name: str) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises SourceError if it is damaged, or states more rows than a file of its size can have.
    """
    try:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        num_bytes = file.seek(0, os.SEEK_END)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"not a whole Parquet file ({_one_line(error)})",
            file=name,
            remedy="fetch or write it again",
        ) from None
    excess = excess_of_rows(parquet.metadata, num_bytes)
    if excess is not None:
        raise SourceError(excess, file=name, remedy="write it again, with one row per structure")
    return parquet


def _one_line(error: Exception) -> str:
    words = str(error).split()
    return " ".join(words)


def _group_sizes(metadata: pq.FileMetaData) -> list[int]:
    """Number of rows in each row group."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return [group.num_rows for group in groups]


def _overlapping_groups(metadata: pq.FileMetaData, part: Part) -> tuple[list[int], int]:
    """The row groups that overlap a part, and the index of the first row in them."""
    groups: list[int] = []
    first_row = part.first
    start = 0
    for group, size in enumerate(_group_sizes(metadata)):
        stop = start + size
        begins_before = part.last is None or start < part.last
        if begins_before and stop > part.first:
            if not groups:
                first_row = start
            groups.append(group)
        start = stop
    return groups, first_row


# --- which columns


@dataclass(frozen=True)
class _Columns:
    """The columns to read, as dotted paths that may lead into structs."""

    fields: dict[str, list[str]]
    """Field of a structure -> paths; each row uses the first one that has a value."""

    extra: set[str]
    """Paths of masks and filters, and of the reference level of theory."""

    unread: tuple[LookAlike, ...]
    """Columns that look like labels but are not read."""

    @property
    def paths(self) -> set[str]:
        paths = set(self.extra)
        for of_field in self.fields.values():
            paths.update(of_field)
        return paths

    @classmethod
    def of(cls, schema: pa.Schema, name: str, config: SourceConfig) -> _Columns:
        """Choose the columns of a file.

        Raises SourceError, which lists the columns of the file, if a needed column is missing, has
        the wrong type, or if no label would be read.
        """
        # columns from the config must exist; the usual names are only tried
        fields = {field: config.names_of(field) for field in config.columns}
        tried = ["cell", "pbc", *TEXTS]
        if set(OWN_COLUMNS) <= set(schema.names):
            # a shard of a converted data set, whose units are known
            tried = [*ARROW_SCHEMA.names, *tried]
        for field in tried:
            if field in schema.names:
                fields.setdefault(field, [field])
        # a structure needs these, so the table must have them
        for field in ("atomic_numbers", "positions"):
            fields.setdefault(field, [field])

        # setting -> paths, at least one of which must exist
        wanted = {f"columns.{field}": paths for field, paths in fields.items()}
        extra = {f"masks.{label}": [path] for label, path in config.masks.items()}
        for path in config.filters:
            extra[f"filters.{path}"] = [path]
        known = ", ".join(schema.names)
        for setting, paths in (wanted | extra).items():
            if not any(_exists(schema, path) for path in paths):
                raise SourceError(
                    f"no column '{paths[0]}' for {setting}; the file has: {known}", file=name
                )
        present = {}
        for field, paths in fields.items():
            present[field] = [path for path in paths if _exists(schema, path)]
            _refuse_wrong_type(schema, field, present[field], name)
        others = {path for paths in extra.values() for path in paths}

        if config.reference_columns:
            # their units are defined, so the config need not name these columns
            for label, columns in config.label_columns.items():
                known_here = [one.name for one in columns if one.name in schema.names]
                named = [column for column in known_here if column in config.named_label_columns]
                if named and label not in present:
                    present[label] = named
            if REFERENCE_LEVEL in schema.names:
                others.add(REFERENCE_LEVEL)
        # labels are never read by name alone, because a name does not define a unit
        if not any(label in present for label in LABELS):
            raise SourceError(
                f"the settings name no column of a label; the file has: {known}",
                file=name,
                remedy="name one with its unit, as in columns.energy=E units.energy=eV",
            )
        found = cls(present, others, ())
        roots = {_root(schema, path) for path in found.paths}
        return replace(found, unread=_look_alikes(schema, roots))


def _look_alikes(schema: pa.Schema, read: set[str]) -> tuple[LookAlike, ...]:
    """Columns outside `read` whose names and types look like labels."""
    found = []
    for field in schema:
        seen = look_alike(field.name)
        if seen is None or field.name in read:
            continue
        kind, depth = _below_lists(field.type)
        label = LABELS[seen.label]
        is_scalar = label.shape(1) == ()
        if seen.form == "component":
            is_scalar = label.per == "structure"
        is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        if is_number and is_scalar == (depth == 0):
            found.append(seen)
        elif is_number and is_scalar and depth == 1 and seen.form != "component":
            # a list of scalars: energies of atoms
            name = PER_ATOM.format(seen.column)
            found.append(LookAlike(name, seen.label, seen.unit, False, "per atom"))
    return tuple(found)


def _refuse_wrong_type(schema: pa.Schema, field: str, paths: list[str], name: str) -> None:
    """Raise SourceError if, by its type in the schema, none of a field's columns can hold it.

    Without this check, every single row would be refused.
    """
    is_vector = field in LABELS and LABELS[field].rank > 0
    if not paths or (field not in GEOMETRY and not is_vector):
        return
    kinds = [_leaf_type(schema, path) for path in paths]
    if any(kind is not None and kind[1] > 0 and _can_hold(kind[0], field) for kind in kinds):
        return

    found = schema.field(_root(schema, paths[0])).type
    raise SourceError(
        f"column '{paths[0]}' has type {found}, and {field} must be lists of numbers",
        file=name,
        remedy=f"name another column with columns.{field}, or write one list per row",
    )


def _can_hold(kind: pa.DataType, field: str) -> bool:
    """Whether values of an Arrow type can belong to a field."""
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    if is_number or pa.types.is_boolean(kind):
        # booleans pass here, because the check of each row has a better message for them
        return True
    if field == "atomic_numbers":
        # element symbols
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    # a null is a missing label or a missing cell
    return field != "positions" and bool(pa.types.is_null(kind))


def _below_lists(kind: pa.DataType) -> tuple[pa.DataType, int]:
    """The type inside of lists, extensions and dictionaries, and the number of nested lists."""
    depth = 0
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif any(is_list(kind) for is_list in LISTS):
            kind = kind.value_type
            depth += 1
        else:
            return kind, depth


def _leaf_type(schema: pa.Schema, path: str) -> tuple[pa.DataType, int] | None:
    """The type of a column's values and how many lists enclose them; None without the column."""
    root = _root(schema, path)
    if root not in schema.names:
        return None
    kind, depth = _below_lists(schema.field(root).type)
    for name in _inside(root, path):
        # structs may be inside lists
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind, more = _below_lists(kind.field(name).type)
        depth += more
    return kind, depth


def _root(schema: pa.Schema, path: str) -> str:
    """The column that a path begins with. A column's own name may contain dots."""
    if path in schema.names:
        return path
    return path.split(".")[0]


def _inside(root: str, path: str) -> list[str]:
    """The struct fields that lead from the column `root` to the values."""
    if root == path:
        return []
    return path.split(".")[1:]


def _exists(schema: pa.Schema, path: str) -> bool:
    """Whether the file has the column and the struct fields that the path names."""
    return _leaf_type(schema, path) is not None


# --- from rows to records


def _records(
    table: pa.Table, columns: _Columns, config: SourceConfig
) -> Iterator[Record | BadRecordError]:
    """Yield the record of each row of a table, or the row's error."""
    arrays: dict[str, dict[str, _Rows]] = {}
    for field in (*GEOMETRY, *LABELS):
        if field in columns.fields:
            arrays[field] = {path: _Rows(table, path) for path in columns.fields[field]}

    # one value per row, as Python objects
    plain = set(columns.extra)
    for field in TEXTS:
        plain.update(columns.fields.get(field, []))
    values = {}
    for path in plain:
        column = _Rows(table, path)
        values[path] = column.scalars()

    for row in range(table.num_rows):
        info = {path: column[row] for path, column in values.items()}
        try:
            yield _record(row, arrays, info, config, columns.unread)
        except BadRecordError as error:
            yield error


def _record(
    row: int,
    arrays: dict[str, dict[str, _Rows]],
    info: dict[str, Any],
    config: SourceConfig,
    unread: tuple[LookAlike, ...],
) -> Record:
    numbers = _elements(_first_value(arrays, "atomic_numbers", row))
    num_atoms = len(numbers)
    positions = _floats(_first_value(arrays, "positions", row), "positions", 3 * num_atoms)
    for column in arrays.get("positions", {}).values():
        _refuse_transposed(column, row, "positions", (num_atoms, 3))
    cell = _cell(arrays, row)

    # by the name of the source's column, for both per-structure and per-atom values
    named: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for name, label in LABELS.items():
        for path, column in arrays.get(name, {}).items():
            value = column.row(row)
            if value is not None and label.per == "atom":
                # `value` is flat, whatever its shape in the file
                shape = label.shape(num_atoms)
                _refuse_transposed(column, row, name, shape)
                numbers_of_label = _floats(value, name, math.prod(shape))
                value = numbers_of_label.reshape(shape)
            named[path] = value
            if path == name and name not in config.columns:
                # a label of a converted data set
                labels[name] = value
    return Record(
        atomic_numbers=numbers,
        positions=positions.reshape(-1, 3),
        cell=cell,
        pbc=_pbc(arrays, row, cell),
        info=named | info,
        arrays=named,
        recognised=labels,
        unread=unread,
    )


def _refuse_transposed(column: _Rows, row: int, field: str, shape: tuple[int, ...]) -> None:
    """Raise BadRecordError if a row's innermost lists do not hold one atom's values each.

    For example, three lists with the x, y and z of all atoms have the right number of values in
    the wrong order. A single list of all values, and a single atom, are unambiguous and pass.

    shape: (N, ...), the shape that the field should have.
    """
    widths = column.widths(row)
    num_atoms = shape[0]
    if len(shape) == 1 or len(widths) < 2 or num_atoms == 1:
        return
    if (widths != shape[-1]).any():
        raise BadRecordError(
            f"has {field} in lists of {widths.max()} numbers, and each atom has {shape[-1]}",
            remedy=f"give {field} of shape {shape}",
        )


def _first_value(arrays: dict[str, dict[str, _Rows]], field: str, row: int) -> np.ndarray | None:
    """The values of a row in the first of a field's columns that has any; None without."""
    for column in arrays.get(field, {}).values():
        values = column.row(row)
        if values is not None:
            return values
    return None


def _cell(arrays: dict[str, dict[str, _Rows]], row: int) -> np.ndarray:
    values = _first_value(arrays, "cell", row)
    if values is None:
        return np.zeros((3, 3))
    vectors = _floats(values, "cell", 9)
    return vectors.reshape(3, 3)


def _pbc(arrays: dict[str, dict[str, _Rows]], row: int, cell: np.ndarray) -> np.ndarray:
    """Periodic flags (3,); if the source states none, every nonzero lattice vector is periodic."""
    values = _first_value(arrays, "pbc", row)
    if values is None:
        return np.asarray(cell.any(axis=1))
    flags = _floats(values, "pbc", 3)
    return flags.astype(bool)


def _elements(values: np.ndarray | None) -> np.ndarray:
    """Atomic numbers (N,) int64, from numbers or element symbols. Raises BadRecordError."""
    if values is None:
        raise BadRecordError("has no atomic numbers", remedy="remove it from the file")
    if values.dtype.kind in "OU":
        for symbol in values:
            if symbol not in symbol_to_number:
                raise BadRecordError(
                    f"has element '{symbol}', which is not a symbol", remedy="correct or remove it"
                )
        found = [symbol_to_number[symbol] for symbol in values]
        return np.array(found, dtype=np.int64)

    # a null among the numbers is NaN here; it becomes 0, which check_elements refuses
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0)
    is_broken = numbers != np.rint(numbers)
    if is_broken.any():
        raise BadRecordError(
            "has atomic numbers that are not whole", remedy="check columns.atomic_numbers"
        )
    return numbers.astype(np.int64)


def _floats(values: np.ndarray | None, field: str, size: int) -> np.ndarray:
    """The values (size,) of a field as float64.

    Raises BadRecordError for any other number of values, for texts or ragged lists (arrays of
    Python objects), and for booleans in any field but pbc.
    """
    refused = "OU" if field == "pbc" else "OUb"
    if values is None or values.size != size or values.dtype.kind in refused:
        found = "none"
        if values is not None:
            found = "truth values for" if values.dtype.kind == "b" else str(values.size)
        raise BadRecordError(
            f"has {found} {field} instead of {size} numbers",
            remedy=f"check columns.{field} or remove it",
        )
    return values.astype(np.float64)


class _Rows:
    """The flattened values of a column, and the offsets at which each row begins and ends.

    Rows may hold their values in nested lists and structs of any depth.
    """

    def __init__(self, table: pa.Table, path: str) -> None:
        root = _root(table.schema, path)
        array = _as_one_array(table[root])

        # remove one layer of nesting at a time until plain values are left
        inside = _inside(root, path)
        offsets = np.arange(len(array) + 1)
        self._list_offsets = offsets
        self._list_lengths = np.zeros(0, dtype=np.int64)
        while True:
            if isinstance(array, pa.ExtensionArray):
                array = array.storage
            elif pa.types.is_dictionary(array.type):
                _refuse_long_texts(array, path)
                array = array.dictionary_decode()
            elif pa.types.is_struct(array.type) and inside:
                name = inside.pop(0)
                array = pc.struct_field(array, name)
            elif pa.types.is_nested(array.type) and not pa.types.is_struct(array.type):
                lengths = pc.list_value_length(array)
                lengths = pc.fill_null(lengths, 0)
                self._list_offsets = offsets
                self._list_lengths = lengths.to_numpy(zero_copy_only=False)
                ends = np.cumsum(self._list_lengths)
                # convert offsets in the lists to offsets in their values
                starts = np.concatenate([[0], ends])
                offsets = starts[offsets]
                # unlike `.values`, this leaves out values stored behind null rows
                array = pc.list_flatten(array)
            else:
                break

        self.values = array.to_numpy(zero_copy_only=False)
        self.is_null: np.ndarray | None = None
        if array.null_count:
            is_null = array.is_null()
            self.is_null = is_null.to_numpy(zero_copy_only=False)
        self.offsets = offsets

    def widths(self, index: int) -> np.ndarray:
        """The lengths of a row's innermost lists; empty for a column of plain values."""
        span = slice(self._list_offsets[index], self._list_offsets[index + 1])
        return self._list_lengths[span]

    def row(self, index: int) -> np.ndarray | None:
        """The flat values of a row; None if there are none or all are null."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        values = self.values[span]
        if len(values) == 0:
            return None
        if self.is_null is not None and self.is_null[span].all():
            return None
        return values

    def scalars(self) -> list[Any]:
        """One Python value per row, None if it is null; rows of several values give arrays."""
        found: list[Any] = []
        num_rows = len(self.offsets) - 1
        for values in map(self.row, range(num_rows)):
            if values is not None and len(values) == 1:
                found.append(values[0])
            else:
                found.append(values)
        return found


def _refuse_long_texts(array: pa.DictionaryArray, path: str) -> None:
    """Raise BadRecordError for a long text, which decoding would copy for each row that has it."""
    if not pa.types.is_string(array.dictionary.type) or not len(array.dictionary):
        return
    longest = pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    if longest > MOST_LETTERS:
        raise BadRecordError(
            f"has a text of {longest:,} bytes in column '{path}'; {MOST_LETTERS:,} are allowed",
            remedy="shorten it, or name another column",
        )


def _as_one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if not isinstance(array, pa.ChunkedArray):
        return array
    # for some types, combine_chunks returns a ChunkedArray of one chunk or none
    if array.num_chunks:
        return array.chunk(0)
    return pa.array([], type=array.type)
