"""What a Parquet file may unpack to: limits from its footer, before any of it is decoded.

Parquet packs equal values into almost nothing. 50 million equal atoms take some kB on a disk, and
a long text that all rows share is stored once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow.parquet as pq


# Real structures pack to a fifth or so, because positions hardly repeat. Beyond this share of the
# packed size, plus some for small row groups, a file was made to fill the memory.
MOST_UNPACKED = 200
ALLOWANCE = 64 << 20
BYTES_PER_VALUE = 8
# letters of an identifier, a group or a level of theory
MOST_LETTERS = 100_000
# A structure takes more than a byte, however well it packs. Small tables may be all alike.
ROWS_PER_BYTE = 1
ROWS_OF_SMALL_TABLES = 20_000


def excess_of(
    metadata: pq.FileMetaData, groups: Iterable[int], columns: Collection[str]
) -> str | None:
    """What is wrong with the size of some row groups when these columns are read, or None."""
    indices = _leaves(metadata, columns)
    for group in groups:
        row_group = metadata.row_group(group)
        packed = 0
        unpacked = 0
        for index in indices:
            leaf = row_group.column(index)
            packed += leaf.total_compressed_size
            # a run of equal values is one entry of its page, and an array in memory
            num_values = max(leaf.num_values, row_group.num_rows)
            size = leaf.total_uncompressed_size
            unpacked += max(BYTES_PER_VALUE * num_values, size)
            if leaf.physical_type == "BYTE_ARRAY" and size > MOST_LETTERS * max(num_values, 1):
                return (
                    f"row group {group} has texts of {size:,} bytes in {num_values} values of "
                    f"{leaf.path_in_schema}"
                )
        limit = ALLOWANCE + MOST_UNPACKED * max(packed, 0)
        if unpacked > limit:
            return f"row group {group} unpacks to {unpacked:,} bytes from {packed:,}"
    return None


def excess_of_rows(metadata: pq.FileMetaData, num_bytes: int) -> str | None:
    """What is wrong with the number of rows in a file of so many bytes, or None.

    A row group may be small, and each of thousands of them may hold a million equal rows.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    num_rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    if num_rows > ROWS_OF_SMALL_TABLES + ROWS_PER_BYTE * num_bytes:
        return f"has {num_rows:,} rows in {num_bytes:,} bytes, more than structures can be"
    return None


def shared_texts(
    metadata: pq.FileMetaData, groups: Iterable[int], columns: Collection[str]
) -> list[str]:
    """Paths of texts that are stored once for many rows, and that may be long.

    Read as dictionaries they stay small, so that their lengths can be looked at.
    """
    indices = _leaves(metadata, columns)
    found = set()
    for group in groups:
        row_group = metadata.row_group(group)
        for index in indices:
            leaf = row_group.column(index)
            is_text = leaf.physical_type == "BYTE_ARRAY"
            if is_text and leaf.has_dictionary_page and leaf.total_uncompressed_size > MOST_LETTERS:
                found.add(leaf.path_in_schema)
    return sorted(found)


def _leaves(metadata: pq.FileMetaData, columns: Collection[str]) -> list[int]:
    """Indices of the leaf columns below some columns."""
    schema = metadata.schema
    found = []
    for index in range(metadata.num_columns):
        path = schema.column(index).path
        # a column may have dots in its own name
        if path in columns or any(path.startswith(f"{name}.") for name in columns):
            found.append(index)
    return found
