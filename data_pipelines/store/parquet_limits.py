"""Limits on the unpacked size of a Parquet file, checked in its footer before decoding.

Parquet compresses equal values to almost nothing. 50 million equal atoms take a few kB on disk, and
a long text that all rows share is stored only once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow.parquet as pq


# Real structures compress to about a fifth, because positions hardly repeat. A file that unpacks to
# more than MOST_UNPACKED times its size, plus an allowance (bytes) for small row groups, was made
# to fill the memory.
MOST_UNPACKED = 200
ALLOWANCE = 64 << 20
BYTES_PER_VALUE = 8
# bytes of an identifier, a group or a level of theory
MOST_LETTERS = 100_000
# A structure takes more than one byte, however well it compresses. The allowance is for small
# tables, whose rows may all be equal.
ROWS_PER_BYTE = 1
ROWS_OF_SMALL_TABLES = 20_000


def excess_of(
    metadata: pq.FileMetaData, groups: Iterable[int], columns: Collection[str]
) -> str | None:
    """A message if reading these columns of some row groups would take too much memory, or None."""
    indices = _leaves(metadata, columns)
    for group in groups:
        row_group = metadata.row_group(group)
        packed = 0
        unpacked = 0
        for index in indices:
            leaf = row_group.column(index)
            packed += leaf.total_compressed_size
            # a run of equal values is a single entry on disk, but an array in memory
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
    """A message if a file of `num_bytes` bytes states implausibly many rows, or None.

    `excess_of` does not find this: each of thousands of small row groups may hold a million equal
    rows.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    num_rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    if num_rows > ROWS_OF_SMALL_TABLES + ROWS_PER_BYTE * num_bytes:
        return f"has {num_rows:,} rows in {num_bytes:,} bytes, more than structures can be"
    return None


def shared_texts(
    metadata: pq.FileMetaData, groups: Iterable[int], columns: Collection[str]
) -> list[str]:
    """Paths of text columns with potentially long texts that many rows share.

    Read as dictionaries, they stay small in memory, so their lengths can be checked.
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
    """Indices of the leaf columns of some columns."""
    schema = metadata.schema
    found = []
    for index in range(metadata.num_columns):
        path = schema.column(index).path
        # the name of a column may contain dots
        if path in columns or any(path.startswith(f"{name}.") for name in columns):
            found.append(index)
    return found
